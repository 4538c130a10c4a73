//! The threads that run vCPUs.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{Builder, JoinHandle, sleep};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use kvm_bindings::{KVM_SYSTEM_EVENT_CRASH, KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN};
use kvm_ioctls::{VcpuExit, VcpuFd};
use libc::{c_int, c_void, siginfo_t};
use pvtime_kvm::VcpuTime;
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

use crate::bus::Bus;
use crate::event::Event;

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
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    stopped: Receiver<GuestStop>,
}

/// The first signal that is free for applications; it does nothing but interrupt `KVM_RUN`.
const KICK: i32 = 0;

impl VcpuThreads {
    /// Starts a thread for each vCPU. `wake` is written when one has stopped by itself.
    ///
    /// # Errors
    ///
    /// What the host refuses.
    pub fn start(vcpus: Vec<(VcpuFd, VcpuTime)>, bus: &Arc<Bus>, wake: &Event) -> Result<Self> {
        extern "C" fn interrupted(_: c_int, _: *mut siginfo_t, _: *mut c_void) {}
        register_signal_handler(SIGRTMIN() + KICK, interrupted)
            .context("cannot install the signal that interrupts vCPUs")?;

        let (sender, stopped) = channel();
        let mut threads = Self {
            stop: Arc::default(),
            threads: Vec::new(),
            stopped,
        };
        for (index, (vcpu, time)) in vcpus.into_iter().enumerate() {
            let run = Runner {
                vcpu,
                time,
                bus: Arc::clone(bus),
                stop: Arc::clone(&threads.stop),
                stopped: sender.clone(),
                wake: wake.clone(),
            };
            let thread = Builder::new()
                .name(format!("vcpu{index}"))
                .spawn(move || run.run())
                .with_context(|| format!("cannot start a thread for vCPU {index}"))?;
            threads.threads.push(thread);
        }
        Ok(threads)
    }

    /// Why the guest stopped, if it has.
    pub fn stopped(&self) -> Option<GuestStop> {
        self.stopped.try_recv().ok()
    }
}

impl Drop for VcpuThreads {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        for thread in self.threads.drain(..) {
            // A signal that comes just before KVM_RUN interrupts nothing, so it is sent again.
            while !thread.is_finished() {
                let _ = thread.kill(SIGRTMIN() + KICK);
                sleep(Duration::from_millis(1));
            }
            let _ = thread.join();
        }
    }
}

struct Runner {
    vcpu: VcpuFd,
    time: VcpuTime,
    bus: Arc<Bus>,
    stop: Arc<AtomicBool>,
    stopped: Sender<GuestStop>,
    wake: Event,
}

impl Runner {
    fn run(mut self) {
        self.time.bind_thread();
        while !self.stop.load(Ordering::Acquire) {
            if let Some(stop) = self.enter() {
                // Whoever listens has gone only where the machine is being stopped anyway.
                let _ = self.stopped.send(stop);
                self.wake.raise();
                return;
            }
        }
    }

    /// Runs the guest up to one exit and handles it.
    fn enter(&mut self) -> Option<GuestStop> {
        let exit = match self.vcpu.run() {
            Ok(exit) => exit,
            Err(error) if matches!(error.errno(), EINTR | EAGAIN) => return None,
            Err(error) => {
                return Some(GuestStop::Failed(anyhow!("KVM cannot run a vCPU: {error}")));
            }
        };
        match exit {
            VcpuExit::MmioRead(address, data) => self.bus.read(address, data),
            VcpuExit::MmioWrite(address, data) => self.bus.write(address, data),
            VcpuExit::Intr => {}
            VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_SHUTDOWN, _) => {
                return Some(GuestStop::PowerOff);
            }
            VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_RESET, _) => return Some(GuestStop::Reset),
            VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_CRASH, _) => {
                return Some(GuestStop::Failed(anyhow!(
                    "the guest reported that it crashed"
                )));
            }
            other => {
                let error =
                    anyhow!("a vCPU left the guest for a reason that is not handled: {other:?}");
                return Some(GuestStop::Failed(error));
            }
        }
        None
    }
}

/// `errno` values of `KVM_RUN` that mean: enter again.
const EINTR: i32 = rustix::io::Errno::INTR.raw_os_error();
const EAGAIN: i32 = rustix::io::Errno::AGAIN.raw_os_error();
