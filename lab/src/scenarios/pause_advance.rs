//! Over an advancing pause a guest's counter moves as the host's time does.

use super::pauses::{Pause, check_agreement, check_lost, median, sights};
use super::watch::worst;
use crate::guest::{Guest, GuestImage, GuestSpec, boot_host};
use crate::host::Host;
use crate::lost::Bounds;
use crate::report::{Check, Limit};
use crate::scenario::{Scenario, Stage, Step, no_checks};
use crate::sightings::Sighting;
use anyhow::{Context, Result};
use guest_protocol::Workload;
use guest_protocol::report::{Program, Sample};
use std::time::Duration;

pub const SCENARIO: Scenario = Scenario {
    name: "pause-advance",
    about: "over an advancing pause a guest's counter shows the time that passed on the host",
    must_fail: None,
    play,
};

/// As many that what the lab does not know of the guest's clocks, some 15 ms before them and after them, is
/// little for each.
const PAUSES: usize = 10;
const LENGTH: Duration = Duration::from_secs(3);

#[derive(Default)]
struct Scene {
    host: Option<Host>,
    /// Of Linux, and its clocks before them and after.
    pauses: Vec<Pause>,
    sights: [Vec<Sighting>; 2],
    /// Of the bare-metal guest, which sees what is stolen from it within a step.
    bare: Vec<Pause>,
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
                name: "pause Linux, which is to see it",
                act: pause_linux,
                checks: linux_checks,
            },
            Step {
                name: "pause the bare-metal guest, which is to see it",
                act: pause_bare,
                checks: bare_checks,
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

/// A guest of one vCPU that spins.
fn start(name: &'static str, image: GuestImage, host: &mut Host) -> Result<Guest> {
    let spec = GuestSpec {
        image,
        workload: Workload::Spin,
        on_pause: "advance",
        ..GuestSpec::new(name)
    };
    let mut guest = Guest::start(&spec, host)?;
    guest.await_hello(host)?;
    guest.pin(host, &[0], &[1])?;
    Ok(guest)
}

fn pause_linux(scene: &mut Scene, stage: &mut Stage) -> Result<()> {
    let host = scene.host.as_mut().context("no host")?;
    let mut guest = start(LINUX, GuestImage::Linux, host)?;
    let mut dialogue = guest.dialogue();
    let before = sights(&mut dialogue, host, 0)?;
    for _ in 0..PAUSES {
        let pause = Pause::make(&mut guest, host, Program::Linux, LENGTH)?;
        scene.pauses.push(pause);
    }
    scene.sights = [before, sights(&mut dialogue, host, 0)?];
    stage.keep_time(&mut guest, host)?;
    guest.power_off(host)
}

fn pause_bare(scene: &mut Scene, stage: &mut Stage) -> Result<()> {
    let host = scene.host.as_mut().context("no host")?;
    let mut guest = start(BARE, GuestImage::El1, host)?;
    for _ in 0..PAUSES {
        let pause = Pause::make(&mut guest, host, Program::El1, LENGTH)?;
        scene.bare.push(pause);
    }
    stage.keep_records(&guest, host)?;
    guest.power_off(host)
}

const LINUX: &str = "advancing";
const BARE: &str = "bare-advancing";

fn linux_checks(scene: &Scene) -> Vec<Check> {
    let pauses = &scene.pauses;
    let hz = pauses.first().map_or(0, |it| it.resume.after.frequency_hz);
    let counter_ns = |sample: &Sample| {
        let ns = u128::from(sample.counter_before) * 1_000_000_000 / u128::from(hz.max(1));
        u64::try_from(ns).unwrap_or(u64::MAX)
    };
    let [before, after] = &scene.sights;
    let due = vec![(0, Duration::ZERO); pauses.len()];
    let clocks = [
        ("counter_loss_ms", Bounds::lost(before, after, counter_ns)),
        (
            "monotonic_loss_ms",
            Bounds::lost(before, after, |sample| sample.monotonic_ns),
        ),
    ];
    let mut checks = vec![check_recorded(pauses, LINUX)];
    let clocks = clocks.map(|(name, lost)| check_lost(name, lost, &due, LINUX));
    checks.extend(clocks);
    checks.extend(agree(pauses, LINUX));
    checks
}

/// The step of the guest's own counter is the time that passed on the host's, and what it takes to
/// stop a vCPU and to have it go on.
fn bare_checks(scene: &Scene) -> Vec<Check> {
    let pauses = &scene.bare;
    let excess = |it: &Pause| {
        let gap = it.resume.gap.as_ref();
        gap.map_or(f64::NAN, |gap| it.step_excess_us(gap.ns))
    };
    let excesses: Vec<_> = pauses.iter().map(excess).collect();
    let (middle, largest) = (
        median(excesses.clone()).abs(),
        worst(excesses.iter().map(|it| it.abs())),
    );
    let detail = format!("{BARE}: {excesses:.0?}");
    let check = |name, measured, most| {
        Check::new(name, measured, Limit::AtMost(most), "us").with_detail(detail.clone())
    };
    let mut checks = vec![
        check("counter_step_error_us_median", middle, 2000.0),
        check("counter_step_error_us_worst", largest, 20_000.0),
        check_recorded(pauses, BARE),
    ];
    checks.extend(agree(pauses, BARE));
    checks
}

fn check_recorded(pauses: &[Pause], guest: &str) -> Check {
    let error = worst(pauses.iter().map(Pause::counter_error_us));
    Check::new("counter_error_us", error, Limit::AtMost(100.0), "us")
        .with_detail(format!("{guest}, by the records"))
}

fn agree(pauses: &[Pause], guest: &str) -> Vec<Check> {
    let backwards = pauses.iter().map(Pause::backwards_steps).sum();
    check_agreement(pauses, backwards, guest)
}
