//! Stops that nobody announced.

use super::Case;
use super::paused::Telling;
use crate::control::{Accounts, Adjustment};
use crate::dialogue::Dialogue;
use crate::guest::Guest;
use crate::host::Host;
use crate::interrupt::sleep;
use crate::report::{Check, Limit};
use crate::scenario::Stage;
use crate::scenarios::pauses::{backwards_steps, median};
use crate::scenarios::view::records;
use crate::scenarios::watch::{ms, worst};
use anyhow::{Context, Result};
use guest_protocol::report::{Spin, SpinGap};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// What the error that a record states may be: what pvtime-kvm promises on a host whose CPUs run, and
/// what the emulator may add by not running on either side of a stop.
const BOUND_MS: f64 = 70.0;
const EMULATOR_MS: f64 = 10.0;

/// A stop at least this long is always noticed, and one at most that long never.
const NOTICED: Duration = Duration::from_millis(100);
const NOT_NOTICED: Duration = Duration::from_millis(45);

/// What a guest goes through after a stop, before it is asked.
const AFTERWARDS: Duration = Duration::from_millis(300);

/// How often a guest is stopped, in turn.
#[derive(Clone, Copy)]
pub struct Turns {
    pub sleeps: usize,
    pub freezes: usize,
}

/// All stops of a guest.
pub struct Stops {
    guest: &'static str,
    made: Vec<Stop>,
    /// The accounts before the first stop and after the last.
    accounts: [Vec<Accounts>; 2],
    /// What the guest said at these times.
    told: [Telling; 2],
    /// What the VMM noticed from the former to the latter, of any stop or of none.
    records: Vec<Adjustment>,
    /// Whether what the emulator adds is judged.
    pub is_quiet: bool,
}

/// One stop, as its guest saw it.
struct Stop {
    length: Duration,
    /// What the VMM noticed of it.
    records: Vec<Adjustment>,
    /// The step of a spinning vCPU's counter over it, less what was stolen within that step.
    gap_ms: f64,
    backwards_steps: u64,
}

impl Stops {
    /// Stops a guest as planned, sleeps and freezes in turn.
    pub fn make(
        guest: &mut Guest,
        dialogue: &mut Dialogue,
        host: &mut Host,
        stage: &mut Stage,
        (case, turns): (Case, Turns),
    ) -> Result<Self> {
        let mut random = Random::new();
        stage.note(&format!("seed {:#x}", random.0));
        let planned = turns.sleeps + turns.freezes;
        let mut made = Vec::new();
        let past = records(guest, host)?.len();
        let told_before = Telling::of(guest, dialogue, host, case)?;
        let accounts_before = guest.ledger(host)?;
        for turn in 0..turns.sleeps.max(turns.freezes) {
            let (number, name) = (made.len() + 1, guest.name());
            stage.step(&format!("stop of {name}: {number} of {planned}"));
            if turn < turns.sleeps {
                let seconds = u32::try_from(1 + random.below(3))?;
                let sleep = |host: &mut Host| Ok(host.sleep(seconds)?.boottime_ns);
                made.push(Stop::make(guest, host, sleep)?);
            }
            if turn < turns.freezes {
                let length = Duration::from_millis(20 + random.below(2_980));
                let pid = guest.vmm().pid;
                let freeze = |host: &mut Host| Ok(host.freeze(pid, length)?.boottime_ns);
                made.push(Stop::make(guest, host, freeze)?);
            }
        }
        let accounts_after = guest.ledger(host)?;
        let told_after = Telling::of(guest, dialogue, host, case)?;
        Ok(Self {
            guest: guest.name(),
            made,
            accounts: [accounts_before, accounts_after],
            told: [told_before, told_after],
            records: sleeps_after(past, guest, host)?,
            is_quiet: false,
        })
    }

    /// What must hold of all of them.
    pub fn checks(&self) -> Vec<Check> {
        let check = |name, measured, limit, unit| {
            Check::new(name, measured, limit, unit).with_detail(self.guest)
        };
        let none = Limit::Equals(0.0);
        let stops_that = |holds: &dyn Fn(&Stop) -> bool| {
            count(self.made.iter().filter(|stop| holds(stop)).count() as u64)
        };
        let backwards = self.made.iter().map(|it| it.backwards_steps).sum();
        let [before, after] = &self.told;
        let told_ns = after.paused.paused_ns - before.paused.paused_ns;
        let hidden_ns = self.hidden_ns();
        let most = Limit::AtMost;
        let mut checks = vec![
            check("backwards_steps", count(backwards), none, "steps")
                .with_detail(self.circumstances()),
            check("stops_missed", stops_that(&Stop::is_missed), none, "stops"),
            after.check(before, self.made.len(), self.is_quiet, self.guest),
            check(
                "told_beside_hidden_ns",
                count(told_ns.abs_diff(hidden_ns)),
                none,
                "ns",
            ),
            check("unaccounted_ms", self.unaccounted_ms(), most(1.0), "ms"),
        ];
        if self.is_quiet {
            checks.extend(self.checks_of_quiet());
        }
        checks
    }

