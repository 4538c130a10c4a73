//! What a VM found on another host, tried on a VM that is thrown away.

use anyhow::{Context, Result};
use kvm_ioctls::Kvm;

use super::{create_gic, vcpu_init};
use crate::state::gic::try_implementation;
use crate::state::profile::CpuProfile;

/// Every reason why KVM cannot have such an interrupt controller and the first of these vCPUs that
/// it cannot have. Only KVM knows which writes it takes and which it ignores, so they are made.
///
/// # Errors
///
/// Where KVM cannot be asked.
pub(super) fn refusals(
    kvm: &Kvm,
    cpus: impl IntoIterator<Item = CpuProfile>,
    gic_implementation: u32,
) -> Result<Vec<String>> {
    let vm = kvm.create_vm().context("cannot create a virtual machine")?;
    let init = vcpu_init(&vm)?;
    let mut refusals = Vec::new();
    // Each of its own index, which decides its affinity.
    for (index, cpu) in (0..).zip(cpus) {
        let vcpu = vm.create_vcpu(index).context("cannot create a vCPU")?;
        vcpu.vcpu_init(&init).context("cannot initialize a vCPU")?;
        let of_this = cpu.refusals(&vcpu, &init);
        refusals.extend(of_this.iter().map(ToString::to_string));
        if !refusals.is_empty() {
            break;
        }
    }
    if let Err(error) = try_implementation(&create_gic(&vm)?, gic_implementation) {
        refusals.push(format!(
            "the VM's interrupt controller is not one that this host's KVM has: {error}"
        ));
    }
    Ok(refusals)
}
