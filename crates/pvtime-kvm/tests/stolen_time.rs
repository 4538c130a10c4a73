//! Stolen time against real KVM: what a guest's calls return, and what the kernel refuses.
//!
//! Runs on arm64 hosts with KVM; `cargo xtask test` runs it on an emulated one.
#![cfg(target_arch = "aarch64")]
#![expect(unsafe_code, reason = "memory slots and ioctls that kvm-ioctls lacks")]

use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::thread::sleep;
use std::time::Duration;

use kvm_bindings::{
    KVM_ARM_VCPU_PSCI_0_2, KVM_ARM_VCPU_PVTIME_CTRL, KVM_ARM_VCPU_PVTIME_IPA, KVMIO,
    kvm_device_attr, kvm_userspace_memory_region, kvm_vcpu_init,
};
use kvm_ioctls::{Error as KvmError, Kvm, VcpuExit, VcpuFd, VmFd};
use pvtime::abi::smccc::{CallResult, FunctionId};
use pvtime_kvm::{Error, HostTime, StolenTimeChoice, StolenTimeProvider, VmTime, VmTimeConfig};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use vmm_sys_util::ioctl::ioctl_with_ref;
use vmm_sys_util::ioctl_iow_nr;

const RAM: u64 = 0x4000_0000;
const REGION: u64 = 0x0a00_0000;
/// No memory and no device: a store there leaves the guest with the value.
const NOWHERE: u64 = 0x0100_0000;

/// Calls the hypervisor with x0 and x1 as they are, then shows the result.
const PROGRAM: [u32; 3] = [
    0xd400_0002, // hvc #0
    0xf900_0260, // str x0, [x19]
    0x1400_0000, // b .
];

const PV_TIME_ST: FunctionId = FunctionId(0xC500_0021);

/// A VM with a page of RAM. The memory is dropped last.
struct Machine {
    kvm: Kvm,
    vm: Arc<VmFd>,
    _ram: GuestMemoryMmap,
}

impl Machine {
    fn new() -> Self {
        let kvm = Kvm::new().expect("these tests need /dev/kvm");
        let vm = Arc::new(kvm.create_vm().unwrap());
        let ram = GuestMemoryMmap::from_ranges(&[(GuestAddress(RAM), 0x1_0000)]).unwrap();
        for (index, instruction) in (0..).zip(PROGRAM) {
            ram.write_obj(instruction, GuestAddress(RAM + 4 * index))
                .unwrap();
        }
        let slot = kvm_userspace_memory_region {
            slot: 0,
            flags: 0,
            guest_phys_addr: RAM,
            memory_size: 0x1_0000,
            userspace_addr: ram.get_host_address(GuestAddress(RAM)).unwrap() as u64,
        };
        // SAFETY: the mapping is as long as the slot and outlives the VM's vCPUs.
        unsafe { vm.set_user_memory_region(slot) }.unwrap();
        Self { kvm, vm, _ram: ram }
    }

    fn host(&self) -> HostTime {
        HostTime::probe(&self.kvm).unwrap()
    }

    fn time(&self, vcpus: usize, stolen_time: StolenTimeChoice) -> Result<VmTime, Error> {
        let region = GuestAddress(REGION);
        let config = VmTimeConfig {
            vcpus,
            region,
            first_slot: 1,
            stolen_time,
        };
        VmTime::new(&self.vm, &self.host(), config)
    }

    fn vcpu(&self, index: u64) -> Vcpu {
        let vcpu = self.vm.create_vcpu(index).unwrap();
        let mut init = kvm_vcpu_init::default();
        self.vm.get_preferred_target(&mut init).unwrap();
        init.features[0] |= 1 << KVM_ARM_VCPU_PSCI_0_2;
        vcpu.vcpu_init(&init).unwrap();
        Vcpu(vcpu)
    }
}

struct Vcpu(VcpuFd);

impl Vcpu {
    fn set(&self, register: u64, value: u64) {
        self.0.set_one_reg(register, &value.to_le_bytes()).unwrap();
    }

