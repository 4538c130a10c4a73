//! A vCPU that calls the hypervisor and shows what it gets.

use std::sync::Arc;

use crate::machine::{Machine, NOWHERE, RAM, get, set, x};
use kvm_ioctls::{VcpuExit, VcpuFd};
use pvtime::abi::smccc::{CallResult, FunctionId};
use pvtime_kvm::{RunningVcpu, VmTime};

/// Calls the hypervisor with x0 and x1 as they are, then shows the result.
const PROGRAM: [u32; 3] = [
    0xd400_0002, // hvc #0
    0xf900_0260, // str x0, [x19]
    0x1400_0000, // b .
];

const EINTR: i32 = 4;

pub fn caller() -> Machine {
    Machine::new(&PROGRAM)
}

pub struct Vcpu {
    pub fd: VcpuFd,
    time: Option<RunningVcpu>,
}

impl Vcpu {
    pub fn new(machine: &Machine, index: u64) -> Self {
        Self {
            fd: machine.vcpu(index),
            time: None,
        }
    }

    /// A vCPU of this thread with its time.
    pub fn attached(machine: &Machine, time: &Arc<VmTime>, index: usize) -> Self {
        Self::of(machine.vcpu(index as u64), time, index)
    }

    /// The same with a vCPU that was made already.
    pub fn of(fd: VcpuFd, time: &Arc<VmTime>, index: usize) -> Self {
        let bound = time.attach(&fd, index).unwrap().bind_thread().unwrap();
        Self {
            fd,
            time: Some(bound),
        }
    }

    /// What the guest gets from a call.
    pub fn call(&mut self, function: FunctionId, argument: u64) -> CallResult {
        self.call_with(function.0.into(), argument)
    }

    /// What the guest gets from a call with these in x0 and x1.
    pub fn call_with(&mut self, x0: u64, x1: u64) -> CallResult {
        set(&self.fd, x(0), x0);
        set(&self.fd, x(1), x1);
        set(&self.fd, x(19), NOWHERE);
        set(&self.fd, x(32), RAM);
        loop {
            match self.fd.run().unwrap() {
                VcpuExit::MmioWrite(NOWHERE, data) => {
                    let result = CallResult(u64::from_le_bytes(data.try_into().unwrap()));
                    self.finish_store();
                    return result;
                }
                VcpuExit::Hypercall(_) => {
                    let time = self.time.as_ref().expect("a call that is forwarded");
                    time.hypercall(&self.fd).unwrap();
                }
                VcpuExit::Intr => {}
                other => panic!("the guest left with {other:?}"),
            }
        }
    }

    pub fn set_general(&self, number: u64, value: u64) {
        set(&self.fd, x(number), value);
    }

    /// A general-purpose register after a call.
    pub fn general(&self, number: u64) -> u64 {
        get(&self.fd, x(number))
    }

    /// KVM steps over the store when it is next entered, which must not be at another place.
    fn finish_store(&mut self) {
        self.fd.set_kvm_immediate_exit(1);
        assert_eq!(self.fd.run().unwrap_err().errno(), EINTR);
        self.fd.set_kvm_immediate_exit(0);
    }
}
