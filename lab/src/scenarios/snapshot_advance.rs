//! A guest that advances over a snapshot sees the time that passed, on a host whose counter is minutes
//! away.

use super::moves::{Journey, Journeys, Traveller};
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

const ONE: Traveller = Traveller {
    name: "one",
    program: Program::Linux,
    cpus: 1,
    on_restore: "advance",
    in_place: &["one-0"],
    to_and_fro: &["one-1", "one-2", "one-3"],
    at_once: &["one-4", "one-5", "one-6"],
};

const FOUR: Traveller = Traveller {
    name: "four",
    program: Program::Linux,
    cpus: 4,
    on_restore: "advance",
    in_place: &["four-0"],
    to_and_fro: &["four-1", "four-2"],
    at_once: &["four-3", "four-4", "four-5"],
};

const BARE_ONE: Traveller = Traveller {
    name: "bare-one",
    program: Program::El1,
    cpus: 1,
    on_restore: "advance",
    in_place: &["bare-one-0"],
    to_and_fro: &["bare-one-1", "bare-one-2", "bare-one-3"],
    at_once: &[],
};

const BARE_FOUR: Traveller = Traveller {
    name: "bare-four",
    program: Program::El1,
    cpus: 4,
    on_restore: "advance",
    in_place: &["bare-four-0"],
    to_and_fro: &["bare-four-1", "bare-four-2", "bare-four-3"],
    at_once: &[],
};

fn play(stage: &mut Stage) -> Result<()> {
    stage.play(
        Journeys::default(),
        &[
            Step {
                name: "boot a host, and a second one when it has run for minutes",
                act: Journeys::boot,
                checks: no_checks,
            },
            Step {
                name: "save and restore Linux with one vCPU, and take it to and fro",
                act: |journeys, stage| journeys.take(&ONE, stage),
                checks: last_checks,
            },
            Step {
                name: "save and restore Linux with four vCPUs, and take it to and fro",
                act: |journeys, stage| journeys.take(&FOUR, stage),
                checks: last_checks,
            },
            Step {
                name: "save and restore the bare-metal guest with one vCPU, and take it to and fro",
                act: |journeys, stage| journeys.take(&BARE_ONE, stage),
                checks: last_checks,
            },
            Step {
                name: "save and restore the bare-metal guest with four vCPUs, and take it to and fro",
                act: |journeys, stage| journeys.take(&BARE_FOUR, stage),
                checks: last_checks,
            },
            Step {
                name: "power the hosts off",
                act: |journeys, _| journeys.power_off(),
                checks: no_checks,
            },
        ],
    )
}

fn last_checks(journeys: &Journeys) -> Vec<Check> {
    journeys.last_checks(Journey::advance_checks)
}
