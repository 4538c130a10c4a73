//! A VM that runs, from its start to its stop, on one host with clocks that behave.

use super::sample::CounterRun;
use super::{
    Actions, Adjustment, EventKind, HostSample, Phase, Policy, Reading, Step, Stop, Timeline,
    TimelineError,
};
use crate::host::live::LiveState;
use crate::host::{Cause, CounterOffset, GuestCount};

impl Timeline {
    pub(super) fn start(mut self, now: &HostSample) -> Result<Step, TimelineError> {
        let pv = self.config.live_physical_time;
        self.live = pv
            .map(|pv| LiveState::start(now.frequency, pv))
            .transpose()?;
        let count = GuestCount(0);
        let reading = Reading::new(now, count);
        self.phase = Phase::Running {
            last: *now,
            offset: reading.offset,
        };
        let actions = Actions {
            counter_offset: Some(reading.offset),
            live_physical_time: self.live.map(|live| *live.mapping()),
            paused_time: self.paused_time.map(|value| (value, false)),
            ..Actions::default()
        };
        let before = Reading {
            offset: CounterOffset::default(),
            guest: GuestCount(now.counter.0),
            ..reading
        };
        let adjustment = Adjustment {
            before,
            ..self.record(EventKind::Start, reading)?
        };
        Ok(Step {
            timeline: self,
            actions,
            adjustment: Some(adjustment),
        })
    }

    pub(super) fn observe(
        mut self,
        now: &HostSample,
        last: &HostSample,
        offset: CounterOffset,
    ) -> Result<Step, TimelineError> {
        self.check_running(now, last, offset)?;
        self.phase = Phase::Running { last: *now, offset };
        Ok(self.unchanged())
    }

    pub(super) fn stop(
        mut self,
        now: &HostSample,
        last: &HostSample,
        offset: CounterOffset,
        cause: Cause,
        event: EventKind,
    ) -> Result<Step, TimelineError> {
        self.check_running(now, last, offset)?;
        let count = now.counter.to_guest(offset);
        self.live = self.live.map(|live| live.stopped_at(count)).transpose()?;
        let by_guest = event == EventKind::GuestSuspend;
        let stop = Stop {
            sample: *now,
            count,
            cause,
            by_guest,
            elsewhere: false,
        };
        self.phase = Phase::Stopped(stop);
        let record = self.record(event, Reading::new(now, count))?;
        let adjustment = Adjustment {
            cause: Some(cause),
            ..record
        };
        Ok(Step {
            adjustment: Some(adjustment),
            ..self.unchanged()
        })
    }

    /// Refuses a sample that says that something happened to a running VM's clocks.
    fn check_running(
        &self,
        now: &HostSample,
        last: &HostSample,
        offset: CounterOffset,
    ) -> Result<(), TimelineError> {
        check_same_host(now, last)?;
        let freezes = self.config.policies.suspend == Policy::Freeze;
        if let (true, Some(slept_ns)) = (freezes, self.slept_ns(now)) {
            return Err(TimelineError::UnhandledSleep { slept_ns });
        }
        let run = now.counter_since(last);
        let ticks = now.counter.since(last.counter);
        if run == CounterRun::Restarted || (run == CounterRun::AwakeOnly && !freezes) {
            let boottime_ns = now.boottime_ns - last.boottime_ns;
            return Err(TimelineError::UnhandledRestart { ticks, boottime_ns });
        }
        running_count(now, last, offset).map(|_| ())
    }
}

/// Refuses a sample of a running VM's host that is of another host, or of before.
pub(super) fn check_same_host(now: &HostSample, last: &HostSample) -> Result<(), TimelineError> {
    now.check_after(last)?;
    if now.frequency != last.frequency {
        let (before, now) = (last.frequency, now.frequency);
        return Err(TimelineError::FrequencyChanged { before, now });
    }
    Ok(())
}

/// The counter of a guest that ran since `last`, which has not passed 2^64.
pub(super) fn running_count(
    now: &HostSample,
    last: &HostSample,
    offset: CounterOffset,
) -> Result<GuestCount, TimelineError> {
    let count = last.counter.to_guest(offset);
    let ticks = now.counter.since(last.counter);
    let now = count.0.checked_add(ticks).map(GuestCount);
    now.ok_or(TimelineError::CounterTooLarge { count, ticks })
}
