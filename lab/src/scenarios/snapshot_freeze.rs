//! A guest that comes frozen out of a snapshot, on a host whose counter is minutes away, sees no gap.

use super::moves::{Hosts, Journey, Traveller};
use crate::report::Check;
use crate::scenario::{Scenario, Stage, Step, no_checks};
use anyhow::Result;
use guest_protocol::report::Program;

pub const SCENARIO: Scenario = Scenario {
    name: "snapshot-freeze",
    about: "a guest from a snapshot, frozen, sees no gap on a host whose uptime is minutes away",
    must_fail: None,
    play,
};

#[derive(Default)]
struct Scene {
    hosts: Hosts,
    journeys: Vec<Journey>,
}

fn traveller(name: &'static str, program: Program, cpus: u32) -> Traveller {
    Traveller {
        name,
        program,
        cpus,
        on_restore: "freeze",
    }
}

fn play(stage: &mut Stage) -> Result<()> {
    stage.play(
        Scene::default(),
        &[
            Step {
                name: "boot a host, and a second one when it has run for minutes",
                act: |scene, stage| {
                    scene.hosts = Hosts::boot(stage)?;
                    scene.hosts.add_younger(stage)
                },
                checks: no_checks,
            },
            Step {
                name: "take Linux with one vCPU to and fro",
                act: one,
                checks: last_checks,
            },
            Step {
                name: "take Linux with four vCPUs to and fro",
                act: four,
                checks: last_checks,
            },
            Step {
                name: "take the bare-metal guest with one vCPU to and fro",
                act: bare_one,
                checks: last_checks,
            },
            Step {
                name: "take the bare-metal guest with four vCPUs to and fro",
                act: bare_four,
                checks: last_checks,
            },
            Step {
                name: "power the hosts off",
                act: |scene, _| scene.hosts.power_off(),
                checks: no_checks,
            },
        ],
    )
}

fn one(scene: &mut Scene, stage: &mut Stage) -> Result<()> {
    let hosts = &mut scene.hosts;
    let who = traveller("one", Program::Linux, 1);
    let mut journey = Journey::start(who, hosts)?;
    journey.go_to_and_fro(&["one-1", "one-2", "one-3", "one-4", "one-5"], hosts, stage)?;
    journey.begin_anew(&["one-6", "one-7", "one-8"], hosts, stage)?;
    journey.end(hosts, stage)?;
    scene.journeys.push(journey);
    Ok(())
}

fn four(scene: &mut Scene, stage: &mut Stage) -> Result<()> {
    let hosts = &mut scene.hosts;
    let who = traveller("four", Program::Linux, 4);
    let mut journey = Journey::start(who, hosts)?;
    journey.go_to_and_fro(
        &["four-1", "four-2", "four-3", "four-4", "four-5"],
        hosts,
        stage,
    )?;
    journey.begin_anew(&["four-6", "four-7", "four-8"], hosts, stage)?;
    journey.end(hosts, stage)?;
    scene.journeys.push(journey);
    Ok(())
}

fn bare_one(scene: &mut Scene, stage: &mut Stage) -> Result<()> {
    let hosts = &mut scene.hosts;
    let who = traveller("bare-one", Program::El1, 1);
    let mut journey = Journey::start(who, hosts)?;
    journey.go_to_and_fro(
        &[
            "bare-one-1",
            "bare-one-2",
            "bare-one-3",
            "bare-one-4",
            "bare-one-5",
        ],
        hosts,
        stage,
    )?;
    journey.end(hosts, stage)?;
    scene.journeys.push(journey);
    Ok(())
}

fn bare_four(scene: &mut Scene, stage: &mut Stage) -> Result<()> {
    let hosts = &mut scene.hosts;
    let who = traveller("bare-four", Program::El1, 4);
    let mut journey = Journey::start(who, hosts)?;
    journey.go_to_and_fro(
        &[
            "bare-four-1",
            "bare-four-2",
            "bare-four-3",
            "bare-four-4",
            "bare-four-5",
        ],
        hosts,
        stage,
    )?;
    journey.end(hosts, stage)?;
    scene.journeys.push(journey);
    Ok(())
}

fn last_checks(scene: &Scene) -> Vec<Check> {
    let Some(journey) = scene.journeys.last() else {
        return Vec::new();
    };
    let mut checks = journey.freeze_checks();
    checks.extend(journey.checks());
    checks
}
