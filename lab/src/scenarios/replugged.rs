//! A vCPU that its guest takes off and brings back (R4).

use super::watch::{ms, structure};
use crate::guest::Guest;
use crate::host::Host;
use crate::interrupt::sleep;
use crate::report::{Check, Limit};
use crate::status::Status;
use anyhow::{Context, Result, bail};
use guest_protocol::{Action, Workload};
use std::time::Duration;

/// The CPU, and the one that it competes with afterwards.
const CPU: u32 = 3;
const RIVAL: u32 = 2;

/// How long they compete, and how little of it the vCPU may have lost: both get their share.
const RIVALRY: Duration = Duration::from_millis(600);
const LOST_MS: f64 = 20.0;

/// What was seen of it, in nanoseconds.
#[expect(clippy::struct_field_names, reason = "units last in names")]
pub struct Replugged {
    /// Its structure before it went off.
    before_ns: u64,
    /// Its structure some time after it came back.
    after_ns: u64,
    /// What its thread waited for a CPU from before it went off until then.
    waited_ns: u64,
    /// The rival's structure over the same time.
    rival_ns: [u64; 2],
    /// What the guest's kernel says was stolen from it, before and after.
    own_ns: [u64; 2],
}

impl Replugged {
    /// Takes the CPU of an idle guest off, brings it back and has it lose time.
    pub fn see(guest: &mut Guest, host: &mut Host) -> Result<Self> {
        let before = guest.status(host)?;
        let own_before_ns = own(guest, host)?.context("CPU 3 is off already")?;
        set_online(guest, host, false)?;
        if own(guest, host)?.is_some() {
            bail!("CPU {CPU} was taken off and is still there");
        }
        set_online(guest, host, true)?;
        compete(guest, host)?;
        let own_after_ns = own(guest, host)?.context("CPU 3 did not come back")?;
        let after = guest.status(host)?;
        // Read later than the structure, so that it has all that this may have.
        let later = guest.status(host)?;
        let stolen_ns = |status: &Status, cpu: u32| -> Result<u64> {
            Ok(structure(status, cpu as usize)?.stolen_ns)
        };
        Ok(Self {
            before_ns: stolen_ns(&before, CPU)?,
            after_ns: stolen_ns(&after, CPU)?,
            waited_ns: run_delay_ns(&later)? - run_delay_ns(&before)?,
            rival_ns: [stolen_ns(&before, RIVAL)?, stolen_ns(&after, RIVAL)?],
            own_ns: [own_before_ns, own_after_ns],
        })
    }

    #[expect(clippy::cast_precision_loss, reason = "0, or it fails")]
    pub fn checks(&self) -> [Check; 3] {
        let beyond_ns = self.after_ns.saturating_sub(self.waited_ns);
        let back_ns = self.rival_ns[0].saturating_sub(self.rival_ns[1]);
        let beyond = format!(
            "{:.1} ms before it went off, {:.1} ms after it came back; by the guest's kernel {:.0} ms and {:.0} ms",
            ms(self.before_ns),
            ms(self.after_ns),
            ms(self.own_ns[0]),
            ms(self.own_ns[1]),
        );
        [
            Check::new(
                "replugged_stolen_beyond_run_delay_ns",
                beyond_ns as f64,
                Limit::Equals(0.0),
                "ns",
            )
            .with_detail(beyond),
            Check::new(
                "replugged_stolen_ms",
                ms(self.after_ns),
                Limit::AtLeast(LOST_MS),
                "ms",
            ),
            Check::new(
                "replugged_rival_backwards_ns",
                back_ns as f64,
                Limit::Equals(0.0),
                "ns",
            ),
        ]
    }
}

fn set_online(guest: &mut Guest, host: &mut Host, online: bool) -> Result<()> {
    guest
        .ask(host, Action::SetOnline { cpu: CPU, online })
        .map(drop)
}

/// What the guest's kernel says was stolen from the CPU; none while it is off.
fn own(guest: &mut Guest, host: &mut Host) -> Result<Option<u64>> {
    let sample = guest.sample(host)?;
    Ok(sample.steal_ns.get(CPU as usize).copied().flatten())
}

/// Has both CPUs want one host CPU for a while.
fn compete(guest: &mut Guest, host: &mut Host) -> Result<()> {
    guest.pin_vcpus(host, |_| &[0])?;
    for workload in [Workload::Busy, Workload::Idle] {
        for cpu in [CPU, RIVAL] {
            guest.ask(host, Action::SetWorkload { cpu, workload })?;
        }
        if workload == Workload::Busy {
            sleep(RIVALRY)?;
        }
    }
    Ok(())
}

fn run_delay_ns(status: &Status) -> Result<u64> {
    let vcpu = status.vcpus.get(CPU as usize);
    Ok(vcpu
        .with_context(|| format!("the VMM tells of no vCPU {CPU}"))?
        .run_delay_ns)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_that_did_not_start_again_or_does_not_grow_is_found_out() {
        let passes = |after_ns, waited_ns, rival_ns| {
            let seen = Replugged {
                before_ns: 750_000_000,
                after_ns,
                waited_ns,
                rival_ns,
                own_ns: [0; 2],
            };
            seen.checks().map(|check| check.pass)
        };
        assert_eq!(passes(300_000_000, 300_000_000, [5, 5]), [true; 3]);
        assert_eq!(
            passes(300_000_001, 300_000_000, [5, 6]),
            [false, true, true]
        );
        assert_eq!(
            passes(1_050_000_000, 300_000_000, [5, 6]),
            [false, true, true]
        );
        assert_eq!(passes(19_999_999, 300_000_000, [5, 6]), [true, false, true]);
        assert_eq!(
            passes(300_000_000, 300_000_000, [5, 4]),
            [true, true, false]
        );
    }
}
