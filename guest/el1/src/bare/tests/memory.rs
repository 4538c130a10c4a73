//! The pattern in memory, and faults.
#![expect(unsafe_code, reason = "the address that faults has no safe form")]

use guest_protocol::request::Fill;

use super::{Verdict, absent, ensure, failed, message, test};
use crate::bare::{memory, vectors};

test!(damage_to_the_pattern_shows);
fn damage_to_the_pattern_shows() -> Verdict {
    if memory::verify().is_some() {
        return Err(absent(format_args!("memory is filled for something else")));
    }
    let order = Fill {
        seed: 7,
        mib: 1,
        changes_per_s: 0,
    };
    memory::fill(&order).map_err(|error| failed(format_args!("{error}")))?;
    for _ in 0..500 {
        memory::change();
    }
    let damaged = || memory::verify().map_or(u64::MAX, |memory| memory.damaged);
    let intact = damaged();
    memory::flip_a_bit();
    let one = damaged();
    memory::empty();
    ensure!(
        (intact, one) == (0, 1),
        "{intact} pages damaged, then {one}"
    );
    Ok(message(format_args!("256 pages, 500 changes")))
}

test!(a_fault_is_caught_and_stepped_over);
fn a_fault_is_caught_and_stepped_over() -> Verdict {
    const DATA_ABORT_AT_EL1: u64 = 0x25;
    let syndrome = vectors::catch(|| {
        // SAFETY: nothing is mapped there; the load faults and is stepped over.
        unsafe {
            core::arch::asm!("ldr {}, [{}]", out(reg) _, in(reg) 0x70_0000_0000_u64);
        }
    });
    let class = syndrome.map(|syndrome| syndrome >> 26);
    ensure!(
        class == Some(DATA_ABORT_AT_EL1),
        "the exception's class is {class:?}"
    );
    let quiet = vectors::catch(|| {});
    ensure!(quiet.is_none(), "a fault where there was none: {quiet:?}");
    Ok(message(format_args!(
        "syndrome {:#x}",
        syndrome.unwrap_or(0)
    )))
}
