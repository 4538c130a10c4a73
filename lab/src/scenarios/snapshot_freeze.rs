//! A guest that comes frozen out of a snapshot, on a host whose counter is minutes away, sees no gap.

use super::moves::{Journey, Plan, Traveller};
use crate::scenario::Scenario;
use guest_protocol::report::Program;

pub const SCENARIO: Scenario = Scenario {
    name: "snapshot-freeze",
    about: "a guest from a snapshot, frozen, sees no gap on a host whose uptime is minutes away",
    must_fail: None,
    play: |stage| PLAN.play(stage),
};

static PLAN: Plan = Plan {
    travellers: [
        Traveller {
            name: "one",
            program: Program::Linux,
            cpus: 1,
            on_restore: "freeze",
            in_place: 0,
            to_and_fro: 10,
            at_once: 3,
        },
        Traveller {
            name: "four",
            program: Program::Linux,
            cpus: 4,
            on_restore: "freeze",
            in_place: 0,
            to_and_fro: 10,
            at_once: 3,
        },
        Traveller {
            name: "bare-one",
            program: Program::El1,
            cpus: 1,
            on_restore: "freeze",
            in_place: 0,
            to_and_fro: 5,
            at_once: 0,
        },
        Traveller {
            name: "bare-four",
            program: Program::El1,
            cpus: 4,
            on_restore: "freeze",
            in_place: 0,
            to_and_fro: 5,
            at_once: 0,
        },
    ],
    of_policy: Journey::freeze_checks,
};