    /// What only a machine keeps that has nothing else to do.
    fn checks_of_quiet(&self) -> [Check; 5] {
        let check = |name, measured, limit, unit| {
            Check::new(name, measured, limit, unit).with_detail(self.guest)
        };
        let largest = |figure: fn(&Stop) -> f64| worst(self.made.iter().map(figure));
        let wrongly = self.made.iter().filter(|it| it.is_noticed_wrongly());
        let of_stops: usize = self.made.iter().map(|it| it.records.len()).sum();
        let wrongly = wrongly.count() + self.records.len().abs_diff(of_stops);
        let (none, most) = (Limit::Equals(0.0), Limit::AtMost);
        let bound = most(BOUND_MS + EMULATOR_MS);
        let beyond = largest(|it| it.gap_ms - it.bound_ms());
        [
            check("gap_beyond_its_bound_ms", beyond, most(0.0), "ms"),
            check("counter_gap_ms", largest(|it| it.gap_ms), bound, "ms"),
            check("inferred_error_ms", largest(Stop::bound_ms), bound, "ms"),
            check("noticed_wrongly", count(wrongly as u64), none, "stops"),
            // On a busy machine threads that wait for each other are in no account.
            check("residual_percent", self.residual_percent(), most(2.0), "%"),
        ]
    }

    fn circumstances(&self) -> String {
        let gaps: Vec<_> = self.made.iter().map(|it| it.gap_ms).collect();
        let bounds: Vec<_> = self.made.iter().map(Stop::bound_ms).collect();
        let lengths = || self.made.iter().map(|it| it.length);
        format!(
            "{}: {} stops of {:?} to {:?}, of which {} were noticed; at the median a gap of {:.1} ms \
             and a bound of {:.1} ms",
            self.guest,
            self.made.len(),
            lengths().min().unwrap_or_default(),
            lengths().max().unwrap_or_default(),
            self.made.iter().filter(|it| !it.records.is_empty()).count(),
            median(gaps),
            median(bounds),
        )
    }

    /// What the records took out of the counters.
    fn hidden_ns(&self) -> u64 {
        self.records.iter().map(|record| record.hidden_ns).sum()
    }

    /// What of the stops in the records is not in a vCPU's account of them, the most of all vCPUs.
    fn unaccounted_ms(&self) -> f64 {
        let gaps = self.records.iter().filter_map(|it| it.gap.as_ref());
        let recorded_ns: i128 = gaps.map(|gap| gap.ns).sum();
        let [before, after] = &self.accounts;
        let of = |(before, after): (&Accounts, &Accounts)| {
            let asleep = |accounts: &Accounts| i128::from(accounts.paused_ns.host_suspend_ns);
            let missing_ns = recorded_ns - (asleep(after) - asleep(before));
            ms(u64::try_from(missing_ns.max(0)).unwrap_or(u64::MAX))
        };
        worst(before.iter().zip(after).map(of))
    }

    /// What no account of a vCPU has, of its physical time, the most of all vCPUs.
    fn residual_percent(&self) -> f64 {
        let of = |accounts: &Accounts| {
            let residual_ns = u64::try_from(accounts.residual_ns.unsigned_abs());
            100.0 * ms(residual_ns.unwrap_or(u64::MAX)) / ms(accounts.physical_ns)
        };
        worst(self.accounts[1].iter().map(of))
    }
}

impl Stop {
    fn make(
        guest: &mut Guest,
        host: &mut Host,
        stop: impl FnOnce(&mut Host) -> Result<u64>,
    ) -> Result<Self> {
        // The accounts start afresh.
        guest.spins(host)?;
        let past = records(guest, host)?.len();
        let length = Duration::from_nanos(stop(host)?);
        sleep(AFTERWARDS)?;
        let spins = guest.spins(host)?;
        let records = sleeps_after(past, guest, host)?;
        let hz = host.facts().counter_frequency_hz.context("no frequency")?;
        let gaps = spins.iter().map(|spin| gap_ms(spin, &records, hz));
        Ok(Self {
            length,
            gap_ms: worst(gaps),
            backwards_steps: backwards_steps(&spins),
            records,
        })
    }

    /// The error that its record states: how much of it the guest's counters may show. A stop that is
    /// in none is shown whole, and was shorter than the lease with what it takes to get out and in.
    fn bound_ms(&self) -> f64 {
        let stated = self.records.iter().map(|record| {
            let error_ns = record.gap.as_ref().and_then(|gap| gap.error_ns);
            error_ns.map_or(f64::NAN, ms)
        });
        if self.records.is_empty() {
            BOUND_MS
        } else {
            worst(stated)
        }
    }

