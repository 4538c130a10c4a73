//! Over an advancing pause a guest's counter moves as the host's time does.

use super::pauses::{Pause, check_agreement};
use super::watch::worst;
use crate::guest::{Guest, GuestSpec, host_spec};
use crate::host::Host;
use crate::report::{Check, Limit};
use crate::scenario::{Scenario, Stage, Step, no_checks};
use anyhow::{Context, Result};
use guest_protocol::Workload;
use std::time::Duration;

pub const SCENARIO: Scenario = Scenario {
    name: "pause-advance",
    about: "over an advancing pause a guest's counter shows the time that passed on the host",
    must_fail: None,
    play,
};

const PAUSES: usize = 5;
const LENGTH: Duration = Duration::from_secs(3);

#[derive(Default)]
struct Scene {
    host: Option<Host>,
    pauses: Vec<Pause>,
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
                name: "pause a guest that is to see it",
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
    let mut host = stage.boot(&host_spec("host", stage.assets, &stage.logs)?)?;
    host.pin_agent(&[1])?;
    scene.host = Some(host);
    Ok(())
}

fn pause(scene: &mut Scene, stage: &mut Stage) -> Result<()> {
    let host = scene.host.as_mut().context("no host")?;
    let mut guest = Guest::start(
        &GuestSpec {
            workload: Workload::Spin,
            on_pause: "advance",
            ..GuestSpec::new("advancing")
        },
        host,
    )?;
    guest.await_hello(host)?;
    guest.pin(host, &[0], &[1])?;
    for _ in 0..PAUSES {
        scene.pauses.push(Pause::make(&mut guest, host, LENGTH)?);
    }
    stage.keep_time(&mut guest, host)?;
    guest.power_off(host)
}

fn checks(scene: &Scene) -> Vec<Check> {
    let error = worst(scene.pauses.iter().map(Pause::counter_error_us));
    let backwards = scene.pauses.iter().map(Pause::backwards_steps).sum();
    let mut checks = vec![Check::new(
        "counter_error_us",
        error,
        Limit::AtMost(100.0),
        "us",
    )];
    checks.extend(check_agreement(&scene.pauses, backwards, "advancing"));
    checks
}
