//! The host's clocks.
//!
//! Clocks that are compared with each other are read by one call that returns one value, so that
//! nobody subtracts readings of different moments.
#![expect(unsafe_code, reason = "adjtimex has no safe wrapper")]

use std::mem;

use libc::c_int;
use pvtime::host::HostCount;
use pvtime::host::timeline::{HostSample, WallStandard};
use pvtime::scale::{Frequency, NS_PER_S};
use rustix::time::{ClockId, Timespec, clock_gettime};

use crate::counter;

/// How often the clocks are read to get a reading that nothing interrupted.
const TRIES: usize = 5;

/// Reads the host's counter, which runs at `frequency`, and its clocks, close together: the reading
/// of several that took the least time.
#[must_use]
pub fn sample(frequency: Frequency) -> HostSample {
    // The clocks need no call into the kernel; the bound on the wall clock's error does, and while a VM
    // stops its guest misses what it takes.
    let closest = read_closely(frequency, 0);
    HostSample {
        wall_error_ns: wall_error_ns(),
        ..closest
    }
}

/// The same a moment after `before`, for a guest that goes on at once and misses what passes after the
/// reading: the first that took no longer than that before, with its bound on the wall clock's error,
/// and what that bound grows by meanwhile.
#[must_use]
pub fn sample_again(before: &HostSample) -> HostSample {
    let again = read_closely(before.frequency, before.span_ns);
    let passed_ns = again
        .monotonic_raw_ns
        .saturating_sub(before.monotonic_raw_ns);
    HostSample {
        wall_error_ns: before
            .wall_error_ns
            .saturating_add(error_growth_ns(passed_ns)),
        ..again
    }
}

/// The first of several readings that took no longer than `enough_ns`, or else the one that took the
/// least time.
fn read_closely(frequency: Frequency, enough_ns: u64) -> HostSample {
    let mut closest = read_once(frequency);
    for _ in 1..TRIES {
        if closest.span_ns <= enough_ns {
            break;
        }
        let next = read_once(frequency);
        if next.span_ns < closest.span_ns {
            closest = next;
        }
    }
    closest
}

/// What the kernel adds to its bound on the wall clock's error as time passes: 500 ppm.
fn error_growth_ns(passed_ns: u64) -> u64 {
    passed_ns.div_ceil(2_000)
}

/// `CLOCK_BOOTTIME` in ns: the host's physical time.
#[must_use]
pub fn boottime_ns() -> u64 {
    nanoseconds(clock_gettime(ClockId::Boottime))
}

/// The counter and the clocks; how far the wall clock can be off is not known yet.
fn read_once(frequency: Frequency) -> HostSample {
    let monotonic_ns = || nanoseconds(clock_gettime(ClockId::Monotonic));
    let before_ns = monotonic_ns();
    let counter = HostCount(counter::read());
    let boottime_ns = boottime_ns();
    let monotonic_raw_ns = nanoseconds(clock_gettime(ClockId::MonotonicRaw));
    let wall_ns = nanoseconds(clock_gettime(ClockId::Realtime));
    HostSample {
        counter,
        frequency,
        wall_ns,
        wall_standard: WallStandard::Realtime,
        wall_error_ns: u64::MAX,
        boottime_ns,
        monotonic_ns: before_ns,
        monotonic_raw_ns,
        span_ns: monotonic_ns() - before_ns,
    }
}

/// The kernel's bound on the error of `CLOCK_REALTIME` in ns, which whoever disciplines the clock
/// keeps and which grows by itself, and the second more that a leap second makes; all ones where the
/// kernel does not say.
fn wall_error_ns() -> u64 {
    // SAFETY: timex is integers alone, for which zero is a value; modes 0 changes nothing.
    let mut timex: libc::timex = unsafe { mem::zeroed() };
    // SAFETY: the pointer is to a timex, which the call fills in.
    let result = unsafe { libc::adjtimex(&raw mut timex) };
    bound_ns(result, timex.status, timex.maxerror)
}

/// `state`, `status` and `maxerror` are adjtimex's.
fn bound_ns(state: c_int, status: c_int, maxerror_us: i64) -> u64 {
    let is_near_leap = matches!(state, libc::TIME_INS | libc::TIME_DEL)
        || matches!(state, libc::TIME_OOP | libc::TIME_WAIT)
        || status & (libc::STA_INS | libc::STA_DEL) != 0;
    let leap_ns = if is_near_leap { NS_PER_S } else { 0 };
    match u64::try_from(maxerror_us) {
        Ok(error_us) if state >= 0 => error_us.saturating_mul(1_000).saturating_add(leap_ns),
        _ => u64::MAX,
    }
}

/// # Panics
///
/// On a time before 1970 or after 2554, which no Linux clock shows.
pub(crate) fn nanoseconds(time: Timespec) -> u64 {
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
    fn clocks_that_are_read_together_agree_within_their_span() {
        let frequency = Frequency::from_hz(1_000_000_000).unwrap();
        let first = sample(frequency);
        let second = sample(frequency);
        assert!(second.monotonic_ns >= first.monotonic_ns + first.span_ns);
        let monotonic_ns = second.monotonic_ns - first.monotonic_ns;
        let boottime_ns = second.boottime_ns - first.boottime_ns;
        assert!(monotonic_ns.abs_diff(boottime_ns) <= first.span_ns + second.span_ns);
        assert!(
            second.counter.since(first.counter) < u64::MAX / 2,
            "the counter went back"
        );
    }

    #[test]
    fn a_second_sample_is_later_and_its_error_bound_no_smaller() {
        let frequency = Frequency::from_hz(1_000_000_000).unwrap();
        let first = HostSample {
            wall_error_ns: 7,
            ..sample(frequency)
        };
        let second = sample_again(&first);
        assert!(second.monotonic_ns > first.monotonic_ns);
        let passed_ns = second.monotonic_raw_ns - first.monotonic_raw_ns;
        assert_eq!(second.wall_error_ns, 7 + passed_ns.div_ceil(2_000));
        assert_eq!([0, 1, 2_000, 2_001].map(error_growth_ns), [0, 1, 1, 2]);
        let unbounded = HostSample {
            wall_error_ns: u64::MAX,
            ..first
        };
        assert_eq!(sample_again(&unbounded).wall_error_ns, u64::MAX);
    }

    #[test]
    fn the_bound_covers_a_leap_second_that_is_near() {
        for state in [libc::TIME_OK, libc::TIME_ERROR] {
            assert_eq!(bound_ns(state, libc::STA_PLL, 16), 16_000);
            for status in [libc::STA_INS, libc::STA_DEL] {
                assert_eq!(bound_ns(state, status, 16), 1_000_016_000);
            }
        }
        for state in [
            libc::TIME_INS,
            libc::TIME_DEL,
            libc::TIME_OOP,
            libc::TIME_WAIT,
        ] {
            assert_eq!(bound_ns(state, 0, 16), 1_000_016_000, "{state}");
        }
        assert_eq!(bound_ns(-1, libc::STA_INS, 16), u64::MAX);
        assert_eq!(bound_ns(0, 0, -1), u64::MAX);
        assert_eq!(bound_ns(0, libc::STA_INS, i64::MAX), u64::MAX);
    }

    #[test]
    fn the_kernel_bounds_the_wall_clocks_error() {
        // Without a time daemon the bound rests at 16 s.
        assert!(wall_error_ns() <= 16_000_000_000, "{}", wall_error_ns());
    }
}
