//! What a vCPU is, as far as another host has to be the same.

use pvtime_kvm::registers::is_time_register;
use serde::{Deserialize, Serialize};

use super::register::{Register, Step};
use super::vcpu::VcpuState;

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

impl CpuProfile {
    /// Of a vCPU with these features, and these registers in the order in which they are restored. A
    /// VM's time has another owner, however it came in there.
    #[must_use]
    pub fn new(features: [u32; 7], registers: &[Register]) -> Self {
        let (others, identity): (Vec<_>, Vec<_>) = registers
            .iter()
            .filter(|it| !is_time_register(it.id.0))
            .partition(|it| it.id.step() == Step::Rest);
        Self {
            features,
            identity: identity.into_iter().cloned().collect(),
            others: others.into_iter().map(|it| it.id.0).collect(),
        }
    }
}

impl VcpuState {
    /// What the saved vCPU was.
    #[must_use]
    pub fn profile(&self) -> CpuProfile {
        CpuProfile::new(self.features, &self.registers)
    }
}
