//! What was seen of a guest on its way, and what it should have been.
//!
//! Every frequency divides 10^9, as the emulator has it, so a tick of each host is a whole number of
//! ns, and the ideal, for how long the VM ran in all, is an exact sum of the records' counts.

use super::super::bare_checks::{at_least, check_spins, count};
use super::timers::Timers;
use super::{EVENTS_HZ, Way};
use crate::clocks::ClockSight;
use crate::control::{Adjustment, Live};
use crate::report::{Check, Limit};
use guest_protocol::report::{Clocks, Interfaces, Memory, Spin};
use std::time::Duration;

const NS_PER_S: u64 = 1_000_000_000;
const MILLION: u128 = 1_000_000;

/// The record cuts its distance off after six decimals, and so does the lab.
const MOST_TOLD_ERROR: f64 = 2e-6;

/// What was seen of one guest on its way.
#[derive(Default)]
pub struct Journey {
    pub hops: Vec<Hop>,
    pub spins: Vec<Spin>,
    pub timers: Timers,
    /// What the guest found on each new host.
    pub found: Vec<Interfaces>,
    pub memory: Vec<Memory>,
    /// How far the gaps in the records of migrations are from what passed, beyond their errors.
    pub blackout_errors_us: Vec<f64>,
    /// What the emulators waited for CPUs of this machine.
    pub held_up: Duration,
    /// For how long the VM ran between two readings on each host, by its live physical time and by
    /// the wall clocks of its hosts.
    ran_live_ns: f64,
    ran_wall_ns: f64,
}

/// One change of host.
pub struct Hop {
    /// By how much the PV count on the new host is from the ideal.
    error_ns: u64,
    /// By how much what the guest read there is.
    read_error_ns: u64,
    /// By how much the distance from the ideal in the record is from that of the record's count, in
    /// millionths of a PV tick.
    told_error: u128,
    new_hz: u64,
}

/// A count of the guest, and its host's wall clock then.
#[derive(Clone, Copy)]
pub struct Anchor {
    wall_ns: u64,
    count: u64,
    hz: u64,
}

impl Anchor {
    /// When an adjustment was over.
    pub fn of(record: &Adjustment) -> Self {
        Self {
            wall_ns: record.wall_ns,
            count: record.after.guest,
            hz: record.after.frequency_hz,
        }
    }

    /// When the lab read the host's clocks, after that adjustment and before the next.
    pub fn between(record: &Adjustment, sight: &ClockSight) -> Self {
        let clocks = sight.clocks();
        let since = clocks.counter.unwrap_or(0).wrapping_sub(record.after.host);
        Self {
            wall_ns: clocks.realtime_ns,
            count: record.after.guest.wrapping_add(since),
            hz: record.after.frequency_hz,
        }
    }
}

/// Where the VM's live physical time is by the records: the ideal at a count of the guest.
#[derive(Clone, Copy)]
pub struct Ideal {
    pub ns: u128,
    pub count: u64,
    pub hz: u64,
}

impl Ideal {
    /// On the first host: a guest's counter begins at 0, and so does its live physical time.
    pub fn start(hz: u64) -> Self {
        Self {
            ns: 0,
            count: 0,
            hz,
        }
    }

    /// The ideal at another count on the same host, in ns. A count before is one read too early.
    pub fn at(self, count: u64) -> u128 {
        let tick_ns = u128::from(NS_PER_S / self.hz);
        self.ns + u128::from(count.saturating_sub(self.count)) * tick_ns
    }
}

impl Hop {
    pub fn between(ideal: Ideal, clocks: &Clocks, told: Option<&Live>, pv_hz: u64) -> Self {
        let tick_ns = u128::from(NS_PER_S / ideal.hz);
        let error_ns = (u128::from(ideal.count) * tick_ns).abs_diff(ideal.ns);
        let least = ideal.at(clocks.virtual_before);
        let most = ideal.at(clocks.virtual_after);
        let read = clocks.live.map_or(u128::MAX, |live| {
            u128::from(live) * u128::from(NS_PER_S) / u128::from(pv_hz)
        });
        let read_error_ns = least.saturating_sub(read).max(read.saturating_sub(most));
        let clip = |ns| u64::try_from(ns).unwrap_or(u64::MAX);
        let told_error = told.and_then(|told| told_error(told, ideal.ns, pv_hz));
        Self {
            error_ns: clip(error_ns),
            read_error_ns: clip(read_error_ns),
            told_error: told_error.unwrap_or(u128::MAX),
            new_hz: ideal.hz,
        }
    }
}

