//! Carrying out what the timeline says.

use std::io;
use std::thread::sleep;
use std::time::Duration;

use pvtime::host::timeline::{Action, CounterScope};
use pvtime::host::timers::Translation;
use pvtime::host::{CounterOffset, HostCount};

use super::{Error, State, VmTime};
use crate::registers::TIMER_CNT;
use crate::{counter, offset, timers};

impl VmTime {
    /// Carries out one action on a VM whose vCPUs are out of the guest.
    pub(super) fn carry_out(&self, state: &mut State, action: Action) -> Result<(), Error> {
        match action {
            Action::SetCounterOffset(offset) => self.set_offset(state, offset),
            Action::TranslateTimers(translation) => self.translate_timers(state, translation),
            Action::HoldUntil(count) => {
                hold_until(count);
                Ok(())
            }
            Action::PublishLivePhysicalTime(_) | Action::PublishPausedTime { .. } => {
                unreachable!("the timeline was made without these interfaces")
            }
        }
    }

    fn set_offset(&self, state: &State, offset: CounterOffset) -> Result<(), Error> {
        match state.timeline.config().counters {
            CounterScope::Both => Ok(offset::set(&self.vm, offset)?),
            // One vCPU's register sets the counter of all.
            CounterScope::VirtualOnly => self.on_vcpus(move |index, vcpu| {
                if index > 0 {
                    return Ok(());
                }
                let count = HostCount(counter::read()).to_guest(offset);
                timers::set(vcpu, TIMER_CNT, count.0)
            }),
        }
    }

    fn translate_timers(&self, state: &mut State, translation: Translation) -> Result<(), Error> {
        let chosen: Vec<_> = state
            .bound()
            .map(|(_, bound)| bound.chosen_stream)
            .collect();
        let translated = self.gate.on_each(move |index, vcpu| {
            let mut timers = timers::read(vcpu)?;
            timers.chosen_stream = chosen[index];
            let translated = translation.apply(&timers);
            timers::write(vcpu, &translated.timers)?;
            io::Result::Ok(translated.timers.chosen_stream)
        });
        let translated = translated.expect("a stopped VM's vCPUs wait at the gate");
        for ((index, bound), chosen) in state.bound().zip(translated) {
            bound.chosen_stream = chosen.map_err(|source| Error::Registers { index, source })?;
        }
        Ok(())
    }

    /// Does `job` on every vCPU and returns the first error.
    pub(super) fn on_vcpus(
        &self,
        job: impl Fn(usize, &kvm_ioctls::VcpuFd) -> io::Result<()> + Send + Sync + 'static,
    ) -> Result<(), Error> {
        let results = self.gate.on_each(move |index, vcpu| job(index, vcpu));
        let results = results.expect("a stopped VM's vCPUs wait at the gate");
        for (index, result) in results.into_iter().enumerate() {
            result.map_err(|source| Error::Registers { index, source })?;
        }
        Ok(())
    }
}

/// Waits until the host's counter has reached `count`, which is at most some ticks away.
fn hold_until(count: HostCount) {
    // Ahead or behind is a matter of the nearer side, because the counter may wrap.
    while count.since(HostCount(counter::read())).cast_signed() > 0 {
        sleep(Duration::from_micros(10));
    }
}
