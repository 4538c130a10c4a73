//! The scenarios that there are.

mod bad_input;
mod boot;
mod canary;
mod kvm_tests;
mod stolen_time;
mod stolen_time_off;
mod watch;

use crate::scenario::Scenario;

/// Every scenario, in the order in which all of them run.
pub const ALL: &[Scenario] = &[
    boot::SCENARIO,
    kvm_tests::SCENARIO,
    bad_input::SCENARIO,
    stolen_time::SCENARIO,
    stolen_time_off::SCENARIO,
    canary::SCENARIO,
];
