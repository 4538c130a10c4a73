//! On a host whose KVM has no offset for all counters of a VM, as before Linux 6.4, a guest's virtual
//! counter is set by its register: what is lost is said beforehand, and nothing else is.

use super::pauses::backwards_steps;
use crate::bare::{Bare, OnHost};
use crate::control::Adjustment;
use crate::guest::{Guest, GuestImage, GuestSpec, boot_host};
use crate::host::Host;
use crate::interrupt::sleep;
use crate::report::{Check, Limit};
use crate::requests::Finished;
use crate::scenario::{Scenario, Stage, Step, no_checks};
use anyhow::{Context, Result, bail};
use guest_protocol::Workload;
use guest_protocol::report::Spin;
use guest_protocol::request::Fill;
use lab_agent::WITHHOLD_COUNTER_OFFSET;
use lab_agent::message::Exit;
use serde::Deserialize;
use serde_json::Value;
use std::time::Duration;
use stretch::{Stretch, frozen, judge};

mod stretch;

pub const SCENARIO: Scenario = Scenario {
    name: "counter-registers",
    about: "without KVM's counter offset, CNTVCT alone is kept over pauses and snapshots, and it is said",
    must_fail: None,
    play,
};

const PAUSES: usize = 3;
/// How long a VM stands still: what was to be hidden and is not, or is hidden twice, is this much.
const PAUSE: Duration = Duration::from_millis(500);
const LIMIT: Duration = Duration::from_secs(20);
const FILL: Fill = Fill {
    seed: 64,
    mib: 2,
    changes_per_s: 0,
};
/// Of the probe's capabilities.
const OFFSET: &str = "VM-wide counter offset";
const LIVE: &str = "live physical time";
/// The snapshot, among the host's files.
const SAVED: &str = "saved";

#[derive(Default)]
struct Scene {
    host: Option<Host>,
    /// What the probe says that a VM loses, and why.
    limits: String,
    checks: Vec<Check>,
}

fn play(stage: &mut Stage) -> Result<()> {
    stage.play(
        Scene::default(),
        &[
            Step {
                name: "boot a host",
                act: boot,
                checks: no_checks,
            },
            Step {
                name: "ask the host what it cannot do",
                act: probe,
                checks: |scene| scene.checks.clone(),
            },
            Step {
                name: "pause a guest without the offset, and save it",
                act: pause_and_save,
                checks: |scene| scene.checks.clone(),
            },
            Step {
                name: "restore it without the offset",
                act: restore,
                checks: |scene| scene.checks.clone(),
            },
            Step {
                name: "ask for what needs the offset",
                act: refuse,
                checks: |scene| scene.checks.clone(),
            },
            Step {
                name: "power the host off",
                act: |scene, _| scene.host.take().context("no host")?.power_off(),
                checks: no_checks,
            },
        ],
    )
}

fn boot(scene: &mut Scene, stage: &mut Stage) -> Result<()> {
    scene.host = Some(boot_host(stage)?);
    Ok(())
}

/// Runs `pvtime` on a host that has the offset, with it or without.
fn run(host: &mut Host, withheld: bool, arguments: &[&str]) -> Result<Finished> {
    let (agent, pvtime) = (host.facts().agent_program.clone(), host.path_of("pvtime")?);
    let mut argv = Vec::new();
    if withheld {
        argv.extend([agent.as_str(), WITHHOLD_COUNTER_OFFSET]);
    }
    argv.push(&pvtime);
    argv.extend(arguments);
    host.run(&argv, LIMIT)
}

fn probe(scene: &mut Scene, _: &mut Stage) -> Result<()> {
    let host = scene.host.as_mut().context("no host")?;
    let mut ask = |withheld| -> Result<Value> {
        let said = run(host, withheld, &["probe", "--json"])?.stdout;
        serde_json::from_str(&said).with_context(|| format!("cannot understand {said:?}"))
    };
    let (with, without) = (ask(false)?, ask(true)?);
    let missing = |of: &Value| {
        let all = of["host"]["capabilities"].as_array().into_iter().flatten();
        let missing = all.filter(|it| it["support"] == "no");
        missing.cloned().collect::<Vec<_>>()
    };
    let new: Vec<_> = missing(&without)
        .into_iter()
        .filter(|it| !missing(&with).contains(it))
        .collect();
    let names: Vec<_> = new.iter().map(|it| it["name"].clone()).collect();
    let offset = new.iter().find(|it| it["name"] == OFFSET);
    let text = |field: &str| offset.and_then(|it| it[field].as_str()).unwrap_or_default();
    scene.limits = format!("{}: {}", text("reason"), text("without_it"));
    scene.checks = vec![
        holds("probe_misses_what_needs_it", names == [LIVE, OFFSET])
            .with_detail(format!("{names:?}")),
        holds(
            "probe_names_the_physical_counter",
            text("without_it").contains("the guest's physical counter"),
        )
        .with_detail(scene.limits.clone()),
    ];
    Ok(())
}

