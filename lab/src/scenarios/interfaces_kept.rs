//! A Linux guest is offered every time interface, and has them all after a snapshot, without being
//! told again; options that it cannot go on with are refused.

use crate::guest::{BOOT_LIMIT, host_spec};
use crate::host::Host;
use crate::report::{Check, Limit};
use crate::requests::Finished;
use crate::scenario::{Scenario, Stage, Step, no_checks};
use crate::vmm::Vmm;
use anyhow::{Context, Result};
use lab_agent::message::Exit;
use serde::Deserialize;
use std::time::Duration;

pub const SCENARIO: Scenario = Scenario {
    name: "interfaces-kept",
    about: "live physical time and paused time are offered, kept by a snapshot, and not lost",
    must_fail: None,
    play,
};

const LIMIT: Duration = Duration::from_secs(60);
const FREQUENCY_HZ: u64 = 1_000_000_000;

/// Where the structures are, and that stolen time is kept beside them.
const LIVE: u64 = 0xa01_0000;
const PAUSED: u64 = 0xa02_0000;
const LOGGED: [&str; 4] = [
    "stolen-time@a000000",
    "live-physical-time@a010000",
    "paused-time@a020000",
    "using stolen time PV",
];

/// Options of `pvtime restore` that the saved guest cannot go on with, and what is said of them.
const REFUSED: [(&str, &str, &str, &str); 3] = [
    (
        "refused_live_off",
        "--live-physical-time",
        "off",
        "without live physical time",
    ),
    (
        "refused_live_at_24_mhz",
        "--live-physical-time",
        "24000000",
        "24000000 Hz",
    ),
    (
        "refused_paused_off",
        "--paused-time",
        "off",
        "--paused-time on",
    ),
];

/// What `pvtime ctl status --json` says of the interfaces.
#[derive(Deserialize)]
struct Status {
    live_physical_time: Option<Live>,
    paused_time: Option<Told>,
}

#[derive(Deserialize, PartialEq, Eq)]
struct Live {
    address: u64,
    frequency_hz: u64,
    claimed: bool,
}

#[derive(Deserialize)]
struct Told {
    address: u64,
    events: u64,
    paused_ns: u64,
}

#[derive(Default)]
struct Scene {
    host: Option<Host>,
    checks: Vec<Check>,
}

fn play(stage: &mut Stage) -> Result<()> {
    let take_checks = |scene: &Scene| scene.checks.clone();
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
                name: "boot a guest with everything, pause it, save it",
                act: save,
                checks: take_checks,
            },
            Step {
                name: "restore it with options that it cannot go on with",
                act: refuse,
                checks: take_checks,
            },
            Step {
                name: "restore it without options",
                act: restore,
                checks: take_checks,
            },
            Step {
                name: "power the host off",
                act: |scene, _| scene.host.take().context("no host")?.power_off(),
                checks: no_checks,
            },
        ],
    )
}

fn save(scene: &mut Scene, stage: &mut Stage) -> Result<()> {
    let host = scene.host.as_mut().context("no host")?;
    let (kernel, initramfs) = (host.path_of("Image")?, host.path_of("guest.cpio")?);
    let frequency = FREQUENCY_HZ.to_string();
    let vmm = Vmm::start(
        host,
        "first",
        &[
            "run",
            "--kernel",
            &kernel,
            "--initramfs",
            &initramfs,
            "--memory",
            "128",
            "--cmdline",
            "console=ttyS0 panic=-1 -- --port ttyS1 --sample-ms 200",
            "--stolen-time",
            "on",
            "--live-physical-time",
            &frequency,
            "--paused-time",
            "on",
        ],
    )?;
    vmm.await_text(host, "serial", "\"type\":\"sample\"", BOOT_LIMIT)?;
    let console = vmm.read(host, "console")?;
    let console = String::from_utf8_lossy(&console);
    let unsaid = LOGGED.iter().filter(|said| !console.contains(**said));
    let log = vmm.read(host, "log")?;
    let warned = String::from_utf8_lossy(&log).contains("a guest without a driver");
    for state in ["pause", "resume"] {
        vmm.ctl(host, &[state])?;
    }
    let status: Status = vmm.status(host)?;
    stage.keep_figure_of(&vmm, host)?;
    let snapshot = host.file("snapshot");
    vmm.ctl(host, &["snapshot", &snapshot])?;
    vmm.stop(host)?;
    scene.checks = vec![
        Check::new(
            "interfaces_missing_in_the_guests_log",
            f64::from(u32::try_from(unsaid.count())?),
            Limit::Equals(0.0),
            "lines",
        ),
        holds("vmm_says_what_is_not_covered", warned),
        holds(
            "live_as_asked_for",
            status.live_physical_time == Some(LIVE_UNCLAIMED),
        ),
        told("pauses_told", status.paused_time.as_ref(), 1.0),
    ];
    Ok(())
}

/// Linux has no driver for it.
const LIVE_UNCLAIMED: Live = Live {
    address: LIVE,
    frequency_hz: FREQUENCY_HZ,
    claimed: false,
};

fn refuse(scene: &mut Scene, _: &mut Stage) -> Result<()> {
    let host = scene.host.as_mut().context("no host")?;
    let (pvtime, snapshot) = (host.path_of("pvtime")?, host.file("snapshot"));
    scene.checks.clear();
    for (name, option, value, says) in REFUSED {
        let argv = [&pvtime, "restore", &snapshot, option, value];
        let Finished { exit, stderr, .. } = host.run(&argv, LIMIT)?;
        let refused = exit == Exit::Status(1) && stderr.lines().count() == 1;
        let check = holds(name, refused && stderr.contains(says));
        scene
            .checks
            .push(check.with_detail(stderr.trim().to_owned()));
    }
    Ok(())
}

fn restore(scene: &mut Scene, stage: &mut Stage) -> Result<()> {
    let host = scene.host.as_mut().context("no host")?;
    let snapshot = host.file("snapshot");
    let vmm = Vmm::start(host, "second", &["restore", &snapshot])?;
    vmm.await_text(host, "serial", "\"type\":\"sample\"", LIMIT)?;
    let status: Status = vmm.status(host)?;
    stage.keep_figure_of(&vmm, host)?;
    vmm.stop(host)?;
    scene.checks = vec![
        holds(
            "live_as_before",
            status.live_physical_time == Some(LIVE_UNCLAIMED),
        ),
        told(
            "pauses_told_after_the_restore",
            status.paused_time.as_ref(),
            2.0,
        ),
    ];
    Ok(())
}

fn holds(name: &'static str, holds: bool) -> Check {
    Check::new(
        name,
        f64::from(u8::from(!holds)),
        Limit::Equals(0.0),
        "faults",
    )
}

fn told(name: &'static str, paused: Option<&Told>, events: f64) -> Check {
    let told = paused.filter(|it| it.address == PAUSED && it.paused_ns > 0);
    let measured = told.and_then(|it| u32::try_from(it.events).ok());
    Check::new(
        name,
        measured.map_or(f64::INFINITY, f64::from),
        Limit::Equals(events),
        "pauses",
    )
}
