//! Stolen time against real KVM: of a guest in which another kernel begins (R5).

use std::sync::Arc;

use crate::caller::{Vcpu, caller};
use crate::machine::{Machine, REGION};
use crate::stolen_time::{compete, spin};
use kvm_bindings::{KVM_ARM_VCPU_PSCI_0_2, kvm_vcpu_init};
use pvtime::abi::smccc::{CallResult, FunctionId};
use pvtime_kvm::{StolenTimeChoice, VmTime, VmTimeConfig};
use std::time::Duration;

const PV_TIME_ST: FunctionId = FunctionId(0xC500_0021);

/// Of which the first kernel loses at least so much.
const LOST_NS: u64 = 20_000_000;

/// Run delay and structure of a vCPU.
fn sample(time: &VmTime, vcpu: usize) -> (u64, u64) {
    let sample = time.sample().unwrap().vcpus.remove(vcpu);
    let structure = sample.stolen_time.unwrap();
    assert!(structure.claimed);
    (sample.run_delay_ns, structure.stolen_ns)
}

/// Has both vCPUs, which this thread runs in turn, lose time.
fn lose(time: &Arc<VmTime>, vcpus: &mut [Vcpu]) {
    let _busy: Vec<_> = (0..4).map(|_| compete()).collect();
    while (0..vcpus.len()).any(|vcpu| sample(time, vcpu).1 < LOST_NS) {
        for vcpu in &mut *vcpus {
            spin(Duration::from_millis(5));
            vcpu.call(FunctionId::SMCCC_VERSION, 0);
        }
    }
}

/// The first vCPU asks again: what its structure then says is of what it waited since.
fn begins_anew(time: &Arc<VmTime>, vcpus: &mut [Vcpu]) {
    let (waited_before_ns, stolen_before_ns) = sample(time, 0);
    assert!(stolen_before_ns >= LOST_NS);
    let other_before_ns = sample(time, 1).1;
    assert_eq!(vcpus[0].call(PV_TIME_ST, 0), CallResult(REGION));
    let stolen_ns = sample(time, 0).1;
    let waited_ns = sample(time, 0).0 - waited_before_ns;
    assert!(stolen_ns <= waited_ns, "{stolen_ns} of {waited_ns}");
    assert!(
        sample(time, 1).1 >= other_before_ns,
        "that was not asked for"
    );
    lose(time, vcpus);
    let stolen_ns = sample(time, 0).1;
    let waited_ns = sample(time, 0).0 - waited_before_ns;
    assert!(stolen_ns <= waited_ns, "{stolen_ns} of {waited_ns}");
}

fn new_kernels(stolen_time: StolenTimeChoice) {
    let machine = caller();
    let config = VmTimeConfig {
        stolen_time,
        ..Machine::config(2)
    };
    let time = machine.time(config).unwrap();
    let mut vcpus: Vec<_> = (0..2)
        .map(|index| Vcpu::attached(&machine, &time, index))
        .collect();
    for (vcpu, address) in vcpus.iter_mut().zip([REGION, REGION + 64]) {
        assert_eq!(vcpu.call(PV_TIME_ST, 0), CallResult(address));
    }
    lose(&time, &mut vcpus);
    // kexec, of which no VMM is told.
    begins_anew(&time, &mut vcpus);

    // A reset, by which a VMM initializes the vCPU again.
    let mut init = kvm_vcpu_init::default();
    machine.vm.get_preferred_target(&mut init).unwrap();
    init.features[0] |= 1 << KVM_ARM_VCPU_PSCI_0_2;
    vcpus[0].fd.vcpu_init(&init).unwrap();
    begins_anew(&time, &mut vcpus);
}

#[test]
fn r5_a_kernel_that_begins_starts_stolen_time_anew() {
    new_kernels(StolenTimeChoice::On);
}

#[test]
fn r5_a_kernel_that_begins_starts_stolen_time_anew_in_user_space() {
    new_kernels(StolenTimeChoice::User);
}
