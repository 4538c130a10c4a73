//! A guest that was asleep with its host goes elsewhere before it looked: as a snapshot after the sleep
//! and in the middle of it, and by a migration right after a sleep that nobody announced. What its
//! paused-time structure, its ledger and its counter tell of the way must be what the records of both
//! VMMs do.

use super::pauses::backwards_steps;
use super::view::{View, records};
use super::watch::ms;
use crate::control::Adjustment;
use crate::guest::{Guest, GuestImage, GuestSpec, Receiver, host_spec};
use crate::host::Host;
use crate::report::{Check, Limit};
use crate::scenario::{Scenario, Stage, Step, no_checks};
use anyhow::{Context, Result};
use guest_protocol::Workload;

pub const SCENARIO: Scenario = Scenario {
    name: "suspend-and-save",
    about: "a sleep of the host that the guest has not heard of goes along with it, once",
    must_fail: None,
    play,
};

const SECONDS: u32 = 2;
const SPINNER: u32 = 1;

/// Each VMM watches its host; the first one offers paused time, and the others go on with that.
const WATCHED: [&str; 4] = ["--watch-host", "on", "--on-stall", "freeze"];
const TOLD: [&str; 6] = [
    "--paused-time",
    "on",
    WATCHED[0],
    WATCHED[1],
    WATCHED[2],
    WATCHED[3],
];

/// What belongs to no stop may be in the account of one: much less than a stop.
const ACCOUNTS_MS: f64 = 1000.0;

#[derive(Default)]
struct Scene {
    host: Option<Host>,
    guest: Option<Guest>,
    trips: Vec<Trip>,
}

/// A way from one VMM to another, with a sleep of the host before or in it.
struct Trip {
    name: &'static str,
    before: View,
    after: View,
    /// What both VMMs recorded of it.
    records: Option<Vec<Adjustment>>,
    backwards_steps: u64,
}

fn play(stage: &mut Stage) -> Result<()> {
    let last = |scene: &Scene| scene.trips.last().map_or_else(Vec::new, Trip::checks);
    stage.play(
        Scene::default(),
        &[
            Step {
                name: "boot a host and a guest",
                act: boot,
                checks: no_checks,
            },
            Step {
                name: "save it when an announced sleep is over",
                act: |scene, stage| {
                    scene.go(stage, "after", |guest, host| {
                        guest.prepare_sleep(host)?;
                        host.sleep(SECONDS)?;
                        guest.finish_sleep(host)?;
                        by_snapshot(guest, host, "after")
                    })
                },
                checks: last,
            },
            Step {
                name: "save it when nobody said yet that the sleep is over",
                act: |scene, stage| {
                    scene.go(stage, "within", |guest, host| {
                        guest.prepare_sleep(host)?;
                        host.sleep(SECONDS)?;
                        by_snapshot(guest, host, "within")
                    })
                },
                checks: last,
            },
            Step {
                name: "migrate it when it slept unannounced",
                act: |scene, stage| {
                    scene.go(stage, "migrated", |mut guest, host| {
                        let receiver = Receiver::start("migrated", host)?;
                        host.sleep(SECONDS)?;
                        guest.move_to(host, &receiver, &[])?;
                        Ok((guest, None))
                    })
                },
                checks: last,
            },
            Step {
                name: "power both off",
                act: |scene, _| {
                    let host = scene.host.as_mut().context("no host")?;
                    scene.guest.take().context("no guest")?.power_off(host)?;
                    scene.host.take().context("no host")?.power_off()
                },
                checks: no_checks,
            },
        ],
    )
}

fn boot(scene: &mut Scene, stage: &mut Stage) -> Result<()> {
    let mut host = stage.boot(&host_spec("host", stage.assets, &stage.logs)?)?;
    let spec = GuestSpec {
        image: GuestImage::El1,
        cpus: 2,
        memory_mib: 32,
        vmm_options: &TOLD,
        ..GuestSpec::new("guest")
    };
    let mut guest = Guest::start(&spec, &mut host)?;
    guest.await_hello(&mut host)?;
    guest.set_workload(&mut host, SPINNER, Workload::Spin)?;
    scene.guest = Some(guest);
    scene.host = Some(host);
    Ok(())
}

