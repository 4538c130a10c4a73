//! Stolen time against real KVM: what a guest's calls return, and what the kernel refuses.
#![expect(unsafe_code, reason = "an ioctl that kvm-ioctls lacks")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{JoinHandle, sleep, spawn};
use std::time::{Duration, Instant};

use crate::caller::{Vcpu, caller};
use crate::machine::{Machine, NOWHERE, PERIOD, RAM, REGION, set, x};
use kvm_bindings::{KVM_ARM_VCPU_PVTIME_CTRL, KVM_ARM_VCPU_PVTIME_IPA, KVMIO, kvm_device_attr};
use kvm_ioctls::{Error as KvmError, VcpuExit};
use pvtime::abi::smccc::{CallResult, FunctionId};
use pvtime_kvm::{
    Error, StolenTimeChoice, StolenTimeProvider, StolenTimeSample, VmTime, VmTimeConfig,
};
use rustix::thread::{CpuSet, sched_setaffinity};
use vm_memory::GuestAddress;
use vmm_sys_util::ioctl::ioctl_with_ref;
use vmm_sys_util::ioctl_iow_nr;

const PV_TIME_ST: FunctionId = FunctionId(0xC500_0021);

fn time_at(
    machine: &Machine,
    vcpus: usize,
    region: u64,
    stolen_time: StolenTimeChoice,
) -> Result<Arc<VmTime>, Error> {
    let region = GuestAddress(region);
    machine.time(VmTimeConfig {
        region,
        stolen_time,
        ..Machine::config(vcpus)
    })
}

fn vm_time(machine: &Machine, vcpus: usize, stolen_time: StolenTimeChoice) -> Arc<VmTime> {
    time_at(machine, vcpus, REGION, stolen_time).unwrap()
}

