//! What a VM's time asks of its host.

use std::fmt::Debug;
use std::sync::Arc;

use kvm_ioctls::{VcpuFd, VmFd};
use pvtime::host::CounterOffset;
use pvtime::host::timeline::HostSample;
use pvtime::scale::Frequency;

use super::Error;
use crate::offset::{self, SetOffsetError};
use crate::timers::get;
use crate::{clock, counter};

/// A host as the VM's time sees it; a test may have one that sleeps and fails when it is told to.
pub trait Host: Debug + Send + Sync {
    /// The counter and the clocks. `CLOCK_BOOTTIME` is the kernel's: leases end by it.
    fn sample(&self) -> HostSample;

    /// The same a moment after `before`, for a guest that goes on at once: in less time.
    fn sample_again(&self, before: &HostSample) -> HostSample;

    /// Makes the counters of the VM the host's less this.
    ///
    /// # Errors
    ///
    /// As [`offset::set`].
    fn set_offset(&self, offset: CounterOffset) -> Result<(), SetOffsetError>;

    /// Whether a vCPU can be a hypervisor (`KVM_ARM_VCPU_HAS_EL2`).
    fn is_nested(&self, vcpu: &VcpuFd) -> bool;
}

/// The host that this runs on.
#[derive(Clone, Debug)]
pub struct KvmHost {
    vm: Arc<VmFd>,
    frequency: Frequency,
}

impl KvmHost {
    /// For one VM.
    ///
    /// # Errors
    ///
    /// [`Error::NoFrequency`].
    pub fn new(vm: &Arc<VmFd>) -> Result<Self, Error> {
        Ok(Self {
            vm: Arc::clone(vm),
            frequency: counter::frequency().ok_or(Error::NoFrequency)?,
        })
    }
}

impl Host for KvmHost {
    fn sample(&self) -> HostSample {
        clock::sample(self.frequency)
    }

    fn sample_again(&self, before: &HostSample) -> HostSample {
        clock::sample_again(before)
    }

    fn set_offset(&self, offset: CounterOffset) -> Result<(), SetOffsetError> {
        offset::set(&self.vm, offset)
    }

    fn is_nested(&self, vcpu: &VcpuFd) -> bool {
        // KVM has no EL2 register on other vCPUs.
        get(vcpu, HCR_EL2).is_ok()
    }
}

/// op0 3, op1 4, `CRn` 1, `CRm` 1, op2 0.
const HCR_EL2: u64 = 0x6030_0000_0013_e088;
