//! A guest that advances over a snapshot sees the time that passed, on a host whose counter is minutes
//! away.

use super::moves::{Journey, Plan, Traveller};
use crate::scenario::Scenario;
use guest_protocol::report::Program;

pub const SCENARIO: Scenario = Scenario {
    name: "snapshot-advance",
    about: "a guest from a snapshot, advancing, sees what passed, on hosts minutes apart in uptime",
    must_fail: None,
    play: |stage| PLAN.play(stage),
};

static PLAN: Plan = Plan {
    travellers: [
        Traveller {
            name: "one",
            program: Program::Linux,
            cpus: 1,
            on_restore: "advance",
            in_place: 1,
            to_and_fro: 9,
            at_once: 3,
        },
        Traveller {
            name: "four",
            program: Program::Linux,
            cpus: 4,
            on_restore: "advance",
            in_place: 1,
            to_and_fro: 9,
            at_once: 3,
        },
        Traveller {
            name: "bare-one",
            program: Program::El1,
            cpus: 1,
            on_restore: "advance",
            in_place: 1,
            to_and_fro: 8,
            at_once: 0,
        },
        Traveller {
            name: "bare-four",
            program: Program::El1,
            cpus: 4,
            on_restore: "advance",
            in_place: 1,
            to_and_fro: 8,
            at_once: 0,
        },
    ],
    of_policy: Journey::advance_checks,
};
