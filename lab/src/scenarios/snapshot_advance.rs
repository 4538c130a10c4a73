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
            in_place: &["one-0"],
            to_and_fro: &[
                "one-1", "one-2", "one-3", "one-4", "one-5", "one-6", "one-7", "one-8", "one-9",
            ],
            at_once: &["one-10", "one-11", "one-12"],
        },
        Traveller {
            name: "four",
            program: Program::Linux,
            cpus: 4,
            on_restore: "advance",
            in_place: &["four-0"],
            to_and_fro: &[
                "four-1", "four-2", "four-3", "four-4", "four-5", "four-6", "four-7", "four-8",
                "four-9",
            ],
            at_once: &["four-10", "four-11", "four-12"],
        },
        Traveller {
            name: "bare-one",
            program: Program::El1,
            cpus: 1,
            on_restore: "advance",
            in_place: &["bare-one-0"],
            to_and_fro: &[
                "bare-one-1",
                "bare-one-2",
                "bare-one-3",
                "bare-one-4",
                "bare-one-5",
                "bare-one-6",
                "bare-one-7",
                "bare-one-8",
            ],
            at_once: &[],
        },
        Traveller {
            name: "bare-four",
            program: Program::El1,
            cpus: 4,
            on_restore: "advance",
            in_place: &["bare-four-0"],
            to_and_fro: &[
                "bare-four-1",
                "bare-four-2",
                "bare-four-3",
                "bare-four-4",
                "bare-four-5",
                "bare-four-6",
                "bare-four-7",
                "bare-four-8",
            ],
            at_once: &[],
        },
    ],
    of_policy: Journey::advance_checks,
};