    /// What the guest gets from a call.
    fn call(&mut self, function: FunctionId, argument: u64) -> CallResult {
        const X: u64 = 0x6030_0000_0010_0000;
        const PC: u64 = X + 2 * 32;
        self.set(X, function.0.into());
        self.set(X + 2, argument);
        self.set(X + 2 * 19, NOWHERE);
        self.set(PC, RAM);
        loop {
            match self.0.run().unwrap() {
                VcpuExit::MmioWrite(NOWHERE, data) => {
                    let result = CallResult(u64::from_le_bytes(data.try_into().unwrap()));
                    self.finish_store();
                    return result;
                }
                VcpuExit::Intr => {}
                other => panic!("the guest left with {other:?}"),
            }
        }
    }

    /// KVM steps over the store when it is next entered, which must not be at another place.
    fn finish_store(&mut self) {
        self.0.set_kvm_immediate_exit(1);
        assert_eq!(self.0.run().unwrap_err().errno(), EINTR);
        self.0.set_kvm_immediate_exit(0);
    }

    /// What the guest's two probes of a call say: both yes, both no, or nothing sensible.
    fn discovers_stolen_time(&mut self) -> bool {
        let arch = self.call(
            FunctionId::SMCCC_ARCH_FEATURES,
            FunctionId::PV_TIME_FEATURES.0.into(),
        );
        let features = self.call(FunctionId::PV_TIME_FEATURES, PV_TIME_ST.0.into());
        // SMCCC_ARCH_FEATURES is a 32-bit call.
        assert_eq!(
            arch.as_32_bit() == 0,
            features == CallResult::SUCCESS,
            "{arch:?} {features:?}"
        );
        features == CallResult::SUCCESS
    }

    fn register(&self, address: &u64) -> Result<(), i32> {
        self.register_from(std::ptr::from_ref(address) as u64)
    }

    fn register_from(&self, pointer: u64) -> Result<(), i32> {
        self.0
            .set_device_attr(&attribute(pointer))
            .map_err(KvmError::errno)
    }

    fn registered(&self) -> u64 {
        ioctl_iow_nr!(KVM_GET_DEVICE_ATTR, KVMIO, 0xe2, kvm_device_attr);
        let mut address = 0xa5a5_a5a5_a5a5_a5a5u64;
        let attribute = attribute((&raw mut address) as u64);
        // SAFETY: the attribute's payload is a u64, and the pointer is to one.
        let result = unsafe { ioctl_with_ref(&self.0, KVM_GET_DEVICE_ATTR(), &attribute) };
        assert_eq!(result, 0, "fd {}", self.0.as_raw_fd());
        address
    }
}

fn attribute(addr: u64) -> kvm_device_attr {
    kvm_device_attr {
        flags: 0,
        group: KVM_ARM_VCPU_PVTIME_CTRL,
        attr: KVM_ARM_VCPU_PVTIME_IPA.into(),
        addr,
    }
}

const EINTR: i32 = 4;
const EFAULT: i32 = 14;
const EEXIST: i32 = 17;
const EINVAL: i32 = 22;

#[test]
fn d1_d4_d12_what_is_on_is_discovered_in_both_calls() {
    let machine = Machine::new();
    let time = machine.time(1, StolenTimeChoice::On).unwrap();
    let mut vcpu = machine.vcpu(0);
    let _vcpu_time = time.attach(&vcpu.0, 0).unwrap();
    assert!(vcpu.discovers_stolen_time());
    let features = FunctionId::PV_TIME_FEATURES;
    assert_eq!(vcpu.call(features, features.0.into()), CallResult::SUCCESS);
    for other in [0, 0xC500_0022, 0xC500_0023, 0x8500_0021] {
        assert_eq!(
            vcpu.call(features, other),
            CallResult::NOT_SUPPORTED,
            "{other:#x}"
        );
    }
    // The number of stolen time in the drafts, and the 32-bit forms.
    for other in [0xC500_0022, 0x8500_0020, 0x8500_0021] {
        assert_eq!(
            vcpu.call(FunctionId(other), PV_TIME_ST.0.into())
                .as_32_bit(),
            -1,
            "{other:#x}"
        );
    }
}

