//! A vCPU's part of its VM's time.

use std::io;
use std::sync::Arc;

use kvm_bindings::KVM_MP_STATE_STOPPED;
use kvm_ioctls::{Error as KvmError, VcpuExit, VcpuFd};
use pvtime::host::hypercalls::{Answer, Effect, ExecutionState, Request};
use rustix::thread::gettid;

use super::account::VcpuAccount;
use super::{Bound, Error, Vcpu, VmTime};
use crate::gate::{Member, Passing};
use crate::timers::{get, set};

/// A vCPU that was attached and has no thread yet.
#[derive(Debug)]
#[must_use = "the thread that calls KVM_RUN binds itself through this"]
pub struct VcpuTime {
    time: Arc<VmTime>,
    index: usize,
}

impl VcpuTime {
    pub(super) fn new(time: &Arc<VmTime>, index: usize) -> Self {
        Self {
            time: Arc::clone(time),
            index,
        }
    }

    /// Makes the calling thread the one that runs this vCPU; its accounts are the vCPU's.
    ///
    /// # Errors
    ///
    /// [`Error::Accounts`] where the kernel does not count, [`Error::Timer`] where it has no timer
    /// for the thread.
    ///
    /// # Panics
    ///
    /// Never: a vCPU is attached once, and this takes what attaching gave.
    pub fn bind_thread(self) -> Result<RunningVcpu, Error> {
        let Self { time, index } = self;
        // Whoever sees the vCPU bound finds its thread at the gate.
        let mut state = time.lock();
        let slot = &mut state.vcpus[index];
        let Vcpu::Attached(halt) = std::mem::replace(slot, Vcpu::New) else {
            unreachable!("vCPU {index} was attached and not bound");
        };
        let account = VcpuAccount::of_this_thread(halt)
            .map_err(|source| Error::Accounts { index, source })?;
        let account = Arc::new(account);
        time.stolen.bind(index, gettid())?;
        let member = time.join(index, &account)?;
        state.vcpus[index] = Vcpu::Bound(Bound {
            account,
            asked: None,
        });
        drop(state);
        Ok(RunningVcpu {
            time,
            index,
            member,
        })
    }
}

impl VmTime {
    /// Makes the calling thread a member of the gate, which enters this account.
    fn join(
        self: &Arc<Self>,
        index: usize,
        account: &Arc<VcpuAccount>,
    ) -> Result<Member<VcpuFd>, Error> {
        let time = Arc::clone(self);
        let (own, vouching) = (Arc::clone(account), Arc::clone(account));
        let member = Member::join(
            &self.gate,
            index,
            move |passing, vcpu: &VcpuFd| match passing {
                Passing::Arrives => {
                    own.arrive(is_off(vcpu));
                    time.stolen.arrive(index);
                }
                Passing::Leaves => {
                    let waited_ns = own.leave(time.closed_for.get(), is_off(vcpu));
                    // What it waited at the gate is no stop.
                    own.look(time.gate.lease());
                    time.stolen.leave(index, waited_ns);
                }
            },
            move || vouching.ran_until_ns(),
        );
        member.map_err(|source| Error::Timer { index, source })
    }
}

/// A vCPU on its thread.
#[derive(Debug)]
pub struct RunningVcpu {
    time: Arc<VmTime>,
    index: usize,
    member: Member<VcpuFd>,
}

impl RunningVcpu {
    /// The vCPU's index.
    #[must_use]
    pub const fn index(&self) -> usize {
        self.index
    }

    /// Has KVM do what it does only when a vCPU is run first, which takes some milliseconds that the
    /// guest would have to wait for when its clocks run already. No guest instruction is executed. To be
    /// called when the vCPU and its VM's interrupt controller are as the guest is to find them, since
    /// KVM takes much of that for settled from then on.
    ///
    /// # Errors
    ///
    /// [`Error::FirstRun`].
    pub fn run_first(&self, vcpu: &mut VcpuFd) -> Result<(), Error> {
        let index = self.index;
        vcpu.set_kvm_immediate_exit(1);
        let exit = vcpu.run().map(drop);
        vcpu.set_kvm_immediate_exit(0);
        match exit {
            Err(source) if source.errno() != rustix::io::Errno::INTR.raw_os_error() => {
                Err(Error::FirstRun { index, source })
            }
            _ => Ok(()),
        }
    }

    /// Enters the guest once, as `KVM_RUN` does, when the VM runs; waits while it does not. `None`
    /// after [`VmTime::shut_down`].
    ///
    /// `KVM_RUN` returns `EINTR` when the VM is to stop: handle nothing and call again.
    pub fn run<'a>(&self, vcpu: &'a mut VcpuFd) -> Option<Result<VcpuExit<'a>, KvmError>> {
        self.run_with(vcpu, VcpuFd::run)
    }

    /// The same for a VMM that does something of its own around `KVM_RUN`: `run` is called between
    /// the gate and the guest, and whatever it does there, the guest is not entered on a clock that
    /// is not right.
    pub fn run_with<'a, R>(
        &self,
        vcpu: &'a mut VcpuFd,
        run: impl FnOnce(&'a mut VcpuFd) -> R,
    ) -> Option<R> {
        self.member.enter(vcpu, |vcpu: &'a mut VcpuFd| {
            self.time.stolen.enter(self.index);
            run(vcpu)
        })
    }

    /// Answers a call that KVM handed over (`KVM_EXIT_HYPERCALL`): whatever was forwarded by
    /// filters of [`VmTime`] and anything else, to which the answer is "not supported".
    ///
    /// # Errors
    ///
    /// [`Error::Registers`] and [`Error::Publish`].
    pub fn hypercall(&self, vcpu: &VcpuFd) -> Result<(), Error> {
        let index = self.index;
        let registers = |source| Error::Registers { index, source };
        let request = read_request(vcpu).map_err(registers)?;
        let Answer { results, effect } = self.time.services(index).answer(request);
        match effect {
            Some(Effect::RestartStolenTime) => self.time.stolen.restart(index)?,
            Some(Effect::LivePhysicalTimeFound) => self.time.interfaces.set_live_found(),
            None => {}
        }
        for (register, result) in results.into_iter().enumerate() {
            set(vcpu, x(register), result.0).map_err(registers)?;
        }
        Ok(())
    }
}

/// Whether the guest has not turned the vCPU on, or off again (PSCI). A KVM that does not say has
/// vCPUs that are on.
pub(super) fn is_off(vcpu: &VcpuFd) -> bool {
    vcpu.get_mp_state()
        .is_ok_and(|state| state.mp_state == KVM_MP_STATE_STOPPED)
}

/// The id of a general-purpose register.
const fn x(number: usize) -> u64 {
    0x6030_0000_0010_0000 + 2 * number as u64
}

fn read_request(vcpu: &VcpuFd) -> io::Result<Request> {
    const PSTATE: u64 = x(33);
    const PSTATE_NRW: u64 = 1 << 4;
    let state = match get(vcpu, PSTATE)? & PSTATE_NRW {
        0 => ExecutionState::AArch64,
        _ => ExecutionState::AArch32,
    };
    Ok(Request::from_registers(
        state,
        get(vcpu, x(0))?,
        get(vcpu, x(1))?,
    ))
}
