//! A machine whose guest suspends itself, by itself or because it is asked to before its host sleeps.

use std::sync::{Arc, MutexGuard};
use std::thread::{Builder, JoinHandle, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use kvm_bindings::{
    KVM_CAP_ARM_SYSTEM_SUSPEND, KVM_MP_STATE_RUNNABLE, KVM_MP_STATE_STOPPED, kvm_enable_cap,
    kvm_mp_state, kvm_vcpu_init,
};
use kvm_ioctls::{VcpuFd, VmFd};
use pvtime::host::Cause;
use pvtime_kvm::{Error, RunningVcpu, clock};

use super::{Machine, PC, X0, x};
use crate::button::{Keys, SLEEP_LINE, WAKE_UP_LINE};
use crate::cli::SwitchArg;
use crate::failure::LastSaid;
use crate::suspension::{Answer, Prepared, SuspendCall, Suspension};

/// How often it is looked whether the host has slept.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// A suspended guest is woken after a time of this length in which this process did not run: nobody
/// may come who says that the sleep is over.
const SLEPT: Duration = Duration::from_secs(1);

/// PSCI's `DENIED` and `INVALID_ADDRESS`.
const DENIED: i64 = -3;
const INVALID_ADDRESS: i64 = -9;

/// Has PSCI `SYSTEM_SUSPEND` handed over (Linux 5.19); else a guest is told that there is no such call.
pub(super) fn take_suspends(vm: &VmFd) -> Result<()> {
    let capability = kvm_enable_cap {
        cap: KVM_CAP_ARM_SYSTEM_SUSPEND,
        ..kvm_enable_cap::default()
    };
    vm.enable_cap(&capability).context(
        "this host's KVM has no KVM_CAP_ARM_SYSTEM_SUSPEND, which --suspend-guest needs; a newer \
         kernel is needed",
    )
}

impl Machine {
    /// Has the guest suspend itself before its host sleeps, where it can be asked and does so in
    /// time; else pauses it. Nothing happens to a VM that does not run. One that was stopped waits for
    /// [`finish_sleep`](Self::finish_sleep), and goes on by itself when its host was awake for
    /// `--sleep-limit` without that.
    ///
    /// # Errors
    ///
    /// Where it does not stop; it runs on then.
    pub fn prepare_sleep(&self) -> Result<Prepared> {
        if !self.time.is_running() {
            return Ok(Prepared::Stopped);
        }
        let asks = self.time_args.suspend_guest != Some(SwitchArg::Off);
        let keys = self.keys.as_ref().filter(|_| asks);
        let prepared = if let Some(keys) = keys {
            self.ask_to_suspend(keys)?
        } else {
            self.time.pause(Cause::HostSuspend)?;
            Prepared::Stopped
        };
        if prepared == Prepared::Stopped {
            self.suspension.awaits_end();
        }
        Ok(prepared)
    }

    fn ask_to_suspend(&self, keys: &Keys) -> Result<Prepared> {
        let asked = Instant::now();
        self.suspension.question();
        keys.press(SLEEP_LINE);
        let limit = Duration::from_millis(self.time_args.suspend_limit);
        let answer = self
            .suspension
            .await_answer(limit.saturating_sub(asked.elapsed()));
        if answer == Answer::Suspended {
            return Ok(Prepared::Stopped);
        }
        let _turn = self.suspension.turn();
        if self.time.is_guest_suspended() {
            return Ok(Prepared::Stopped);
        }
        if !self.suspension.unanswered() {
            keys.press(WAKE_UP_LINE);
            return Ok(Prepared::CalledOff);
        }
        let paused = self.time.pause_unanswered(asked.elapsed());
        if paused.is_err() {
            self.suspension.goes_on(Instant::now());
        }
        paused?;
        Ok(Prepared::Stopped)
    }

    /// Ends a [`prepare_sleep`](Self::prepare_sleep) that waits for the guest: the sleep is over.
    pub fn call_off_sleep(&self) {
        self.suspension.call_off(Instant::now());
    }

    /// Lets a VM go on after its host's sleep, if that is why it is stopped.
    ///
    /// # Errors
    ///
    /// Where another host may run it, and where its time cannot be set; it stays stopped then.
    pub fn finish_sleep(&self) -> Result<()> {
        if self.time.stop_cause() == Some(Cause::HostSuspend) {
            self.resume()?;
        }
        Ok(())
    }

    /// Lets a stopped VM go on, and wakes its guest if that suspended itself.
    ///
    /// # Errors
    ///
    /// Where another host may run it, and where its time cannot be set; it stays stopped then.
    pub fn resume(&self) -> Result<()> {
        self.go_on(|| self.time.resume())
    }

    /// Lets a VM go on of whose host nobody said, for as long as it was awake, that its sleep is over.
    fn go_on_by_itself(&self, awake: Duration) -> Result<()> {
        let waits = self.time.stop_cause() == Some(Cause::HostSuspend);
        if !waits || self.ownership.ours().is_err() {
            return Ok(());
        }
        self.go_on(|| self.time.resume_unfinished(awake))?;
        eprintln!(
            "pvtime: the VM goes on by itself: it was prepared for a sleep of its host, and nobody said \
             within {} ms that it is over (`pvtime ctl SOCKET finish-sleep`)",
            awake.as_millis()
        );
        Ok(())
    }

    fn go_on(&self, resume: impl FnOnce() -> Result<(), Error>) -> Result<()> {
        let turn = self.suspension.turn();
        self.wake(resume)?;
        drop(turn);
        if self.suspension.goes_on(Instant::now())
            && let Some(keys) = &self.keys
        {
            // It may be about to suspend itself, or sleep in a way that no firmware hears of.
            keys.press(WAKE_UP_LINE);
        }
        Ok(())
    }

    /// What a vCPU that has asked does next, and the VM's time after it. Nothing else lets the time of
    /// a VM go on that was stopped, so that no VM does that another host may run. Where it fails the
    /// guest is suspended still.
    fn wake(&self, resume: impl FnOnce() -> Result<(), Error>) -> Result<()> {
        let _ours = self.ownership.ours()?;
        let (suspension, init) = (Arc::clone(&self.suspension), self.vcpu_init);
        if suspension.call().is_some() {
            let woken = self.time.on_each_vcpu(move |index, vcpu| {
                suspension.answer(index, |call| enter(vcpu, &init, call))
            });
            let woken: Result<()> = woken.into_iter().flatten().collect();
            woken.context("cannot wake the guest")?;
        }
        Ok(resume()?)
    }

    /// Keeps a stopped VM as it is for as long as this is held: nobody lets it go on.
    pub(super) fn stays(&self) -> MutexGuard<'_, ()> {
        self.suspension.turn()
    }

    /// Starts the thread that carries out what the guest asks for, and lets a VM go on whose host's
    /// sleep is not said to be over.
    ///
    /// # Errors
    ///
    /// Where there can be no thread.
    pub fn serve_suspends(self: &Arc<Self>) -> Result<SuspendThread> {
        let machine = Arc::clone(self);
        let thread = Builder::new()
            .name("guest-suspend".into())
            .spawn(move || machine.carry_out_suspends())
            .context("cannot start the thread that suspends the guest")?;
        Ok(SuspendThread {
            suspension: Arc::clone(&self.suspension),
            thread: Some(thread),
        })
    }

    fn carry_out_suspends(&self) {
        let watches = self.time_args.watch_host == SwitchArg::On;
        let limit = Duration::from_millis(self.time_args.sleep_limit);
        let (mut said, mut has_slept) = (LastSaid::default(), false);
        loop {
            let mut waits = false;
            let patience = |is_awaited| {
                waits = is_awaited;
                let looks = waits || watches && self.keys.is_some();
                if looks { LOOK_EVERY } else { Duration::MAX }
            };
            // One that was suspended elsewhere is so without having asked here.
            let is_suspended = watches && self.time.is_guest_suspended();
            let before_ns = clock::boottime_ns();
            let Some(has_asked) = self.suspension.await_call(patience) else {
                return;
            };
            let passed = Duration::from_nanos(clock::boottime_ns() - before_ns);
            let slept = passed >= SLEPT;
            has_slept = is_suspended && (has_slept || slept);
            // What passed before it began to wait does not count.
            let passed = if waits { passed } else { Duration::ZERO };
            let in_vain = self.suspension.passed(passed, slept, limit);
            let tried = if has_asked {
                Some(self.suspend().inspect_err(|_| sleep(LOOK_EVERY)))
            } else if has_slept {
                Some(self.finish_sleep().inspect(|()| has_slept = false))
            } else {
                in_vain.map(|awake| self.go_on_by_itself(awake))
            };
            if let Some(line) = said.after(tried, self.suspension.is_idle()) {
                eprintln!("pvtime: {line}");
            }
        }
    }

    /// Suspends the guest, or denies it; wakes it at once if it comes too late. What cannot be done now is
    /// tried again, since the vCPU that asked is off.
    fn suspend(&self) -> Result<()> {
        let _turn = self.suspension.turn();
        let suspension = Arc::clone(&self.suspension);
        let deny = move |index, vcpu: &mut VcpuFd| {
            // One that cannot be told stays off for now, as it is.
            let _ = suspension.answer(index, |_| {
                answer(vcpu, DENIED).and_then(|()| set_mp_state(vcpu, KVM_MP_STATE_RUNNABLE))
            });
        };
        match self.time.suspend(deny) {
            Ok(true) if self.suspension.suspended(Instant::now()) => {
                self.wake(|| self.time.resume())
            }
            // One that asked too early was told. Whoever resumes a VM that is paused wakes its guest.
            Ok(_) | Err(Error::VcpuOn { .. }) => Ok(()),
            Err(error) => {
                self.suspension.put_back();
                Err(anyhow!(error).context("cannot suspend the guest yet"))
            }
        }
    }
}

