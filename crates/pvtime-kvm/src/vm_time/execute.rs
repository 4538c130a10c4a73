//! Stepping the timeline, and carrying out what it says.

use std::io;
use std::thread::sleep;
use std::time::Duration;

use kvm_ioctls::VcpuFd;
use pvtime::host::live::LiveState;
use pvtime::host::timeline::{Action, CounterScope, Event, HostSample, Timeline};
use pvtime::host::timers::{Asked, TranslatedTimers, Translation, VcpuTimers};
use pvtime::host::{CounterOffset, HostCount};

use super::{Error, State, VmTime};
use crate::offset::SetOffsetError;
use crate::record::{Record, TimersRecord};
use crate::registers::TIMER_CNT;
use crate::{counter, timers};

/// How often a busy VM's offset is tried again, a millisecond apart. At a closed gate only a thread
/// that reads a vCPU's registers can be in the way, and that takes microseconds.
const TRIES: u32 = 100;

impl VmTime {
    /// Steps the timeline and lets the vCPUs into the guest at once. The record is to be kept.
    pub(super) fn open_after(
        &self,
        state: &mut State,
        event: Event<'_>,
    ) -> Result<Option<Record>, Error> {
        let before = self.now();
        self.prepare(state, before, event)?;
        self.gate
            .open_after(|| self.step(state, self.host.sample_again(&before), event))
    }

    /// Steps the timeline and carries out what that leads to. The record is to be kept when nothing
    /// else is urgent. Where a vCPU is in the way it is stepped again, with the clocks of then: what
    /// passed meanwhile is the event's too.
    pub(super) fn step(
        &self,
        state: &mut State,
        mut now: HostSample,
        event: Event<'_>,
    ) -> Result<Option<Record>, Error> {
        for _ in 1..TRIES {
            match self.try_step(state, now, event) {
                Err(Error::Offset(SetOffsetError::Busy)) => sleep(Duration::from_millis(1)),
                result => return result,
            }
            now = self.now();
        }
        self.try_step(state, now, event)
    }

    pub(super) fn try_step(
        &self,
        state: &mut State,
        now: HostSample,
        event: Event<'_>,
    ) -> Result<Option<Record>, Error> {
        let step = self.heard(state, now)?.step(now, event)?;
        state.translated = None;
        for action in step.actions.iter() {
            self.carry_out(state, action)?;
        }
        state.timeline = step.timeline;
        let is_stopped = state.timeline.stop_cause().is_some();
        state.stops.enter(is_stopped, now.boottime_ns);
        Ok(step.adjustment.map(|adjustment| Record {
            timers: state.translated,
            ..Record::new(&adjustment, now.wall_ns)
        }))
    }

    /// The timeline with what the guest's calls have said since the last step.
    pub(super) fn heard(&self, state: &State, now: HostSample) -> Result<Timeline, Error> {
        let timeline = state.timeline;
        let knows = timeline.live().is_none_or(LiveState::is_found);
        if knows || !self.interfaces.is_live_found() {
            return Ok(timeline);
        }
        Ok(timeline.step(now, Event::LivePhysicalTimeFound)?.timeline)
    }

    /// Carries out one action on a VM whose vCPUs are out of the guest.
    fn carry_out(&self, state: &mut State, action: Action) -> Result<(), Error> {
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
            CounterScope::VirtualOnly => self.on_vcpus(state.vcpus.len(), move |index, vcpu| {
                if index > 0 {
                    return Ok(());
                }
                let count = HostCount(counter::read()).to_guest(offset);
                timers::set(vcpu, TIMER_CNT, count.0)
            }),
        }
    }

    /// Does of a step what takes long and is the same whenever the step is taken, so that it is not
    /// between the reading of the clock and the guest. A step that fails, fails when it is taken.
    fn prepare(&self, state: &mut State, now: HostSample, event: Event<'_>) -> Result<(), Error> {
        let Ok(step) = self.heard(state, now)?.step(now, event) else {
            return Ok(());
        };
        for action in step.actions.iter() {
            if let Action::TranslateTimers(translation) = action {
                self.translated(state, translation)?;
            }
        }
        Ok(())
    }

    fn translate_timers(&self, state: &mut State, translation: Translation) -> Result<(), Error> {
        let translated = self.translated(state, translation)?;
        let mut record = TimersRecord::default();
        for ((_, bound), translated) in state.bound().zip(translated) {
            bound.asked = translated.timers.asked;
            record = record.with(&translated);
        }
        state.translated = Some(record);
        state.untranslated.settle();
        Ok(())
    }

    /// Every vCPU's timers, after a translation that is in their registers.
    fn translated(
        &self,
        state: &mut State,
        translation: Translation,
    ) -> Result<Vec<TranslatedTimers>, Error> {
        let vcpus = state.vcpus.len();
        let asked = state.asked();
        state.untranslated.translate(
            translation,
            || self.read_timers(&asked),
            |timers| self.on_vcpus(vcpus, move |at, vcpu| timers::write(vcpu, &timers[at])),
        )
    }

    /// The timers of a stopped VM's vCPUs, of whose guest this is known.
    pub(super) fn read_timers(&self, asked: &[Option<Asked>]) -> Result<Vec<VcpuTimers>, Error> {
        let read = self.on_stopped(asked.len(), |_, vcpu| timers::read(vcpu))?;
        let read = read.into_iter().zip(asked).enumerate();
        read.map(|(index, (timers, &asked))| match timers {
            Ok(timers) => Ok(VcpuTimers { asked, ..timers }),
            Err(source) => Err(Error::Registers { index, source }),
        })
        .collect()
    }

    /// Does `job` on every vCPU of a VM that the timeline says is stopped, and that has so many.
    pub(super) fn on_stopped<R: Send + 'static>(
        &self,
        vcpus: usize,
        job: impl Fn(usize, &VcpuFd) -> R + Send + Sync + 'static,
    ) -> Result<Vec<R>, Error> {
        // A VM that is shut down has no closed gate any more, in whatever state its timeline is.
        let results = self.gate.on_each(move |index, vcpu| job(index, vcpu));
        let results = results.ok_or(Error::ShutDown)?;
        match results.len() {
            threads if threads == vcpus => Ok(results),
            threads => Err(Error::ThreadEnded { vcpus, threads }),
        }
    }

    /// Does `job` on every vCPU and returns the first error.
    pub(super) fn on_vcpus(
        &self,
        vcpus: usize,
        job: impl Fn(usize, &VcpuFd) -> io::Result<()> + Send + Sync + 'static,
    ) -> Result<(), Error> {
        for (index, result) in self.on_stopped(vcpus, job)?.into_iter().enumerate() {
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
