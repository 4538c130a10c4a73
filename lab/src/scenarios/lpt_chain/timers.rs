//! Timers that cross hops: what is armed all the way, and what became of each at every hop.
//!
//! Timers of 5 ms, 2 s and 60 s are armed anew by the guest whenever they fire, so that one of each is
//! armed whenever the VM stops. All counts are PV ticks, which do not move while the VM is stopped: a
//! timer's lateness is beyond the blackout by itself. The clock stops when the last vCPU is out of the
//! guest, and one that was out before was stopped for longer, by its own accounts. That is not lateness
//! either, nor is what was stolen from the timer's vCPU meanwhile, by the structure that the guest reads.

mod delay;

use self::delay::{Delay, Stop};
use super::super::bare_checks::{PATIENCE_S, at_least, count};
use super::super::pauses::median;
use super::{HOSTS, SPINNERS, VCPUS};
use crate::bare::{Bare, TIMERS};
use crate::control::Live;
use crate::report::{Check, Limit};
use anyhow::Result;
use guest_protocol::report::{Firing, Timer, TimerState};
use guest_protocol::request::ArmTimer;
use std::collections::BTreeMap;

/// A kind of timer: one on the virtual timer of a CPU, one on the physical timer of the next.
struct Kind {
    name: &'static str,
    /// Until it is due, and from one deadline to the next if that is ahead; none is never.
    delay_us: Option<i64>,
    /// Whether whoever has it spins, and puts it off before it is due.
    put_off: bool,
}

/// The kind that is ahead when the VM stops: those that spin stop last, and put it off until then.
const AHEAD: &str = "5 ms ahead";

/// As many as the guest has CPUs: both timers of each have their own.
const KINDS: [Kind; VCPUS as usize] = [
    Kind {
        name: "60 s",
        delay_us: Some(60_000_000),
        put_off: false,
    },
    Kind {
        name: "expired",
        delay_us: Some(-100_000),
        put_off: false,
    },
    Kind {
        name: AHEAD,
        delay_us: Some(5_000),
        put_off: true,
    },
    Kind {
        name: "2 s",
        delay_us: Some(2_000_000),
        put_off: false,
    },
    Kind {
        name: "never",
        delay_us: None,
        put_off: false,
    },
    Kind {
        name: "5 ms",
        delay_us: Some(5_000),
        put_off: false,
    },
];

const _: () = assert!(
    KINDS[SPINNERS[0] as usize].put_off && SPINNERS[0] + 1 == SPINNERS[1],
    "those that spin have the timers that are put off"
);

/// How late timers of any kind may be at the median.
const LATEST_US: f64 = 5000.0;

/// What the guest takes for never is years away.
const NEVER_S: u64 = 365 * 86_400;

/// Arms every kind on both timers.
pub fn arm(guest: &mut impl Bare) -> Result<()> {
    for (number, kind) in (0..).zip(&KINDS) {
        for (which, timer) in (0..).zip(TIMERS) {
            let ahead = kind.delay_us.and_then(|us| u64::try_from(us).ok());
            guest.arm(ArmTimer {
                cpu: (number + which) % VCPUS,
                timer,
                live: true,
                delay_us: kind.delay_us,
                // Its interrupt would come before anything can happen to it: its status shows
                // whether it stays expired.
                masked: kind.delay_us.is_some() && ahead.is_none(),
                period_us: ahead,
                put_off: kind.put_off,
            })?;
        }
    }
    Ok(())
}

/// Which kind a timer is.
fn kind_of(cpu: u32, timer: Timer) -> usize {
    let which = u32::from(timer == Timer::Physical);
    ((cpu + VCPUS - which) % VCPUS) as usize
}

/// What was seen of the timers on one way.
#[derive(Default)]
pub struct Timers {
    /// One before each hop.
    stops: Vec<Stop>,
    /// Every look at every timer, with how many hops were behind it.
    looks: Vec<(usize, TimerState)>,
}

