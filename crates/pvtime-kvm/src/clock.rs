//! The host's clocks.
//!
//! Clocks that are compared with each other are read by one call that returns one value, so that
//! nobody subtracts readings of different moments.

use rustix::time::{ClockId, Timespec, clock_gettime};
use serde::Serialize;

/// `CLOCK_MONOTONIC` in ns: physical time, save that it stands still while the host sleeps.
#[must_use]
pub fn monotonic_ns() -> u64 {
    nanoseconds(clock_gettime(ClockId::Monotonic))
}

/// The host's clocks, read close together, in ns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct HostClocks {
    /// `CLOCK_MONOTONIC`, read first.
    pub monotonic_ns: u64,
    /// `CLOCK_BOOTTIME`: monotonic plus the time that the host slept.
    pub boottime_ns: u64,
    /// `CLOCK_REALTIME`: UTC as the host believes it.
    pub realtime_ns: u64,
    /// How long the readings took, and so the most by which two of them can disagree.
    pub window_ns: u64,
}

impl HostClocks {
    /// Reads the clocks a few times and keeps the reading that took the least time.
    #[must_use]
    pub fn read() -> Self {
        const FURTHER_TRIES: usize = 3;
        (0..FURTHER_TRIES)
            .map(|_| Self::read_once())
            .fold(Self::read_once(), |best, next| {
                if next.window_ns < best.window_ns {
                    next
                } else {
                    best
                }
            })
    }

    fn read_once() -> Self {
        let monotonic_ns = monotonic_ns();
        let boottime_ns = nanoseconds(clock_gettime(ClockId::Boottime));
        let realtime_ns = nanoseconds(clock_gettime(ClockId::Realtime));
        let window_ns = self::monotonic_ns() - monotonic_ns;
        Self {
            monotonic_ns,
            boottime_ns,
            realtime_ns,
            window_ns,
        }
    }
}

/// # Panics
///
/// On a time before 1970 or after 2554, which no Linux clock shows.
fn nanoseconds(time: Timespec) -> u64 {
    let seconds = u64::try_from(time.tv_sec).expect("a clock after 1970");
    let nanoseconds = u64::try_from(time.tv_nsec).expect("a normalized timespec");
    seconds
        .checked_mul(1_000_000_000)
        .expect("a clock before 2554")
        + nanoseconds
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_read_together_differ_by_less_than_their_window() {
        let first = HostClocks::read();
        let second = HostClocks::read();
        assert!(second.monotonic_ns >= first.monotonic_ns + first.window_ns);
        let monotonic = second.monotonic_ns - first.monotonic_ns;
        let boottime = second.boottime_ns - first.boottime_ns;
        assert!(monotonic.abs_diff(boottime) <= first.window_ns + second.window_ns);
    }
}
