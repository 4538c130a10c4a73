//! One offset for all counters of a VM.
#![expect(unsafe_code, reason = "kvm-ioctls has no KVM_ARM_SET_COUNTER_OFFSET")]

use std::io;
use std::thread::sleep;
use std::time::Duration;

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

/// How often a busy VM is asked again, a millisecond apart. At a closed gate only a thread that
/// reads a vCPU's registers can be in the way, and that takes microseconds.
const TRIES: u32 = 100;

/// The offset was not set.
#[derive(Debug, thiserror::Error)]
pub enum SetOffsetError {
    /// A vCPU was in an ioctl all the time.
    #[error(
        "a vCPU was busy for {TRIES} ms, and KVM changes a VM's counters only while none is; \
         pause the VM and leave its vCPUs alone meanwhile"
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
/// [`SetOffsetError::Busy`] if a vCPU does not come out of an ioctl, and whatever else KVM says.
pub fn set(vm: &VmFd, offset: CounterOffset) -> Result<(), SetOffsetError> {
    for _ in 0..TRIES {
        match try_set(vm, offset) {
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                sleep(Duration::from_millis(1));
            }
            result => return result.map_err(SetOffsetError::Kernel),
        }
    }
    Err(SetOffsetError::Busy)
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
