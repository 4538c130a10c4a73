//! How fast memory is sent, and when to stop the VM for the rest.

use std::time::Duration;

use super::MAX_ROUNDS;

/// What the operator asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The most bytes per second while the guest runs; absent for no limit.
    pub bytes_per_s: Option<u64>,
    /// How long the VM may be stopped, as far as one can tell beforehand.
    pub downtime: Duration,
    /// After how long the VM goes on here if it is not ready to run there.
    pub stop_limit: Duration,
}

impl Plan {
    /// Where nobody says how long the VM may be stopped at most: many times as long as was hoped
    /// for, and as long as a busy host takes to make a machine.
    #[must_use]
    pub fn default_stop_limit(downtime: Duration) -> Duration {
        const LEAST: Duration = Duration::from_secs(10);
        (downtime * 10).max(LEAST)
    }

    /// How long to wait after `bytes` were sent in `elapsed`, so that it is not faster than asked
    /// for.
    #[must_use]
    pub fn wait(&self, bytes: u64, elapsed: Duration) -> Duration {
        let Some(rate) = self.bytes_per_s else {
            return Duration::ZERO;
        };
        time_for(bytes, rate).saturating_sub(elapsed)
    }
}

/// Why no further round is sent while the guest runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Enough {
    /// What is left is sent within the downtime, and another round would not halve it.
    Fits,
    /// The guest writes as fast as memory is sent.
    NoProgress,
    /// There were as many rounds as there may be.
    Rounds,
}

/// The rounds so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rounds {
    sent: u32,
    last_left: Option<u64>,
    least_left: Option<u64>,
    without_progress: u32,
}

impl Rounds {
    /// Rounds in a row that may leave as much as one before.
    const PATIENCE: u32 = 3;

    /// After a round that sent `bytes` in `took` and left `left` bytes to send: whether to stop
    /// the VM for these. Where they fit into the downtime, and are less than half of what the round
    /// before left, another round takes less than the downtime and about halves it.
    pub fn next(&mut self, plan: &Plan, bytes: u64, took: Duration, left: u64) -> Option<Enough> {
        self.sent += 1;
        let halves = left < self.last_left.replace(left).unwrap_or(bytes) / 2;
        let fits = left == 0 || time_for(left, rate(bytes, took)) <= plan.downtime;
        if fits && (left == 0 || !halves) {
            return Some(Enough::Fits);
        }
        if self.least_left.is_some_and(|least| left >= least) {
            self.without_progress += 1;
        } else {
            self.without_progress = 0;
        }
        self.least_left = Some(self.least_left.map_or(left, |least| least.min(left)));
        if self.without_progress == Self::PATIENCE {
            return Some(Enough::NoProgress);
        }
        // One more is that of the stopped VM.
        let enough = if fits { Enough::Fits } else { Enough::Rounds };
        (self.sent == MAX_ROUNDS - 1).then_some(enough)
    }
}

/// Bytes per second, at least one.
fn rate(bytes: u64, took: Duration) -> u64 {
    let per_s = u128::from(bytes) * 1_000_000_000 / took.as_nanos().max(1);
    u64::try_from(per_s).unwrap_or(u64::MAX).max(1)
}

/// How long so many bytes take.
fn time_for(bytes: u64, per_s: u64) -> Duration {
    let ns = u128::from(bytes) * 1_000_000_000 / u128::from(per_s.max(1));
    Duration::from_nanos(u64::try_from(ns).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn plan() -> Plan {
        Plan {
            bytes_per_s: Some(1000),
            downtime: Duration::from_millis(100),
            stop_limit: SECOND,
        }
    }

    #[test]
    fn a_stop_has_a_limit_of_its_own() {
        let limit = Plan::default_stop_limit;
        assert_eq!(limit(Duration::from_millis(300)), SECOND * 10);
        assert_eq!(limit(SECOND * 3), SECOND * 30);
        let longest = Duration::from_millis(u32::MAX.into());
        assert_eq!(limit(longest), longest * 10);
    }

    #[test]
    fn it_is_not_faster_than_asked_for() {
        assert_eq!(plan().wait(1000, Duration::ZERO), SECOND);
        assert_eq!(plan().wait(1000, SECOND / 4), SECOND * 3 / 4);
        assert_eq!(plan().wait(1000, SECOND * 2), Duration::ZERO);
        let unlimited = Plan {
            bytes_per_s: None,
            ..plan()
        };
        assert_eq!(unlimited.wait(u64::MAX, Duration::ZERO), Duration::ZERO);
    }

    #[test]
    fn the_vm_is_stopped_when_the_rest_fits() {
        let mut rounds = Rounds::default();
        assert_eq!(rounds.next(&plan(), 10_000, SECOND, 1_001), None);
        assert_eq!(
            rounds.next(&plan(), 10_000, SECOND, 1_000),
            Some(Enough::Fits)
        );
        // A round takes 100 ms and halves the downtime, as long as it does.
        let mut rounds = Rounds::default();
        assert_eq!(rounds.next(&plan(), 10_000, SECOND, 900), None);
        assert_eq!(rounds.next(&plan(), 900, SECOND * 9 / 100, 449), None);
        assert_eq!(
            rounds.next(&plan(), 449, SECOND * 45 / 1000, 225),
            Some(Enough::Fits)
        );
        // Nothing was to be sent, and nothing is left.
        assert_eq!(
            Rounds::default().next(&plan(), 0, Duration::ZERO, 0),
            Some(Enough::Fits)
        );
    }

    #[test]
    fn the_vm_is_stopped_when_more_rounds_are_of_no_use() {
        let mut rounds = Rounds::default();
        for left in [5000, 5000, 4000, 4001, 4000] {
            assert_eq!(rounds.next(&plan(), 1000, SECOND, left), None);
        }
        assert_eq!(
            rounds.next(&plan(), 1000, SECOND, 5000),
            Some(Enough::NoProgress)
        );
    }

    #[test]
    fn there_are_so_many_rounds_and_no_more() {
        let mut rounds = Rounds::default();
        for sent in 1..MAX_ROUNDS - 1 {
            let left = 1_000_000 - u64::from(sent);
            assert_eq!(rounds.next(&plan(), 1000, SECOND, left), None);
        }
        assert_eq!(
            rounds.next(&plan(), 1000, SECOND, 1000),
            Some(Enough::Rounds)
        );
    }
}