#[test]
fn d12_what_is_off_is_discovered_in_neither_call() {
    let machine = Machine::new();
    let time = machine.time(2, StolenTimeChoice::Off).unwrap();
    assert_eq!(time.stolen_time_provider(), StolenTimeProvider::Off);
    assert!(time.reserved_memory().is_empty());
    for index in 0..2 {
        let mut vcpu = machine.vcpu(index as u64);
        let _vcpu_time = time.attach(&vcpu.0, index).unwrap();
        assert!(!vcpu.discovers_stolen_time());
        assert_eq!(vcpu.call(PV_TIME_ST, 0), CallResult::NOT_SUPPORTED);
    }
}

#[test]
fn d9_m1_c1_c2_each_vcpu_gets_its_own_structure() {
    let machine = Machine::new();
    let time = machine.time(3, StolenTimeChoice::On).unwrap();
    let mut attached = Vec::new();
    // Each is made after the one before was attached, in any order.
    for index in [2, 0, 1] {
        let vcpu = machine.vcpu(index as u64);
        let vcpu_time = time.attach(&vcpu.0, index).unwrap();
        attached.push((index, vcpu, vcpu_time));
    }
    for (index, vcpu, _) in &mut attached {
        let address = REGION + 64 * *index as u64;
        assert_eq!(vcpu.call(PV_TIME_ST, 0), CallResult(address));
        assert_eq!(vcpu.registered(), address);
    }
}

#[test]
fn d10_a_vcpu_without_a_structure_is_told_so() {
    let machine = Machine::new();
    let time = machine.time(1, StolenTimeChoice::On).unwrap();
    let mut with = machine.vcpu(0);
    let _vcpu_time = time.attach(&with.0, 0).unwrap();
    let mut without = machine.vcpu(1);
    assert_eq!(without.call(PV_TIME_ST, 0), CallResult::NOT_SUPPORTED);
    assert_eq!(with.call(PV_TIME_ST, 0), CallResult(REGION));
}

#[test]
fn m2_m4_a_structure_starts_at_zero_when_the_guest_asks() {
    let machine = Machine::new();
    let time = machine.time(2, StolenTimeChoice::On).unwrap();
    let mut vcpu = machine.vcpu(0);
    let vcpu_time = time.attach(&vcpu.0, 0).unwrap();
    vcpu_time.bind_thread();
    let structure = || time.sample().unwrap().vcpus[0].stolen_time.unwrap();
    assert!(!structure().claimed);
    assert_eq!(vcpu.call(PV_TIME_ST, 0), CallResult(REGION));
    let started = structure();
    assert_eq!((started.claimed, started.address), (true, REGION));
    let unasked = time.sample().unwrap().vcpus[1].stolen_time.unwrap();
    assert!(!unasked.claimed);

    let mut last_ns = started.stolen_ns;
    for _ in 0..50 {
        vcpu.call(FunctionId::SMCCC_VERSION, 0);
        let stolen_ns = structure().stolen_ns;
        assert!(stolen_ns >= last_ns, "{stolen_ns} after {last_ns}");
        last_ns = stolen_ns;
    }
}

#[test]
fn m6_time_outside_the_guest_is_not_stolen() {
    let machine = Machine::new();
    let time = machine.time(1, StolenTimeChoice::On).unwrap();
    let mut vcpu = machine.vcpu(0);
    let vcpu_time = time.attach(&vcpu.0, 0).unwrap();
    vcpu_time.bind_thread();
    vcpu.call(PV_TIME_ST, 0);
    let sample = || {
        let sample = time.sample().unwrap().vcpus.remove(0);
        (
            sample.accounts.run_delay_ns,
            sample.stolen_time.unwrap().stolen_ns,
        )
    };
    let before = sample();
    sleep(Duration::from_millis(300));
    vcpu.call(FunctionId::SMCCC_VERSION, 0);
    let after = sample();
    let stolen_ns = after.1 - before.1;
    assert!(
        stolen_ns < 100_000_000,
        "{stolen_ns} ns of a pause of 300 ms"
    );
    // The structure may lag behind the scheduler, never run ahead of it.
    assert!(stolen_ns <= after.0 - before.0, "{before:?} {after:?}");
}

