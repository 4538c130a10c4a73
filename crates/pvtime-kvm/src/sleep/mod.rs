//! What keeps a guest from running on a clock that nobody has set right since the host slept.
//!
//! Vcpu threads enter the guest on a [`Lease`] that ends a moment from now, by `CLOCK_BOOTTIME`,
//! which runs through every kind of sleep. One thread renews it, again and again; where that one
//! gets no CPU in time, a vCPU's thread does which knows that itself it ran. When the host sleeps, or
//! all threads of the VMM are stopped, nobody can: the lease ends, the thread that renews it finds
//! out how long that lasted, has the VM's time set right, and only then renews.
//!
//! ```text
//! renewed                 ended: no way in                    set right, renewed
//!    |----- lease ----------|                                    |----- lease ---
//!    |   | the host sleeps  :    ...   | it wakes | all vCPUs out |
//!         <------------------ not run ------------------------->
//! ```
//!
//! A thread that looked at the lease, and was stopped before it was in the guest, would not look
//! again. So each has a timer that ends with its lease: the signal is there when the thread goes
//! on, and its handler runs before the thread's next instruction. Hence **no guest instruction runs
//! later than the end of the lease**, but for the time that a timer's interrupt takes. Nothing that
//! is hidden from the guest's counters begins before that, so that no counter goes back. An interrupt
//! that was due in a stop and is taken after it, because its CPU is not run by a host above, leaves
//! that thread without its signal until the kick of the correction.

mod lease;
#[cfg(any(target_arch = "aarch64", test))]
mod silence;
mod timer;

pub use lease::Lease;
#[cfg(target_arch = "aarch64")]
pub(crate) use silence::{Activity, Silence};

use std::time::Duration;

/// How often the lease is renewed.
pub const BEAT: Duration = Duration::from_millis(10);

/// For how long. A stop that is shorter than this stays in the guest's counters.
pub const TERM: Duration = Duration::from_nanos(TERM_NS);
const TERM_NS: u64 = 50_000_000;

/// How long after the end of its lease a vCPU may still be in the guest: what a timer's interrupt,
/// the signal and the way out take on a busy machine. The way back in is taken to be no longer.
pub const MARGIN: Duration = Duration::from_nanos(MARGIN_NS);
const MARGIN_NS: u64 = 10_000_000;

/// What of a stop stays in the guest's counters, at most: what is hidden is certain, and begins
/// when the lease has ended and everybody is out. What the way back in takes comes on top.
pub const BOUND: Duration = Duration::from_nanos(TERM_NS + MARGIN_NS);
