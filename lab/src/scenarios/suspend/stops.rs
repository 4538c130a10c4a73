//! Stops that nobody announced.

use super::Plan;
use crate::control::{Accounts, Adjustment};
use crate::guest::Guest;
use crate::host::Host;
use crate::interrupt::sleep;
use crate::report::{Check, Limit};
use crate::scenario::Stage;
use crate::scenarios::pauses::{backwards_steps, median};
use crate::scenarios::watch::{ms, worst};
use anyhow::{Context, Result};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// What stays in the counters of a stop, as pvtime-kvm promises, and what the emulator may add by
/// not running on either side of it.
const BOUND_MS: f64 = 60.0;
const EMULATOR_MS: f64 = 20.0;

/// A stop at least this long is always noticed, and one at most that long never.
const NOTICED: Duration = Duration::from_millis(100);
const NOT_NOTICED: Duration = Duration::from_millis(45);

/// What a guest goes through after a stop, before it is asked.
const AFTERWARDS: Duration = Duration::from_millis(300);

/// All stops of a guest.
#[derive(Default)]
pub struct Stops {
    made: Vec<Stop>,
    records: Vec<Adjustment>,
    accounts: Vec<Accounts>,
    /// The accounts before the first stop.
    accounts_before: Vec<Accounts>,
    /// Whether what the emulator adds is judged.
    is_quiet: bool,
    /// What the VMM says that it was paused for.
    paused_ns: u64,
}

/// One stop, as its guest saw it.
struct Stop {
    length: Duration,
    /// The largest step of a spinning vCPU's counter, less what was stolen from it.
    gap_ms: f64,
    backwards_steps: u64,
}

impl Stops {
    /// Stops a guest as planned, sleeps and freezes in turn.
    pub fn make(guest: &mut Guest, host: &mut Host, stage: &mut Stage, plan: Plan) -> Result<Self> {
        let mut random = Random::new();
        stage.note(&format!("seed {:#x}", random.0));
        let mut all = Self {
            is_quiet: plan.is_quiet,
            ..Self::default()
        };
        let past = Self::records_of(guest, host)?.len();
        let before = guest.status(host)?.paused_ns;
        all.accounts_before = guest.ledger(host)?;
        for turn in 0..plan.sleeps.max(plan.freezes) {
            let planned = plan.sleeps + plan.freezes;
            stage.step(&format!("stop: {} of {planned}", all.made.len() + 1));
            if turn < plan.sleeps {
                let seconds = u32::try_from(1 + random.below(3))?;
                let sleep = |host: &mut Host| Ok(host.sleep(seconds)?.boottime_ns);
                all.made.push(Stop::make(guest, host, sleep)?);
            }
            if turn < plan.freezes {
                let length = Duration::from_millis(20 + random.below(2_980));
                let pid = guest.vmm().pid;
                let freeze = |host: &mut Host| Ok(host.freeze(pid, length)?.boottime_ns);
                all.made.push(Stop::make(guest, host, freeze)?);
            }
        }
        all.paused_ns = guest.status(host)?.paused_ns - before;
        all.accounts = guest.ledger(host)?;
        all.records = Self::records_of(guest, host)?.split_off(past);
        Ok(all)
    }

    /// What the VMM noticed so far.
    fn records_of(guest: &Guest, host: &mut Host) -> Result<Vec<Adjustment>> {
        let mut records: Vec<Adjustment> = Vec::new();
        for record in guest.adjustments(host)? {
            records.push(serde_json::from_value(record)?);
        }
        records.retain(|it| it.event == "host sleep");
        Ok(records)
    }

