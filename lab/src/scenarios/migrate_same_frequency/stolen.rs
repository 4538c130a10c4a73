//! Stolen time over a move: it goes on, and by no more than the vCPUs' threads waited for a CPU.

use super::super::watch::{ms, structure, worst};
use crate::control::Accounts;
use crate::guest::Guest;
use crate::host::Host;
use crate::report::{Check, Limit};
use anyhow::Result;
use guest_protocol::report::Sample;

/// A CPU of the guest that never rests: its kernel looks at its stolen time at every tick.
const SPINNING: usize = 0;

/// What a thread may wait between its last entry, when KVM brought its structure up to date, and the look
/// at it. A blackout is ten times as long.
const LAG_MS: f64 = 20.0;

/// The same, and steps of 10 ms in which Linux tells it.
const LINUX_LAG_MS: f64 = 50.0;

/// What is known of the vCPUs' stolen time at one moment.
pub struct Look {
    /// What the structures say, by vCPU.
    structures_ns: Vec<u64>,
    /// The VMM's accounts: what is stolen in them are the scheduler's figures for the vCPUs' threads,
    /// those of the VMMs before too.
    accounts: Vec<Accounts>,
}

impl Look {
    /// Before a move: what the threads waited since the first figure is in the second.
    pub fn before(guest: &Guest, host: &mut Host) -> Result<Self> {
        let accounts = guest.ledger(host)?;
        let structures_ns = structures(guest, host)?;
        Ok(Self {
            structures_ns,
            accounts,
        })
    }

    /// After a move, the other way round.
    pub fn after(guest: &Guest, host: &mut Host) -> Result<Self> {
        let structures_ns = structures(guest, host)?;
        let accounts = guest.ledger(host)?;
        Ok(Self {
            structures_ns,
            accounts,
        })
    }
}

fn structures(guest: &Guest, host: &mut Host) -> Result<Vec<u64>> {
    let status = guest.status(host)?;
    let all = (0..status.vcpus.len()).map(|vcpu| Ok(structure(&status, vcpu)?.stolen_ns));
    all.collect()
}

/// What was seen of one vCPU over one move.
pub struct Over {
    vcpu: usize,
    /// What its structure gained; negative where it lost.
    structure_ns: i128,
    /// What its threads waited for a CPU, by the accounts.
    waited_ns: i128,
    /// What Linux says that was stolen; none where it does not say it.
    linux_ns: Option<i128>,
    /// What the accounts say that it was stopped for by the migration.
    paused_ns: i128,
    /// The gap of the record, and its error.
    gap_ns: i128,
    error_ns: u64,
}

impl Over {
    /// Of each vCPU. A vCPU that one of the looks does not have is seen to lose all.
    pub fn of(
        looks: [&Look; 2],
        samples: [&Sample; 2],
        (gap_ns, error_ns): (i128, u64),
    ) -> Vec<Self> {
        let [before, after] = looks;
        let both = before.accounts.iter().zip(&after.accounts);
        let one = |(vcpu, (left, reached)): (usize, (&Accounts, &Accounts))| {
            let at = |look: &Look| i128::from(look.structures_ns.get(vcpu).copied().unwrap_or(0));
            let steal = samples.map(|it| it.steal_ns.get(vcpu).copied().flatten());
            let linux_ns = steal[0].zip(steal[1]);
            let gained = |figure: fn(&Accounts) -> u64| {
                i128::from(figure(reached)) - i128::from(figure(left))
            };
            Self {
                vcpu,
                structure_ns: at(after) - at(before),
                waited_ns: gained(|it| it.stolen_ns),
                linux_ns: linux_ns.map(|(before, after)| i128::from(after) - i128::from(before)),
                paused_ns: gained(|it| it.paused_ns.migration_ns),
                gap_ns,
                error_ns,
            }
        };
        both.enumerate().map(one).collect()
    }

    /// Neither figure is missing, or less than it was.
    fn goes_on(&self) -> bool {
        self.structure_ns >= 0 && self.linux_ns.is_some_and(|linux| linux >= 0)
    }

