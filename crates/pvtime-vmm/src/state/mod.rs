//! The state of a stopped machine, all but its memory and its time.
//!
//! Time is `pvtime_kvm::VmTime`'s: no counter, timer or offset is here, and the lines of the timers'
//! interrupts are not either, because KVM's timers drive them anew.
//!
//! # Order
//!
//! Saving, with every vCPU out of `KVM_RUN`:
//!
//! 1. the vCPUs, because reading their registers finishes what they had begun: an access to a
//!    device, a reset that another vCPU asked for;
//! 2. the interrupt controller, which these may have changed;
//! 3. the devices.
//!
//! Restoring, onto a machine that was just made and never ran:
//!
//! 1. the vCPUs, made in the order of their indices, so that each gets the affinity it had;
//! 2. the interrupt controller, before the first `KVM_RUN` of any vCPU, which connects the timers'
//!    interrupts to the host's and from then on drops their active state;
//! 3. the devices, which raise their interrupts again: the one that was on its way when the state
//!    was saved would be lost otherwise, and one too many does no harm;
//! 4. the generation: the page first, then its interrupt;
//! 5. time.

use serde::{Deserialize, Serialize};

use crate::generation::Generation;
use crate::suspension::SuspendCall;

pub mod devices;
pub mod gic;
pub mod profile;
pub mod register;
pub mod vcpu;

use devices::DeviceStates;
use gic::GicState;
use vcpu::VcpuState;

/// The state of a machine, all but its memory and its time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineState {
    /// One for each vCPU, in order.
    pub vcpus: Vec<VcpuState>,
    /// The interrupt controller.
    pub gic: GicState,
    /// Serial ports, clock and keys.
    pub devices: DeviceStates,
    /// Which generation of its VM the machine is; all zero in a snapshot of format 1.
    #[serde(default)]
    pub generation: Generation,
    /// What its guest asked for, if it had suspended itself or was about to: it goes on there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suspend_call: Option<SuspendCall>,
}
