//! Hypercalls that KVM hands to the VMM.

use std::io;

use kvm_bindings::{
    KVM_ARM_VM_SMCCC_CTRL, KVM_ARM_VM_SMCCC_FILTER, kvm_device_attr, kvm_smccc_filter,
    kvm_smccc_filter_action_KVM_SMCCC_FILTER_FWD_TO_USER,
};
use kvm_ioctls::VmFd;
use pvtime::abi::smccc::FunctionId;

#[expect(
    clippy::cast_possible_truncation,
    reason = "the kernel's enum has three values"
)]
const FORWARD: u8 = kvm_smccc_filter_action_KVM_SMCCC_FILTER_FWD_TO_USER as u8;

/// Has one function's calls exit with `KVM_EXIT_HYPERCALL`, before any vCPU has run. What KVM
/// would have answered, `SMCCC_ARCH_FEATURES` included, it answers as before.
pub(crate) fn forward(vm: &VmFd, function: FunctionId) -> io::Result<()> {
    let filter = kvm_smccc_filter {
        base: function.0,
        nr_functions: 1,
        action: FORWARD,
        ..kvm_smccc_filter::default()
    };
    let attribute = kvm_device_attr {
        flags: 0,
        group: KVM_ARM_VM_SMCCC_CTRL,
        attr: KVM_ARM_VM_SMCCC_FILTER.into(),
        addr: (&raw const filter) as u64,
    };
    Ok(vm.set_device_attr(&attribute)?)
}
