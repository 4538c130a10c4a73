//! How late a timer was, and what of that is shown to be no lateness.
//!
//! What was stolen from a timer's vCPU is none, nor for how long that was stopped while others ran, as far
//! as it came after the deadline. Of all that there was between arming and firing, no more can have come
//! before the deadline than what passed from the arming until then. Of what was stolen after a stop, no
//! more than what passed from the stop until then, and nothing where the timer was due at the stop: most
//! of what a move steals, it steals when all vCPUs go on at once. On which side of a stop a vCPU was
//! stopped for longer than others nobody knows.

use super::Crossing;

/// What is known of a hop beside what the guest says of it.
#[derive(Debug, Default)]
pub struct Stop {
    /// The PV count at the stop.
    pub count: u64,
    /// What had been stolen from each vCPU then, in ns, by the structure that goes on from there; none
    /// where that is not known. What a vCPU waited last, without entering the guest again, may not be in
    /// it, and is not in it later: it is excused nowhere.
    pub stolen_ns: Vec<Option<u64>>,
    /// For how long each vCPU was stopped beyond the blackout, in ns.
    pub beyond_ns: Vec<u64>,
    /// By how much each structure grew since that nobody stole, in ns.
    pub surplus_ns: Vec<u64>,
}

/// How late a timer was, in us.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Delay {
    pub whole: f64,
    /// Between its arming and its firing, its vCPU was stopped while others ran.
    pub stopped: f64,
    /// And as much was stolen from it.
    pub stolen: f64,
    /// As much of that for certain after a stop; 0 where it is not known.
    pub stolen_after: f64,
    /// As much of all lies within the delay for certain.
    pub excused: f64,
}

impl Crossing {
    /// With the stops that it crossed, in their order.
    #[expect(clippy::cast_precision_loss, reason = "for people")]
    pub fn delay(&self, stops: &[&Stop]) -> Option<Delay> {
        let deadline = self.deadline?;
        let in_us = |ticks: u64| ticks as f64 / self.frequency_hz as f64 * 1e6;
        let whole = in_us(self.fired_at?.checked_sub(deadline)?);
        let up_to_deadline = |since: u64| in_us(deadline.saturating_sub(since));
        let us = |ns: u64| ns as f64 / 1e3;

        let stopped = us(self.of_cpu(stops, |stop| &stop.beyond_ns));
        let stolen = us(self.stolen_after_ns(stops, Some(self.stolen_ns[0])));
        let after = stops.iter().enumerate().map(|(at, stop)| {
            let value_ns = stop.stolen_ns.get(self.cpu).copied().flatten();
            let after = us(self.stolen_after_ns(&stops[at..], value_ns));
            (after, after - up_to_deadline(stop.count))
        });
        let after: Vec<_> = after.collect();
        let largest =
            |least: f64, of: fn(&(f64, f64)) -> f64| after.iter().map(of).fold(least, f64::max);
        let since_arming = stopped + stolen - up_to_deadline(self.armed_at);
        Some(Delay {
            whole,
            stopped,
            stolen,
            stolen_after: largest(0.0, |it| it.0),
            excused: largest(since_arming, |it| it.1).clamp(0.0, whole),
        })
    }

    /// What was stolen from its vCPU, from when its structure had this value, before these stops, until it
    /// fired; 0 where it had none that lies between arming and firing.
    fn stolen_after_ns(&self, stops: &[&Stop], value_ns: Option<u64>) -> u64 {
        let [armed_ns, grown_ns] = self.stolen_ns;
        let fired_ns = armed_ns.saturating_add(grown_ns);
        let value_ns = value_ns.filter(|value_ns| *value_ns >= armed_ns);
        let grown_ns = value_ns.and_then(|value_ns| fired_ns.checked_sub(value_ns));
        let surplus_ns = self.of_cpu(stops, |stop| &stop.surplus_ns);
        grown_ns.unwrap_or(0).saturating_sub(surplus_ns)
    }

    /// A sum over stops for its vCPU.
    fn of_cpu(&self, stops: &[&Stop], figures: fn(&Stop) -> &Vec<u64>) -> u64 {
        let of_cpu = stops.iter().filter_map(|stop| figures(stop).get(self.cpu));
        of_cpu.sum()
    }
}

impl Delay {
    /// What nothing excuses.
    pub fn judged(&self) -> f64 {
        self.whole - self.excused
    }
}

#[cfg(test)]
#[expect(clippy::float_cmp, reason = "whole microseconds")]
mod tests {
    use super::*;
    use guest_protocol::report::Timer;

    const MS: u64 = 1_000_000;
    const CPU: usize = 5;

    /// A timer of 5 ms on a clock of 1 MHz that is due at 100 ms and fires 9 ms later: from its vCPU a
    /// second had been stolen when it was armed.
    fn late(stolen_ns: u64) -> Crossing {
        Crossing {
            kind: 5,
            cpu: CPU,
            timer: Timer::Virtual,
            armed_at: 95_000,
            deadline: Some(100_000),
            compare: Some(100_000),
            fired_at: Some(109_000),
            seen_at: 109_000,
            frequency_hz: 1_000_000,
            stolen_ns: [1_000 * MS, stolen_ns],
        }
    }

