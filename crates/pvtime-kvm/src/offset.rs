//! One offset for all counters of a VM.
#![expect(unsafe_code, reason = "kvm-ioctls has no KVM_ARM_SET_COUNTER_OFFSET")]

use std::io;

use kvm_bindings::kvm_arm_counter_offset;
use kvm_ioctls::VmFd;
use pvtime::host::CounterOffset;
use vmm_sys_util::ioctl::ioctl_with_ref;

mod number {
    use kvm_bindings::{KVMIO, kvm_arm_counter_offset};
    vmm_sys_util::ioctl_iow_nr!(
        KVM_ARM_SET_COUNTER_OFFSET,
        KVMIO,
        0xb5,
        kvm_arm_counter_offset
    );
}
use number::KVM_ARM_SET_COUNTER_OFFSET;

/// The offset was not set.
#[derive(Debug, thiserror::Error)]
pub enum SetOffsetError {
    /// A vCPU was in an ioctl, and nothing was changed.
    #[error(
        "a vCPU was busy, and KVM changes a VM's counters only while none is; pause the VM and \
         leave its vCPUs alone meanwhile"
    )]
    Busy,
    /// Anything else.
    #[error("cannot set the VM's counter offset: {0}")]
    Kernel(io::Error),
}

/// Makes the guest's counters the host's less `offset`, for every vCPU at once.
///
/// # Errors
///
/// [`SetOffsetError::Busy`] if a vCPU is in an ioctl, and whatever else KVM says. An offset that is
/// set after another try is as much too small as that took: compute it anew.
pub fn set(vm: &VmFd, offset: CounterOffset) -> Result<(), SetOffsetError> {
    try_set(vm, offset).map_err(|error| match error.raw_os_error() {
        Some(libc::EBUSY) => SetOffsetError::Busy,
        _ => SetOffsetError::Kernel(error),
    })
}

fn try_set(vm: &VmFd, offset: CounterOffset) -> io::Result<()> {
    let payload = kvm_arm_counter_offset {
        counter_offset: offset.0,
        reserved: 0,
    };
    // SAFETY: the ioctl reads the structure that its number was made with.
    match unsafe { ioctl_with_ref(vm, KVM_ARM_SET_COUNTER_OFFSET(), &payload) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_is_the_interfaces() {
        assert_eq!(KVM_ARM_SET_COUNTER_OFFSET(), 0x4010_aeb5);
    }
}
