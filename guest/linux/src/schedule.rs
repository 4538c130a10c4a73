//! When the next sample is due. Time is an argument: see the tests for how it behaves.

use std::time::{Duration, Instant};

/// A regular beat that can be changed and stopped.
#[derive(Clone, Copy, Debug)]
pub struct Schedule {
    period: Duration,
    next: Option<Instant>,
}

impl Schedule {
    /// First due at `now`; never with a period of 0.
    pub fn start(now: Instant, period_ms: u32) -> Self {
        let period = Duration::from_millis(period_ms.into());
        Self {
            period,
            next: (!period.is_zero()).then_some(now),
        }
    }

    /// The period in milliseconds, 0 if stopped.
    pub fn period_ms(&self) -> u32 {
        u32::try_from(self.period.as_millis()).expect("it was made of 32 bits of milliseconds")
    }

    /// Whether it is due. If so, the next time is one period after this one was *due*, so that
    /// the beat does not drift; beats that were missed are left out.
    pub fn take_due(&mut self, now: Instant) -> bool {
        let Some(due) = self.next.filter(|&due| due <= now) else {
            return false;
        };
        let next = due + self.period;
        self.next = Some(if next > now { next } else { now + self.period });
        true
    }

    /// How long until it is due; none if it never is.
    pub fn remaining(&self, now: Instant) -> Option<Duration> {
        self.next.map(|next| next.saturating_duration_since(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beats_keep_their_distance_and_missed_ones_are_left_out() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut schedule = Schedule::start(start, 100);
        assert!(schedule.take_due(at(0)));
        assert!(!schedule.take_due(at(99)));
        assert_eq!(schedule.remaining(at(99)), Some(Duration::from_millis(1)));
        assert!(schedule.take_due(at(130)), "late by 30 ms");
        assert!(schedule.take_due(at(200)), "and not late for ever");
        assert!(schedule.take_due(at(1234)), "a long stop");
        assert!(!schedule.take_due(at(1333)), "does not end in a burst");
        assert_eq!(schedule.remaining(at(2000)), Some(Duration::ZERO));
    }

    #[test]
    fn period_0_is_never_due() {
        let now = Instant::now();
        let mut schedule = Schedule::start(now, 0);
        assert!(!schedule.take_due(now + Duration::from_secs(1)));
        assert_eq!((schedule.remaining(now), schedule.period_ms()), (None, 0));
    }
}
