//! The scenarios that there are.

mod bad_input;
mod bare_checks;
pub mod bench;
mod boot;
mod canary;
mod clock_reader;
mod counter_registers;
pub mod demo;
mod el1;
mod four_vcpus;
mod gate_race;
mod generation;
mod id_reader;
mod interfaces_kept;
mod interrupted;
mod kexec;
mod kvm_tests;
mod ledger;
mod lpt;
mod lpt_chain;
mod migrate_faults;
mod migrate_hostile;
mod migrate_refused;
mod migrate_same_frequency;
mod moves;
mod own_figure;
mod pause_advance;
mod pause_freeze;
mod pauses;
mod physical_counter;
mod replugged;
mod restore_frequencies;
mod saved_guest;
mod secured;
mod side_by_side;
mod snapshot_advance;
mod snapshot_freeze;
mod snapshot_killed;
mod stolen_time;
mod stolen_time_off;
mod stolen_user;
mod suspend;
mod suspend_and_save;
mod suspend_coordinated;
mod suspend_el1;
mod suspend_forgotten;
mod suspend_linux;
mod suspend_request;
mod three_guests;
mod timers_survive;
mod view;
mod watch;
mod watch_cost;
mod watchdog;

use crate::scenario::Scenario;

/// Scenarios that run by their names alone, not with everything else, and why.
pub const BY_NAME_ONLY: &[(&str, &str)] = &[
    (
        "stolen-time-off",
        "half a minute of the twenty that the test command has",
    ),
    (
        "stolen-user",
        "half a minute of the twenty that the test command has",
    ),
    (
        "kexec",
        "a minute of the twenty that the test command has; kvm-tests has the calls alone",
    ),
    ("ledger", "a minute of the twenty that the test command has"),
    (
        "pause-advance",
        "more than a minute of the twenty that the test command has",
    ),
    (
        "counter-registers",
        "twenty seconds, and losses that only a quiet machine keeps; kvm-tests has the same of VmTime alone",
    ),
    (
        "pause-freeze",
        "eighty pauses of three seconds, and gaps that only a quiet machine keeps",
    ),
    (
        "lpt-chain",
        "ten hosts, one after the other, timers of a minute, and delays that only a quiet machine \
         keeps",
    ),
    (
        "lpt-chain-snapshots",
        "ten hosts, one after the other, timers of a minute, and delays that only a quiet machine \
         keeps",
    ),
    (
        "restore-frequencies",
        "half a minute of the twenty that the test command has; migrate-frequencies is one of its changes",
    ),
    (
        "snapshot-freeze",
        "two hosts minutes apart in uptime, and gaps that only a quiet machine keeps",
    ),
    ("snapshot-advance", "two hosts minutes apart in uptime"),
    (
        "snapshot-killed",
        "fifty kills, each with a VMM to kill and one or two to look at what is left",
    ),
    (
        "migrate-faults",
        "a hundred migrations that break, and what is made of each",
    ),
    (
        "side-by-side",
        "another VMM to fetch, and aims that only a quiet machine can judge",
    ),
    (
        "timers-survive",
        "timers of 100 s; kvm-tests has the same with 4 s",
    ),
    ("watchdog", "two guests that are paused for a minute each"),
    (
        "gate-race",
        "a thousand stops; kvm-tests makes fifty of them",
    ),
    (
        "migrate-hostile",
        "48 peers; the fuzz target has more of them, without a receiver of its own",
    ),
    (
        "suspends",
        "nearly a minute of stops; kvm-tests has some of each kind",
    ),
    (
        "watch-cost",
        "figures that only a quiet machine has, for docs/benchmarks.md",
    ),
    (
        "suspend-forgotten",
        "a quarter of a minute of the twenty that the test command has; suspend-el1 has sleeps that somebody ends",
    ),
    (
        "generation",
        "a quarter of a minute of the twenty that the test command has; the device's own tests have the rest",
    ),
    (
        "suspend-and-save",
        "half a minute of sleeps, and accounts that only a quiet machine keeps",
    ),
    (
        "suspend-announced",
        "forty sleeps of four seconds; suspends makes one",
    ),
    (
        "suspend-both-ways",
        "ten sleeps of four seconds; suspends makes one",
    ),
    (
        "suspend-unannounced",
        "fifty sleeps and fifty freezes; suspends makes a few",
    ),
    (
        "suspend-linux",
        "three guests on a host that sleeps for a minute",
    ),
    (
        "suspend-coordinated",
        "a guest with another kernel and systemd, 130 MB to fetch, and a sleep of a minute",
    ),
    (
        "suspend-moved",
        "half a minute of suspensions; suspend-el1 is one of them",
    ),
    (
        "suspend-request",
        "half a minute of sleeps; suspends and suspend-and-save are others",
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
    el1::SCENARIO,
    lpt::SCENARIO,
    lpt_chain::SHORT,
    lpt_chain::SCENARIO,
    lpt_chain::BY_SNAPSHOT,
    stolen_time::SCENARIO,
    stolen_time_off::SCENARIO,
    stolen_user::SCENARIO,
    kexec::SCENARIO,
    interfaces_kept::SCENARIO,
    restore_frequencies::SCENARIO,
    pause_freeze::SCENARIO,
    pause_advance::SCENARIO,
    snapshot_freeze::SCENARIO,
    snapshot_advance::SCENARIO,
    snapshot_killed::SCENARIO,
    physical_counter::SCENARIO,
    counter_registers::SCENARIO,
    ledger::SCENARIO,
    migrate_same_frequency::SCENARIO,
    migrate_refused::SCENARIO,
    migrate_faults::FEW,
    migrate_hostile::SCENARIO,
    migrate_faults::SCENARIO,
    side_by_side::SCENARIO,
    watchdog::SCENARIO,
    suspend::SOME,
    suspend::ANNOUNCED,
    suspend::BOTH_WAYS,
    suspend::UNANNOUNCED,
    suspend_linux::SCENARIO,
    suspend_el1::SCENARIO,
    suspend_el1::MOVED,
    suspend_request::SCENARIO,
    suspend_forgotten::SCENARIO,
    suspend_coordinated::SCENARIO,
    suspend_and_save::SCENARIO,
    watch_cost::SCENARIO,
    gate_race::SCENARIO,
    timers_survive::SCENARIO,
    generation::SCENARIO,
    canary::SCENARIO,
];