    fn beyond_run_delay_ms(&self) -> f64 {
        signed_ms(self.structure_ns - self.waited_ns)
    }

    fn linux_beyond_run_delay_ms(&self) -> Option<f64> {
        let is_known = self.vcpu == SPINNING;
        is_known.then(|| {
            self.linux_ns
                .map_or(f64::NAN, |linux| signed_ms(linux - self.waited_ns))
        })
    }

    /// What of the blackout is in no account of pauses, beyond the error that it was recorded with.
    fn unpaused_ms(&self) -> f64 {
        signed_ms(self.gap_ns - self.paused_ns - i128::from(self.error_ns))
    }

    fn facts(&self) -> String {
        format!(
            "vCPU {}: {:.0} ms stolen, {:.0} ms waited, away for {:.0} ms",
            self.vcpu,
            signed_ms(self.structure_ns),
            signed_ms(self.waited_ns),
            signed_ms(self.gap_ns)
        )
    }
}

/// No more than 0 where it is negative.
fn signed_ms(ns: i128) -> f64 {
    u64::try_from(ns).map_or(0.0, ms)
}

/// What holds of every move.
pub fn checks(overs: &[Over], expected: usize) -> Vec<Check> {
    let going = overs.iter().filter(|it| it.goes_on()).count();
    let facts: Vec<_> = overs.iter().map(Over::facts).collect();
    let most = |name, figures: &mut dyn Iterator<Item = f64>, limit| {
        Check::new(name, worst(figures), Limit::AtMost(limit), "ms")
    };
    #[expect(clippy::cast_precision_loss, reason = "a few")]
    let [going, expected] = [going, expected].map(|it| it as f64);
    vec![
        Check::new(
            "steal_goes_on",
            going,
            Limit::Equals(expected),
            "vCPUs moved",
        ),
        most(
            "stolen_beyond_run_delay_ms",
            &mut overs.iter().map(Over::beyond_run_delay_ms),
            LAG_MS,
        )
        .with_detail(facts.join("; ")),
        most(
            "steal_beyond_run_delay_ms",
            &mut overs.iter().filter_map(Over::linux_beyond_run_delay_ms),
            LINUX_LAG_MS,
        ),
        most(
            "blackout_not_paused_ms",
            &mut overs.iter().map(Over::unpaused_ms),
            LAG_MS,
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: i128 = 1_000_000;

    fn failed(change: impl Fn(&mut Over)) -> Vec<&'static str> {
        let mut overs: Vec<_> = (0..2)
            .map(|vcpu| Over {
                vcpu,
                structure_ns: 3000 * MS,
                waited_ns: 2995 * MS,
                linux_ns: Some(3010 * MS),
                paused_ns: 300 * MS,
                gap_ns: 300 * MS,
                error_ns: 0,
            })
            .collect();
        change(&mut overs[0]);
        let checks = checks(&overs, 2).into_iter();
        checks.filter(|it| !it.pass).map(|it| it.name).collect()
    }

    #[test]
    fn what_the_threads_waited_may_be_stolen_and_a_blackout_may_not() {
        assert_eq!(failed(|_| ()), [""; 0]);
        let blackout = failed(|it| it.structure_ns += it.gap_ns);
        assert_eq!(blackout, ["stolen_beyond_run_delay_ms"]);
        let by_linux = failed(|it| it.linux_ns = Some(3300 * MS));
        assert_eq!(by_linux, ["steal_beyond_run_delay_ms"]);
        // In the accounts too.
        let in_all = failed(|it| (it.waited_ns, it.paused_ns) = (3295 * MS, 0));
        assert_eq!(in_all, ["blackout_not_paused_ms"]);
    }

    #[test]
    fn stolen_time_that_shrinks_or_is_gone_does_not_go_on() {
        assert_eq!(failed(|it| it.structure_ns = -1), ["steal_goes_on"]);
        let gone = ["steal_goes_on", "steal_beyond_run_delay_ms"];
        assert_eq!(failed(|it| it.linux_ns = None), gone);
        let none = checks(&[], 2);
        assert!(none.iter().all(|it| !it.pass));
    }
}
