//! Tests that the guest runs on itself. Each registers itself with [`test!`], says what it found,
//! and leaves the guest able to go on.
#![expect(
    clippy::result_large_err,
    reason = "there is no allocator to box a sentence with, and a test returns once"
)]

mod calls;
mod clocks;
mod memory;
mod pages;
mod suspend;
mod timers;
mod widths;

use core::fmt::Arguments;

use guest_protocol::heapless::String;
use linkme::distributed_slice;

/// A test.
pub struct Test {
    /// Its name in reports.
    pub name: &'static str,
    /// Runs it on the first CPU.
    pub run: fn() -> Verdict,
}

/// What was measured, or why it did not pass.
pub type Verdict = Result<Message, NotPassed>;

/// One sentence.
pub type Message = String<256>;

/// A test that did not pass.
pub enum NotPassed {
    /// Something is wrong.
    Failed(Message),
    /// The machine lacks what is tested.
    Absent(Message),
}

/// Every test that registered itself.
#[distributed_slice]
pub static ALL: [Test];

/// A sentence; what does not fit is cut off.
fn message(arguments: Arguments<'_>) -> Message {
    let mut message = String::<1024>::new();
    let _ = core::fmt::write(&mut message, arguments);
    guest_protocol::clip(&message)
}

fn failed(arguments: Arguments<'_>) -> NotPassed {
    NotPassed::Failed(message(arguments))
}

fn absent(arguments: Arguments<'_>) -> NotPassed {
    NotPassed::Absent(message(arguments))
}

/// Fails the test that it stands in, with a sentence, unless the condition holds.
macro_rules! ensure {
    ($condition:expr, $($sentence:tt)*) => {
        if !$condition {
            return Err($crate::bare::tests::failed(format_args!($($sentence)*)));
        }
    };
}

/// Registers a function as a test of its own name.
macro_rules! test {
    ($name:ident) => {
        #[expect(
            unsafe_code,
            reason = "the linker collects the tests in a section of their own"
        )]
        const _: () = {
            #[linkme::distributed_slice($crate::bare::tests::ALL)]
            static TEST: $crate::bare::tests::Test = $crate::bare::tests::Test {
                name: stringify!($name),
                run: $name,
            };
        };
    };
}

use ensure;
use test;
