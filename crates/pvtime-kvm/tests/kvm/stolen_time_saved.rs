//! Stolen time against real KVM: of a VM that is saved, and restored on a thread that has waited.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::thread::{JoinHandle, sleep, spawn};
use std::time::Duration;

use crate::caller::caller;
use crate::machine::{Machine, NOWHERE, RAM, set, x};
use crate::stolen_time::compete;
use kvm_ioctls::VcpuExit;
use pvtime::abi::smccc::FunctionId;
use pvtime::host::Cause;
use pvtime::host::saved::{SavedVcpu, SavedVm};
use pvtime_kvm::{StolenTimeChoice, VcpuSample, VmTime, VmTimeConfig};

const PV_TIME_ST: FunctionId = FunctionId(0xC500_0021);

/// A VM with one vCPU, on its thread, that asks for its structure and then runs.
pub struct Guest {
    pub time: Arc<VmTime>,
    claimed: Receiver<()>,
    thread: Option<JoinHandle<()>>,
    _machine: Machine,
}

impl Guest {
    /// Ready to be started.
    pub fn new() -> Self {
        Self::at(RAM)
    }

    /// Ready to be restored: past the call.
    pub fn blank() -> Self {
        Self::at(RAM + 8)
    }

    fn at(entry: u64) -> Self {
        let machine = caller();
        let config = VmTimeConfig {
            stolen_time: StolenTimeChoice::On,
            ..Machine::config(1)
        };
        let time = machine.time(config).unwrap();
        let mut fd = machine.vcpu(0);
        set(&fd, x(0), PV_TIME_ST.0.into());
        set(&fd, x(19), NOWHERE);
        set(&fd, x(32), entry);
        let attached = time.attach(&fd, 0).unwrap();
        let (bound, is_bound) = channel();
        let (claim, claimed) = channel();
        let thread = spawn(move || {
            let running = attached.bind_thread().unwrap();
            bound.send(()).unwrap();
            while let Some(exit) = running.run(&mut fd) {
                match exit {
                    Ok(VcpuExit::MmioWrite(NOWHERE, _)) => claim.send(()).unwrap(),
                    Ok(VcpuExit::Intr) => {}
                    Err(error) if error.errno() == libc::EINTR => {}
                    other => panic!("the guest left with {other:?}"),
                }
            }
        });
        is_bound.recv().unwrap();
        Self {
            time,
            claimed,
            thread: Some(thread),
            _machine: machine,
        }
    }

    /// Saved once it has asked for its structure.
    pub fn saved() -> Vec<u8> {
        let guest = Self::new();
        guest.time.start().unwrap();
        guest.claimed.recv().unwrap();
        guest.time.pause(Cause::Snapshot).unwrap();
        guest.time.save().unwrap()
    }

    fn sample(&self) -> VcpuSample {
        self.time.sample().unwrap().vcpus.remove(0)
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.time.shut_down();
        self.thread.take().unwrap().join().unwrap();
    }
}

/// The record of the only vCPU.
pub fn vcpu(saved: &[u8]) -> SavedVcpu {
    SavedVcpu::parse(&saved[SavedVm::SIZE_BYTES..]).unwrap()
}

fn stolen_ns(saved: &[u8]) -> u64 {
    vcpu(saved).stolen.expect("it was asked for").stolen_ns
}

#[test]
fn r1_m4_a_vm_that_did_not_run_since_it_was_restored_is_saved_as_it_was() {
    let saved = Guest::saved();
    let busy = compete();
    let second = Guest::blank();
    drop(busy);
    second.time.restore(&saved, Cause::Snapshot).unwrap();
    let sample = second.sample();
    assert!(sample.run_delay_ns > 0, "its thread has not waited");
    let shown_ns = sample.stolen_time.unwrap().stolen_ns;
    assert_eq!(shown_ns, stolen_ns(&saved));
    assert_eq!(second.time.stolen_ns(), [Some(shown_ns)]);
    assert_eq!(Guest::blank().time.stolen_ns(), [None]);
    let again = second.time.save().unwrap();
    assert_eq!(stolen_ns(&again), stolen_ns(&saved));

    // And where that goes on to another host.
    let third = Guest::blank();
    third.time.restore(&again, Cause::Migration).unwrap();
    assert_eq!(stolen_ns(&third.time.save().unwrap()), stolen_ns(&saved));
}

#[test]
fn r2_m4_a_restored_vms_stolen_time_grows_by_what_its_thread_waits() {
    let mut saved = Guest::saved();
    // More than any thread waits, so that all can be taken back; and next to nothing.
    for stolen_ns in [1_000_000_000_000, 1] {
        let mut vcpu = vcpu(&saved);
        vcpu.stolen.as_mut().unwrap().stolen_ns = stolen_ns;
        saved.truncate(SavedVm::SIZE_BYTES);
        saved.extend(vcpu.emit());
        let guest = Guest::blank();
        guest.time.restore(&saved, Cause::Snapshot).unwrap();
        let waited_ns = guest.sample().run_delay_ns;
        guest.time.resume().unwrap();
        for _ in 0..20 {
            sleep(Duration::from_millis(1));
            // Takes the vCPU out of the guest, in which KVM has added to the value or has not.
            guest.time.ledger().unwrap();
            let sample = guest.sample();
            let shown = sample.stolen_time.unwrap();
            let grown_ns = shown
                .stolen_ns
                .checked_sub(stolen_ns)
                .expect("no step back");
            let real_ns = grown_ns
                .checked_sub(shown.surplus_ns)
                .expect("a part of it");
            assert!(real_ns <= sample.run_delay_ns - waited_ns, "{sample:?}");
            if stolen_ns > 1 {
                assert_eq!(shown.surplus_ns, 0);
            }
        }
    }
}
