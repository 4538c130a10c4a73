//! Everything a host's clocks say at one moment.

use super::TimelineError;
use crate::host::HostCount;
use crate::scale::{Frequency, NS_PER_S, Rounding};
use core::fmt;

/// What a wall clock counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WallStandard {
    /// `CLOCK_REALTIME`: UTC, which repeats a second at each leap second.
    Realtime,
    /// `CLOCK_TAI`, which never does.
    Tai,
}

impl fmt::Display for WallStandard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Realtime => "REALTIME",
            Self::Tai => "TAI",
        })
    }
}

/// A host's counter and clocks, read together.
///
/// Nanoseconds are since each clock's own start: 1970 for the wall clock, the host's boot for the
/// others. Only the wall clock means anything on another host. A host without the clocks of Linux,
/// which never sleeps, gives its counter in nanoseconds for all three of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostSample {
    /// The counter.
    pub counter: HostCount,
    /// Its nominal frequency.
    pub frequency: Frequency,
    /// The wall clock.
    pub wall_ns: u64,
    /// What the wall clock counts.
    pub wall_standard: WallStandard,
    /// How far the wall clock may be from true time, either way.
    pub wall_error_ns: u64,
    /// `CLOCK_BOOTTIME`: runs while the host sleeps.
    pub boottime_ns: u64,
    /// `CLOCK_MONOTONIC`: does not.
    pub monotonic_ns: u64,
    /// `CLOCK_MONOTONIC_RAW`: does not either, and nobody adjusts its rate.
    pub monotonic_raw_ns: u64,
    /// All of it was read within this time.
    pub span_ns: u64,
}

/// What the host's counter did between two samples.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CounterRun {
    /// It counted all the time, through any sleep.
    Through,
    /// It stood still while the host slept.
    AwakeOnly,
    /// It started anew, or jumped.
    Restarted,
}

/// The counter and `CLOCK_MONOTONIC_RAW` go by nominal frequencies, of one oscillator or two: they
/// differ by less than one part in this.
pub(super) const DRIFT: u64 = 1_000;

impl HostSample {
    /// Nanoseconds that the host slept since `earlier`: how much `CLOCK_BOOTTIME` gained on
    /// `CLOCK_MONOTONIC`. Correct to the two samples' spans, in both directions.
    pub(super) fn slept_ns_since(&self, earlier: &Self) -> i128 {
        let gained =
            |sample: &Self| i128::from(sample.boottime_ns) - i128::from(sample.monotonic_ns);
        gained(self) - gained(earlier)
    }

    /// The time in which the two samples were taken.
    pub(super) const fn spans_ns(&self, other: &Self) -> u64 {
        self.span_ns.saturating_add(other.span_ns)
    }

    /// What the counter did since `earlier`, as the clocks that never restart tell.
    ///
    /// A sleep no longer than the samples' spans is none: clocks that are read one after the other
    /// seem to have slept that long. After one no longer than [`noise_ns`](Self::noise_ns) it may
    /// have done the one or the other of [`CounterRun::Through`] and [`CounterRun::AwakeOnly`].
    pub(super) fn counter_since(&self, earlier: &Self) -> CounterRun {
        let ticks = self.counter.since(earlier.counter);
        // A count that takes 584 years or more is one that went back.
        let Ok(counted_ns) = self.frequency.ticks_to_ns(ticks, Rounding::Down) else {
            return CounterRun::Restarted;
        };
        let awake_ns = i128::from(self.monotonic_raw_ns) - i128::from(earlier.monotonic_raw_ns);
        let slept_ns = self.slept_ns_since(earlier).max(0);
        let off_through = (i128::from(counted_ns) - awake_ns - slept_ns).unsigned_abs();
        let off_awake = (i128::from(counted_ns) - awake_ns).unsigned_abs();
        let slack_ns = slept_ns.unsigned_abs() / u128::from(DRIFT) + self.noise_ns(earlier);
        if off_through.min(off_awake) > slack_ns {
            CounterRun::Restarted
        } else if slept_ns <= self.spans_ns(earlier).into() || off_through <= off_awake {
            CounterRun::Through
        } else {
            CounterRun::AwakeOnly
        }
    }

    /// How far the counter and the clocks may disagree on the time since `earlier` without any
    /// sleep: by a tick and the drift at either end, and the spans.
    pub(super) fn noise_ns(&self, earlier: &Self) -> u128 {
        let awake_ns = self
            .monotonic_raw_ns
            .saturating_sub(earlier.monotonic_raw_ns);
        let tick_ns = NS_PER_S.div_ceil(self.frequency.hz());
        2 * u128::from(tick_ns + awake_ns / DRIFT) + u128::from(self.spans_ns(earlier))
    }

    /// Refuses a sample of this host whose clocks are before those of `earlier`.
    pub(super) fn check_after(&self, earlier: &Self) -> Result<(), TimelineError> {
        for (clock, before_ns, now_ns) in [
            ("CLOCK_BOOTTIME", earlier.boottime_ns, self.boottime_ns),
            ("CLOCK_MONOTONIC", earlier.monotonic_ns, self.monotonic_ns),
            (
                "CLOCK_MONOTONIC_RAW",
                earlier.monotonic_raw_ns,
                self.monotonic_raw_ns,
            ),
        ] {
            if now_ns < before_ns {
                return Err(TimelineError::ClockWentBack {
                    clock,
                    before_ns,
                    now_ns,
                });
            }
        }
        Ok(())
    }

    /// Nanoseconds of wall-clock time since `earlier`, which may be of another host, and how far
    /// off they may be. `None` if the two clocks count different things.
    pub(super) fn wall_ns_since(&self, earlier: &Self) -> Option<(i128, u64)> {
        if self.wall_standard != earlier.wall_standard {
            return None;
        }
        let error_ns = self
            .spans_ns(earlier)
            .saturating_add(self.wall_error_ns)
            .saturating_add(earlier.wall_error_ns);
        Some((
            i128::from(self.wall_ns) - i128::from(earlier.wall_ns),
            error_ns,
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Taken over 100 ns, `CLOCK_BOOTTIME` later than the others, of a counter at 1 MHz.
    fn sample(passed_ns: u64, boottime_late_ns: u64) -> HostSample {
        HostSample {
            counter: HostCount(passed_ns / 1_000),
            frequency: Frequency::from_hz(1_000_000).unwrap(),
            wall_ns: passed_ns,
            wall_standard: WallStandard::Tai,
            wall_error_ns: 0,
            boottime_ns: passed_ns + boottime_late_ns,
            monotonic_ns: passed_ns,
            monotonic_raw_ns: passed_ns,
            span_ns: 100,
        }
    }

    #[test]
    fn what_reading_takes_is_no_sleep() {
        const S: u64 = 1_000_000_000;
        let first = sample(S, 0);
        assert_eq!(
            sample(4 * S, 200).counter_since(&first),
            CounterRun::Through
        );
        // More than that was slept, and the counter stood still.
        assert_eq!(
            sample(4 * S, 201).counter_since(&first),
            CounterRun::AwakeOnly
        );
    }
}