    /// A stop at a count, with as much stolen from the vCPU since the timer was armed.
    fn stop(count: u64, before_ns: Option<u64>) -> Stop {
        let mut stop = Stop {
            count,
            stolen_ns: vec![Some(0); CPU],
            ..Stop::default()
        };
        stop.stolen_ns.push(before_ns.map(|ns| 1_000 * MS + ns));
        stop
    }

    fn of_cpu(ns: u64) -> Vec<u64> {
        let others = [50 * MS; CPU];
        others.into_iter().chain([ns]).collect()
    }

    fn excused(stolen_ns: u64, stops: &[&Stop]) -> f64 {
        let delay = late(stolen_ns).delay(stops).unwrap();
        assert_eq!(
            (delay.whole, delay.judged()),
            (9_000.0, 9_000.0 - delay.excused)
        );
        delay.excused
    }

    #[test]
    fn where_the_value_at_the_stop_is_not_known_all_may_have_come_before_the_deadline() {
        let (before_arming, after_firing) = (1_000 * MS - 1, 1_021 * MS);
        for stolen_ns in [None, Some(before_arming), Some(after_firing)] {
            let excused = |grown_ns, beyond_ns| {
                let [at, missing] = [vec![stolen_ns; CPU + 1], Vec::new()].map(|stolen_ns| Stop {
                    stolen_ns,
                    beyond_ns: of_cpu(beyond_ns),
                    ..stop(99_000, None)
                });
                let excused_us = excused(grown_ns, &[&at]);
                assert_eq!(excused(grown_ns, &[&missing]), excused_us);
                excused_us
            };
            assert_eq!(excused(0, 0), 0.0);
            assert_eq!(excused(5 * MS, 0), 0.0);
            assert_eq!(excused(4 * MS, 5 * MS), 4_000.0);
            assert_eq!(excused(20 * MS, 0), 9_000.0);
        }
    }

    #[test]
    fn what_was_stolen_after_a_stop_behind_the_deadline_came_after_that() {
        for count in [100_000, 103_000] {
            let excused = |before_ns, after_ns, beyond_ns| {
                let stop = Stop {
                    beyond_ns: of_cpu(beyond_ns),
                    ..stop(count, Some(before_ns))
                };
                excused(before_ns + after_ns, &[&stop])
            };
            assert_eq!(excused(0, 3 * MS, 0), 3_000.0);
            assert_eq!(excused(5 * MS, 3 * MS, 0), 3_000.0, "5 ms were left");
            assert_eq!(excused(6 * MS, 3 * MS, 0), 4_000.0, "and no more");
            assert_eq!(excused(4 * MS, 3 * MS, 2 * MS), 4_000.0);
            assert_eq!(excused(6 * MS, 0, 0), 1_000.0);
            assert_eq!(excused(0, 30 * MS, 0), 9_000.0, "no more than all");
        }
    }

    #[test]
    fn what_was_stolen_after_a_stop_ahead_of_the_deadline_may_have_come_in_between() {
        // 2 ms before it.
        let excused = |before_ns, after_ns, beyond_ns| {
            let stop = Stop {
                beyond_ns: of_cpu(beyond_ns),
                ..stop(98_000, Some(before_ns))
            };
            excused(before_ns + after_ns, &[&stop])
        };
        assert_eq!(excused(0, 2 * MS, 0), 0.0);
        assert_eq!(excused(0, 6 * MS, 0), 4_000.0);
        assert_eq!(excused(3 * MS, 6 * MS, 0), 4_000.0);
        assert_eq!(excused(3 * MS, 0, 0), 0.0);
        // Before the stop there was no more room for it.
        assert_eq!(excused(3 * MS, 6 * MS, MS), 5_000.0);
        assert_eq!(excused(0, 0, 6 * MS), 1_000.0);
    }

    #[test]
    fn what_nobody_stole_excuses_nothing() {
        let excused = |stolen_ns, surplus_ns| {
            let stop = Stop {
                surplus_ns: of_cpu(surplus_ns),
                ..stop(100_000, Some(MS))
            };
            excused(stolen_ns, &[&stop])
        };
        assert_eq!(excused(5 * MS, 3 * MS), 1_000.0);
        assert_eq!(excused(8 * MS, 7 * MS), 0.0, "nor before the stop");
        assert_eq!(excused(8 * MS, 9 * MS), 0.0);
    }

    #[test]
    fn of_more_than_one_stop_each_excuses_what_it_can() {
        let first = Stop {
            surplus_ns: of_cpu(MS),
            ..stop(96_000, Some(0))
        };
        let second = Stop {
            surplus_ns: of_cpu(MS),
            ..stop(100_000, Some(5 * MS))
        };
        assert_eq!(excused(10 * MS, &[&first, &second]), 4_000.0);
        assert_eq!(excused(10 * MS, &[&first]), 5_000.0);
        let delay = late(10 * MS).delay(&[&first, &second]).unwrap();
        assert_eq!((delay.stolen, delay.stolen_after), (8_000.0, 8_000.0));
        let pending = Crossing {
            fired_at: None,
            ..late(0)
        };
        assert_eq!(pending.delay(&[&first]), None);
    }
}
