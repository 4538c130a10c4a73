//! What a vCPU is, as far as another host has to be the same.

use serde::{Deserialize, Serialize};

use super::register::Register;

#[cfg(target_arch = "aarch64")]
mod kvm;

/// A vCPU's features and the registers that describe them. None of it changes while it runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CpuProfile {
    /// The features that it was made with (`kvm_vcpu_init`), less the one that only says whether
    /// it starts turned off.
    pub features: [u32; 7],
    /// The registers of its firmware and its identity, in the order in which they are restored.
    pub identity: Vec<Register>,
    /// The ids of all others that are saved.
    pub others: Vec<u64>,
}