/// One time that a timer was armed before a hop, seen after it.
struct Crossing {
    kind: usize,
    cpu: usize,
    timer: Timer,
    armed_at: u64,
    deadline: Option<u64>,
    compare: Option<u64>,
    /// None where it has not fired yet.
    fired_at: Option<u64>,
    /// The clock when it fired, or when it was looked at.
    seen_at: u64,
    frequency_hz: u64,
    /// What had been stolen from its vCPU when it was armed, and what was stolen from then until it
    /// fired; 0 where it is not known.
    stolen_ns: [u64; 2],
}

impl Crossing {
    /// The deadline that is pending at a look.
    fn pending(state: &TimerState) -> Self {
        Self {
            kind: kind_of(state.cpu, state.timer),
            cpu: state.cpu as usize,
            timer: state.timer,
            armed_at: state.armed_at,
            deadline: state.deadline,
            compare: state.compare,
            fired_at: state.fired_at,
            seen_at: state.now,
            frequency_hz: state.frequency_hz,
            stolen_ns: [0, 0],
        }
    }

    /// One that the guest kept, because it fired at another frequency.
    fn kept(state: &TimerState, firing: &Firing) -> Self {
        Self {
            armed_at: firing.armed_at,
            deadline: Some(firing.deadline),
            compare: firing.compare,
            fired_at: Some(firing.fired_at),
            seen_at: firing.fired_at,
            stolen_ns: [firing.stolen_before_ns, firing.stolen_ns],
            ..Self::pending(state)
        }
    }

    /// Whether it was armed before the stop, and seen after it.
    fn spans(&self, stop: u64) -> bool {
        self.armed_at < stop && stop < self.seen_at
    }

    /// How long after a stop it is due; none of one that is due already.
    #[expect(clippy::cast_precision_loss, reason = "for people")]
    fn left_ms(&self, stop: u64) -> Option<f64> {
        let left = self.deadline?.checked_sub(stop).filter(|left| *left > 0)?;
        Some(left as f64 / self.frequency_hz as f64 * 1e3)
    }

    /// By how many ticks the compare value is off what the deadline comes to after so many hops: it is
    /// never before it, and behind it by less than a tick of each counter on the way.
    fn compare_error(&self, hops: usize) -> u64 {
        let Some(deadline) = self.deadline else {
            let least = self.seen_at + NEVER_S * self.frequency_hz;
            // All ones of a slow counter are no count of this clock.
            return least.saturating_sub(self.compare.unwrap_or(u64::MAX));
        };
        let slowest_hz = HOSTS.iter().map(|(_, hz)| *hz).min().unwrap_or(1);
        let tick = self.frequency_hz.div_ceil(slowest_hz) + 1;
        let most = deadline + tick * (hops as u64 + 1);
        let compare = self.compare.unwrap_or(u64::MAX);
        deadline
            .saturating_sub(compare)
            .max(compare.saturating_sub(most))
    }
}

impl Timers {
    /// Notes where the VM stopped for a hop, and what had been stolen from each vCPU then, if it is known.
    pub fn stopped(&mut self, live: Option<&Live>, stolen_ns: Vec<Option<u64>>) {
        self.stops.push(Stop {
            // A record without it lets nothing pass.
            count: live.map_or(u64::MAX, |live| live.pv_before),
            stolen_ns,
            ..Stop::default()
        });
    }

    /// Notes for how long each vCPU was stopped for it beyond the gap in the record, and by how much each
    /// structure grew since that nobody stole, in ns.
    pub fn stopped_for(&mut self, beyond_ns: Vec<u64>, surplus_ns: Vec<u64>) {
        if let Some(stop) = self.stops.last_mut() {
            (stop.beyond_ns, stop.surplus_ns) = (beyond_ns, surplus_ns);
        }
    }

    /// Notes what the guest said of its timers after that hop.
    pub fn looked(&mut self, timers: Vec<TimerState>) {
        let hops = self.stops.len();
        self.looks
            .extend(timers.into_iter().map(|state| (hops, state)));
    }

