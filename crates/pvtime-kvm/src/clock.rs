//! The host's clocks.
//!
//! Clocks that are compared with each other are read by one call that returns one value, so that
//! nobody subtracts readings of different moments.
#![expect(unsafe_code, reason = "adjtimex has no safe wrapper")]

use std::mem;

use pvtime::host::HostCount;
use pvtime::host::timeline::{HostSample, WallStandard};
use pvtime::scale::Frequency;
use rustix::time::{ClockId, Timespec, clock_gettime};

use crate::counter;

/// How often the clocks are read to get a reading that nothing interrupted.
const TRIES: usize = 5;

/// Reads the host's counter, which runs at `frequency`, and its clocks, close together: the reading
/// of several that took the least time.
#[must_use]
pub fn sample(frequency: Frequency) -> HostSample {
    (1..TRIES)
        .map(|_| read_once(frequency))
        .fold(read_once(frequency), |best, next| {
            if next.span_ns < best.span_ns {
                next
            } else {
                best
            }
        })
}

/// `CLOCK_BOOTTIME` in ns: the host's physical time.
#[must_use]
pub fn boottime_ns() -> u64 {
    nanoseconds(clock_gettime(ClockId::Boottime))
}

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
        wall_error_ns: wall_error_ns(),
        boottime_ns,
        monotonic_ns: before_ns,
        monotonic_raw_ns,
        span_ns: monotonic_ns() - before_ns,
    }
}

/// The kernel's bound on the error of `CLOCK_REALTIME` in ns, which whoever disciplines the clock
/// keeps and which grows by itself; all ones where the kernel does not say.
fn wall_error_ns() -> u64 {
    // SAFETY: timex is integers alone, for which zero is a value; modes 0 changes nothing.
    let mut timex: libc::timex = unsafe { mem::zeroed() };
    // SAFETY: the pointer is to a timex, which the call fills in.
    let result = unsafe { libc::adjtimex(&raw mut timex) };
    match u64::try_from(timex.maxerror) {
        Ok(error_us) if result >= 0 => error_us.saturating_mul(1_000),
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
    fn the_kernel_bounds_the_wall_clocks_error() {
        // Without a time daemon the bound rests at 16 s.
        assert!(wall_error_ns() <= 16_000_000_000, "{}", wall_error_ns());
    }
}
