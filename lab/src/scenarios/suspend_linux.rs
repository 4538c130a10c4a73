//! A minute of the host's sleep under Linux guests: one that is told, one that is not, and one that
//! shows what it would say of a minute in which it did not run.

use super::suspend::FREEZE;
use super::watch::ms;
use crate::guest::{Guest, GuestSpec, host_spec};
use crate::host::Host;
use crate::interrupt::sleep;
use crate::report::{Check, Limit};
use crate::scenario::{Scenario, Stage, Step, no_checks};
use anyhow::{Context, Result};
use guest_protocol::Workload;
use guest_protocol::report::Sample;
use std::time::{Duration, Instant};

pub const SCENARIO: Scenario = Scenario {
    name: "suspend-linux",
    about: "a host sleep of 60 s wakes no watchdog of a Linux guest, told or not",
    must_fail: None,
    play,
};

/// Linux finds a CPU locked up that did nothing else for twice as many seconds.
const OPTIONS: &str = "watchdog_thresh=10 workqueue.watchdog_thresh=10";
const SECONDS: u32 = 60;

/// What its watchdogs say then.
const COMPLAINTS: [&str; 3] = ["soft lockup - CPU", "workqueue lockup", "rcu: INFO"];

/// They look every few seconds: here they have looked at least twice.
const AFTERWARDS: Duration = Duration::from_secs(12);

#[derive(Default)]
struct Scene {
    host: Option<Host>,
    seen: Vec<Seen>,
}

/// What was seen of one guest.
struct Seen {
    name: &'static str,
    complaints: usize,
    /// What its monotonic clock gained beyond the time in which the host was awake.
    jump_ms: f64,
}

fn play(stage: &mut Stage) -> Result<()> {
    stage.play(
        Scene::default(),
        &[
            Step {
                name: "boot a host",
                act: |scene, stage| {
                    let spec = host_spec("host", stage.assets, &stage.logs)?;
                    scene.host = Some(stage.boot(&spec)?);
                    Ok(())
                },
                checks: no_checks,
            },
            Step {
                name: "put the host to sleep for a minute under three guests",
                act: suspend,
                checks,
            },
            Step {
                name: "power the host off",
                act: |scene, _| scene.host.take().context("no host")?.power_off(),
                checks: no_checks,
            },
        ],
    )
}

fn suspend(scene: &mut Scene, stage: &mut Stage) -> Result<()> {
    let host = scene.host.as_mut().context("no host")?;
    let mut guests = Vec::new();
    for (name, vmm_options) in [
        ("told", &[][..]),
        ("untold", FREEZE),
        ("shown", &["--watch-host", "on"]),
    ] {
        let spec = GuestSpec {
            workload: Workload::Busy,
            vmm_options,
            kernel_options: OPTIONS,
            ..GuestSpec::new(name)
        };
        guests.push(Guest::start(&spec, host)?);
    }
    for guest in &mut guests {
        guest.await_hello(host)?;
    }
    sleep(AFTERWARDS)?;
    let mut before: Vec<(Sample, Instant)> = Vec::new();
    for guest in &mut guests {
        before.push((guest.sample(host)?, Instant::now()));
    }
    guests[0].prepare_sleep(host)?;
    let prepared = Instant::now();
    let slept = Duration::from_nanos(host.sleep(SECONDS)?.boottime_ns);
    guests[0].finish_sleep(host)?;
    let told_paused = prepared.elapsed();
    for (guest, (before, taken)) in guests.iter_mut().zip(&before) {
        let after = guest.sample(host)?;
        let passed = taken.elapsed();
        let stopped = if guest.name() == "told" {
            told_paused
        } else {
            slept
        };
        let awake_ns = u64::try_from(passed.saturating_sub(stopped).as_nanos())?;
        let gained_ns = after.monotonic_ns.saturating_sub(before.monotonic_ns);
        scene.seen.push(Seen {
            name: guest.name(),
            complaints: 0,
            jump_ms: ms(gained_ns.abs_diff(awake_ns)),
        });
    }
    sleep(AFTERWARDS)?;
    for (mut guest, seen) in guests.into_iter().zip(&mut scene.seen) {
        // It still runs.
        guest.sample(host)?;
        let console = guest.console(host)?;
        let of = |complaint: &&str| console.matches(*complaint).count();
        seen.complaints = COMPLAINTS.iter().map(of).sum();
        stage.report.adjustments.extend(guest.adjustments(host)?);
        guest.power_off(host)?;
    }
    Ok(())
}

fn checks(scene: &Scene) -> Vec<Check> {
    let mut checks = Vec::new();
    for seen in &scene.seen {
        let (complaints, jump) = match seen.name {
            "told" => (Limit::Equals(0.0), Limit::AtMost(50.0)),
            // The bound of what stays in the counters, and the emulator.
            "untold" => (Limit::Equals(0.0), Limit::AtMost(100.0)),
            _ => (Limit::AtLeast(1.0), Limit::AtLeast(50_000.0)),
        };
        let count = u32::try_from(seen.complaints).map_or(f64::INFINITY, f64::from);
        let check = |name, measured, limit, unit| {
            Check::new(name, measured, limit, unit).with_detail(seen.name)
        };
        checks.push(check("watchdog_lines", count, complaints, "lines"));
        checks.push(check("monotonic_jump_ms", seen.jump_ms, jump, "ms"));
    }
    checks
}
