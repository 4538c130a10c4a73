//! A long frozen pause is no lockup to Linux; a long advancing one is, and shows that the guest would
//! have said so.

use crate::guest::{Guest, GuestSpec, host_spec};
use crate::host::Host;
use crate::interrupt::sleep;
use crate::report::{Check, Limit};
use crate::scenario::{Scenario, Stage, Step, no_checks};
use anyhow::{Context, Result};
use guest_protocol::Workload;
use std::time::Duration;

pub const SCENARIO: Scenario = Scenario {
    name: "watchdog",
    about: "a frozen pause of 60 s wakes no soft-lockup watchdog of 20 s, an advancing one does",
    must_fail: None,
    play,
};

/// Linux finds a CPU locked up that did nothing else for twice as many seconds.
const OPTIONS: &str = "watchdog_thresh=10";
const LENGTH: Duration = Duration::from_secs(60);

/// What it says then.
const LOCKUP: &str = "soft lockup - CPU";

/// Its watchdog looks every fifth of that time: here it has looked at least twice.
const AFTERWARDS: Duration = Duration::from_secs(12);

#[derive(Default)]
struct Scene {
    host: Option<Host>,
    frozen: usize,
    advanced: usize,
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
                name: "pause a guest of each policy for a minute",
                act: pause,
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
    scene.host = Some(stage.boot(&host_spec("host", stage.assets, &stage.logs)?)?);
    Ok(())
}

fn pause(scene: &mut Scene, stage: &mut Stage) -> Result<()> {
    let host = scene.host.as_mut().context("no host")?;
    let mut guests = Vec::new();
    for (name, on_pause) in [("frozen", "freeze"), ("advanced", "advance")] {
        let spec = GuestSpec {
            workload: Workload::Busy,
            on_pause,
            kernel_options: OPTIONS,
            ..GuestSpec::new(name)
        };
        guests.push(Guest::start(&spec, host)?);
    }
    for guest in &mut guests {
        guest.await_hello(host)?;
    }
    sleep(AFTERWARDS)?;
    for guest in &guests {
        guest.pause(host)?;
    }
    sleep(LENGTH)?;
    for guest in &guests {
        guest.resume(host)?;
    }
    sleep(AFTERWARDS)?;
    for (mut guest, lockups) in guests
        .into_iter()
        .zip([&mut scene.frozen, &mut scene.advanced])
    {
        // It still runs.
        guest.sample(host)?;
        *lockups = guest.console(host)?.matches(LOCKUP).count();
        stage.keep_time(&mut guest, host)?;
        guest.power_off(host)?;
    }
    Ok(())
}

fn checks(scene: &Scene) -> Vec<Check> {
    let count = |name, lockups: usize, limit| {
        let lockups = u32::try_from(lockups).map_or(f64::INFINITY, f64::from);
        Check::new(name, lockups, limit, "lockups")
    };
    vec![
        count("frozen_lockups", scene.frozen, Limit::Equals(0.0)),
        count("advanced_lockups", scene.advanced, Limit::AtLeast(1.0)),
    ]
}
