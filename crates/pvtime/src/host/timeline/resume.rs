//! A stopped VM goes on: here, in another life of this host, or on another host.

use super::sample::CounterRun;
use super::{
    Actions, Adjustment, EventKind, Gap, GapSource, HostSample, NegativeElapsed, Phase, Policy,
    Reading, Step, Stop, Timeline, TimelineError, live_reading,
};
use crate::host::live::LiveState;
use crate::host::saved::SavedVm;
use crate::host::timers::Translation;
use crate::host::{Cause, GuestCount};
use crate::scale::Rounding;

impl Timeline {
    /// A saved VM, stopped on this host. What the guest's counters become is decided when it is
    /// resumed, as late as can be.
    pub(super) fn restore(
        mut self,
        now: &HostSample,
        saved: &SavedVm,
        cause: Cause,
    ) -> Result<Step, TimelineError> {
        if !matches!(cause, Cause::Snapshot | Cause::Migration) {
            return Err(TimelineError::NotARestore { cause });
        }
        let (scope, configured) = (saved.counters, self.config.counters);
        if scope != configured {
            return Err(TimelineError::ScopeDiffers {
                saved: scope,
                configured,
            });
        }
        let (pv, configured) = (
            saved.live.map(|parts| parts.pv),
            self.config.live_physical_time,
        );
        if pv != configured {
            return Err(TimelineError::PvFrequencyDiffers {
                saved: pv,
                configured,
            });
        }
        self.live = saved.checked_live()?;
        self.paused = saved.paused;
        // Pauses from before the guest was to be told of them are not told afterwards.
        self.paused_time = self
            .config
            .paused_time
            .then(|| saved.paused_time.unwrap_or_default());
        let (sample, count) = (saved.sample, saved.count);
        let by_guest = saved.guest_suspended;
        let stop = Stop {
            sample,
            count,
            // The way is a part of what the guest sleeps through.
            cause: if by_guest { saved.cause } else { cause },
            by_guest,
            elsewhere: true,
        };
        self.phase = Phase::Stopped(stop);
        self.admits(now.frequency)?;
        let before = Reading::new(&sample, count);
        let record = self.record(EventKind::Restore, before)?;
        let adjustment = Adjustment {
            cause: Some(cause),
            ..record
        };
        Ok(Step {
            adjustment: Some(adjustment),
            ..self.unchanged()
        })
    }

    pub(super) fn resume(mut self, now: &HostSample, stop: &Stop) -> Result<Step, TimelineError> {
        if !stop.elsewhere {
            now.check_after(&stop.sample)?;
        }
        self.admits(now.frequency)?;
        let (cause, policy, gap) = (stop.cause, self.policy(stop), stop.gap(now)?);
        let live_before = self.live;
        let count = match policy {
            Policy::Freeze => self.freeze(now, stop)?,
            Policy::Advance => self.advance(now, stop, &gap)?,
        };
        let hidden_ns = if policy == Policy::Freeze {
            gap.length_ns()?
        } else {
            0
        };
        self.add_pause(cause, &gap, policy, hidden_ns, count)?;
        let before = Reading::new(&stop.sample, stop.count);
        let after = Reading::new(now, count);
        self.phase = Phase::Running {
            last: *now,
            offset: after.offset,
        };
        let live = live_before.zip(self.live);
        let live = live
            .map(|(from, to)| live_reading(&from, before, &to, after))
            .transpose()?;
        let adjustment = Adjustment {
            event: EventKind::Resume,
            cause: Some(cause),
            policy: Some(policy),
            gap: Some(gap),
            hidden_ns,
            clamped: gap.ns < 0,
            before,
            after,
            live,
        };
        let actions = self.actions_at_resume(stop, live_before, &adjustment);
        Ok(Step {
            timeline: self,
            actions,
            adjustment: Some(adjustment),
        })
    }