/// By how much a record's distance is from that of its own count, in millionths of a PV tick.
fn told_error(told: &Live, ideal_ns: u128, pv_hz: u64) -> Option<u128> {
    let ideal = ideal_ns * u128::from(pv_hz) * MILLION / u128::from(NS_PER_S);
    let distance = i128::from(told.pv_after) * MILLION.cast_signed() - ideal.cast_signed();
    Some(distance.abs_diff(millionths(&told.distance)?))
}

/// A number with six decimals, in millionths.
fn millionths(text: &str) -> Option<i128> {
    let (whole, fraction) = text.split_once('.')?;
    let digits: i128 = fraction.parse().ok().filter(|_| fraction.len() == 6)?;
    let whole: i128 = whole.parse().ok()?;
    let sign = if text.starts_with('-') { -1 } else { 1 };
    Some(whole * MILLION.cast_signed() + sign * digits)
}

#[expect(
    clippy::cast_precision_loss,
    reason = "counts of minutes, and small errors"
)]
impl Journey {
    /// Enters a stretch on one host: what the guest read first and last, and anchors around it.
    /// The wall clock is that of the anchors, less what lies between each and its reading.
    pub fn enter_run(&mut self, [from, to]: [Anchor; 2], [first, last]: [&Clocks; 2], pv_hz: u64) {
        let (Some(live), Some(live_at_end)) = (first.live, last.live) else {
            self.ran_live_ns = f64::NAN;
            return;
        };
        let gained = live_at_end.saturating_sub(live) as f64;
        let wall_ns = to.wall_ns.saturating_sub(from.wall_ns) as f64;
        let before = middle(first).saturating_sub(from.count);
        let after = to.count.saturating_sub(middle(last));
        let tick_ns = 1e9 / from.hz as f64;
        self.ran_live_ns += gained * 1e9 / pv_hz as f64;
        self.ran_wall_ns += wall_ns - (before + after) as f64 * tick_ns;
    }

    pub fn checks(&self, name: &str, pv_hz: u64, way: &Way) -> Vec<Check> {
        let hops = way.hosts - 1;
        let mut checks = vec![at_least("hops", self.hops.len(), hops, "hops")];
        checks.extend(self.hops.iter().map(|hop| hop.check(pv_hz, name)));
        checks.push(self.check_told(name));
        if !way.is_saved {
            checks.push(self.check_blackouts(name, hops));
        }
        checks.extend(check_spins("lpt_backwards_steps", &self.spins, 2, name));
        checks.extend(self.check_events(name, hops));
        checks.push(self.check_memory(name));
        checks.extend(self.timers.checks(hops, way.pending, name));
        if way.is_timed {
            checks.push(self.check_rate(name));
            let waited_s = self.held_up.as_secs_f64();
            let waited = format!("the emulators waited {waited_s:.1} s for CPUs");
            checks.extend(self.timers.timed_checks(name, &waited));
        }
        checks
    }

    /// What the records tell of the distance from the ideal is what it is.
    fn check_told(&self, name: &str) -> Check {
        let worst = self.hops.iter().map(|hop| hop.told_error).max();
        let worst = worst.map_or(f64::NAN, |error| error as f64 / MILLION as f64);
        Check::new(
            "recorded_distance_error_ticks",
            worst,
            Limit::AtMost(MOST_TOLD_ERROR),
            "PV ticks",
        )
        .with_detail(name)
    }

    fn check_blackouts(&self, name: &str, hops: usize) -> Check {
        let errors = &self.blackout_errors_us;
        let is_complete = errors.len() == hops;
        let worst = errors.iter().copied().fold(0.0, f64::max);
        Check::new(
            "blackout_beyond_error_us",
            if is_complete { worst } else { f64::NAN },
            Limit::Equals(0.0),
            "us",
        )
        .with_detail(name)
    }

    fn check_rate(&self, name: &str) -> Check {
        let ppm = (self.ran_live_ns - self.ran_wall_ns).abs() / self.ran_wall_ns * 1e6;
        let detail = format!("{name}, over {:.1} s", self.ran_wall_ns / 1e9);
        Check::new("rate_error_ppm", ppm, Limit::AtMost(50.0), "ppm").with_detail(detail)
    }

