//! The host slept, or the VMM stalled, while the VM ran and nobody had paused it.

use super::running::{check_same_host, running_count};
use super::sample::{CounterRun, DRIFT};
use super::{
    Actions, Adjustment, EventKind, Evidence, Gap, GapSource, HostSample, Phase, Policy, Reading,
    StallPolicy, Step, Timeline, TimelineError,
};
use crate::host::{Cause, CounterOffset, GuestCount};
use crate::scale::Rounding;

/// What is known of a sleep.
struct Sleep {
    gap: Gap,
    /// What of it no vCPU can have run.
    certain_ns: u64,
    /// As much of that as `CLOCK_MONOTONIC_RAW` counted: nothing of a sleep, all of a stall.
    counted_ns: u64,
    /// What the counter did meanwhile.
    run: CounterRun,
    policy: Policy,
    /// Whether it is a pause of the VM, which adds up and of which the guest is told.
    is_pause: bool,
}

impl Timeline {
    pub(super) fn slept(
        mut self,
        now: &HostSample,
        last: &HostSample,
        offset: CounterOffset,
        evidence: Evidence,
    ) -> Result<Step, TimelineError> {
        check_same_host(now, last)?;
        let run = now.counter_since(last);
        let sleep = match evidence {
            Evidence::Clocks { error_ns } => self.asleep(now, last, run, error_ns)?,
            Evidence::Stall {
                certain_ns,
                possible_ns,
            } => self.stalled(now, last, run, certain_ns, possible_ns)?,
        };
        if let Some(sleep) = sleep {
            return self.take_out(now, last, offset, &sleep);
        }
        running_count(now, last, offset)?;
        self.phase = Phase::Running { last: *now, offset };
        Ok(self.unchanged())
    }

    /// The sleep that the clocks tell of, if any.
    fn asleep(
        &self,
        now: &HostSample,
        last: &HostSample,
        run: CounterRun,
        error_ns: u64,
    ) -> Result<Option<Sleep>, TimelineError> {
        let ns = now.slept_ns_since(last);
        let error_ns = now.spans_ns(last).saturating_add(error_ns);
        let certain_ns = u64::try_from((ns - i128::from(error_ns)).max(0))
            .map_err(|_| TimelineError::PausedTooLong { more_ns: ns })?;
        let is_pause = certain_ns > 0;
        let mut sleep = Sleep {
            gap: Gap {
                ns,
                error_ns,
                source: GapSource::SleepClocks,
            },
            certain_ns,
            counted_ns: 0,
            run,
            policy: self.config.policies.suspend,
            is_pause,
        };
        if run == CounterRun::Restarted {
            sleep.gap.error_ns = error_ns.saturating_add(drift_ns(now, last));
        } else if u128::from(certain_ns) <= now.noise_ns(last) {
            // Too short to tell whether the counter stood still: taking it out might be too much.
            (sleep.run, sleep.policy) = (CounterRun::Through, Policy::Advance);
        }
        let is_known = run == CounterRun::Restarted || self.slept_ns(now).is_some();
        Ok(Some(sleep).filter(|_| is_pause || is_known))
    }

    /// The stall that somebody inferred, if any.
    fn stalled(
        &self,
        now: &HostSample,
        last: &HostSample,
        run: CounterRun,
        certain_ns: u64,
        possible_ns: u64,
    ) -> Result<Option<Sleep>, TimelineError> {
        let error_ns = possible_ns
            .checked_sub(certain_ns)
            .ok_or(TimelineError::StallBounds {
                certain_ns,
                possible_ns,
            })?;
        let stood = run == CounterRun::AwakeOnly;
        if stood && self.slept_ns(now).is_some() {
            let ticks = now.counter.since(last.counter);
            let boottime_ns = now.boottime_ns - last.boottime_ns;
            return Err(TimelineError::UnhandledRestart { ticks, boottime_ns });
        }
        let restarted = run == CounterRun::Restarted;
        let drift_ns = if restarted { drift_ns(now, last) } else { 0 };
        let gap = Gap {
            ns: certain_ns.into(),
            error_ns: error_ns.saturating_add(drift_ns),
            source: GapSource::Inferred,
        };
        // What the counter did not count, too short to be a sleep, is not taken out of it again.
        let uncounted_ns = if stood { now.slept_ns_since(last) } else { 0 };
        let uncounted_ns = u64::try_from(uncounted_ns.max(0)).unwrap_or(u64::MAX);
        let certain_ns = certain_ns.saturating_sub(uncounted_ns);
        let is_pause = self.config.policies.stall == StallPolicy::Freeze && certain_ns > 0;
        let sleep = Sleep {
            gap,
            certain_ns,
            counted_ns: certain_ns,
            run: if stood { CounterRun::Through } else { run },
            policy: if is_pause {
                Policy::Freeze
            } else {
                Policy::Advance
            },
            is_pause,
        };
        Ok(Some(sleep).filter(|_| possible_ns > 0 || restarted))
    }

