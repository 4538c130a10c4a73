//! The end, when something cannot be mended.

use core::fmt::Arguments;
use core::panic::PanicInfo;

use guest_protocol::report::{Bye, ByeReason, Error, ErrorKind};
use guest_protocol::{Body, MAX_LINE, Report, clip};

use super::machine::{Conduit, machine};
use super::{port, registers};

/// Reports what cannot be mended, and powers off.
pub fn stop(reason: Arguments<'_>) -> ! {
    let mut message = guest_protocol::heapless::String::<256>::new();
    // What does not fit is cut off.
    let _ = core::fmt::write(&mut message, reason);
    let error = Error {
        kind: ErrorKind::Failed,
        message: clip(&message),
    };
    report(Body::Error(error));
    report(Body::Bye(Bye {
        reason: ByeReason::Failed,
    }));
    power_off()
}

fn report(body: Body) {
    let mut line = [0; MAX_LINE];
    if let Ok(length) = Report::new(body).emit(&mut line) {
        port::send(&line[..length]);
    }
}

/// Turns the machine off.
pub fn power_off() -> ! {
    // What is returned is a refusal, and there is nobody left to tell.
    let _ = match machine().map(|machine| machine.conduit) {
        Some(Conduit::Smc) => smccc::psci::system_off::<smccc::Smc>(),
        _ => smccc::psci::system_off::<smccc::Hvc>(),
    };
    loop {
        registers::wait_for_event();
    }
}

/// Resets the machine.
pub fn reset() -> ! {
    // As above.
    let _ = match machine().map(|machine| machine.conduit) {
        Some(Conduit::Smc) => smccc::psci::system_reset::<smccc::Smc>(),
        _ => smccc::psci::system_reset::<smccc::Hvc>(),
    };
    power_off()
}

#[panic_handler]
fn panic(panic: &PanicInfo<'_>) -> ! {
    port::seize();
    stop(format_args!("{panic}"))
}
