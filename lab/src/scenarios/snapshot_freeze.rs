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
            in_place: &[],
            to_and_fro: &[
                "one-1", "one-2", "one-3", "one-4", "one-5", "one-6", "one-7", "one-8", "one-9",
                "one-10",
            ],
            at_once: &["one-11", "one-12", "one-13"],
        },
        Traveller {
            name: "four",
            program: Program::Linux,
            cpus: 4,
            on_restore: "freeze",
            in_place: &[],
            to_and_fro: &[
                "four-1", "four-2", "four-3", "four-4", "four-5", "four-6", "four-7", "four-8",
                "four-9", "four-10",
            ],
            at_once: &["four-11", "four-12", "four-13"],
        },
        Traveller {
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
        },
        Traveller {
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
        },
    ],
    of_policy: Journey::freeze_checks,
};
