//! The scenarios that there are.

mod bad_input;
pub mod bench;
mod boot;
mod canary;
pub mod demo;
mod four_vcpus;
mod gate_race;
mod interrupted;
mod kvm_tests;
mod ledger;
mod pause_advance;
mod pause_freeze;
mod pauses;
mod stolen_time;
mod stolen_time_off;
mod stolen_user;
mod suspend;
mod suspend_linux;
mod three_guests;
mod timers_survive;
mod watch;
mod watchdog;

use crate::scenario::Scenario;

/// Scenarios that run by their names alone, not with everything else, and why.
pub const BY_NAME_ONLY: &[(&str, &str)] = &[
    (
        "pause-freeze",
        "forty pauses of three seconds, and gaps that only a quiet machine keeps",
    ),
    ("watchdog", "two guests that are paused for a minute each"),
    (
        "gate-race",
        "a thousand stops; kvm-tests makes fifty of them",
    ),
    (
        "suspend-announced",
        "twenty sleeps of four seconds; suspends makes two",
    ),
    (
        "suspend-unannounced",
        "fifty sleeps and fifty freezes; suspends makes a few",
    ),
    (
        "suspend-linux",
        "three guests on a host that sleeps for a minute",
    ),
];

/// Why the test command leaves a scenario out, if it does.
pub fn by_name_only(name: &str) -> Option<&'static str> {
    let entry = BY_NAME_ONLY.iter().find(|(left_out, _)| *left_out == name);
    entry.map(|(_, reason)| *reason)
}

/// Every scenario, in the order in which all of them run.
pub const ALL: &[Scenario] = &[
    boot::SCENARIO,
    interrupted::SCENARIO,
    kvm_tests::SCENARIO,
    bad_input::SCENARIO,
    stolen_time::SCENARIO,
    stolen_time_off::SCENARIO,
    stolen_user::SCENARIO,
    pause_freeze::SCENARIO,
    pause_advance::SCENARIO,
    ledger::SCENARIO,
    watchdog::SCENARIO,
    suspend::SOME,
    suspend::ANNOUNCED,
    suspend::UNANNOUNCED,
    suspend_linux::SCENARIO,
    gate_race::SCENARIO,
    timers_survive::SCENARIO,
    canary::SCENARIO,
];
