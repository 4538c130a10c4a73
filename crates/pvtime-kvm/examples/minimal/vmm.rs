//! A KVM VMM of the smallest kind whose guest's time is right: over a pause, and over a snapshot that
//! another VM goes on from. Needs an arm64 host with KVM. What a VMM does for time is marked `time:`.

use std::error::Error;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc::channel};
use std::thread::{JoinHandle, sleep, spawn};
use std::time::Duration;

use kvm_bindings::{kvm_userspace_memory_region, kvm_vcpu_init};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd};
use pvtime::host::Cause;
use pvtime_kvm::{HostTime, RunningVcpu, VmTime, VmTimeConfig, counter};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

const RAM: GuestAddress = GuestAddress(0x4000_0000);
const PC: u64 = 0x6030_0000_0010_0040;
/// Shows its counter for ever: `mrs`, `mov` of an address without memory, `str`, `b`.
const GUEST: [u32; 4] = [0xd53b_e040, 0xd2a0_2013, 0xf900_0260, 0x17ff_fffd];
static LAST: AtomicU64 = AtomicU64::new(0);
static LARGEST_STEP: AtomicU64 = AtomicU64::new(0);

struct Vm {
    time: Arc<VmTime>,
    thread: JoinHandle<()>,
    _ram: GuestMemoryMmap,
}

fn start(kvm: &Kvm) -> Result<Vm, Box<dyn Error>> {
    let vm = Arc::new(kvm.create_vm()?);
    let ram = GuestMemoryMmap::from_ranges(&[(RAM, 0x1_0000)])?;
    ram.write_obj(GUEST, RAM)?;
    let slot = kvm_userspace_memory_region {
        guest_phys_addr: RAM.0,
        memory_size: 0x1_0000,
        userspace_addr: ram.get_host_address(RAM)? as u64,
        ..kvm_userspace_memory_region::default()
    };
    // SAFETY: the mapping is dropped after the thread that runs the vCPU has ended.
    unsafe { vm.set_user_memory_region(slot) }?;

    // time: one object for the VM; its memory at 0x0a00_0000, its slots from 1, its signal
    let config = VmTimeConfig::new(1, GuestAddress(0x0a00_0000), 1, libc::SIGRTMIN());
    let time = VmTime::new(&vm, &HostTime::probe(kvm)?, config)?;

    let mut vcpu = vm.create_vcpu(0)?;
    let mut init = kvm_vcpu_init::default();
    vm.get_preferred_target(&mut init)?;
    vcpu.vcpu_init(&init)?;
    vcpu.set_one_reg(PC, &RAM.0.to_le_bytes())?;

    // time: each vCPU once, then the thread that runs it
    let attached = time.attach(&vcpu, 0)?;
    let (bound, is_bound) = channel();
    let thread = spawn(move || match attached.bind_thread() {
        Ok(running) => {
            bound.send(Ok(())).expect("it is waited for");
            run(&mut vcpu, &running);
        }
        Err(error) => bound.send(Err(error)).expect("it is waited for"),
    });
    is_bound.recv()??;
    Ok(Vm {
        time,
        thread,
        _ram: ram,
    })
}

fn run(vcpu: &mut VcpuFd, running: &RunningVcpu) {
    // time: the gate instead of KVM_RUN, and calls that were forwarded
    while let Some(exit) = running.run(vcpu) {
        match exit {
            Ok(VcpuExit::Hypercall(_)) => running.hypercall(vcpu).expect("an answer"),
            Ok(VcpuExit::MmioWrite(_, data)) => show(data),
            Err(error) if error.errno() == libc::EINTR => {}
            other => panic!("{other:?}"),
        }
    }
}

fn show(data: &[u8]) {
    let count = u64::from_le_bytes(data.try_into().expect("eight bytes"));
    let last = LAST.swap(count, Ordering::Relaxed);
    let step = count.checked_sub(last).expect("it never goes back");
    LARGEST_STEP.fetch_max(step, Ordering::Relaxed);
}

/// Runs, pauses, saves and restores a guest, and fails if it saw any of that.
pub fn main() -> Result<(), Box<dyn Error>> {
    let (run, stop) = (Duration::from_millis(200), Duration::from_secs(1));
    let kvm = Kvm::new()?;
    // time: the events in a VM's life
    let first = start(&kvm)?;
    first.time.start()?;
    sleep(run);
    first.time.pause(Cause::Operator)?;
    sleep(stop);
    first.time.resume()?;
    sleep(run);
    first.time.pause(Cause::Snapshot)?;
    let saved = first.time.save()?;
    first.time.shut_down();
    first.thread.join().map_err(|_| "the first VM failed")?;
    sleep(stop);

    let second = start(&kvm)?;
    second.time.restore(&saved, Cause::Snapshot)?;
    second.time.resume()?;
    sleep(run);
    second.time.shut_down();
    second.thread.join().map_err(|_| "the second VM failed")?;

    let hz = counter::frequency().ok_or("no frequency")?.hz();
    let step_ms = LARGEST_STEP.load(Ordering::Relaxed) * 1000 / hz;
    println!("two stops of 1 s; the largest step that the guest saw: {step_ms} ms");
    let hidden = (step_ms < 500).then_some(());
    hidden.ok_or("the guest saw a stop".into())
}
