//! The threads that run vCPUs.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::thread::{Builder, JoinHandle};

use anyhow::{Context, Result, anyhow};
use kvm_bindings::{
    KVM_EXIT_ARM_NISV, KVM_SYSTEM_EVENT_CRASH, KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN,
    KVM_SYSTEM_EVENT_SUSPEND,
};
use kvm_ioctls::{VcpuExit, VcpuFd};
use pvtime_kvm::{RunningVcpu, VcpuTime, VmTime};

use crate::bus::Bus;
use crate::event::Event;
use crate::machine::{Machine, suspending};
use crate::suspension::Suspension;

/// Why a guest stopped by itself.
#[derive(Debug)]
pub enum GuestStop {
    /// It turned itself off (PSCI `SYSTEM_OFF`).
    PowerOff,
    /// It asked to be started again (PSCI `SYSTEM_RESET`).
    Reset,
    /// KVM cannot go on with it.
    Failed(anyhow::Error),
}

/// The vCPU threads of a machine. Dropping this stops and joins them.
#[derive(Debug)]
pub struct VcpuThreads {
    time: Arc<VmTime>,
    threads: Vec<JoinHandle<()>>,
    stopped: Receiver<GuestStop>,
}

impl VcpuThreads {
    /// Starts a thread for each vCPU and returns when all wait for the VM's time to be started.
    /// `wake` is raised when one has stopped by itself.
    ///
    /// # Errors
    ///
    /// What the host refuses.
    pub fn start(vcpus: Vec<(VcpuFd, VcpuTime)>, machine: &Machine, wake: &Event) -> Result<Self> {
        let (sender, stopped) = channel();
        let (bound, is_bound) = channel();
        let count = vcpus.len();
        let mut threads = Self {
            time: Arc::clone(&machine.time),
            threads: Vec::new(),
            stopped,
        };
        for (index, (vcpu, time)) in vcpus.into_iter().enumerate() {
            let (bus, wake) = (Arc::clone(&machine.bus), wake.clone());
            let suspension = Arc::clone(&machine.suspension);
            let (stopped, bound) = (sender.clone(), bound.clone());
            let thread = Builder::new()
                .name(format!("vcpu{index}"))
                .spawn(move || {
                    let running = bind(time, vcpu).map(|(time, vcpu)| Runner {
                        vcpu,
                        time,
                        bus,
                        suspension,
                    });
                    let failure = running.as_ref().err().map(ToString::to_string);
                    // Whoever starts the threads waits for each.
                    let _ = bound.send(failure);
                    if let Some(stop) = running.ok().and_then(Runner::run) {
                        // Whoever listens has gone only where the VM is being stopped anyway.
                        let _ = stopped.send(stop);
                        wake.raise();
                    }
                })
                .with_context(|| format!("cannot start a thread for vCPU {index}"))?;
            threads.threads.push(thread);
        }
        drop(bound);
        for failure in is_bound.iter().take(count) {
            failure.map_or(Ok(()), |failure| Err(anyhow!(failure)))?;
        }
        Ok(threads)
    }

    /// Why the guest stopped, if it has.
    pub fn stopped(&self) -> Option<GuestStop> {
        self.stopped.try_recv().ok()
    }
}

/// Makes the calling thread the one of a vCPU that is ready to run.
fn bind(time: VcpuTime, mut vcpu: VcpuFd) -> Result<(RunningVcpu, VcpuFd), pvtime_kvm::Error> {
    let running = time.bind_thread()?;
    running.run_first(&mut vcpu)?;
    Ok((running, vcpu))
}

impl Drop for VcpuThreads {
    fn drop(&mut self) {
        self.time.shut_down();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

struct Runner {
    vcpu: VcpuFd,
    time: RunningVcpu,
    bus: Arc<Bus>,
    suspension: Arc<Suspension>,
}

impl Runner {
    /// Runs the guest until it stops, or until the VM is shut down.
    fn run(mut self) -> Option<GuestStop> {
        loop {
            match self.enter() {
                ControlFlow::Continue(()) => {}
                ControlFlow::Break(stop) => return stop,
            }
        }
    }

    /// Runs the guest up to one exit and handles it.
    fn enter(&mut self) -> ControlFlow<Option<GuestStop>> {
        let stop = |stop| ControlFlow::Break(Some(stop));
        let Some(exit) = self.time.run(&mut self.vcpu) else {
            return ControlFlow::Break(None);
        };
        let exit = match exit {
            Ok(exit) => exit,
            Err(error) if matches!(error.errno(), EINTR | EAGAIN) => {
                return ControlFlow::Continue(());
            }
            Err(error) => {
                return stop(GuestStop::Failed(anyhow!("KVM cannot run a vCPU: {error}")));
            }
        };
        match exit {
            VcpuExit::MmioRead(address, data) => self.bus.read(address, data),
            VcpuExit::MmioWrite(address, data) => self.bus.write(address, data),
            VcpuExit::Intr => {}
            VcpuExit::Hypercall(_) => {
                if let Err(error) = self.time.hypercall(&self.vcpu) {
                    return stop(GuestStop::Failed(error.into()));
                }
            }
            // A store of a pair into a time page, for one.
            VcpuExit::Unsupported(KVM_EXIT_ARM_NISV) => {
                if let Err(error) = inject_abort(&self.vcpu) {
                    return stop(GuestStop::Failed(error));
                }
            }
            VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_SHUTDOWN, _) => {
                return stop(GuestStop::PowerOff);
            }
            VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_RESET, _) => return stop(GuestStop::Reset),
            VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_SUSPEND, _) => {
                if let Err(error) = suspending::ask(&self.suspension, &self.time, &self.vcpu) {
                    return stop(GuestStop::Failed(error));
                }
            }
            VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_CRASH, _) => {
                return stop(GuestStop::Failed(anyhow!(
                    "the guest reported that it crashed"
                )));
            }
            other => {
                return stop(GuestStop::Failed(anyhow!(
                    "a vCPU left the guest for a reason that is not handled: {other:?}"
                )));
            }
        }
        ControlFlow::Continue(())
    }
}

/// Has the guest take an external abort for the instruction that it is at, as it would of a bus on
/// which nothing answers. A system error that is pending for it stays so.
fn inject_abort(vcpu: &VcpuFd) -> Result<()> {
    let injected = vcpu.get_vcpu_events().and_then(|mut events| {
        events.exception.ext_dabt_pending = 1;
        vcpu.set_vcpu_events(&events)
    });
    injected.context("cannot tell the guest of an access that leads nowhere")
}

/// `errno` values of `KVM_RUN` that mean: enter again.
const EINTR: i32 = rustix::io::Errno::INTR.raw_os_error();
const EAGAIN: i32 = rustix::io::Errno::AGAIN.raw_os_error();
