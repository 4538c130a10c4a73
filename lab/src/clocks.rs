//! Hosts' clocks against this machine's.

use crate::host::{CALL_LIMIT, Host};
use anyhow::{Context, Result, bail};
use lab_agent::message::{Clocks, Request};
use lab_agent::system_call;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How often clocks are read for one sight: the more often, the better it is known when one of the
/// readings was.
const TRIES: usize = 40;

/// A host's clocks, and between which moments of this machine they were read.
#[derive(Debug, Clone, Copy)]
pub struct ClockSight {
    earliest: Instant,
    latest: Instant,
    clocks: Clocks,
    frequency_hz: u64,
}

impl Host {
    /// How many times as long a system call takes there as here.
    ///
    /// # Errors
    /// When the host does not answer.
    pub fn slowness(&mut self) -> Result<f64> {
        let there_ns: f64 = self.call(&Request::SystemCall, &[], CALL_LIMIT)?;
        Ok((there_ns / system_call::duration_ns()).max(1.0))
    }

    /// Reads its clocks, several times: each tells when the others were read, by the host's counter,
    /// and so do all sights of an emulated host before.
    ///
    /// # Errors
    /// When the host does not answer, or has no counter, or one that does not keep this machine's
    /// rate.
    pub fn clocks(&mut self) -> Result<ClockSight> {
        let frequency_hz = self.facts().counter_frequency_hz;
        let frequency_hz = frequency_hz.context("the host has no counter")?;
        let mut read = || {
            let earliest = Instant::now();
            let clocks = self.call(&Request::Clocks, &[], CALL_LIMIT)?;
            Ok::<_, anyhow::Error>(ClockSight {
                earliest,
                latest: Instant::now(),
                clocks,
                frequency_hz,
            })
        };
        let first = read()?;
        let sight = (1..TRIES).try_fold(first, |known, _| known.narrowed_by(&read()?))?;
        // An emulator's counter is this machine's clock, which another machine's drifts from over minutes.
        let before = self.seen.filter(|_| self.is_emulated());
        let sight = before.map_or(Ok(sight), |before| sight.narrowed_by(&before))?;
        self.seen = Some(sight);
        Ok(sight)
    }

    /// Sets its wall clock by this machine's, and has it state how well.
    ///
    /// # Errors
    /// When it is no emulated host: the clock of this machine is not the lab's to set.
    pub fn set_clock(&mut self) -> Result<()> {
        if !self.is_emulated() {
            bail!("the clock of this machine is not to be set; use --host qemu");
        }
        let sight = self.clocks()?;
        let (now, wall) = (Instant::now(), SystemTime::now());
        let due = wall - now.duration_since(sight.middle());
        let due_ns = due.duration_since(UNIX_EPOCH)?.as_nanos().cast_signed();
        let by_ns = i64::try_from(due_ns - i128::from(sight.clocks.realtime_ns))?;
        let error_us = u32::try_from(sight.error().as_micros())? + 1;
        let request = Request::StepClock { by_ns, error_us };
        self.call(&request, &[], CALL_LIMIT)
    }
}

impl ClockSight {
    /// Bound on how far its clocks are from [`Self::middle`].
    #[must_use]
    pub fn error(&self) -> Duration {
        (self.latest - self.earliest) / 2
    }

    /// The same reading, which was not when another of the same counter says it cannot have been.
    fn narrowed_by(self, other: &Self) -> Result<Self> {
        let later_ns = other.uptime_ns() - self.uptime_ns();
        let later = Duration::from_nanos(u64::try_from(later_ns.unsigned_abs())?);
        // What no clock reaches tells nothing.
        let at = |moment: Instant| {
            if later_ns < 0 {
                moment.checked_add(later)
            } else {
                moment.checked_sub(later)
            }
        };
        let earliest = at(other.earliest).unwrap_or(self.earliest);
        let latest = at(other.latest).unwrap_or(self.latest);
        let (earliest, latest) = (self.earliest.max(earliest), self.latest.min(latest));
        if earliest > latest {
            let apart = earliest - latest;
            bail!("the host's counter does not keep this machine's rate, by {apart:?}");
        }
        Ok(Self {
            earliest,
            latest,
            ..self
        })
    }