    /// Every host's frequency was noticed, and the event stream is as near to what was asked for as
    /// a bit of the counter can be: within the square root of 2.
    fn check_events(&self, name: &str, hops: usize) -> [Check; 2] {
        let noticed = self.found.last().and_then(|found| found.live_time);
        let changes = noticed.map_or(0, |live| live.changes as usize);
        let rates: Vec<_> = self
            .found
            .iter()
            .map(|found| {
                let stream = found.event_stream.as_ref();
                stream.map_or(f64::NAN, |stream| f64::from(stream.rate_hz))
            })
            .collect();
        let apart = |rate: &f64| (rate / f64::from(EVENTS_HZ)).max(f64::from(EVENTS_HZ) / rate);
        // What is not a number is worse than all.
        let worst = rates
            .iter()
            .map(apart)
            .max_by(f64::total_cmp)
            .unwrap_or(f64::NAN);
        let factor = Limit::AtMost(std::f64::consts::SQRT_2 + 1e-3);
        [
            at_least("frequency_changes_noticed", changes, hops, "changes").with_detail(name),
            Check::new("event_rate_factor", worst, factor, "")
                .with_detail(format!("{name}: {rates:.0?} of {EVENTS_HZ} Hz")),
        ]
    }

    fn check_memory(&self, name: &str) -> Check {
        let damaged = self.memory.iter().map(|memory| memory.damaged).sum();
        let changes = self.memory.last().map_or(0, |memory| memory.changes);
        let looks = self.memory.len();
        count("damaged_pages", damaged, "pages")
            .with_detail(format!("{name}: {looks} looks, {changes} changes"))
    }
}

impl Hop {
    /// The larger of both errors, at most one tick of the host and one of the PV counter.
    #[expect(clippy::cast_precision_loss, reason = "small, or it fails")]
    fn check(&self, pv_hz: u64, name: &str) -> Check {
        let pv_per_ns = pv_hz as f64 / 1e9;
        let worst = self.error_ns.max(self.read_error_ns) as f64 * pv_per_ns;
        let limit = pv_hz as f64 / self.new_hz as f64 + 1.0;
        let detail = format!(
            "{name}, to {} Hz: {} ns by the records, {} ns by what the guest read",
            self.new_hz, self.error_ns, self.read_error_ns
        );
        Check::new("lpt_error_ticks", worst, Limit::AtMost(limit), "PV ticks").with_detail(detail)
    }
}

/// The counter at a reading, as near as it is known.
fn middle(clocks: &Clocks) -> u64 {
    clocks.virtual_before.midpoint(clocks.virtual_after)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_the_distance_from_the_sum_of_all_hosts() {
        let first = Ideal {
            ns: 0,
            count: 0,
            hz: 25_000_000,
        };
        // 29 ticks of 40 ns are 1160 ns: 36.25 ticks of 32 ns.
        let arrived = |count| Ideal {
            ns: first.at(29),
            count,
            hz: 31_250_000,
        };
        let clocks = |live| Clocks {
            cpu: 0,
            virtual_before: 46,
            physical: 47,
            live: Some(live),
            virtual_after: 56,
            stolen_ns: None,
        };
        let hop = |count, live| {
            let hop = Hop::between(arrived(count), &clocks(live), None, 1_000_000_000);
            assert_eq!(hop.told_error, u128::MAX, "nothing was told");
            (hop.error_ns, hop.read_error_ns)
        };
        // From 10 to 20 ticks after the arrival: 1480 to 1800 ns.
        assert_eq!(hop(36, 1480), (8, 0));
        assert_eq!(hop(36, 1479), (8, 1));
        assert_eq!(hop(37, 1800), (24, 32));
        assert_eq!(hop(36, 1801), (8, 1));
        let check = |error_ns| {
            let hop = Hop {
                error_ns,
                read_error_ns: 0,
                told_error: 0,
                new_hz: 25_000_000,
            };
            hop.check(24_000_000, "").pass
        };
        assert!(
            check(80) && !check(90),
            "a tick of 40 ns and one of 41.7 ns"
        );
    }

    #[test]
    fn a_distance_that_was_told_is_compared_in_millionths() {
        let told = |distance: &str| Live {
            pv_before: 0,
            pv_after: 100,
            distance: distance.into(),
        };
        // 24 MHz: 4,145 ns are 99.48 ticks.
        let error = |distance| told_error(&told(distance), 4145, 24_000_000);
        assert_eq!(error("0.520000"), Some(0));
        assert_eq!(error("-0.520000"), Some(1_040_000));
        assert_eq!(error("1.5"), None);
        assert_eq!(millionths("-2.000001"), Some(-2_000_001));
    }
}
