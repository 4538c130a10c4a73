//! The offset's ioctl, and what is done where a vCPU is in its way.
#![expect(unsafe_code, reason = "an ioctl with what no safe call gives it")]

use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::machine::{Machine, RAM, get, set, x};
use kvm_bindings::kvm_arm_counter_offset;
use kvm_ioctls::{DeviceFd, VcpuFd};
use pvtime::host::{Cause, CounterOffset};
use pvtime_kvm::offset::{self, SetOffsetError};
use pvtime_kvm::registers::{PTIMER_CNT, TIMER_CNT};
use pvtime_kvm::{Error, VmTime, counter};
use vmm_sys_util::ioctl::ioctl_with_ref;
use vmm_sys_util::signal::{Killable, SIGRTMIN};

/// Stays in the guest.
const PROGRAM: [u32; 1] = [0x1400_0000]; // b .

const SET_COUNTER_OFFSET: libc::c_ulong = 0x4010_aeb5;

/// A VM, and a vCPU of it that its time knows nothing of.
struct Busy {
    machine: Machine,
    time: Arc<VmTime>,
    fd: Option<VcpuFd>,
    spare: Option<VcpuFd>,
    _gic: DeviceFd,
}

impl Busy {
    fn new() -> Self {
        let machine = Machine::new(&PROGRAM);
        let time = machine.time(Machine::config(1)).unwrap();
        let [fd, spare] = [0, 1].map(|index| {
            let fd = machine.vcpu(index);
            set(&fd, x(32), RAM);
            fd
        });
        let gic = machine.gic();
        Self {
            machine,
            time,
            fd: Some(fd),
            spare: Some(spare),
            _gic: gic,
        }
    }

    /// The vCPU that the time knows of, on its thread, until the VM is shut down.
    fn run(&mut self) -> JoinHandle<()> {
        let mut fd = self.fd.take().unwrap();
        let attached = self.time.attach(&fd, 0).unwrap();
        let (bound, is_bound) = mpsc::channel();
        let thread = thread::spawn(move || {
            let running = attached.bind_thread().unwrap();
            bound.send(()).unwrap();
            while let Some(entered) = running.run(&mut fd) {
                assert_eq!(entered.unwrap_err().errno(), libc::EINTR);
            }
        });
        is_bound.recv().unwrap();
        self.time.start().unwrap();
        thread
    }

    /// Has the other vCPU in the guest, and so its lock held, until somebody takes it out.
    fn occupy(&mut self) -> Occupied {
        let mut fd = self.spare.take().unwrap();
        // Not as the guest would have it: by another than its thread.
        let thread = thread::spawn(move || {
            let entered = fd.run();
            assert_eq!(entered.unwrap_err().errno(), libc::EINTR);
        });
        let offset = CounterOffset(counter::read());
        while offset::set(&self.machine.vm, offset).is_ok() {
            assert!(!thread.is_finished(), "it does not stay in the guest");
            thread::yield_now();
        }
        Occupied { thread }
    }
}

struct Occupied {
    thread: JoinHandle<()>,
}

impl Occupied {
    fn end(self) {
        self.thread.kill(SIGRTMIN()).unwrap();
        self.thread.join().unwrap();
    }
}

#[test]
fn t5_an_offset_is_not_set_while_a_vcpu_is_in_the_guest_and_nothing_changes() {
    let mut busy = Busy::new();
    let occupied = busy.occupy();
    let fd = busy.fd.take().unwrap();
    let (before, host_before) = (get(&fd, TIMER_CNT), counter::read());
    for _ in 0..10 {
        let refused = offset::set(&busy.machine.vm, CounterOffset(1 << 40));
        assert!(matches!(refused, Err(SetOffsetError::Busy)));
    }
    let (host_after, after) = (counter::read(), get(&fd, TIMER_CNT));
    assert!(
        after - before >= host_after - host_before,
        "{before} {after}"
    );
    assert!(after - before < 1 << 39, "{before} {after}");
    occupied.end();
    offset::set(&busy.machine.vm, CounterOffset(0)).unwrap();
    assert!(get(&fd, TIMER_CNT) >= host_after);
}

#[test]
fn t6_what_is_reserved_is_zero() {
    let machine = Machine::new(&PROGRAM);
    let set = |reserved| {
        let payload = kvm_arm_counter_offset {
            counter_offset: 5,
            reserved,
        };
        // SAFETY: the ioctl reads the structure that its number was made with.
        let result = unsafe { ioctl_with_ref(&*machine.vm, SET_COUNTER_OFFSET, &payload) };
        let error = std::io::Error::last_os_error().raw_os_error();
        (result != 0).then_some(error.unwrap())
    };
    assert_eq!(set(1), Some(libc::EINVAL));
    assert_eq!(set(0), None);
}

#[test]
fn t4_a_counter_that_is_written_after_the_offset_stays_as_it_is() {
    let machine = Machine::new(&PROGRAM);
    let vcpu = machine.vcpu(0);
    let offset = counter::read();
    offset::set(&machine.vm, CounterOffset(offset)).unwrap();
    for (register, host_less) in [(TIMER_CNT, 1 << 50), (PTIMER_CNT, 0), (TIMER_CNT, 0)] {
        let before = counter::read() - offset;
        // It succeeds, and does nothing.
        set(&vcpu, register, host_less);
        let counts = [TIMER_CNT, PTIMER_CNT].map(|counter| get(&vcpu, counter));
        let after = counter::read() - offset;
        let is_right = |count| (before..=after).contains(count);
        assert!(counts.iter().all(is_right), "{counts:?}, {before} {after}");
    }
}

#[test]
fn t7_a_vcpu_that_is_made_later_has_the_offset() {
    let machine = Machine::new(&PROGRAM);
    let first = machine.vcpu(0);
    let offset = counter::read();
    offset::set(&machine.vm, CounterOffset(offset)).unwrap();
    let later = machine.vcpu(1);
    for vcpu in [&first, &later] {
        let before = counter::read() - offset;
        let counts = [TIMER_CNT, PTIMER_CNT].map(|counter| get(vcpu, counter));
        let after = counter::read() - offset;
        let is_right = |count| (before..=after).contains(count);
        assert!(counts.iter().all(is_right), "{counts:?}, {before} {after}");
    }
}

#[test]
fn t5_a_vm_is_resumed_once_nobody_is_in_the_way() {
    let mut busy = Busy::new();
    let thread = busy.run();
    busy.time.pause(Cause::Operator).unwrap();
    let occupied = busy.occupy();
    let time = Arc::clone(&busy.time);
    let resume = thread::spawn(move || {
        loop {
            match time.resume() {
                Err(Error::Offset(SetOffsetError::Busy)) => {}
                resumed => return resumed,
            }
        }
    });
    thread::sleep(Duration::from_millis(20));
    occupied.end();
    resume.join().unwrap().unwrap();
    let record = busy.time.records().after(0, Duration::ZERO).pop().unwrap();
    assert_eq!(
        (record.event.as_str(), record.shown_ticks),
        ("resume", Some(0))
    );
    busy.time.shut_down();
    thread.join().unwrap();
}