fn pause_and_save(scene: &mut Scene, stage: &mut Stage) -> Result<()> {
    let host = scene.host.as_mut().context("no host")?;
    let spec = GuestSpec {
        image: GuestImage::El1,
        memory_mib: 16,
        workload: Workload::Spin,
        withheld: Some(WITHHOLD_COUNTER_OFFSET),
        ..GuestSpec::new("old-kvm")
    };
    let mut guest = Guest::start(&spec, host)?;
    guest.await_hello(host)?;
    OnHost {
        guest: &mut guest,
        host: &mut *host,
    }
    .fill(FILL)?;
    let said = said(&guest, host)?;
    let status: Value = serde_json::from_str(&guest.ctl(host, &["status", "--json"])?)?;
    scene.checks = vec![
        holds(
            "start_says_what_is_lost",
            said.contains(&format!("pvtime: {}\n", scene.limits)),
        )
        .with_detail(said),
        holds(
            "status_says_what_is_lost",
            status["counter_limits"] == scene.limits,
        ),
    ];
    let start = newest(&guest, host, "start")?;
    let mut stretches = vec![Stretch::read("start", start, &mut guest, host)?];
    for _ in 0..PAUSES {
        sleep(PAUSE)?;
        let resume = guest.resume(host)?;
        stretches.push(Stretch::read("pause, freeze", resume, &mut guest, host)?);
    }
    let folder = host.file(SAVED);
    guest.ctl(host, &["snapshot", &folder])?;
    sleep(PAUSE)?;
    let resume = guest.resume(host)?;
    stretches.push(Stretch::read("snapshot", resume, &mut guest, host)?);
    guest.resume(host)?;
    let spins = guest.spins(host)?;
    scene.checks.extend(judge(&stretches, "old-kvm"));
    scene.checks.push(frozen(&stretches));
    scene.checks.push(check_backwards(&spins));
    stage.keep_records(&guest, host)?;
    guest.power_off(host)
}

fn restore(scene: &mut Scene, stage: &mut Stage) -> Result<()> {
    let host = scene.host.as_mut().context("no host")?;
    let folder = host.file(SAVED);
    let mut stretches = Vec::new();
    scene.checks.clear();
    for (name, policy) in [("old-kvm-freeze", "freeze"), ("old-kvm-advance", "advance")] {
        let arguments = ["restore", &folder, "--on-restore", policy];
        let withheld = Some(WITHHOLD_COUNTER_OFFSET);
        let mut guest = Guest::spawn_without(withheld, name, true, &arguments, host)?;
        let mut asked = OnHost {
            guest: &mut guest,
            host: &mut *host,
        };
        let memory = asked.verify()?;
        let resume = newest(&guest, host, "resume")?;
        let is_meant = (resume.before.guest == resume.after.guest) == (policy == "freeze");
        let spins = guest.spins(host)?;
        scene.checks.extend([
            holds("restored_by_the_policy", is_meant).with_detail(format!("{name}: {resume:?}")),
            holds(
                "memory_intact",
                (memory.damaged, memory.pages > 0) == (0, true),
            )
            .with_detail(name),
            holds(
                "restoration_says_what_is_lost",
                said(&guest, host)?.contains(&scene.limits),
            )
            .with_detail(name),
            check_backwards(&spins),
        ]);
        stretches.push(Stretch::read(policy, resume, &mut guest, host)?);
        stage.keep_records(&guest, host)?;
        guest.stop(host)?;
    }
    scene.checks.extend(judge(&stretches, "restored"));
    Ok(())
}

fn refuse(scene: &mut Scene, _: &mut Stage) -> Result<()> {
    let host = scene.host.as_mut().context("no host")?;
    let (kernel, folder) = (host.path_of("el1")?, host.file(SAVED));
    let live = [
        "run",
        "--kernel",
        &kernel,
        "--live-physical-time",
        "1000000000",
    ];
    let refusals = [
        ("live_is_refused", true, &live[..], "KVM_CAP_COUNTER_OFFSET"),
        (
            "restoration_with_the_offset_is_refused",
            false,
            &["restore", &folder],
            "one of its counters would jump",
        ),
    ];
    scene.checks.clear();
    for (name, withheld, arguments, says) in refusals {
        let Finished { exit, stderr, .. } = run(host, withheld, arguments)?;
        let refused = exit == Exit::Status(1) && stderr.lines().count() == 1;
        let check = holds(name, refused && stderr.contains(says));
        scene
            .checks
            .push(check.with_detail(stderr.trim().to_owned()));
    }
    Ok(())
}

/// What its VMM wrote on standard error.
fn said(guest: &Guest, host: &mut Host) -> Result<String> {
    let log = host.file(&format!("{}-vmm.log", guest.name()));
    Ok(String::from_utf8_lossy(&host.read_from(&log, 0)?).into_owned())
}

/// The newest record of an event.
fn newest(guest: &Guest, host: &mut Host, event: &str) -> Result<Adjustment> {
    let mut records = guest.adjustments(host)?.into_iter();
    let Some(record) = records.rfind(|record| record["event"] == event) else {
        bail!("no {event} was recorded");
    };
    Adjustment::deserialize(&record).with_context(|| format!("cannot understand {record}"))
}

fn check_backwards(spins: &[Spin]) -> Check {
    let steps = usize::try_from(backwards_steps(spins)).unwrap_or(usize::MAX);
    let steps = if spins.is_empty() { usize::MAX } else { steps };
    none("backwards_steps", steps, "steps")
}

fn none(name: &'static str, found: usize, unit: &'static str) -> Check {
    let found = u32::try_from(found).map_or(f64::INFINITY, f64::from);
    Check::new(name, found, Limit::Equals(0.0), unit)
}

fn holds(name: &'static str, holds: bool) -> Check {
    none(name, usize::from(!holds), "faults")
}
