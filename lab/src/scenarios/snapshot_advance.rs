//! A guest that advances over a snapshot sees the time that passed, on a host whose counter is minutes
//! away.

use super::moves::{Hosts, Journey, Traveller};
use crate::report::Check;
use crate::scenario::{Scenario, Stage, Step, no_checks};
use anyhow::Result;
use guest_protocol::report::Program;

pub const SCENARIO: Scenario = Scenario {
    name: "snapshot-advance",
    about: "a guest from a snapshot, advancing, sees what passed, on hosts minutes apart in uptime",
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
        on_restore: "advance",
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
                name: "save and restore Linux with one vCPU, and take it to and fro",
                act: one,
                checks: last_checks,
            },
            Step {
                name: "save and restore Linux with four vCPUs, and take it to and fro",
                act: four,
                checks: last_checks,
            },
            Step {
                name: "save and restore the bare-metal guest with one vCPU, and take it to and fro",
                act: bare_one,
                checks: last_checks,
            },
            Step {
                name: "save and restore the bare-metal guest with four vCPUs, and take it to and fro",
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
    journey.go(0, "one-0", hosts, stage)?;
    journey.go_to_and_fro(&["one-1", "one-2", "one-3"], hosts, stage)?;
    journey.begin_anew(&["one-4", "one-5", "one-6"], hosts, stage)?;
    journey.end(hosts, stage)?;
    scene.journeys.push(journey);
    Ok(())
}

fn four(scene: &mut Scene, stage: &mut Stage) -> Result<()> {
    let hosts = &mut scene.hosts;
    let who = traveller("four", Program::Linux, 4);
    let mut journey = Journey::start(who, hosts)?;
    journey.go(0, "four-0", hosts, stage)?;
    journey.go_to_and_fro(&["four-1", "four-2"], hosts, stage)?;
    journey.begin_anew(&["four-3", "four-4", "four-5"], hosts, stage)?;
    journey.end(hosts, stage)?;
    scene.journeys.push(journey);
    Ok(())
}

fn bare_one(scene: &mut Scene, stage: &mut Stage) -> Result<()> {
    let hosts = &mut scene.hosts;
    let who = traveller("bare-one", Program::El1, 1);
    let mut journey = Journey::start(who, hosts)?;
    journey.go(0, "bare-one-0", hosts, stage)?;
    journey.go_to_and_fro(&["bare-one-1", "bare-one-2", "bare-one-3"], hosts, stage)?;
    journey.end(hosts, stage)?;
    scene.journeys.push(journey);
    Ok(())
}

fn bare_four(scene: &mut Scene, stage: &mut Stage) -> Result<()> {
    let hosts = &mut scene.hosts;
    let who = traveller("bare-four", Program::El1, 4);
    let mut journey = Journey::start(who, hosts)?;
    journey.go(0, "bare-four-0", hosts, stage)?;
    journey.go_to_and_fro(&["bare-four-1", "bare-four-2", "bare-four-3"], hosts, stage)?;
    journey.end(hosts, stage)?;
    scene.journeys.push(journey);
    Ok(())
}

fn last_checks(scene: &Scene) -> Vec<Check> {
    let Some(journey) = scene.journeys.last() else {
        return Vec::new();
    };
    let mut checks = journey.advance_checks();
    checks.extend(journey.checks());
    checks
}