    /// What was armed before a hop and seen after it, each once: as the guest kept it where it fired,
    /// else as it was at the last look.
    fn crossings(&self) -> Vec<Crossing> {
        let mut all = BTreeMap::new();
        for (_, state) in &self.looks {
            let firing = state.periods.and_then(|periods| periods.moved);
            let kept = firing.map(|firing| Crossing::kept(state, &firing));
            for crossing in [Some(Crossing::pending(state)), kept].into_iter().flatten() {
                let is_physical = crossing.timer == Timer::Physical;
                all.insert((crossing.kind, is_physical, crossing.armed_at), crossing);
            }
        }
        let mut all: Vec<_> = all.into_values().collect();
        all.retain(|crossing| self.hops_of(crossing) > 0);
        all
    }

    /// The stops that it crossed.
    fn stops_of(&self, crossing: &Crossing) -> Vec<&Stop> {
        let stops = self.stops.iter();
        stops.filter(|stop| crossing.spans(stop.count)).collect()
    }

    fn hops_of(&self, crossing: &Crossing) -> usize {
        self.stops_of(crossing).len()
    }

    /// What holds on every way. `pending` is how many timers that crossed a hop may be still to come at
    /// the end, of those that come at all.
    pub fn checks(&self, hops: usize, pending: usize, name: &str) -> Vec<Check> {
        let crossings = self.crossings();
        let mut checks = vec![
            self.check_early(name),
            self.check_lost(name),
            self.check_crossed(&crossings, hops, name),
        ];
        // One of 5 ms is often due already, and has yet to fire; one that is put off is judged where
        // nothing else keeps its CPU and the VM's stop apart.
        for kind in ["2 s", "60 s"] {
            checks.push(self.check_ahead(&crossings, kind, hops, name));
        }
        checks.push(self.check_compare(&crossings, name));
        checks.push(check_fired(&crossings, hops, name));
        let is_to_come = |it: &&Crossing| KINDS[it.kind].repeats() && it.fired_at.is_none();
        let to_come = crossings.iter().filter(is_to_come).count();
        #[expect(clippy::cast_precision_loss, reason = "a few")]
        let [to_come, most] = [to_come, pending].map(|it| it as f64);
        let unjudged = Check::new("still_to_come", to_come, Limit::AtMost(most), "timers");
        checks.push(unjudged.with_detail(name));
        checks
    }

    /// What holds where only the lab keeps the machine busy.
    pub fn timed_checks(&self, name: &str, waited: &str) -> Vec<Check> {
        let crossings = self.crossings();
        let delay = |it: &Crossing| Some((it.kind, it.delay(&self.stops_of(it))?));
        let delays: Vec<_> = crossings.iter().filter_map(delay).collect();
        let judged = |delays: &[&Delay]| median(delays.iter().map(|it| it.judged()).collect());
        let all: Vec<_> = delays.iter().map(|(_, delay)| delay).collect();
        let late = Check::new(
            "late_us_median",
            judged(&all),
            Limit::AtMost(LATEST_US),
            "us",
        );
        let mut checks = vec![
            self.check_ahead(&crossings, AHEAD, 1, name),
            late.with_detail(format!(
                "{name}, {} of all kinds that crossed a hop",
                all.len()
            )),
        ];
        let repeat = KINDS.iter().enumerate().filter(|(_, it)| it.repeats());
        checks.extend(repeat.map(|(number, kind)| {
            let of_kind = delays.iter().filter(|it| it.0 == number);
            let delays: Vec<_> = of_kind.map(|(_, delay)| delay).collect();
            let list = |of: fn(&Delay) -> f64| delays.iter().map(|it| of(it)).collect::<Vec<_>>();
            let detail = format!(
                "{name}, {}: of {} that crossed a hop; whole delays {:.0?} us, of which {:.0?} are not in it: \
                 their vCPUs were stopped for {:.0?} beyond the blackout and had {:.0?} stolen, of which \
                 {:.0?} after the stop; {waited}",
                kind.name,
                delays.len(),
                list(|it| it.whole),
                list(|it| it.excused),
                list(|it| it.stopped),
                list(|it| it.stolen),
                list(|it| it.stolen_after),
            );
            let limit = Limit::AtMost(LATEST_US);
            Check::new("late_us_median_of_kind", judged(&delays), limit, "us").with_detail(detail)
        }));
        checks
    }

