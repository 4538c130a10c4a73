//! Accesses to addresses without memory, or to memory that may only be read, by instructions whose
//! syndrome does not say what was accessed: pairs, stores that step their address, block operations.
//! Nobody can emulate those. Left to itself KVM fails the vCPU, and a guest could end its VMM with one
//! instruction; instead the guest gets the abort that a bus would give it.

use anyhow::{Context, Result};
use kvm_bindings::{
    KVM_CAP_ARM_INJECT_EXT_DABT, KVM_CAP_ARM_NISV_TO_USER, KVM_EXIT_ARM_NISV, kvm_enable_cap,
};
use kvm_ioctls::{VcpuFd, VmFd};

/// The exit that [`hand_over`] asks for.
pub const EXIT: u32 = KVM_EXIT_ARM_NISV;

/// Has KVM hand such accesses over, where it can (Linux 5.5).
///
/// # Errors
///
/// When KVM has the capability and refuses it.
pub fn hand_over(vm: &VmFd) -> Result<()> {
    let has = |capability: u32| vm.check_extension_raw(capability.into()) > 0;
    if !has(KVM_CAP_ARM_NISV_TO_USER) || !has(KVM_CAP_ARM_INJECT_EXT_DABT) {
        return Ok(());
    }
    let capability = kvm_enable_cap {
        cap: KVM_CAP_ARM_NISV_TO_USER,
        ..Default::default()
    };
    vm.enable_cap(&capability)
        .context("cannot have KVM hand over accesses that it cannot emulate")
}

/// Gives the guest an external abort at the instruction that the vCPU stands at.
///
/// # Errors
///
/// When KVM refuses.
pub fn inject(vcpu: &VcpuFd) -> Result<()> {
    let mut events = vcpu
        .get_vcpu_events()
        .context("cannot read a vCPU's pending events")?;
    events.exception.ext_dabt_pending = 1;
    vcpu.set_vcpu_events(&events)
        .context("cannot give the guest an external abort")
}
