//! A guest that comes frozen out of a snapshot, on a host whose counter is minutes away, sees no gap.

use super::moves::{Journey, Journeys, Traveller};
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

const ONE: Traveller = Traveller {
    name: "one",
    program: Program::Linux,
    cpus: 1,
    on_restore: "freeze",
    in_place: &[],
    to_and_fro: &["one-1", "one-2", "one-3", "one-4", "one-5"],
    at_once: &["one-6", "one-7", "one-8"],
};

const FOUR: Traveller = Traveller {
    name: "four",
    program: Program::Linux,
    cpus: 4,
    on_restore: "freeze",
    in_place: &[],
    to_and_fro: &["four-1", "four-2", "four-3", "four-4", "four-5"],
    at_once: &["four-6", "four-7", "four-8"],
};

const BARE_ONE: Traveller = Traveller {
    name: "bare-one",
    program: Program::El1,
    cpus: 1,
    on_restore: "freeze",
    in_place: &[],
    to_and_fro: &[
        "bare-one-1",
        "bare-one-2",
        "bare-one-3",
        "bare-one-4",
        "bare-one-5",
    ],
    at_once: &[],
};

const BARE_FOUR: Traveller = Traveller {
    name: "bare-four",
    program: Program::El1,
    cpus: 4,
    on_restore: "freeze",
    in_place: &[],
    to_and_fro: &[
        "bare-four-1",
        "bare-four-2",
        "bare-four-3",
        "bare-four-4",
        "bare-four-5",
    ],
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
                name: "take Linux with one vCPU to and fro",
                act: |journeys, stage| journeys.take(&ONE, stage),
                checks: last_checks,
            },
            Step {
                name: "take Linux with four vCPUs to and fro",
                act: |journeys, stage| journeys.take(&FOUR, stage),
                checks: last_checks,
            },
            Step {
                name: "take the bare-metal guest with one vCPU to and fro",
                act: |journeys, stage| journeys.take(&BARE_ONE, stage),
                checks: last_checks,
            },
            Step {
                name: "take the bare-metal guest with four vCPUs to and fro",
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
    journeys.last_checks(Journey::freeze_checks)
}