    /// When they were read, as near as it is known.
    #[must_use]
    pub fn middle(&self) -> Instant {
        self.earliest + self.error()
    }

    /// From the start of the host's counter until then, in ns.
    #[must_use]
    pub fn uptime_ns(&self) -> i128 {
        self.ns(self.clocks.counter.unwrap_or(0).into())
    }

    /// By how much longer this host's counter runs than another's, in ns.
    #[must_use]
    pub fn up_longer_than_ns(&self, other: &Self) -> i128 {
        self.uptime_ns() - other.uptime_ns() - self.later_ns(other)
    }

    /// From a count of another host's counter to one of this, in ns of this machine, within the sum
    /// of both errors.
    #[must_use]
    pub fn since_ns(&self, count: u64, other: &Self, other_count: u64) -> i128 {
        let beyond = |sight: &Self, count: u64| sight.ns(count.into()) - sight.uptime_ns();
        self.later_ns(other) + beyond(self, count) - beyond(other, other_count)
    }

    /// Its clocks as they were read.
    #[must_use]
    pub fn clocks(&self) -> Clocks {
        self.clocks
    }

    fn later_ns(&self, other: &Self) -> i128 {
        let since = self.middle().saturating_duration_since(other.middle());
        let until = other.middle().saturating_duration_since(self.middle());
        since.as_nanos().cast_signed() - until.as_nanos().cast_signed()
    }

    fn ns(&self, ticks: i128) -> i128 {
        ticks * 1_000_000_000 / i128::from(self.frequency_hz.max(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sight(start: Instant, at_ms: u64, counter: u64) -> ClockSight {
        ClockSight {
            earliest: start + Duration::from_millis(at_ms - 1),
            latest: start + Duration::from_millis(at_ms + 1),
            clocks: Clocks {
                counter: Some(counter),
                realtime_ns: 0,
            },
            frequency_hz: 1000,
        }
    }

    #[test]
    fn counts_of_two_hosts_are_moments_of_one_machine() {
        let start = Instant::now();
        let (old, new) = (sight(start, 100, 90_000), sight(start, 400, 5_000));
        assert_eq!(old.error(), Duration::from_millis(1));
        assert_eq!(old.up_longer_than_ns(&new), 85_300_000_000);
        assert_eq!(new.up_longer_than_ns(&old), -85_300_000_000);
        // 50 ms before the first sight, 20 ms after the second.
        assert_eq!(new.since_ns(5_020, &old, 89_950), 370_000_000);
    }

    #[test]
    fn a_reading_is_known_by_all_of_its_counter() {
        let start = Instant::now();
        let of = |at_ms, counter| sight(start, at_ms, counter);
        // Read at 99 to 101 ms, by itself; by the others at the same, at 98 to 100 and at 99 to 101.
        let known = of(100, 1000).narrowed_by(&of(200, 1100)).unwrap();
        assert_eq!(known.error(), Duration::from_millis(1));
        let known = of(100, 1000).narrowed_by(&of(199, 1100)).unwrap();
        assert_eq!((known.latest - start).as_millis(), 100);
        // One before tells as much as one after.
        let known_by_one_before = of(199, 1100).narrowed_by(&of(100, 1000)).unwrap();
        assert_eq!((known_by_one_before.earliest - start).as_millis(), 199);
        assert_eq!((known_by_one_before.latest - start).as_millis(), 200);
        let known = known.narrowed_by(&of(300, 1200)).unwrap();
        assert_eq!((known.earliest - start).as_millis(), 99);
        assert_eq!(known.clocks().counter, Some(1000));
        let error = known.narrowed_by(&of(400, 1298)).unwrap_err();
        assert!(error.to_string().contains("by 1ms"), "{error}");
    }
}