#[test]
fn c3_addresses_are_refused_in_the_order_of_the_interface() {
    let machine = Machine::new();
    let _time = machine.time(1, StolenTimeChoice::On).unwrap();
    let vcpu = machine.vcpu(0);
    assert_eq!(vcpu.register_from(8), Err(EFAULT));
    for offset in [1, 8, 32, 63] {
        assert_eq!(
            vcpu.register(&(REGION + offset)),
            Err(EINVAL),
            "offset {offset}"
        );
    }
    assert_eq!(vcpu.register(&NOWHERE), Err(EINVAL));
    assert_eq!(vcpu.register(&REGION), Ok(()));
    assert_eq!(vcpu.register(&REGION), Err(EEXIST));
    assert_eq!(
        vcpu.register(&NOWHERE),
        Err(EEXIST),
        "set already before unmapped"
    );
    assert_eq!(
        vcpu.register(&(REGION + 1)),
        Err(EINVAL),
        "alignment before set already"
    );
    assert_eq!(
        vcpu.register_from(8),
        Err(EFAULT),
        "the pointer before everything"
    );
}

#[test]
fn c6_an_address_that_was_not_set_reads_as_all_ones() {
    let machine = Machine::new();
    let _time = machine.time(1, StolenTimeChoice::On).unwrap();
    let vcpu = machine.vcpu(0);
    assert_eq!(vcpu.registered(), u64::MAX);
    vcpu.register(&(REGION + 128)).unwrap();
    assert_eq!(vcpu.registered(), REGION + 128);
}

#[test]
fn c7_nothing_is_on_before_a_vcpu_is_attached() {
    let machine = Machine::new();
    let mut vcpu = machine.vcpu(0);
    assert_eq!(vcpu.call(PV_TIME_ST, 0), CallResult::NOT_SUPPORTED);
    let features = vcpu.call(FunctionId::PV_TIME_FEATURES, PV_TIME_ST.0.into());
    assert_eq!(features, CallResult::NOT_SUPPORTED);
    assert!(
        machine.host().stolen_time.is_yes(),
        "and yet the host has it"
    );
}

#[test]
fn m11_the_region_is_refused_where_it_cannot_be() {
    let machine = Machine::new();
    let new = |vcpus, region, first_slot| {
        let stolen_time = StolenTimeChoice::On;
        let region = GuestAddress(region);
        let config = VmTimeConfig {
            vcpus,
            region,
            first_slot,
            stolen_time,
        };
        VmTime::new(&machine.vm, &machine.host(), config)
    };
    assert!(matches!(new(0, REGION, 1), Err(Error::Vcpus { vcpus: 0 })));
    assert!(matches!(
        new(1025, REGION, 1),
        Err(Error::Vcpus { vcpus: 1025 })
    ));
    assert!(matches!(
        new(1, REGION + 0x1000, 1),
        Err(Error::Unaligned { .. })
    ));
    let overlap = new(1, RAM, 1).unwrap_err().to_string();
    assert!(
        overlap.contains("choose an address and a slot that nothing else uses"),
        "{overlap}"
    );

    // A slot is free again when the time that had it is gone.
    drop(new(1024, REGION, 1).unwrap());
    drop(new(1, REGION + 0x1_0000, 1).unwrap());
}

#[test]
fn vcpus_are_attached_once_and_in_time() {
    let machine = Machine::new();
    let time = machine.time(1, StolenTimeChoice::On).unwrap();
    let vcpu = machine.vcpu(0);
    assert!(matches!(
        time.attach(&vcpu.0, 1),
        Err(Error::NoSuchVcpu { index: 1, vcpus: 1 })
    ));
    let _vcpu_time = time.attach(&vcpu.0, 0).unwrap();
    assert!(matches!(
        time.attach(&vcpu.0, 0),
        Err(Error::AttachedTwice { index: 0 })
    ));

    // Discovery cannot change under a guest that has run.
    let machine = Machine::new();
    let time = machine.time(1, StolenTimeChoice::Off).unwrap();
    let mut vcpu = machine.vcpu(0);
    vcpu.call(FunctionId::SMCCC_VERSION, 0);
    let error = time.attach(&vcpu.0, 0).unwrap_err().to_string();
    assert!(error.contains("attach before the first KVM_RUN"), "{error}");
}