    fn check_early(&self, name: &str) -> Check {
        let is_wrong = |state: &&TimerState| {
            state.is_wrong() || state.periods.is_some_and(|periods| periods.early > 0)
        };
        let looks = self.looks.iter().map(|(_, state)| state);
        let fired: u64 = self
            .last_looks()
            .filter_map(|it| Some(it.periods?.fired))
            .sum();
        let wrong: Vec<_> = looks.filter(is_wrong).collect();
        count("early", wrong.len() as u64, "timers")
            .with_detail(format!("{name}, of {fired} that fired: {wrong:?}"))
    }

    fn check_lost(&self, name: &str) -> Check {
        let is_lost = |state: &&TimerState| state.is_lost(PATIENCE_S * state.frequency_hz);
        let looks = self.looks.iter().map(|(_, state)| state);
        let lost: Vec<_> = looks.filter(is_lost).collect();
        let detail = format!("{name}, in {} looks: {lost:?}", self.looks.len());
        count("lost", lost.len() as u64, "timers").with_detail(detail)
    }

    fn last_looks(&self) -> impl Iterator<Item = &TimerState> {
        let last = self.stops.len();
        let looks = self.looks.iter().filter(move |(hops, _)| *hops == last);
        looks.map(|(_, state)| state)
    }

    /// At every hop there was one of each kind on each timer.
    fn check_crossed(&self, crossings: &[Crossing], hops: usize, name: &str) -> Check {
        let mut missing = Vec::new();
        for (hop, stop) in (1..).zip(&self.stops) {
            for (number, kind) in KINDS.iter().enumerate() {
                for timer in TIMERS {
                    let is_it = |it: &Crossing| {
                        it.kind == number && it.timer == timer && it.spans(stop.count)
                    };
                    if !crossings.iter().any(is_it) {
                        missing.push(format!("{} {timer:?} at hop {hop}", kind.name));
                    }
                }
            }
        }
        let all = hops * KINDS.len() * TIMERS.len();
        let crossed = self.stops.len() * KINDS.len() * TIMERS.len() - missing.len();
        at_least("crossed", crossed, all, "timers")
            .with_detail(format!("{name}; missing: {missing:?}"))
    }

    /// So many timers of a kind were due after the stop, not before it, each at its hop.
    fn check_ahead(&self, crossings: &[Crossing], kind: &str, least: usize, name: &str) -> Check {
        let of_kind = crossings.iter().filter(|it| KINDS[it.kind].name == kind);
        let left_ms = of_kind.flat_map(|it| {
            let stops = self.stops_of(it).into_iter();
            stops.filter_map(|stop| it.left_ms(stop.count))
        });
        let left_ms: Vec<_> = left_ms.collect();
        at_least("ahead_at_stop", left_ms.len(), least, "timers").with_detail(format!(
            "{name}, {kind}: due {left_ms:.1?} ms after the stop"
        ))
    }

    /// Compare values are what the deadlines come to on each host, to the tick.
    fn check_compare(&self, crossings: &[Crossing], name: &str) -> Check {
        let error = |it: &Crossing| it.compare_error(self.hops_of(it));
        let worst = crossings.iter().map(error).max().unwrap_or(u64::MAX);
        let behind = crossings
            .iter()
            .filter_map(|it| it.compare?.checked_sub(it.deadline?));
        let behind = behind.max().unwrap_or(0);
        count("compare_error_ticks", worst, "PV ticks").with_detail(format!(
            "{name}, of {} timers; at most {behind} ticks behind the deadline",
            crossings.len()
        ))
    }
}

