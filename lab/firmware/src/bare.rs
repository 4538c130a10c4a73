#![expect(unsafe_code, reason = "it is assembly, with nothing of Rust in it")]

use core::arch::global_asm;
use core::panic::PanicInfo;

global_asm!(include_str!("start.s"));

/// Nothing can panic, but a program has to have one.
#[panic_handler]
fn panic(_: &PanicInfo) -> ! {
    loop {}
}
