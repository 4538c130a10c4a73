//! What a guest does: finds the interfaces, reads them, keeps time with them.
//!
//! | To | Use |
//! |---|---|
//! | find the time calls, and the addresses that they return | [`PvTime`] over a [`Conduit`] |
//! | know how long this CPU waited for the host | [`StolenTimeReader`] |
//! | charge a task for what it ran, and not for what was stolen | [`VirtualTime`] |
//! | have a clock whose rate outlives a migration, and timers on it | [`LiveClock`] over a [`Counter`] |
//! | learn that the VM was paused, and for how long | [`PausedTimeReader`], [`PauseTracker`] |
//! | know real time and its error, and that the VM was cloned or moved | [`VmClockReader`] |
//!
//! Nothing here allocates or calls an operating system. Mapping memory is the caller's:
//! [`MappedWords`](crate::seqlock::MappedWords) takes it from there.

#[cfg(target_arch = "aarch64")]
pub mod arm64;
mod counter;
mod discovery;
mod error;
mod live_clock;
mod paused_time;
mod stolen_time;
mod virtual_time;
mod vmclock;
#[cfg(target_arch = "x86_64")]
pub mod x86_64;

pub use counter::Counter;
pub use discovery::{Conduit, DiscoveryError, PvTime, smccc_version};
pub use error::GuestError;
pub use live_clock::LiveClock;
pub use paused_time::{PauseTracker, PausedTimeReader, UnseenPauses};
pub use stolen_time::{MOMENTS, Moment, StolenTimeReader};
pub use virtual_time::{Elapsed, VirtualTime};
pub use vmclock::{RealTime, Utc, VmClockReader};
