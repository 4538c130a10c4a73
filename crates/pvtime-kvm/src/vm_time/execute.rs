//! Carrying out what the timeline says.

use std::io;
use std::thread::sleep;
use std::time::Duration;

use kvm_ioctls::VcpuFd;
use pvtime::host::timeline::{Action, CounterScope};
use pvtime::host::timers::Translation;
use pvtime::host::{CounterOffset, HostCount};

use super::{Error, State, VmTime};
use crate::record::TimersRecord;
use crate::registers::TIMER_CNT;
use crate::{counter, timers};

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
            Action::PublishLivePhysicalTime(value) => {
                self.interfaces.publish_live(&value);
                Ok(())
            }
            Action::PublishPausedTime { value, notify } => {
                self.interfaces.publish_paused(&value, notify);
                Ok(())
            }
        }
    }

    fn set_offset(&self, state: &State, offset: CounterOffset) -> Result<(), Error> {
        match state.timeline.config().counters {
            CounterScope::Both => Ok(self.host.set_offset(offset)?),
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
        let asked: Vec<_> = state.bound().map(|(_, bound)| bound.asked).collect();
        let translated = self.on_stopped(move |index, vcpu| {
            let mut timers = timers::read(vcpu)?;
            timers.asked = asked[index];
            let translated = translation.apply(&timers);
            timers::write(vcpu, &translated.timers)?;
            io::Result::Ok(translated)
        });
        let mut record = TimersRecord::default();
        for ((index, bound), translated) in state.bound().zip(translated) {
            let translated = translated.map_err(|source| Error::Registers { index, source })?;
            bound.asked = translated.timers.asked;
            record = record.with(&translated);
        }
        state.translated = Some(record);
        Ok(())
    }

    /// Does `job` on every vCPU of a VM that the timeline says is stopped.
    pub(super) fn on_stopped<R: Send + 'static>(
        &self,
        job: impl Fn(usize, &VcpuFd) -> R + Send + Sync + 'static,
    ) -> Vec<R> {
        let results = self.gate.on_each(move |index, vcpu| job(index, vcpu));
        results.expect("a stopped VM's vCPUs wait at the gate")
    }

    /// Does `job` on every vCPU and returns the first error.
    pub(super) fn on_vcpus(
        &self,
        job: impl Fn(usize, &VcpuFd) -> io::Result<()> + Send + Sync + 'static,
    ) -> Result<(), Error> {
        for (index, result) in self.on_stopped(job).into_iter().enumerate() {
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