/// The thread that suspends the guest; it ends when this is dropped.
pub struct SuspendThread {
    suspension: Arc<Suspension>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for SuspendThread {
    fn drop(&mut self) {
        self.suspension.end();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A vCPU has asked for the guest to be suspended (`KVM_SYSTEM_EVENT_SUSPEND`; PSCI, DEN0022,
/// `SYSTEM_SUSPEND`): it is off until that was done and undone, or denied.
///
/// # Errors
///
/// What KVM refuses.
pub fn ask(suspension: &Suspension, time: &RunningVcpu, vcpu: &VcpuFd) -> Result<()> {
    let (entry, context) = (get(vcpu, x(1))?, get(vcpu, x(2))?);
    if !suspension.admits(entry) {
        return answer(vcpu, INVALID_ADDRESS);
    }
    set_mp_state(vcpu, KVM_MP_STATE_STOPPED)?;
    suspension.ask(SuspendCall {
        vcpu: time.index(),
        entry,
        context,
    });
    Ok(())
}

/// Puts a vCPU where its call said, as if it had just been turned on.
fn enter(vcpu: &VcpuFd, init: &kvm_vcpu_init, call: &SuspendCall) -> Result<()> {
    vcpu.vcpu_init(init).context("cannot reset its vCPU")?;
    for (register, value) in [(PC, call.entry), (X0, call.context)] {
        set(vcpu, register, value)?;
    }
    Ok(())
}

/// What the call returns.
fn answer(vcpu: &VcpuFd, code: i64) -> Result<()> {
    set(vcpu, X0, code.cast_unsigned())
}

fn set_mp_state(vcpu: &VcpuFd, mp_state: u32) -> Result<()> {
    vcpu.set_mp_state(kvm_mp_state { mp_state })
        .context("cannot turn a vCPU on or off")
}

fn get(vcpu: &VcpuFd, register: u64) -> Result<u64> {
    let mut bytes = [0; 8];
    vcpu.get_one_reg(register, &mut bytes)
        .context("cannot read what a vCPU asks for")?;
    Ok(u64::from_le_bytes(bytes))
}

fn set(vcpu: &VcpuFd, register: u64, value: u64) -> Result<()> {
    vcpu.set_one_reg(register, &value.to_le_bytes())
        .context("cannot answer a vCPU")?;
    Ok(())
}