    /// Sets the guest's counter right after a sleep.
    fn take_out(
        mut self,
        now: &HostSample,
        last: &HostSample,
        offset: CounterOffset,
        sleep: &Sleep,
    ) -> Result<Step, TimelineError> {
        let (cause, policy, gap) = (Cause::HostSuspend, sleep.policy, sleep.gap);
        let count = guest_count(now, last, offset, sleep)?;
        let hidden_ns = if policy == Policy::Freeze {
            sleep.certain_ns
        } else {
            0
        };
        if sleep.is_pause {
            self.add_pause(cause, &gap, policy, hidden_ns, count)?;
        }
        let after = Reading::new(now, count);
        // As the guest would read it now, had nothing been done.
        let before = Reading {
            guest: now.counter.to_guest(offset),
            offset,
            ..after
        };
        let live = self.live_at(after)?;
        let hold_ticks = live.map_or(0, |live| live.hold_ticks);
        self.phase = Phase::Running {
            last: *now,
            offset: after.offset,
        };
        let told = self.paused_time.filter(|_| sleep.is_pause);
        let actions = Actions {
            counter_offset: (before.offset != after.offset).then_some(after.offset),
            paused_time: told.map(|value| (value, true)),
            hold_until: (hold_ticks > 0).then(|| now.counter.after(hold_ticks)),
            ..Actions::default()
        };
        let adjustment = Adjustment {
            event: EventKind::Slept,
            cause: Some(cause),
            policy: Some(policy),
            gap: Some(gap),
            hidden_ns,
            clamped: false,
            before,
            after,
            live,
        };
        Ok(Step {
            timeline: self,
            actions,
            adjustment: Some(adjustment),
        })
    }
}

/// How far the time awake since `last` may be off, by `CLOCK_MONOTONIC_RAW`.
const fn drift_ns(now: &HostSample, last: &HostSample) -> u64 {
    (now.monotonic_raw_ns - last.monotonic_raw_ns).div_ceil(DRIFT)
}

/// The guest's counter after a sleep: never below what it showed at the last sample.
fn guest_count(
    now: &HostSample,
    last: &HostSample,
    offset: CounterOffset,
    sleep: &Sleep,
) -> Result<GuestCount, TimelineError> {
    let frequency = now.frequency;
    let shown = last.counter.to_guest(offset);
    let ticks = match (sleep.run, sleep.policy) {
        (CounterRun::Through, Policy::Freeze) => {
            let passed = now.counter.since(last.counter);
            let hidden = frequency.ns_to_ticks(sleep.certain_ns, Rounding::Down)?;
            passed
                .checked_sub(hidden)
                .ok_or(TimelineError::SleepTooLong {
                    hidden_ns: sleep.certain_ns,
                    now: now.counter.to_guest(offset),
                    last: shown,
                })?
        }
        (CounterRun::Through, Policy::Advance) | (CounterRun::AwakeOnly, Policy::Freeze) => {
            now.counter.since(last.counter)
        }
        (CounterRun::AwakeOnly, Policy::Advance) => {
            let slept = frequency.ns_to_ticks(sleep.certain_ns, Rounding::Down)?;
            now.counter.since(last.counter).saturating_add(slept)
        }
        (CounterRun::Restarted, policy) => {
            let awake_ns = now.monotonic_raw_ns - last.monotonic_raw_ns;
            // At least what the guest can have seen.
            let least_ns = awake_ns
                .saturating_add(drift_ns(now, last))
                .saturating_add(now.spans_ns(last));
            let passed_ns = match policy {
                Policy::Freeze => least_ns.checked_sub(sleep.counted_ns),
                Policy::Advance => least_ns.checked_add(sleep.certain_ns - sleep.counted_ns),
            };
            let passed_ns = passed_ns.ok_or(TimelineError::SleepTooLong {
                hidden_ns: sleep.certain_ns,
                now: now.counter.to_guest(offset),
                last: shown,
            })?;
            frequency
                .ns_to_ticks(passed_ns, Rounding::Up)?
                .saturating_add(1)
        }
    };
    let count = shown.0.checked_add(ticks).map(GuestCount);
    count.ok_or(TimelineError::CounterTooLarge {
        count: shown,
        ticks,
    })
}
