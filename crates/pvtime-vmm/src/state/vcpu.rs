//! The state of a vCPU, all but its time.

use serde::{Deserialize, Serialize};

use super::register::Register;

#[cfg(target_arch = "aarch64")]
mod kvm;

#[cfg(target_arch = "aarch64")]
pub use kvm::{Error, FreshRegisters};
#[cfg(target_arch = "aarch64")]
pub(crate) use kvm::{lasting_features, read, saved_ids, write};

/// A vCPU without its counters, its timers and its part of the interrupt controller.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VcpuState {
    /// The features that it was made with (`kvm_vcpu_init`), less the one that only says whether
    /// it starts turned off.
    pub features: [u32; 7],
    /// Whether it runs, is turned off or suspended: the number of `KVM_GET_MP_STATE`.
    pub mp_state: u32,
    /// A system error that it has yet to take.
    pub serror: Option<SError>,
    /// In the order in which they are restored.
    pub registers: Vec<Register>,
}

/// A system error (`SError`) that is pending.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SError {
    /// The syndrome that the guest will see; absent on CPUs without RAS, where it cannot be chosen.
    pub syndrome: Option<u64>,
}
