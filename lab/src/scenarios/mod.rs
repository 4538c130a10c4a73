//! The scenarios that there are.

mod boot;
mod canary;
mod kvm_tests;

use crate::scenario::Scenario;

/// Every scenario, in the order in which all of them run.
pub const ALL: &[Scenario] = &[boot::SCENARIO, kvm_tests::SCENARIO, canary::SCENARIO];
