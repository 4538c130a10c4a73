//! The scenarios that there are.

mod boot;
mod canary;
mod kvm_tests;
mod stolen_time;
mod watch;

use crate::scenario::Scenario;

/// Every scenario, in the order in which all of them run.
pub const ALL: &[Scenario] = &[
    boot::SCENARIO,
    kvm_tests::SCENARIO,
    stolen_time::SCENARIO,
    canary::SCENARIO,
];
