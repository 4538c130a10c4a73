//! The timers' interrupts, which a VM has as KVM gives them.
#![expect(unsafe_code, reason = "attributes are read and written by address")]

use std::thread;

use crate::machine::{Machine, RAM, set, x};
use kvm_bindings::{
    KVM_ARM_VCPU_TIMER_CTRL, KVM_ARM_VCPU_TIMER_IRQ_PTIMER, KVM_ARM_VCPU_TIMER_IRQ_VTIMER, KVMIO,
    kvm_device_attr,
};
use kvm_ioctls::VcpuFd;
use vmm_sys_util::ioctl::ioctl_with_ref;
use vmm_sys_util::ioctl_iow_nr;
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

/// Stays in the guest.
const PROGRAM: [u32; 1] = [0x1400_0000]; // b .

ioctl_iow_nr!(KVM_GET_DEVICE_ATTR, KVMIO, 0xe2, kvm_device_attr);

fn attribute(timer: u32, number: *const u32) -> kvm_device_attr {
    kvm_device_attr {
        flags: 0,
        group: KVM_ARM_VCPU_TIMER_CTRL,
        attr: timer.into(),
        addr: number as u64,
    }
}

fn number(vcpu: &VcpuFd, timer: u32) -> u32 {
    let mut number = 0xa5a5_a5a5_u32;
    let attribute = attribute(timer, &raw mut number);
    // SAFETY: the ioctl reads the structure that its number was made with, and writes the number of an
    // interrupt, which has 32 bits, as has what the address is of.
    let result = unsafe { ioctl_with_ref(vcpu, KVM_GET_DEVICE_ATTR(), &attribute) };
    assert_eq!(result, 0, "{:?}", std::io::Error::last_os_error());
    number
}

fn set_number(vcpu: &VcpuFd, timer: u32, number: u32) -> Result<(), i32> {
    let set = vcpu.set_device_attr(&attribute(timer, &raw const number));
    set.map_err(kvm_ioctls::Error::errno)
}

/// Enters the guest on a thread until a signal takes it out, and says what entering came to.
fn run(mut vcpu: VcpuFd) -> (VcpuFd, i32) {
    extern "C" fn ignore(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
    register_signal_handler(SIGRTMIN(), ignore).unwrap();
    let thread = thread::spawn(move || {
        let errno = vcpu.run().unwrap_err().errno();
        (vcpu, errno)
    });
    while !thread.is_finished() {
        thread.kill(SIGRTMIN()).unwrap();
        thread::sleep(std::time::Duration::from_millis(5));
    }
    thread.join().unwrap()
}

#[test]
fn t16_numbers_are_private_interrupts_and_final_once_a_vcpu_ran() {
    let machine = Machine::new(&PROGRAM);
    let vcpu = machine.vcpu(0);
    set(&vcpu, x(32), RAM);
    let _gic = machine.gic();
    let timers = [KVM_ARM_VCPU_TIMER_IRQ_VTIMER, KVM_ARM_VCPU_TIMER_IRQ_PTIMER];
    // What `pvtime`'s device tree says, and is left as it is.
    assert_eq!(timers.map(|timer| number(&vcpu, timer)), [27, 30]);
    for wrong in [0, 15, 32, u32::MAX] {
        assert_eq!(set_number(&vcpu, timers[0], wrong), Err(libc::EINVAL));
    }
    for right in [16, 31, 27] {
        assert_eq!(set_number(&vcpu, timers[0], right), Ok(()));
    }
    let (vcpu, errno) = run(vcpu);
    assert_eq!(errno, libc::EINTR);
    assert_eq!(set_number(&vcpu, timers[0], 28), Err(libc::EBUSY));
    assert_eq!(number(&vcpu, timers[0]), 27);
}

#[test]
fn t16_two_timers_with_one_interrupt_do_not_run() {
    let machine = Machine::new(&PROGRAM);
    let vcpu = machine.vcpu(0);
    set(&vcpu, x(32), RAM);
    let _gic = machine.gic();
    let physical = number(&vcpu, KVM_ARM_VCPU_TIMER_IRQ_PTIMER);
    set_number(&vcpu, KVM_ARM_VCPU_TIMER_IRQ_VTIMER, physical).unwrap();
    assert_eq!(run(vcpu).1, libc::EINVAL);
}