    fn is_missed(&self) -> bool {
        self.length >= NOTICED && self.records.is_empty()
    }

    /// In two records, or too short for one.
    fn is_noticed_wrongly(&self) -> bool {
        let most = usize::from(self.length > NOT_NOTICED);
        self.records.len() > most
    }
}

/// What the VMM noticed after so many records.
fn sleeps_after(past: usize, guest: &Guest, host: &mut Host) -> Result<Vec<Adjustment>> {
    let mut records = records(guest, host)?.split_off(past);
    records.retain(|it| it.event == "host sleep");
    Ok(records)
}

/// The step of a spinning vCPU over a stop, less what was stolen within it; its largest step where the
/// stop is in no record. Where the step is not among the largest, it was no larger than the smallest
/// of those.
fn gap_ms(spin: &Spin, records: &[Adjustment], hz: u64) -> f64 {
    let less_stolen = |gap: &SpinGap| {
        let ns = u128::from(gap.ticks) * 1_000_000_000 / u128::from(hz);
        let ns = u64::try_from(ns).unwrap_or(u64::MAX);
        ms(ns.saturating_sub(gap.stolen_ns))
    };
    if records.is_empty() {
        return worst(spin.largest_gaps.iter().map(less_stolen));
    }
    let over = |record: &Adjustment| {
        let over = spin.gap_over(record.after.guest);
        let gap = over.or(spin.largest_gaps.last().copied());
        gap.as_ref().map_or(f64::NAN, less_stolen)
    };
    worst(records.iter().map(over))
}

fn count(figure: u64) -> f64 {
    u32::try_from(figure).map_or(f64::INFINITY, f64::from)
}

/// Marsaglia's xorshift, from the time of day.
struct Random(u64);

impl Random {
    fn new() -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        Self(now.map_or(1, |it| u64::from(it.subsec_nanos())) | 1)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const HZ: u64 = 1_000_000;

    /// A stop that is noticed, by which the counter was set to this count.
    fn record(count: u64, error_ns: u64) -> Adjustment {
        let counters = json!({ "host": 9, "guest": count, "frequency_hz": HZ });
        let record = json!({
            "sequence": 2, "wall_ns": 7, "event": "host sleep", "policy": "freeze",
            "gap": { "ns": 1_000_000, "error_ns": error_ns }, "hidden_ns": 1_000_000,
            "shown_ticks": null, "before": counters, "after": counters, "live": null,
            "unanswered_ms": null,
        });
        serde_json::from_value(record).unwrap()
    }

    fn is(figure: f64, want: f64) -> bool {
        (figure - want).abs() < 1e-9
    }

    #[test]
    fn a_gap_is_the_step_over_its_own_stop_less_what_was_stolen_in_it() {
        let mut spin = Spin::default();
        let gap = |start, ticks, stolen_ns| SpinGap {
            start,
            ticks,
            stolen_ns,
        };
        let gaps = [
            gap(500_000, 90_000, 0),
            gap(100_000, 62_000, 5_000_000),
            gap(300_000, 3_000, 0),
        ];
        spin.largest_gaps.fill(gap(700_000, 2_000, 0));
        spin.largest_gaps[..3].copy_from_slice(&gaps);
        assert!(is(gap_ms(&spin, &[record(161_000, 1)], HZ), 57.0));
        assert!(is(gap_ms(&spin, &[record(100_000, 1)], HZ), 57.0));
        // It was no larger than the smallest that is kept.
        assert!(is(gap_ms(&spin, &[record(162_000, 1)], HZ), 2.0));
        assert!(is(gap_ms(&spin, &[], HZ), 90.0));
    }

    #[test]
    fn each_stop_is_judged_by_its_own_record() {
        let stop = |length_ms, records: &[Adjustment]| Stop {
            length: Duration::from_millis(length_ms),
            records: records.to_vec(),
            gap_ms: 0.0,
            backwards_steps: 0,
        };
        let noticed = record(5, 61_000_000);
        let one = stop(500, std::slice::from_ref(&noticed));
        assert!(is(one.bound_ms(), 61.0));
        assert!(is(stop(40, &[]).bound_ms(), BOUND_MS));
        for (length_ms, records, missed, wrongly) in [
            (500, 1, false, false),
            (500, 0, true, false),
            (500, 2, false, true),
            (60, 0, false, false),
            (60, 1, false, false),
            (40, 1, false, true),
        ] {
            let stop = stop(length_ms, &vec![noticed.clone(); records]);
            assert_eq!(
                (stop.is_missed(), stop.is_noticed_wrongly()),
                (missed, wrongly),
                "{length_ms} ms, {records} records"
            );
        }
    }
}