/// Those of 5 ms and of 2 s fired after every hop.
fn check_fired(crossings: &[Crossing], hops: usize, name: &str) -> Check {
    const SHORT: [&str; 3] = ["5 ms", AHEAD, "2 s"];
    let is_short = |it: &&Crossing| SHORT.contains(&KINDS[it.kind].name);
    let fired = |it: &&Crossing| it.fired_at.is_some();
    let fired = crossings.iter().filter(is_short).filter(fired).count();
    at_least("fired", fired, SHORT.len() * TIMERS.len() * hops, "timers").with_detail(name)
}

impl Kind {
    fn repeats(&self) -> bool {
        self.delay_us > Some(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use guest_protocol::report::Periods;

    const STOP: u64 = 1_000_000;
    const HZ: u64 = 1_000_000;

    /// A look at every timer, half a second after a hop that is the only one: each had been armed
    /// before, and those of 5 ms and 2 s have fired.
    fn looks() -> Vec<TimerState> {
        let now = STOP + 3_000_000;
        let all = (0..VCPUS).flat_map(|cpu| TIMERS.map(|timer| (cpu, timer)));
        let look = |(cpu, timer)| {
            let kind = &KINDS[kind_of(cpu, timer)];
            let us = kind
                .delay_us
                .unwrap_or(i64::try_from(2 * NEVER_S * HZ).unwrap());
            let due = (STOP - 1000).saturating_add_signed(us);
            let state = TimerState {
                cpu,
                timer,
                live: true,
                frequency_hz: HZ,
                armed_at: STOP - 1000,
                deadline: kind.delay_us.map(|_| due),
                masked: kind.name == "expired",
                interrupts: 0,
                fired_at: None,
                now,
                is_due: due < now,
                compare: Some(due),
                periods: None,
            };
            let Some(period_ticks) = kind.delay_us.and_then(|us| u64::try_from(us).ok()) else {
                return state;
            };
            let firing = Firing {
                armed_at: STOP - 1000,
                deadline: due,
                compare: Some(due + 1),
                fired_at: due + 20,
                stolen_before_ns: 0,
                stolen_ns: 0,
            };
            let has_fired = due < now;
            let next = if has_fired { now + 100 } else { due };
            TimerState {
                armed_at: if has_fired { now - 100 } else { STOP - 1000 },
                deadline: Some(next),
                compare: Some(next),
                is_due: false,
                periods: Some(Periods {
                    period_ticks,
                    fired: 7,
                    early: 0,
                    moved: has_fired.then_some(firing),
                }),
                ..state
            }
        };
        all.map(look).collect()
    }

    fn failed(change: impl Fn(&mut TimerState), pending: usize) -> Vec<&'static str> {
        let mut looks = looks();
        looks.iter_mut().for_each(change);
        let mut timers = Timers::default();
        let live = Live {
            pv_before: STOP,
            pv_after: STOP,
            distance: String::new(),
        };
        timers.stopped(Some(&live), Vec::new());
        timers.looked(looks);
        let mut checks = timers.checks(1, pending, "");
        checks.extend(timers.timed_checks("", ""));
        let failed = checks.iter().filter(|check| !check.pass);
        failed.map(|check| check.name).collect()
    }

    fn is(state: &TimerState, name: &str) -> bool {
        KINDS[kind_of(state.cpu, state.timer)].name == name
    }

    #[test]
    fn timers_that_cross_and_come_when_they_are_due_pass() {
        // Those of 60 s have yet to fire, so their delay is not known.
        assert_eq!(failed(|_| (), 2), ["late_us_median_of_kind"]);
        assert_eq!(
            failed(|_| (), 1),
            ["still_to_come", "late_us_median_of_kind"]
        );
    }

    #[test]
    fn a_timer_that_was_armed_after_the_stop_has_not_crossed() {
        let late = |state: &mut TimerState| {
            if let Some(moved) = state.periods.as_mut().and_then(|it| it.moved.as_mut()) {
                moved.armed_at = STOP;
            }
        };
        let expected = ["crossed", "ahead_at_stop", "fired", "ahead_at_stop"];
        assert_eq!(failed(late, 2)[..4], expected);
        let forgotten = |state: &mut TimerState| {
            if is(state, "never") {
                state.armed_at = STOP + 1;
            }
        };
        assert_eq!(failed(forgotten, 2)[..1], ["crossed"]);
    }

    #[test]
    fn a_short_timer_has_to_be_ahead_at_a_stop() {
        let due = |only: Option<Timer>| {
            move |state: &mut TimerState| {
                let is_it = is(state, AHEAD) && only.is_none_or(|timer| timer == state.timer);
                let moved = state.periods.as_mut().and_then(|it| it.moved.as_mut());
                if let Some(moved) = moved.filter(|_| is_it) {
                    moved.deadline = STOP;
                }
            }
        };
        assert!(!failed(due(Some(Timer::Virtual)), 2).contains(&"ahead_at_stop"));
        assert!(failed(due(None), 2).contains(&"ahead_at_stop"));
    }

    #[test]
    fn a_compare_value_that_is_off_shows_whatever_became_of_the_timer() {
        let off = |ticks: i64| {
            move |state: &mut TimerState| {
                if is(state, "60 s") {
                    state.compare = state.compare.map(|it| it.saturating_add_signed(ticks));
                }
            }
        };
        assert_eq!(failed(off(-1), 2)[..1], ["compare_error_ticks"]);
        // A tick and one for rounding, on each of two hosts.
        assert_eq!(failed(off(4), 2)[..1], ["late_us_median_of_kind"]);
        assert_eq!(failed(off(5), 2)[..1], ["compare_error_ticks"]);
        let never = |state: &mut TimerState| {
            if is(state, "never") {
                state.compare = Some(state.now + 60 * HZ);
            }
        };
        assert_eq!(failed(never, 2)[..1], ["compare_error_ticks"]);
    }

    #[test]
    fn what_came_after_the_stop_that_a_timer_crossed_is_no_lateness() {
        let looks = looks();
        let is_it = |it: &&TimerState| is(it, "5 ms") && it.timer == Timer::Virtual;
        let state = looks.iter().find(is_it).unwrap();
        let firing = Firing {
            stolen_before_ns: 100,
            stolen_ns: 7_000,
            ..state.periods.unwrap().moved.unwrap()
        };
        let crossing = Crossing::kept(state, &firing);
        let mut timers = Timers::default();
        for pv_before in [STOP, firing.fired_at + 1] {
            let live = Live {
                pv_before,
                pv_after: pv_before,
                distance: String::new(),
            };
            timers.stopped(Some(&live), (100..106).map(Some).collect());
            timers.stopped_for((0..6).map(|cpu| cpu * 1_000).collect(), vec![95; 6]);
        }
        let stops = timers.stops_of(&crossing);
        assert_eq!(stops.len(), 1, "one hop was crossed, on CPU 5");
        let delay = crossing.delay(&stops).unwrap();
        let expected = (5.0, 6.905, 6.9);
        assert_eq!((delay.stopped, delay.stolen, delay.stolen_after), expected);
    }

    #[test]
    fn an_early_timer_a_lost_one_and_slow_ones_show() {
        let early = |state: &mut TimerState| {
            if let Some(periods) = state.periods.as_mut().filter(|_| state.cpu == 0) {
                periods.early = 1;
            }
        };
        assert_eq!(failed(early, 2)[..1], ["early"]);
        let lost = |state: &mut TimerState| {
            if is(state, "expired") {
                state.is_due = false;
            }
        };
        assert_eq!(failed(lost, 2)[..1], ["lost"]);
        let slow = |state: &mut TimerState| {
            if let Some(moved) = state.periods.as_mut().and_then(|it| it.moved.as_mut()) {
                moved.fired_at += 6000;
            }
        };
        let expected = [
            "late_us_median",
            "late_us_median_of_kind",
            "late_us_median_of_kind",
            "late_us_median_of_kind",
            "late_us_median_of_kind",
        ];
        assert_eq!(failed(slow, 2), expected);
    }
}
