//! A guest that comes frozen out of a snapshot, on a host whose counter is minutes away, sees no gap.

use super::moves::{Hosts, Journey};
use crate::scenario::{Scenario, Stage, Step, no_checks};
use anyhow::Result;

pub const SCENARIO: Scenario = Scenario {
    name: "snapshot-freeze",
    about: "a guest from a snapshot, frozen, sees no gap on a host whose uptime is minutes away",
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
                name: "take a guest with one vCPU to and fro",
                act: |scene, stage| {
                    let names = ["one-1", "one-2", "one-3", "one-4", "one-5"];
                    let Scene { hosts, one, .. } = scene;
                    *one = Journey::start("one", 1, "freeze", hosts)?;
                    one.go_to_and_fro(&names, hosts, stage)?;
                    one.begin_anew(&["one-6", "one-7", "one-8"], hosts, stage)?;
                    one.end(hosts, stage)
                },
                checks: |scene| checks(&scene.one),
            },
            Step {
                name: "take a guest with four vCPUs to and fro",
                act: |scene, stage| {
                    let names = ["four-1", "four-2", "four-3", "four-4", "four-5"];
                    let Scene { hosts, four, .. } = scene;
                    *four = Journey::start("four", 4, "freeze", hosts)?;
                    four.go_to_and_fro(&names, hosts, stage)?;
                    four.begin_anew(&["four-6", "four-7", "four-8"], hosts, stage)?;
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
    let mut checks = journey.freeze_checks();
    checks.extend(journey.checks());
    checks
}