impl Scene {
    /// Has the guest go elsewhere, and looks before and after. Where the VMM that it leaves can still
    /// be asked, its records are known.
    fn go(
        &mut self,
        stage: &mut Stage,
        name: &'static str,
        go: impl FnOnce(Guest, &mut Host) -> Result<(Guest, Option<Vec<Adjustment>>)>,
    ) -> Result<()> {
        let host = self.host.as_mut().context("no host")?;
        let mut guest = self.guest.take().context("no guest")?;
        // The spinning vCPU's account starts afresh.
        guest.spins(host)?;
        let before = View::of(&mut guest, host)?;
        let past = records(&guest, host)?.len();
        let (mut guest, left) = go(guest, host)?;
        let after = View::of(&mut guest, host)?;
        let reached = records(&guest, host)?;
        let records = left.map(|left| [&left[past..], &reached].concat());
        let backwards_steps = backwards_steps(&guest.spins(host)?);
        stage.report.adjustments.extend(guest.adjustments(host)?);
        self.guest = Some(guest);
        self.trips.push(Trip {
            name,
            before,
            after,
            records,
            backwards_steps,
        });
        Ok(())
    }
}

fn by_snapshot(
    guest: Guest,
    host: &mut Host,
    name: &'static str,
) -> Result<(Guest, Option<Vec<Adjustment>>)> {
    let folder = host.file(&format!("{name}-snapshot"));
    guest.ctl(host, &["snapshot", &folder])?;
    let left = records(&guest, host)?;
    guest.stop(host)?;
    let saved_at = left.iter().rposition(|it| it.event == "pause");
    // One that ran goes on after it was saved, which is no affair of the other.
    let left = left[..=saved_at.context("it was stopped")?].to_vec();
    let arguments = [&["restore", &folder][..], &WATCHED].concat();
    let guest = Guest::spawn(name, true, &arguments, host)?;
    Ok((guest, Some(left)))
}

impl Trip {
    fn checks(&self) -> Vec<Check> {
        let (none, at_least) = (Limit::Equals(0.0), Limit::AtLeast);
        let (before, after) = (&self.before.paused, &self.after.paused);
        let paused_ns = after.paused_ns - before.paused_ns;
        let check = |name, measured, limit, unit| {
            Check::new(name, measured, limit, unit).with_detail(self.name)
        };
        let told = format!(
            "{}: {:.3} ms of pauses in all, {} interrupts",
            self.name,
            ms(paused_ns),
            after.interrupts - before.interrupts
        );
        let mut checks = vec![
            check(
                "pauses_told",
                number(after.events - before.events),
                self.pauses(),
                "pauses",
            )
            .with_detail(told),
            check(
                "last_cause",
                f64::from(after.last_cause),
                self.last_cause(),
                "cause",
            ),
            // One may stand for several.
            check(
                "interrupts",
                f64::from(after.interrupts - before.interrupts),
                at_least(1.0),
                "interrupts",
            ),
            check(
                "counter_and_pauses_error_ms",
                self.after.error_ms(&self.before, paused_ns),
                Limit::AtMost(1.0),
                "ms",
            ),
            check(
                "backwards_steps",
                number(self.backwards_steps),
                none,
                "steps",
            ),
        ];
        checks.extend(self.account_checks(paused_ns));
        if let Some(records) = &self.records {
            let recorded_ns: u64 = records.iter().map(|it| it.hidden_ns).sum();
            let error_ns = number(recorded_ns.abs_diff(paused_ns));
            checks.push(check("told_beside_recorded_ns", error_ns, none, "ns"));
        }
        checks
    }

    /// How many pauses the guest hears of: those in the records, or at least the sleep and the move.
    fn pauses(&self) -> Limit {
        let Some(records) = &self.records else {
            return Limit::AtLeast(2.0);
        };
        let ends = records.iter().filter(|it| it.gap.is_some());
        Limit::Equals(number(ends.count() as u64))
    }

    /// What the last is put down to, by its number in the structure.
    fn last_cause(&self) -> Limit {
        const SNAPSHOT: f64 = 2.0;
        const MIGRATION: f64 = 3.0;
        Limit::Equals(if self.records.is_some() {
            SNAPSHOT
        } else {
            MIGRATION
        })
    }

    /// Every vCPU's accounts of stops, whatever their causes, against what the guest is told.
    fn account_checks(&self, paused_ns: u64) -> [Check; 2] {
        let both = self.before.accounts.iter().zip(&self.after.accounts);
        let grown =
            both.map(|(before, after)| ms(after.paused_ns.total() - before.paused_ns.total()));
        let (mut least, mut most) = (f64::INFINITY, 0_f64);
        for grown_ms in grown {
            least = least.min(grown_ms);
            most = most.max(grown_ms);
        }
        let check = |name, measured, limit: f64| {
            Check::new(name, measured, Limit::AtMost(limit), "ms").with_detail(self.name)
        };
        [
            check("lost_from_accounts_ms", ms(paused_ns) - least, 1.0),
            check("twice_in_accounts_ms", most - ms(paused_ns), ACCOUNTS_MS),
        ]
    }
}

fn number(count: u64) -> f64 {
    u32::try_from(count).map_or(f64::INFINITY, f64::from)
}
