//! Stolen time that user space keeps: as the kernel's, within its period.

use super::watch::Watch;
use crate::guest::{Guest, GuestSpec, boot_host};
use crate::host::Host;
use crate::report::{Check, Limit};
use crate::scenario::{Scenario, Stage, Step, no_checks};
use anyhow::{Context, Result};
use guest_protocol::Workload;
use std::time::Duration;

pub const SCENARIO: Scenario = Scenario {
    name: "stolen-user",
    about: "stolen time kept in user space is the kernel's, within its period",
    must_fail: None,
    play,
};

/// How often user space brings the structures up to date if it is not told otherwise.
const PERIOD_MS: f64 = 100.0;

/// How far the kernel's structure may be from the scheduler's figure.
const KERNEL_MS: f64 = 10.0;

/// How long the two compete.
const COMPETITION: Duration = Duration::from_secs(10);

#[derive(Default)]
struct Scene {
    host: Option<Host>,
    /// The kernel's guest, and user space's.
    watches: Vec<Watch>,
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
                name: "let a guest of each provider compete for one CPU",
                act: compete,
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

fn boot(scene: &mut Scene, stage: &mut Stage) -> Result<()> {
    scene.host = Some(boot_host(stage)?);
    Ok(())
}

fn compete(scene: &mut Scene, stage: &mut Stage) -> Result<()> {
    let host = scene.host.as_mut().context("no host")?;
    let mut guests = Vec::new();
    for (name, stolen_time) in [("kernel", "on"), ("user", "user")] {
        let spec = GuestSpec {
            workload: Workload::Busy,
            stolen_time,
            ..GuestSpec::new(name)
        };
        guests.push(Guest::start(&spec, host)?);
    }
    for guest in &mut guests {
        guest.await_hello(host)?;
        guest.pin(host, &[0], &[1])?;
    }
    scene.watches = Watch::all(&mut guests, host, COMPETITION, |_| {})?;
    for mut guest in guests {
        stage.keep_time(&mut guest, host)?;
        guest.power_off(host)?;
    }
    Ok(())
}

fn checks(scene: &Scene) -> Vec<Check> {
    let [kernel, user] = &scene.watches[..] else {
        return Vec::new();
    };
    let difference = |watch: &Watch, name, limit_ms| {
        let measured = watch.structure_vs_run_delay_ms();
        Check::new(name, measured, Limit::AtMost(limit_ms), "ms")
    };
    let mut checks = vec![
        difference(kernel, "kernel_vs_run_delay_ms", KERNEL_MS),
        difference(user, "user_vs_run_delay_ms", PERIOD_MS),
    ];
    for watch in [kernel, user] {
        let competed = COMPETITION.as_secs_f64() * 1e3;
        let (stolen, at_least) = (watch.stolen_ms(), Limit::AtLeast(competed / 3.0));
        let steps = watch.backwards_steps().into();
        checks.extend([
            Check::new("stolen_ms", stolen, at_least, "ms").with_detail(watch.name),
            Check::new("stolen_monotonic", steps, Limit::Equals(0.0), "steps")
                .with_detail(watch.name),
        ]);
    }
    checks
}