impl Vcpu {
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
        self.fd
            .set_device_attr(&attribute(pointer))
            .map_err(KvmError::errno)
    }

    fn registered(&self) -> u64 {
        ioctl_iow_nr!(KVM_GET_DEVICE_ATTR, KVMIO, 0xe2, kvm_device_attr);
        let mut address = 0xa5a5_a5a5_a5a5_a5a5u64;
        let attribute = attribute((&raw mut address) as u64);
        // SAFETY: the attribute's payload is a u64, and the pointer is to one.
        let result = unsafe { ioctl_with_ref(&self.fd, KVM_GET_DEVICE_ATTR(), &attribute) };
        assert_eq!(result, 0);
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

const EFAULT: i32 = 14;
const EEXIST: i32 = 17;
const EINVAL: i32 = 22;

#[test]
fn d1_d4_d12_what_is_on_is_discovered_in_both_calls() {
    let machine = caller();
    let time = vm_time(&machine, 1, StolenTimeChoice::On);
    let mut vcpu = Vcpu::new(&machine, 0);
    let _vcpu_time = time.attach(&vcpu.fd, 0).unwrap();
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
    let machine = caller();
    let time = vm_time(&machine, 2, StolenTimeChoice::Off);
    assert_eq!(time.stolen_time_provider(), StolenTimeProvider::Off);
    assert!(time.reserved_memory().is_empty());
    for index in 0..2 {
        let mut vcpu = Vcpu::new(&machine, index as u64);
        let _vcpu_time = time.attach(&vcpu.fd, index).unwrap();
        assert!(!vcpu.discovers_stolen_time());
        assert_eq!(vcpu.call(PV_TIME_ST, 0), CallResult::NOT_SUPPORTED);
    }
}

#[test]
fn d9_m1_c1_c2_each_vcpu_gets_its_own_structure() {
    let machine = caller();
    let time = vm_time(&machine, 3, StolenTimeChoice::On);
    let mut attached = Vec::new();
    // Each is made after the one before was attached, in any order.
    for index in [2, 0, 1] {
        let vcpu = Vcpu::new(&machine, index as u64);
        let vcpu_time = time.attach(&vcpu.fd, index).unwrap();
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
    let machine = caller();
    let time = vm_time(&machine, 1, StolenTimeChoice::On);
    let mut with = Vcpu::new(&machine, 0);
    let _vcpu_time = time.attach(&with.fd, 0).unwrap();
    let mut without = Vcpu::new(&machine, 1);
    assert_eq!(without.call(PV_TIME_ST, 0), CallResult::NOT_SUPPORTED);
    assert_eq!(with.call(PV_TIME_ST, 0), CallResult(REGION));
}

#[test]
fn m2_m4_a_structure_starts_at_zero_when_the_guest_asks() {
    let machine = caller();
    let time = vm_time(&machine, 2, StolenTimeChoice::On);
    let mut vcpu = Vcpu::new(&machine, 0);
    let vcpu_time = time.attach(&vcpu.fd, 0).unwrap();
    let _running = vcpu_time.bind_thread().unwrap();
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
    let machine = caller();
    let time = vm_time(&machine, 1, StolenTimeChoice::On);
    let mut vcpu = Vcpu::new(&machine, 0);
    let vcpu_time = time.attach(&vcpu.fd, 0).unwrap();
    let _running = vcpu_time.bind_thread().unwrap();
    let sample = || {
        let sample = time.sample().unwrap().vcpus.remove(0);
        (sample.run_delay_ns, sample.stolen_time.unwrap().stolen_ns)
    };
    let (run_delay_before_ns, _) = sample();
    vcpu.call(PV_TIME_ST, 0);
    sleep(Duration::from_millis(300));
    vcpu.call(FunctionId::SMCCC_VERSION, 0);
    let (run_delay_ns, stolen_ns) = sample();
    // The structure may lag behind the scheduler, never run ahead of it, and the scheduler does not
    // count sleep.
    let waited_ns = run_delay_ns - run_delay_before_ns;
    assert!(stolen_ns <= waited_ns, "{stolen_ns} ns of {waited_ns} ns");
}

#[test]
fn c3_addresses_are_refused_in_the_order_of_the_interface() {
    let machine = caller();
    let _time = vm_time(&machine, 1, StolenTimeChoice::On);
    let vcpu = Vcpu::new(&machine, 0);
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
    let machine = caller();
    let _time = vm_time(&machine, 1, StolenTimeChoice::On);
    let vcpu = Vcpu::new(&machine, 0);
    assert_eq!(vcpu.registered(), u64::MAX);
    vcpu.register(&(REGION + 128)).unwrap();
    assert_eq!(vcpu.registered(), REGION + 128);
}

#[test]
fn c7_nothing_is_on_before_a_vcpu_is_attached() {
    let machine = caller();
    let mut vcpu = Vcpu::new(&machine, 0);
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
    let machine = caller();
    let new = |vcpus, region| time_at(&machine, vcpus, region, StolenTimeChoice::On);
    assert!(matches!(new(0, REGION), Err(Error::Vcpus { vcpus: 0 })));
    assert!(matches!(
        new(1025, REGION),
        Err(Error::Vcpus { vcpus: 1025 })
    ));
    assert!(matches!(
        new(1, REGION + 0x1000),
        Err(Error::Unaligned { .. })
    ));
    let overlap = new(1, RAM).unwrap_err().to_string();
    assert!(
        overlap.contains("choose an address and a slot that nothing else uses"),
        "{overlap}"
    );

    // A slot is free again when the time that had it is gone.
    drop(new(1024, REGION).unwrap());
    drop(new(1, REGION + 0x1_0000).unwrap());
}

#[test]
fn vcpus_are_attached_once_and_in_time() {
    let machine = caller();
    let time = vm_time(&machine, 1, StolenTimeChoice::On);
    let vcpu = Vcpu::new(&machine, 0);
    assert!(matches!(
        time.attach(&vcpu.fd, 1),
        Err(Error::NoSuchVcpu { index: 1, vcpus: 1 })
    ));
    let _vcpu_time = time.attach(&vcpu.fd, 0).unwrap();
    assert!(matches!(
        time.attach(&vcpu.fd, 0),
        Err(Error::AttachedTwice { index: 0 })
    ));

    // Discovery cannot change under a guest that has run.
    let machine = caller();
    let time = vm_time(&machine, 1, StolenTimeChoice::Off);
    let mut vcpu = Vcpu::new(&machine, 0);
    vcpu.call(FunctionId::SMCCC_VERSION, 0);
    let error = time.attach(&vcpu.fd, 0).unwrap_err().to_string();
    assert!(error.contains("attach before the first KVM_RUN"), "{error}");
}

/// A vCPU whose stolen time user space keeps, by its thread's run delay and by its structure.
fn user_sample(time: &VmTime) -> (u64, StolenTimeSample) {
    let sample = time.sample().unwrap().vcpus.remove(0);
    (sample.run_delay_ns, sample.stolen_time.unwrap())
}

#[test]
fn d2_d4_d6_d9_user_space_answers_as_the_kernel_does() {
    let machine = caller();
    let time = vm_time(&machine, 2, StolenTimeChoice::User);
    assert_eq!(time.stolen_time_provider(), StolenTimeProvider::User);
    let mut vcpu = Vcpu::attached(&machine, &time, 0);
    assert!(vcpu.discovers_stolen_time());
    let features = FunctionId::PV_TIME_FEATURES;
    assert_eq!(vcpu.call(features, features.0.into()), CallResult::SUCCESS);
    for other in [0, 0xC500_0022, 0x8500_0021] {
        assert_eq!(
            vcpu.call(features, other),
            CallResult::NOT_SUPPORTED,
            "{other:#x}"
        );
    }
    assert_eq!(vcpu.call(FunctionId(0x8500_0021), 0).as_32_bit(), -1);
    assert!(!user_sample(&time).1.claimed);
    assert_eq!(vcpu.call(PV_TIME_ST, 0), CallResult(REGION));
    assert!(user_sample(&time).1.claimed);
    let mut second = Vcpu::attached(&machine, &time, 1);
    assert_eq!(second.call(PV_TIME_ST, 0), CallResult(REGION + 64));
}

#[test]
fn m4_m7_user_space_follows_the_scheduler_within_its_period() {
    let machine = caller();
    let time = vm_time(&machine, 1, StolenTimeChoice::User);
    let mut vcpu = Vcpu::attached(&machine, &time, 0);
    vcpu.call(PV_TIME_ST, 0);
    let (start_delay_ns, start) = user_sample(&time);
    // Threads that want the same CPU make this one wait.
    let busy: Vec<_> = (0..4).map(|_| compete()).collect();
    let mut last_ns = start.stolen_ns;
    for _ in 0..20 {
        vcpu.call(FunctionId::SMCCC_VERSION, 0);
        let stolen_ns = user_sample(&time).1.stolen_ns;
        assert!(stolen_ns >= last_ns, "{stolen_ns} after {last_ns}");
        last_ns = stolen_ns;
        spin(Duration::from_millis(10));
    }
    drop(busy);
    let delay_ns = user_sample(&time).0 - start_delay_ns;
    assert!(delay_ns > 1_000_000, "nobody competed: {delay_ns} ns");
    sleep(3 * PERIOD);
    let (_, published) = user_sample(&time);
    assert!(
        published.stolen_ns - start.stolen_ns >= delay_ns,
        "{published:?} of {delay_ns}"
    );
    assert!(published.stolen_ns <= user_sample(&time).0 - start_delay_ns + start.stolen_ns);

    assert_eq!(vcpu.call(PV_TIME_ST, 0), CallResult(REGION));
    assert!(
        user_sample(&time).1.stolen_ns < delay_ns,
        "the call starts at 0 again"
    );
}

#[test]
fn a_period_of_0_is_refused() {
    let machine = caller();
    let error = machine.time(VmTimeConfig {
        stolen_time_period: Duration::ZERO,
        ..Machine::config(1)
    });
    assert!(matches!(error, Err(Error::NoPeriod)), "{error:?}");
}

#[test]
fn what_the_publisher_could_not_publish_is_told() {
    let machine = caller();
    let time = vm_time(&machine, 2, StolenTimeChoice::User);
    let mut vcpu = Vcpu::attached(&machine, &time, 0);
    vcpu.call(PV_TIME_ST, 0);
    sleep(3 * PERIOD);
    assert_eq!(time.sample().unwrap().stolen_time_failure, None);
    // The second vCPU's thread ends without a word.
    let (moved, its_time) = (machine.vcpu(1), Arc::clone(&time));
    let ended = spawn(move || {
        let mut second = Vcpu::of(moved, &its_time, 1);
        second.call(PV_TIME_ST, 0);
    });
    ended.join().unwrap();
    let start = Instant::now();
    let failure = loop {
        if let Some(failure) = time.stolen_time_failure() {
            break failure;
        }
        assert!(start.elapsed() < Duration::from_secs(20), "nothing is told");
        sleep(PERIOD);
    };
    assert!(
        failure.starts_with("vCPU 1: cannot read /proc/"),
        "{failure}"
    );
}

#[test]
fn m8_a_guest_cannot_write_what_user_space_keeps() {
    // str x0, [x19]; b .
    let machine = Machine::new(&[0xf900_0260, 0x1400_0000]);
    let time = vm_time(&machine, 1, StolenTimeChoice::User);
    let fd = machine.vcpu(0);
    let _bound = time.attach(&fd, 0).unwrap().bind_thread().unwrap();
    let mut fd = fd;
    set(&fd, x(0), 0);
    set(&fd, x(19), REGION + 8);
    set(&fd, x(32), RAM);
    let exit = fd.run().unwrap();
    assert!(
        matches!(exit, VcpuExit::MmioWrite(address, _) if address == REGION + 8),
        "{exit:?}"
    );
    assert!(!user_sample(&time).1.claimed);
}

/// Keeps a CPU busy until it is dropped: the one of the calling thread, which stays there too.
pub struct Busy {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// Has this thread, and those that it starts from now on, share a CPU with one that never sleeps.
pub fn compete() -> Busy {
    let mut cpu = CpuSet::new();
    cpu.set(0);
    sched_setaffinity(None, &cpu).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let thread = spawn(move || while !stopped.load(Ordering::Relaxed) {});
    Busy {
        stop,
        thread: Some(thread),
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap();
    }
}

/// Computes for this long.
pub fn spin(time: Duration) {
    let start = Instant::now();
    while start.elapsed() < time {}
}
