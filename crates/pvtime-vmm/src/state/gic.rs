//! The state of the interrupt controller: KVM's `GICv3` without an ITS.
//!
//! Left out is what KVM keeps nothing in for such a machine: the status registers, the registers of
//! LPIs, which need an ITS, and those of a second security state.

use serde::{Deserialize, Serialize};

#[cfg(target_arch = "aarch64")]
mod device;
#[cfg(target_arch = "aarch64")]
mod kvm;
#[cfg(target_arch = "aarch64")]
mod registers;

#[cfg(target_arch = "aarch64")]
pub use kvm::{Error, FreshGic};
#[cfg(target_arch = "aarch64")]
pub use registers::Name;

/// A GICv3 with its distributor and, for each vCPU, its redistributor and CPU interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GicState {
    /// Interrupts that it has: 32 private ones to each vCPU and the shared ones.
    pub interrupts: u32,
    /// `GICD_IIDR`: which revision of KVM's implementation the guest sees.
    pub implementation: u32,
    /// `GICD_CTLR`.
    pub control: u32,
    /// `GICD_IROUTER`: the vCPU of each shared interrupt.
    pub routes: Vec<u64>,
    /// The shared interrupts.
    pub shared: Interrupts,
    /// One for each vCPU, in order.
    pub cpus: Vec<GicCpuState>,
}

/// The registers of a range of interrupts; interrupt n of the range is in bit n, or, of those with
/// more than one bit for each, in field n, from the first word's lowest on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Interrupts {
    /// `IGROUPR`, 1 bit.
    pub groups: Vec<u32>,
    /// `IPRIORITYR`, 8 bits.
    pub priorities: Vec<u32>,
    /// `ICFGR`, 2 bits: edge or level.
    pub configurations: Vec<u32>,
    /// `ISENABLER`, 1 bit.
    pub enabled: Vec<u32>,
    /// The level of the input line, 1 bit; always 0 for the interrupts of the timers.
    pub lines: Vec<u32>,
    /// What `ISPENDR` has latched, 1 bit: an edge, or what the guest wrote there. A line that is
    /// high makes no difference here.
    pub latched: Vec<u32>,
    /// `ISACTIVER`, 1 bit.
    pub active: Vec<u32>,
}

/// One vCPU's part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GicCpuState {
    /// The affinity fields of its `MPIDR_EL1`.
    pub affinity: u64,
    /// Its redistributor: interrupts 0 to 31.
    pub private: Interrupts,
    /// Its CPU interface.
    pub interface: Interface,
}

/// The registers of a CPU interface, `ICC_…_EL1`.
///
/// While `ctlr` says that one binary point serves both groups, KVM shows that of group 0 in `bpr1`
/// and hides the other, which then starts anew.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Interface {
    /// `ICC_SRE_EL1`.
    pub sre: u64,
    /// `ICC_CTLR_EL1`.
    pub ctlr: u64,
    /// `ICC_PMR_EL1`.
    pub pmr: u64,
    /// `ICC_BPR0_EL1`.
    pub bpr0: u64,
    /// `ICC_BPR1_EL1`.
    pub bpr1: u64,
    /// `ICC_AP0Rn_EL1`, as many as the priorities need.
    pub ap0r: Vec<u64>,
    /// `ICC_AP1Rn_EL1`, as many.
    pub ap1r: Vec<u64>,
    /// `ICC_IGRPEN0_EL1`.
    pub igrpen0: u64,
    /// `ICC_IGRPEN1_EL1`.
    pub igrpen1: u64,
}
