//! Stolen time kept by KVM, and what hides it.

use std::io;

use kvm_bindings::{
    KVM_ARM_VCPU_PVTIME_CTRL, KVM_ARM_VCPU_PVTIME_IPA, KVM_REG_ARM_STD_HYP_BIT_PV_TIME,
    kvm_device_attr,
};
use kvm_ioctls::VcpuFd;
use vm_memory::{Address, GuestAddress};

use crate::timers::{get, set};

/// `KVM_REG_ARM_STD_HYP_BMAP`: which standard hypervisor calls KVM answers; VM-wide.
const STD_HYP_BMAP: u64 = 0x6030_0000_0016_0001;

/// Tells KVM where a vCPU's structure is (`KVM_ARM_VCPU_PVTIME_IPA`).
pub fn register(vcpu: &VcpuFd, address: GuestAddress) -> io::Result<()> {
    let address = address.raw_value();
    let attribute = kvm_device_attr {
        flags: 0,
        group: KVM_ARM_VCPU_PVTIME_CTRL,
        attr: KVM_ARM_VCPU_PVTIME_IPA.into(),
        addr: (&raw const address) as u64,
    };
    Ok(vcpu.set_device_attr(&attribute)?)
}

/// Takes PV time out of what KVM answers. An address that was never set would silence
/// `PV_TIME_FEATURES` alone; `SMCCC_ARCH_FEATURES` looks at the bitmap only.
pub fn hide(vcpu: &VcpuFd) -> io::Result<()> {
    let shown = get(vcpu, STD_HYP_BMAP)?;
    let hidden = shown & !(1 << KVM_REG_ARM_STD_HYP_BIT_PV_TIME);
    if hidden == shown {
        Ok(())
    } else {
        set(vcpu, STD_HYP_BMAP, hidden)
    }
}
