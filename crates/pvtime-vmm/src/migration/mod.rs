//! A VM that moves to another host while it runs.
//!
//! # The stream
//!
//! Both sides begin with a magic number and a version. Everything after it is
//! frames: kind, length, number, checksum, contents. A frame's checksum begins with that of the
//! frame before it, so that the last one is the checksum of the whole stream.
//!
//! ```text
//! source                                destination
//!   Offer ─────────────────────────────▶  what the VM needs
//!         ◀───────────────────────────── Answer, accepted or with every reason against it
//!   Round, Memory*, Zero* … ───────────▶  copied while the guest runs, some rounds
//!   Round ─────────────────────────────▶
//!   (stops the VM)
//!   Memory*, Zero* ────────────────────▶  what changed since
//!   Machine, Time ─────────────────────▶  makes a machine that is stopped
//!         ◀───────────────────────────── Ready
//!   (gives the VM away)
//!   Commit ────────────────────────────▶  lets the VM go on
//!         ◀───────────────────────────── Started, with what was done to its time
//! ```
//!
//! The source may send `Abort` until it has given the VM away, and the destination `Failed` until
//! it has started it: whoever says so does not run the VM.
//!
//! # Who owns the VM
//!
//! The source does, until it has sent `Commit`; the destination does, once it has received it. A
//! connection that ends between `Ready` and `Started` leaves a side that cannot know: it keeps the
//! VM stopped and [in doubt](ownership::Ownership), and an operator decides. `docs/migration.md`
//! says what each failure leaves.
//!
//! # Time limits
//!
//! Each message has a deadline, there are at most [`MAX_ROUNDS`] of memory, and all of them have the
//! time that the slowest acceptable connection takes for [what has come](budget::Budget). A source
//! that looks through memory that is zero says so now and then. No length is believed: what a message
//! may hold is limited by its kind and by the offer, and memory for it is taken as it arrives.

pub mod address;
pub mod budget;
pub mod dirty;
pub mod frame;
pub mod message;
pub mod monitor;
pub mod ownership;
pub mod pace;
pub mod receive;
pub mod report;
pub mod send;
pub mod tls;
pub mod transport;
pub mod wire;

use std::time::Duration;

/// The most rounds of memory; the last is that of the stopped VM.
pub const MAX_ROUNDS: u32 = 32;

/// Longest wait for a message that takes no work.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// Longest wait for the other side to have made or started a machine.
pub const WORK_PATIENCE: Duration = Duration::from_secs(30);

/// Longest wait for the first words of whoever connects, while nobody else is heard.
pub const HELLO_PATIENCE: Duration = Duration::from_secs(5);

/// Longest time for which a source sends nothing while it looks through memory.
pub const LONGEST_SILENCE: Duration = Duration::from_secs(1);

/// The slowest that a source looks through memory that is zero, in bytes per second.
pub const SLOWEST_ZEROS_PER_S: u64 = 16 << 20;

/// The slowest connection over which memory is received, in bytes per second.
pub const SLOWEST_BYTES_PER_S: u64 = 64 << 10;

#[cfg(test)]
mod tests;
