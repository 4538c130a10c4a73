//! A stopped VM's time as bytes, and back.

use pvtime::host::Cause;
use pvtime::host::saved::{SavedVcpu, SavedVm};
use pvtime::host::timeline::Event;

use super::{Error, State, VmTime};
use crate::{StolenTimeProvider, timers};

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
        let timers = self.on_stopped(|_, vcpu| timers::read(vcpu));
        for ((index, bound), timers) in state.bound().zip(timers) {
            let mut timers = timers.map_err(|source| Error::Registers { index, source })?;
            timers.asked = bound.asked;
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
    /// [`resume`](Self::resume) starts it by the policy for `cause`.
    ///
    /// # Errors
    ///
    /// [`Error::Saved`], [`Error::SavedLength`], [`Error::NoThread`], [`Error::StolenTimeLost`],
    /// [`Error::PausedTimeLost`], [`Error::Timeline`] where the VM cannot go on here, and what
    /// writing timers fails with.
    pub fn restore(&self, bytes: &[u8], cause: Cause) -> Result<(), Error> {
        let mut state = self.lock();
        self.check_threads(&state)?;
        let (vm, vcpus) = parse(bytes, state.vcpus.len())?;
        let asked = vcpus.iter().any(|saved| saved.stolen.is_some());
        if asked && self.stolen.provider() == StolenTimeProvider::Off {
            return Err(Error::StolenTimeLost);
        }
        if vm.paused_time.is_some() && !state.timeline.config().paused_time {
            return Err(Error::PausedTimeLost);
        }
        let restored = self.step(&mut state, self.now(), Event::Restore { saved: &vm, cause });
        self.keep(restored?);
        self.interfaces.resume(vm.sequences);
        let written = vcpus.clone();
        self.on_vcpus(move |index, vcpu| timers::write(vcpu, &written[index].timers))?;
        self.restore_accounts(&mut state, &vm, &vcpus, cause)
    }

    fn restore_accounts(
        &self,
        state: &mut State,
        vm: &SavedVm,
        vcpus: &[SavedVcpu],
        cause: Cause,
    ) -> Result<(), Error> {
        let now = self.now();
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

fn parse(bytes: &[u8], vcpus: usize) -> Result<(SavedVm, Vec<SavedVcpu>), Error> {
    let expected = SavedVm::SIZE_BYTES + vcpus * SavedVcpu::SIZE_BYTES;
    if bytes.len() != expected {
        return Err(Error::SavedLength {
            vcpus,
            expected,
            actual: bytes.len(),
        });
    }
    let (vm, rest) = bytes.split_at(SavedVm::SIZE_BYTES);
    let vcpus = rest.chunks(SavedVcpu::SIZE_BYTES).map(SavedVcpu::parse);
    Ok((SavedVm::parse(vm)?, vcpus.collect::<Result<_, _>>()?))
}