    fn actions_at_resume(
        &self,
        stop: &Stop,
        live_before: Option<LiveState>,
        adjustment: &Adjustment,
    ) -> Actions {
        let Adjustment {
            before,
            after,
            live,
            ..
        } = adjustment;
        let hold_ticks = live.map_or(0, |live| live.hold_ticks);
        let rebased = before.frequency != after.frequency;
        let translated = live_before.zip(self.live).filter(|_| rebased);
        let published = self.live.filter(|_| stop.elsewhere || rebased);
        Actions {
            counter_offset: (stop.elsewhere || before.offset != after.offset)
                .then_some(after.offset),
            timers: translated.map(|(from, to)| Translation {
                from: *from.mapping(),
                to: *to.mapping(),
                has_run: from.has_run(),
                has_ecv: self.config.has_ecv,
            }),
            live_physical_time: published.map(|live| *live.mapping()),
            paused_time: self.paused_time.map(|value| (value, true)),
            hold_until: (hold_ticks > 0).then(|| after.host.after(hold_ticks)),
        }
    }

    fn policy(&self, stop: &Stop) -> Policy {
        let policies = &self.config.policies;
        match stop.cause {
            _ if stop.by_guest => Policy::Advance,
            Cause::Snapshot if stop.elsewhere => policies.restore,
            Cause::Operator | Cause::Snapshot => policies.pause,
            Cause::Migration => policies.migrate,
            Cause::HostSuspend => policies.suspend,
        }
    }

    /// The guest goes on where it stopped, as near as this host's counter can say.
    fn freeze(&mut self, now: &HostSample, stop: &Stop) -> Result<GuestCount, TimelineError> {
        match self.live {
            Some(live) if now.frequency != stop.sample.frequency => {
                let (live, count) = live.rebase(stop.count, now.frequency)?;
                self.live = Some(live);
                Ok(count)
            }
            _ => Ok(stop.count),
        }
    }

    /// The guest goes on as if it had run, rounded down.
    fn advance(
        &self,
        now: &HostSample,
        stop: &Stop,
        gap: &Gap,
    ) -> Result<GuestCount, TimelineError> {
        let ticks = match gap.source {
            GapSource::Counter => now.counter.since(stop.sample.counter),
            GapSource::Unknown => {
                let (saved, host) = (stop.sample.wall_standard, now.wall_standard);
                return Err(TimelineError::WallClocksDiffer { saved, host });
            }
            _ => {
                let refuses = self.config.negative_elapsed == NegativeElapsed::Refuse;
                if refuses && gap.ns < -i128::from(gap.error_ns) {
                    let (elapsed_ns, error_ns) = (gap.ns, gap.error_ns);
                    return Err(TimelineError::NegativeElapsed {
                        elapsed_ns,
                        error_ns,
                    });
                }
                now.frequency
                    .ns_to_ticks(gap.length_ns()?, Rounding::Down)?
            }
        };
        let count = stop.count;
        let advanced = count.0.checked_add(ticks);
        advanced
            .map(GuestCount)
            .ok_or(TimelineError::CounterTooLarge { count, ticks })
    }
}

impl Stop {
    /// The time since the stop.
    fn gap(&self, now: &HostSample) -> Result<Gap, TimelineError> {
        let spans_ns = now.spans_ns(&self.sample);
        if self.elsewhere {
            return Ok(match now.wall_ns_since(&self.sample) {
                Some((ns, error_ns)) => Gap {
                    ns,
                    error_ns,
                    source: GapSource::WallClocks,
                },
                None => Gap {
                    ns: 0,
                    error_ns: u64::MAX,
                    source: GapSource::Unknown,
                },
            });
        }
        let same = now.frequency == self.sample.frequency;
        if same && now.counter_since(&self.sample) == CounterRun::Through {
            let ticks = now.counter.since(self.sample.counter);
            let ns = now.frequency.ticks_to_ns(ticks, Rounding::Nearest)?.into();
            let error_ns = spans_ns.saturating_add(1);
            return Ok(Gap {
                ns,
                error_ns,
                source: GapSource::Counter,
            });
        }
        let ns = i128::from(now.boottime_ns) - i128::from(self.sample.boottime_ns);
        Ok(Gap {
            ns,
            error_ns: spans_ns,
            source: GapSource::Boottime,
        })
    }
}
