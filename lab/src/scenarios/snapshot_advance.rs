//! A guest that advances over a snapshot sees the time that passed, on a host whose counter is minutes
//! away.

use super::moves::{Hosts, Journey};
use crate::scenario::{Scenario, Stage, Step, no_checks};
use anyhow::Result;

pub const SCENARIO: Scenario = Scenario {
    name: "snapshot-advance",
    about: "a guest from a snapshot, advancing, sees what passed, on hosts minutes apart in uptime",
    must_fail: None,
    play,
};

#[derive(Default)]
struct Scene {
    hosts: Hosts,
    one: Journey,
    four: Journey,
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
                name: "save and restore a guest with one vCPU, and take it to and fro",
                act: |scene, stage| {
                    let names = ["one-1", "one-2", "one-3"];
                    let Scene { hosts, one, .. } = scene;
                    *one = Journey::start("one", 1, "advance", hosts)?;
                    one.go(0, "one-0", hosts, stage)?;
                    one.go_to_and_fro(&names, hosts, stage)?;
                    one.begin_anew(&["one-4", "one-5", "one-6"], hosts, stage)?;
                    one.end(hosts, stage)
                },
                checks: |scene| checks(&scene.one),
            },
            Step {
                name: "save and restore a guest with four vCPUs, and take it to and fro",
                act: |scene, stage| {
                    let names = ["four-1", "four-2"];
                    let Scene { hosts, four, .. } = scene;
                    *four = Journey::start("four", 4, "advance", hosts)?;
                    four.go(0, "four-0", hosts, stage)?;
                    four.go_to_and_fro(&names, hosts, stage)?;
                    four.begin_anew(&["four-3", "four-4", "four-5"], hosts, stage)?;
                    four.end(hosts, stage)
                },
                checks: |scene| checks(&scene.four),
            },
            Step {
                name: "power the hosts off",
                act: |scene, _| scene.hosts.power_off(),
                checks: no_checks,
            },
        ],
    )
}

fn checks(journey: &Journey) -> Vec<crate::report::Check> {
    let mut checks = journey.advance_checks();
    checks.extend(journey.checks());
    checks
}
