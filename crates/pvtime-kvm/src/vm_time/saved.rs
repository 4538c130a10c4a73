//! A stopped VM's time as bytes, and back.

use pvtime::host::Cause;
use pvtime::host::saved::{SavedVcpu, SavedVm};
use pvtime::host::timeline::{Event, HostSample};

use super::{Error, State, VmTime};
use crate::{SavedTime, StolenTimeProvider, timers};

impl VmTime {
    /// Everything about a stopped VM's time: counters, timers, stolen time, ledgers. Guest memory
    /// of the time interfaces is in it; general registers are not.
    ///
    /// # Errors
    ///
    /// [`Error::Timeline`] for a VM that is not stopped, [`Error::Registers`].
    pub fn save(&self) -> Result<Vec<u8>, Error> {
        let mut state = self.lock();
        let vm = state.timeline.save(self.interfaces.sequences())?;
        let mut bytes = vm.emit().to_vec();
        let asked = state.asked();
        let timers = state.untranslated.or_read(|| self.read_timers(&asked))?;
        for ((index, bound), timers) in state.bound().zip(timers) {
            let saved = SavedVcpu {
                timers,
                stolen: self.stolen.value(index),
                accounts: bound
                    .account
                    .up_to_stop(vm.sample.boottime_ns, vm.cause)
                    .map_err(|source| Error::Account { index, source })?,
            };
            bytes.extend(saved.emit());
        }
        Ok(bytes)
    }

    /// Brings saved time into a VM that was not started; it is stopped then, and
    /// [`resume`](Self::resume) starts it by the policy for `cause`, or, where its guest has
    /// suspended itself, wakes it as if it had not been moved. After an error it is as one that was
    /// not started, nothing is recorded, and it does not start before it was restored whole.
    ///
    /// # Errors
    ///
    /// [`Error::Saved`], [`Error::SavedLength`], [`Error::NoThread`], [`Error::StolenTimeLost`],
    /// [`Error::PausedTimeLost`], [`Error::Timeline`] where the VM cannot go on here, and what
    /// writing timers and accounts fails with.
    pub fn restore(&self, bytes: &[u8], cause: Cause) -> Result<(), Error> {
        let mut state = self.lock();
        self.check_threads(&state)?;
        let time = parse(bytes, state.vcpus.len())?;
        if time.has_stolen_time() && self.stolen.provider() == StolenTimeProvider::Off {
            return Err(Error::StolenTimeLost);
        }
        if time.has_paused_time() && !state.timeline.config().paused_time {
            return Err(Error::PausedTimeLost);
        }
        let SavedTime { vm, vcpus } = time;
        let (now, event) = (self.now(), Event::Restore { saved: &vm, cause });
        // What refuses it does so before anything is written.
        let stopped = state.timeline.step(now, event)?.timeline;
        state.is_half_restored = true;
        self.interfaces.resume(vm.sequences);
        // Of a guest that suspended itself, the way is a part of that.
        let closed_for = stopped.stop_cause().unwrap_or(cause);
        self.restore_vcpus(&mut state, &vm, vcpus, closed_for, &now)?;
        // Nothing fails after this, and before it nothing resumes the VM.
        let restored = self.step(&mut state, now, event)?;
        state.is_half_restored = false;
        self.keep(restored);
        Ok(())
    }

    fn restore_vcpus(
        &self,
        state: &mut State,
        vm: &SavedVm,
        vcpus: Vec<SavedVcpu>,
        cause: Cause,
        now: &HostSample,
    ) -> Result<(), Error> {
        let timers: Vec<_> = vcpus.iter().map(|saved| saved.timers).collect();
        self.on_vcpus(vcpus.len(), move |at, vcpu| {
            timers::write(vcpu, &timers[at])
        })?;
        let away_ns = now.wall_ns.saturating_sub(vm.sample.wall_ns);
        self.closed_for.set(cause);
        for ((index, bound), saved) in state.bound().zip(vcpus) {
            let restored = bound
                .account
                .restore(saved.accounts, cause, away_ns, now.boottime_ns);
            let waited_ns = restored.map_err(|source| Error::Account { index, source })?;
            bound.asked = saved.timers.asked;
            if let Some(value) = saved.stolen {
                let thread = bound.account.thread();
                self.stolen.restore(index, thread, value, waited_ns)?;
            }
        }
        Ok(())
    }
}

fn parse(bytes: &[u8], vcpus: usize) -> Result<SavedTime, Error> {
    let expected = SavedVm::SIZE_BYTES + vcpus * SavedVcpu::SIZE_BYTES;
    if bytes.len() != expected {
        return Err(Error::SavedLength {
            vcpus,
            expected,
            actual: bytes.len(),
        });
    }
    Ok(SavedTime::parse(bytes)?)
}
