//! Stolen time that is off is off for the guest too: it finds none, though it is robbed.

use super::watch::ms;
use crate::guest::{Guest, GuestSpec, boot_host};
use crate::host::Host;
use crate::interrupt::sleep;
use crate::report::{Check, Limit};
use crate::scenario::{Scenario, Stage, Step, no_checks};
use anyhow::{Context, Result};
use guest_protocol::Workload;
use std::time::Duration;

pub const SCENARIO: Scenario = Scenario {
    name: "stolen-time-off",
    about: "with --stolen-time off a robbed guest finds no stolen time, with on it does",
    must_fail: None,
    play,
};

/// What Linux says when it has found stolen time.
const FOUND: &str = "using stolen time PV";

/// How long the two compete.
const COMPETITION: Duration = Duration::from_secs(3);

#[derive(Default)]
struct Scene {
    host: Option<Host>,
    on: Seen,
    off: Seen,
}

/// What was seen of one guest.
#[derive(Default)]
struct Seen {
    /// Lines of its log on stolen time.
    found: usize,
    /// Its own figure.
    steal_ns: u64,
    /// Structures that its VMM tells of.
    structures: usize,
    /// What the host's scheduler counted.
    run_delay_ns: u64,
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
                name: "let a guest with and a guest without stolen time compete for one CPU",
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
    for stolen_time in ["on", "off"] {
        let workload = Workload::Busy;
        let spec = GuestSpec {
            workload,
            stolen_time,
            // Its log tells what it found.
            kernel_options: "",
            ..GuestSpec::new(stolen_time)
        };
        guests.push(Guest::start(&spec, host)?);
    }
    for guest in &mut guests {
        guest.await_hello(host)?;
        guest.pin(host, &[0], &[1])?;
    }
    sleep(COMPETITION)?;
    for (mut guest, seen) in guests.into_iter().zip([&mut scene.on, &mut scene.off]) {
        let status = guest.status(host)?;
        *seen = Seen {
            found: guest.console(host)?.matches(FOUND).count(),
            steal_ns: guest.sample(host)?.steal_ns.iter().flatten().sum(),
            structures: status
                .vcpus
                .iter()
                .filter(|vcpu| vcpu.stolen_time.is_some())
                .count(),
            run_delay_ns: status.vcpus.iter().map(|vcpu| vcpu.run_delay_ns).sum(),
        };
        stage.keep_time(&mut guest, host)?;
        guest.power_off(host)?;
    }
    Ok(())
}

fn checks(scene: &Scene) -> Vec<Check> {
    let count = |name, measured: usize, limit, unit| {
        let measured = u32::try_from(measured).map_or(f64::INFINITY, f64::from);
        Check::new(name, measured, limit, unit)
    };
    let (off, on) = (&scene.off, &scene.on);
    let (one, none) = (Limit::Equals(1.0), Limit::Equals(0.0));
    vec![
        count("on_log_lines", on.found, Limit::AtLeast(1.0), "lines"),
        count("on_structures", on.structures, one, "structures"),
        Check::new("on_steal_ms", ms(on.steal_ns), Limit::AtLeast(1000.0), "ms"),
        count("off_log_lines", off.found, none, "lines"),
        count("off_structures", off.structures, none, "structures"),
        Check::new("off_steal_ms", ms(off.steal_ns), none, "ms"),
        Check::new(
            "off_run_delay_ms",
            ms(off.run_delay_ns),
            Limit::AtLeast(1000.0),
            "ms",
        ),
    ]
}
