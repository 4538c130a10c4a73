//! The scenarios that there are.

mod bad_input;
pub mod bench;
mod boot;
mod canary;
pub mod demo;
mod four_vcpus;
mod interrupted;
mod kvm_tests;
mod stolen_time;
mod stolen_time_off;
mod three_guests;
mod watch;

use crate::scenario::Scenario;

/// Every scenario, in the order in which all of them run.
pub const ALL: &[Scenario] = &[
    boot::SCENARIO,
    interrupted::SCENARIO,
    kvm_tests::SCENARIO,
    bad_input::SCENARIO,
    stolen_time::SCENARIO,
    stolen_time_off::SCENARIO,
    canary::SCENARIO,
];