    /// What must hold of all of them.
    pub fn checks(&self) -> Vec<Check> {
        let count = |figure: usize| u32::try_from(figure).map_or(f64::INFINITY, f64::from);
        let within = |from: Duration| self.made.iter().filter(move |it| it.length >= from);
        let noticed = count(self.records.len());
        let gaps: Vec<f64> = self.made.iter().map(|it| it.gap_ms).collect();
        let backwards: u64 = self.made.iter().map(|it| it.backwards_steps).sum();
        let errors = self.records.iter().map(|record| {
            let error_ns = record.gap.as_ref().and_then(|gap| gap.error_ns);
            error_ns.map_or(f64::NAN, ms)
        });
        let detail = format!(
            "{} stops of {:?} to {:?}, median gap {:.1} ms",
            self.made.len(),
            self.made
                .iter()
                .map(|it| it.length)
                .min()
                .unwrap_or_default(),
            self.made
                .iter()
                .map(|it| it.length)
                .max()
                .unwrap_or_default(),
            median(gaps.clone()),
        );
        let (fewest, most) = (within(NOTICED).count(), within(NOT_NOTICED).count());
        let gap = worst(gaps.into_iter());
        let mut checks = vec![
            Check::new(
                "backwards_steps",
                count(usize::try_from(backwards).unwrap_or(usize::MAX)),
                Limit::Equals(0.0),
                "steps",
            )
            .with_detail(detail),
            Check::new(
                "stops_noticed",
                noticed,
                Limit::AtLeast(count(fewest)),
                "stops",
            ),
            Check::new(
                "paused_error_ms",
                self.paused_error_ms(),
                Limit::AtMost(1.0),
                "ms",
            ),
            Check::new(
                "unaccounted_ms",
                self.unaccounted_ms(),
                Limit::AtMost(1.0),
                "ms",
            ),
        ];
        let bound = Limit::AtMost(BOUND_MS + EMULATOR_MS);
        let judged = [
            Check::new("counter_gap_ms", gap, bound, "ms"),
            Check::new("inferred_error_ms", worst(errors), bound, "ms"),
            Check::new(
                "stops_at_most",
                noticed,
                Limit::AtMost(count(most)),
                "stops",
            ),
            // On a busy machine threads that wait for each other are in no account.
            Check::new(
                "residual_percent",
                self.residual_percent(),
                Limit::AtMost(2.0),
                "%",
            ),
        ];
        checks.extend(judged.into_iter().filter(|_| self.is_quiet));
        checks
    }

    /// How far what the VMM says that it was paused for is from the sum of its records.
    fn paused_error_ms(&self) -> f64 {
        let error_ns = self.recorded_ns().abs_diff(self.paused_ns.into());
        ms(u64::try_from(error_ns).unwrap_or(u64::MAX))
    }

    /// What of the stops in the records is not in a vCPU's account of them, the most of all vCPUs.
    fn unaccounted_ms(&self) -> f64 {
        let both = self.accounts_before.iter().zip(&self.accounts);
        let of = |(before, after): (&Accounts, &Accounts)| {
            let asleep = |accounts: &Accounts| i128::from(accounts.paused_ns.host_suspend_ns);
            let missing_ns = self.recorded_ns() - (asleep(after) - asleep(before));
            ms(u64::try_from(missing_ns.max(0)).unwrap_or(u64::MAX))
        };
        worst(both.map(of))
    }

    fn recorded_ns(&self) -> i128 {
        let recorded = self.records.iter().filter_map(|record| record.gap.as_ref());
        recorded.map(|gap| gap.ns).sum()
    }

    /// What no account of a vCPU has, of its physical time, the most of all vCPUs.
    fn residual_percent(&self) -> f64 {
        let of = |accounts: &Accounts| {
            let residual_ns = u64::try_from(accounts.residual_ns.unsigned_abs());
            100.0 * ms(residual_ns.unwrap_or(u64::MAX)) / ms(accounts.physical_ns)
        };
        worst(self.accounts.iter().map(of))
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
        let before = guest.status(host)?;
        let length = Duration::from_nanos(stop(host)?);
        sleep(AFTERWARDS)?;
        let spins = guest.spins(host)?;
        let after = guest.status(host)?;
        let mut gap_ms = f64::NAN;
        for spin in &spins {
            let run_delay = |status: &crate::status::Status| {
                let vcpu = status.vcpus.get(spin.cpu as usize);
                vcpu.map(|vcpu| vcpu.run_delay_ns).context("no such vCPU")
            };
            let stolen_ns = run_delay(&after)?.saturating_sub(run_delay(&before)?);
            let hz = u128::from(host.facts().counter_frequency_hz.context("no frequency")?);
            let ticks = u128::from(spin.largest_gaps[0].ticks);
            let counted_ns = u64::try_from(ticks * 1_000_000_000 / hz).unwrap_or(u64::MAX);
            gap_ms = gap_ms.max(ms(counted_ns.saturating_sub(stolen_ns)));
        }
        Ok(Self {
            length,
            gap_ms,
            backwards_steps: backwards_steps(&spins),
        })
    }
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
