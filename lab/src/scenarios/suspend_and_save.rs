//! A guest that was asleep with its host goes elsewhere before it looked: as a snapshot after the sleep,
//! in the middle of it, and after one that nobody announced, and by a migration right after such a one. What its
//! paused-time structure, its ledger and its counter tell of the way must be what the records of both
//! VMMs do.

use super::pauses::backwards_steps;
use super::view::{View, records};
use super::watch::ms;
use crate::control::{Adjustment, Gap};
use crate::guest::{Guest, GuestImage, GuestSpec, Receiver, host_spec};
use crate::host::Host;
use crate::report::{Check, Limit};
use crate::scenario::{Scenario, Stage, Step, no_checks};
use anyhow::{Context, Result, bail};
use guest_protocol::Workload;
use lab_agent::message::{Exit, Spawn};
use std::time::Duration;

pub const SCENARIO: Scenario = Scenario {
    name: "suspend-and-save",
    about: "a sleep of the host that the guest has not heard of goes along with it, once",
    must_fail: None,
    play,
};

const SECONDS: u32 = 2;
const SPINNER: u32 = 1;
/// Longest time for a client that follows a VM to learn of its end.
const FOLLOWED: Duration = Duration::from_secs(20);

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

/// A vCPU is stopped before the others are, and that belongs to its stop: much less than any.
const ACCOUNTS_MS: f64 = 50.0;

/// As the structure numbers causes.
const SNAPSHOT: u32 = 2;
const MIGRATION: u32 = 3;

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
    /// What the guest is told that its last pause was for.
    cause: u32,
    /// What both VMMs recorded of it.
    records: Vec<Adjustment>,
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
                    scene.go(stage, "after", SNAPSHOT, |guest, host| {
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
                    scene.go(stage, "within", SNAPSHOT, |guest, host| {
                        guest.prepare_sleep(host)?;
                        host.sleep(SECONDS)?;
                        by_snapshot(guest, host, "within")
                    })
                },
                checks: last,
            },
            Step {
                name: "save it when it slept unannounced",
                act: |scene, stage| {
                    scene.go(stage, "unannounced", SNAPSHOT, |guest, host| {
                        host.sleep(SECONDS)?;
                        by_snapshot(guest, host, "unannounced")
                    })
                },
                checks: last,
            },
            Step {
                name: "migrate it when it slept unannounced",
                act: |scene, stage| scene.go(stage, "migrated", MIGRATION, by_migration),
                checks: last,
            },
            Step {
                name: "power both off",
                act: |scene, stage| {
                    let host = scene.host.as_mut().context("no host")?;
                    let guest = scene.guest.take().context("no guest")?;
                    stage.keep_figures(&guest, host)?;
                    guest.power_off(host)?;
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
    /// Has the guest go elsewhere, and looks before and after. What the VMM that it left recorded comes
    /// with it.
    fn go(
        &mut self,
        stage: &mut Stage,
        name: &'static str,
        cause: u32,
        go: impl FnOnce(Guest, &mut Host) -> Result<(Guest, Vec<Adjustment>)>,
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
        let records = [&left[past..], &reached].concat();
        let backwards_steps = backwards_steps(&guest.spins(host)?);
        stage.report.adjustments.extend(guest.adjustments(host)?);
        self.guest = Some(guest);
        self.trips.push(Trip {
            name,
            before,
            after,
            cause,
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
) -> Result<(Guest, Vec<Adjustment>)> {
    let folder = host.file(&format!("{name}-snapshot"));
    guest.ctl(host, &["snapshot", &folder])?;
    let left = records(&guest, host)?;
    guest.stop(host)?;
    let saved_at = left.iter().rposition(|it| it.event == "pause");
    // One that ran goes on after it was saved, which is no affair of the other.
    let left = left[..=saved_at.context("it was stopped")?].to_vec();
    let arguments = [&["restore", &folder][..], &WATCHED].concat();
    let guest = Guest::spawn(name, true, &arguments, host)?;
    Ok((guest, left))
}

/// At once after a sleep. Its VMM is followed to its end, up to its last record.
fn by_migration(mut guest: Guest, host: &mut Host) -> Result<(Guest, Vec<Adjustment>)> {
    let receiver = Receiver::start("migrated", host)?;
    let events = host.file("left-events.log");
    let follower = host.spawn(Spawn {
        argv: guest.ctl_argv(&["events", "--follow", "--json"]),
        stdout: Some(events.clone()),
        ..Spawn::default()
    })?;
    host.keep_log("left-events.log");
    host.sleep(SECONDS)?;
    guest.move_to(host, &receiver, &[])?;
    let exit = host.wait(follower.child, FOLLOWED)?;
    if exit != Exit::Status(0) {
        bail!("pvtime ctl events --follow ended with {exit:?}");
    }
    let left = String::from_utf8(host.read_from(&events, 0)?)?;
    let left = left.lines().map(|line| Ok(serde_json::from_str(line)?));
    Ok((guest, left.collect::<Result<_>>()?))
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
                Limit::Equals(number(self.pauses().count() as u64)),
                "pauses",
            )
            .with_detail(told),
            check(
                "last_cause",
                f64::from(after.last_cause),
                Limit::Equals(f64::from(self.cause)),
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
        checks.extend(self.account_checks());
        let recorded_ns: u64 = self.records.iter().map(|it| it.hidden_ns).sum();
        let error_ns = number(recorded_ns.abs_diff(paused_ns));
        checks.push(check("told_beside_recorded_ns", error_ns, none, "ns"));
        checks
    }

    /// What in the records was a pause to the guest.
    fn pauses(&self) -> impl Iterator<Item = &Gap> {
        self.records.iter().filter_map(|it| it.gap.as_ref())
    }

    /// Physical time of all pauses, and by how much those may have been longer that were inferred.
    fn recorded_ms(&self) -> [f64; 2] {
        let all_ns: i128 = self.pauses().map(|gap| gap.ns).sum();
        let sleeps = self.records.iter().filter(|it| it.event == "host sleep");
        let errors = sleeps.filter_map(|it| it.gap.as_ref()?.error_ns);
        [u64::try_from(all_ns).unwrap_or(0), errors.sum()].map(ms)
    }

    /// Every vCPU's accounts of stops, whatever their causes, against what the records say of them.
    fn account_checks(&self) -> [Check; 2] {
        let both = self.before.accounts.iter().zip(&self.after.accounts);
        let grown =
            both.map(|(before, after)| ms(after.paused_ns.total() - before.paused_ns.total()));
        let (mut least, mut most) = (f64::INFINITY, 0_f64);
        for grown_ms in grown {
            least = least.min(grown_ms);
            most = most.max(grown_ms);
        }
        let [recorded, error] = self.recorded_ms();
        let detail = format!(
            "{}: {least:.3} to {most:.3} ms in the accounts, {recorded:.3} ms recorded, {error:.3} ms unsure",
            self.name
        );
        let check = |name, measured, limit: f64| {
            Check::new(name, measured, Limit::AtMost(limit), "ms").with_detail(detail.clone())
        };
        [
            check("lost_from_accounts_ms", recorded - least, 1.0),
            check("twice_in_accounts_ms", most - recorded - error, ACCOUNTS_MS),
        ]
    }
}

fn number(count: u64) -> f64 {
    u32::try_from(count).map_or(f64::INFINITY, f64::from)
}
