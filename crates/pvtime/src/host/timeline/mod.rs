//! A VM's time as a state machine: its counters, their offset, its pauses.
//!
//! [`Timeline::step`] is a pure function. A sample of the host's clocks and an event go in; a new
//! timeline, [`Actions`] to carry out and an [`Adjustment`] to show the operator come out. An
//! error leaves everything as it was. The timeline is plain data: copy it, compare it, save it.
//!
//! ```text
//!             Start                Pause, GuestSuspend
//!   created ─────────────> running ─────────────────> stopped ──> save
//!      │                   ↑     ↑ Observe, Slept        ↑  │
//!      │                   └─────┴─── Resume ────────────┼──┘
//!      └───────────────────────── Restore ───────────────┘
//! ```
//!
//! # What the guest's counter becomes
//!
//! | Event | freeze | advance |
//! |---|---|---|
//! | resume on the same host | its count at the stop | as if it had never stopped |
//! | resume on another host | its count at the stop | that, and the wall-clock time on the way, rounded down |
//! | resume at another frequency | the count nearest to live physical time | refused |
//! | sleep of the host while it ran | what certainly passed asleep is taken out | unchanged |
//!
//! A counter that restarted, or stood still while the host slept, is known from
//! the host's other clocks, and the guest's count is kept right without it. After a restart *under*
//! a running VM the count since the last [`Event::Observe`] is known from `CLOCK_MONOTONIC_RAW`
//! alone, and rounded up by its possible drift so that it never goes back.
//!
//! # Carrying it out
//!
//! - Stop the vCPUs, take the sample, step, carry out the actions in their order, let the vCPUs in.
//!   [`Action::HoldUntil`] is a spin of some ticks right before that. Only [`Event::Observe`] and
//!   [`Event::LivePhysicalTimeFound`] happen while vCPUs are in the guest.
//! - A failed step changes nothing: the VM goes on running, or stays stopped, as it was.
//! - Before a step that [`Timeline::slept_ns`] finds a sleep for, step with [`Event::Slept`].
//! - A snapshot or a migration is [`Event::Pause`] and [`Timeline::save`] here,
//!   [`Event::Restore`] and [`Event::Resume`] there; one that failed is [`Event::Resume`] here. Ask
//!   [`Timeline::admits`] with the other host's frequency before anything is moved.
//! - A guest that suspended itself stays so wherever it goes, and knows from its counters for how
//!   long: whatever the policies are, they run on until it is resumed.
//! - A sleep that is announced is [`Event::Pause`] with [`Cause::HostSuspend`] before and
//!   [`Event::Resume`] after it.
//!
//! ```
//! use pvtime::host::timeline::{Action, Config, Event, HostSample, Timeline, WallStandard};
//! use pvtime::host::{Cause, CounterOffset, HostCount};
//! use pvtime::scale::Frequency;
//!
//! // A host with a counter of 1 MHz, at some time after its start.
//! let at = |us: u64| HostSample {
//!     counter: HostCount(us),
//!     frequency: Frequency::from_hz(1_000_000).unwrap(),
//!     wall_ns: 1_700_000_000_000_000_000 + us * 1_000,
//!     wall_standard: WallStandard::Tai,
//!     wall_error_ns: 10_000,
//!     boottime_ns: us * 1_000,
//!     monotonic_ns: us * 1_000,
//!     monotonic_raw_ns: us * 1_000,
//!     span_ns: 100,
//! };
//! let vm = Timeline::new(Config::default())?;
//! let vm = vm.step(at(5_000_000), Event::Start)?.timeline;
//! let vm = vm.step(at(7_000_000), Event::Pause(Cause::Operator))?.timeline;
//! let resumed = vm.step(at(10_000_000), Event::Resume)?;
//!
//! // Three seconds that the guest's counter does not show.
//! let offset = CounterOffset(8_000_000);
//! assert!(resumed.actions.iter().eq([Action::SetCounterOffset(offset)]));
//! assert_eq!(resumed.adjustment.unwrap().hidden_ns, 3_000_000_000);
//! # Ok::<(), pvtime::host::timeline::TimelineError>(())
//! ```

mod config;
mod error;
mod record;
mod resume;
mod running;
mod sample;
mod sleep;

#[cfg(test)]
mod histories;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod world;

pub use config::{Config, CounterScope, NegativeElapsed, Policies, Policy, StallPolicy};
pub use error::TimelineError;
pub use record::{
    Action, Actions, Adjustment, Event, EventKind, Evidence, Gap, GapSource, LiveReading, Reading,
};
pub use sample::{HostSample, WallStandard};

use sample::CounterRun;

use super::live::{LiveParts, LiveState};
use super::saved::{SavedVm, Sequences};
use super::{Cause, CounterOffset, GuestCount, PausedNs};
use crate::abi::live_physical_time::LivePhysicalTime;
use crate::abi::paused_time::{Pause, PausedTime};
use crate::scale::Frequency;

/// A sleep of the host shorter than this is left in the guest's counters.
pub const SLEEP_THRESHOLD_NS: u64 = 1_000_000;

/// How far a sleep's length may be off where the host's counter did not run through it: the kernel
/// asked a real-time clock, which shows seconds.
pub const RTC_ERROR_NS: u64 = 1_000_000_000;

/// One VM's time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeline {
    config: Config,
    phase: Phase,
    live: Option<LiveState>,
    paused: PausedNs,
    paused_time: Option<PausedTime>,
}

/// What a VM does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// It was not started or restored yet.
    Created,
    /// It runs.
    Running {
        /// The last sample that was taken of the clocks.
        last: HostSample,
        /// The offset in force.
        offset: CounterOffset,
    },
    /// It does not.
    Stopped(Stop),
}

/// How a VM stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stop {
    /// The clocks when no vCPU was in the guest any more; of another host if `elsewhere`.
    sample: HostSample,
    /// The guest's counter then.
    count: GuestCount,
    cause: Cause,
    /// The guest suspended itself.
    by_guest: bool,
    /// It stopped on another host, or in another life of this one.
    elsewhere: bool,
}

/// What a step leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// The VM's time after the event.
    pub timeline: Timeline,
    /// What to do.
    pub actions: Actions,
    /// What to show the operator; `None` for an event that intervenes in nothing.
    pub adjustment: Option<Adjustment>,
}

impl Timeline {
    /// The time of a VM that does not run yet.
    ///
    /// # Errors
    ///
    /// [`TimelineError::LiveWithAdvance`], [`TimelineError::LiveWithNested`],
    /// [`TimelineError::LiveWithVirtualOnly`], [`TimelineError::FreezeWithNested`], and a PV frequency that does not fit 32 bits.
    pub fn new(config: Config) -> Result<Self, TimelineError> {
        config.check()?;
        Ok(Self {
            config,
            phase: Phase::Created,
            live: None,
            paused: PausedNs::default(),
            paused_time: config.paused_time.then(PausedTime::default),
        })
    }

    /// What becomes of the VM's time when `event` happens `now`.
    ///
    /// # Errors
    ///
    /// [`TimelineError`]; the timeline that was stepped is still the right one.
    pub fn step(self, now: HostSample, event: Event<'_>) -> Result<Step, TimelineError> {
        match (event, self.phase) {
            (Event::Start, Phase::Created) => self.start(&now),
            (Event::Restore { saved, cause }, Phase::Created) => self.restore(&now, saved, cause),
            (Event::Observe, Phase::Running { last, offset }) => self.observe(&now, &last, offset),
            (Event::Pause(cause), Phase::Running { last, offset }) => {
                self.stop(&now, &last, offset, cause, EventKind::Pause)
            }
            (Event::GuestSuspend, Phase::Running { .. }) if self.live.is_some() => {
                Err(TimelineError::LiveWithGuestSuspend)
            }
            (Event::GuestSuspend, Phase::Running { last, offset }) => self.stop(
                &now,
                &last,
                offset,
                Cause::HostSuspend,
                EventKind::GuestSuspend,
            ),
            (Event::Slept(evidence), Phase::Running { last, offset }) => {
                self.slept(&now, &last, offset, evidence)
            }
            (Event::Resume, Phase::Stopped(stop)) => self.resume(&now, &stop),
            (Event::LivePhysicalTimeFound, Phase::Running { .. } | Phase::Stopped(_)) => {
                Ok(self.found(true))
            }
            (Event::GuestReset, Phase::Running { .. } | Phase::Stopped(_)) => Ok(self.found(false)),
            (event, phase) => Err(TimelineError::OutOfOrder {
                event: event.kind().verb(),
                phase: phase.describe(),
            }),
        }
    }

    /// The state of a stopped VM, for another VMM or another time.
    ///
    /// `sequences` are those of the structures' writers, so that a guest that was stopped while it
    /// read a structure notices that it was published anew. One of a structure that the VM does not
    /// have is not saved.
    ///
    /// # Errors
    ///
    /// [`TimelineError::OutOfOrder`] for a VM that is not stopped.
    pub fn save(&self, sequences: Sequences) -> Result<SavedVm, TimelineError> {
        let Phase::Stopped(stop) = self.phase else {
            let phase = self.phase.describe();
            return Err(TimelineError::OutOfOrder {
                event: "be saved",
                phase,
            });
        };
        Ok(SavedVm {
            sample: stop.sample,
            count: stop.count,
            cause: stop.cause,
            guest_suspended: stop.by_guest,
            counters: self.config.counters,
            live: self.live.map(|live| live.parts()),
            paused: self.paused,
            paused_time: self.paused_time,
            sequences: Sequences {
                live_physical_time: self.live.map_or(0, |_| sequences.live_physical_time),
                paused_time: self.paused_time.map_or(0, |_| sequences.paused_time),
            },
        })
    }

    /// Whether the VM could go on at a host whose counter runs at `host`; to be asked before
    /// anything is moved.
    ///
    /// # Errors
    ///
    /// [`TimelineError::FrequencyDiffers`], and a rate that the structure cannot hold.
    pub fn admits(&self, host: Frequency) -> Result<(), TimelineError> {
        let vm = match self.phase {
            Phase::Created => return Ok(()),
            Phase::Running { last, .. } => last.frequency,
            Phase::Stopped(stop) => stop.sample.frequency,
        };
        admits(vm, self.live.map(|live| live.parts()), host)
    }

    /// Nanoseconds that the host slept since the last sample of a running VM: time to stop its
    /// vCPUs and step with [`Event::Slept`]. `None` if it did not, for
    /// [`SLEEP_THRESHOLD_NS`] or more beyond the samples' error.
    #[must_use]
    pub fn slept_ns(&self, now: &HostSample) -> Option<i128> {
        let Phase::Running { last, .. } = self.phase else {
            return None;
        };
        let slept_ns = now.slept_ns_since(&last);
        let noise_ns = now.spans_ns(&last).saturating_add(SLEEP_THRESHOLD_NS);
        (slept_ns >= i128::from(noise_ns)).then_some(slept_ns)
    }

    /// What to step with [`Event::Slept`] where [`Event::Observe`] would be refused for a sleep or a
    /// restarted counter, and nobody kept the vCPUs out of the guest meanwhile: a counter that ran
    /// through a sleep has shown all of it, and nothing of that is hidden. `None` where the clocks
    /// tell of nothing.
    #[must_use]
    pub fn shown_sleep(&self, now: &HostSample) -> Option<Evidence> {
        let Phase::Running { last, .. } = self.phase else {
            return None;
        };
        let is_refused = matches!(
            self.step(*now, Event::Observe),
            Err(TimelineError::UnhandledSleep { .. } | TimelineError::UnhandledRestart { .. })
        );
        let error_ns = match now.counter_since(&last) {
            CounterRun::Through => now.slept_ns_since(&last).try_into().unwrap_or(u64::MAX),
            CounterRun::AwakeOnly | CounterRun::Restarted => RTC_ERROR_NS,
        };
        is_refused.then_some(Evidence::Clocks { error_ns })
    }

    /// Whether the VM runs.
    #[must_use]
    pub const fn is_running(&self) -> bool {
        matches!(self.phase, Phase::Running { .. })
    }

    /// The offset in force; `None` for a VM that does not run.
    #[must_use]
    pub const fn offset(&self) -> Option<CounterOffset> {
        match self.phase {
            Phase::Running { offset, .. } => Some(offset),
            Phase::Created | Phase::Stopped(_) => None,
        }
    }

    /// The guest's counter at the stop; `None` for a VM that is not stopped.
    #[must_use]
    pub const fn stopped_at(&self) -> Option<GuestCount> {
        match self.phase {
            Phase::Stopped(stop) => Some(stop.count),
            Phase::Created | Phase::Running { .. } => None,
        }
    }

    /// Why a VM is stopped; `None` for one that is not.
    #[must_use]
    pub const fn stop_cause(&self) -> Option<Cause> {
        match self.phase {
            Phase::Stopped(stop) => Some(stop.cause),
            Phase::Created | Phase::Running { .. } => None,
        }
    }

    /// Whether the guest suspended itself and was not resumed yet.
    #[must_use]
    pub const fn is_guest_suspended(&self) -> bool {
        matches!(self.phase, Phase::Stopped(stop) if stop.by_guest)
    }

    /// Live physical time, once a VM that has it was started.
    #[must_use]
    pub const fn live(&self) -> Option<&LiveState> {
        self.live.as_ref()
    }

    /// Physical time in which the VM was stopped, whatever its counters showed.
    #[must_use]
    pub const fn paused(&self) -> PausedNs {
        self.paused
    }

    /// What the guest is told of its pauses, if it is.
    #[must_use]
    pub const fn paused_time(&self) -> Option<&PausedTime> {
        self.paused_time.as_ref()
    }

    /// What was decided about the VM's time.
    #[must_use]
    pub const fn config(&self) -> &Config {
        &self.config
    }

    fn found(mut self, found: bool) -> Step {
        if let Some(live) = &mut self.live {
            live.set_found(found);
        }
        self.unchanged()
    }

    fn unchanged(self) -> Step {
        Step {
            timeline: self,
            actions: Actions::default(),
            adjustment: None,
        }
    }

    /// A record of an event that leaves the counters as `reading` has them.
    fn record(&self, event: EventKind, reading: Reading) -> Result<Adjustment, TimelineError> {
        Ok(Adjustment {
            event,
            cause: None,
            policy: None,
            gap: None,
            hidden_ns: 0,
            clamped: false,
            before: reading,
            after: reading,
            live: self.live_at(reading)?,
        })
    }

    /// Live physical time where the counters are as `reading` has them.
    fn live_at(&self, reading: Reading) -> Result<Option<LiveReading>, TimelineError> {
        let live = self
            .live
            .map(|live| live_reading(&live, reading, &live, reading));
        live.transpose()
    }

    /// Adds a pause to what is known of them, and to what the guest is told.
    fn add_pause(
        &mut self,
        cause: Cause,
        gap: &Gap,
        policy: Policy,
        hidden_ns: u64,
        count: GuestCount,
    ) -> Result<(), TimelineError> {
        let physical_ns = gap.length_ns()?;
        let too_long = TimelineError::PausedTooLong { more_ns: gap.ns };
        self.paused = self.paused.plus(cause, physical_ns).ok_or(too_long)?;
        if let Some(told) = &mut self.paused_time {
            told.paused_ns = told.paused_ns.checked_add(hidden_ns).ok_or(too_long)?;
            told.events = told.events.checked_add(1).ok_or(too_long)?;
            told.last = Pause {
                frozen: policy == Policy::Freeze,
                physical_ns,
                error_ns: gap.error_ns,
                counter: count.0,
                cause: cause.into(),
            };
        }
        Ok(())
    }
}

/// Whether a VM goes from a host of one frequency to one of another.
pub(super) fn admits(
    vm: Frequency,
    live: Option<LiveParts>,
    host: Frequency,
) -> Result<(), TimelineError> {
    if vm == host {
        return Ok(());
    }
    match live {
        Some(live) if live.found => {
            LivePhysicalTime::between(host, live.pv)?;
            Ok(())
        }
        live => Err(TimelineError::FrequencyDiffers {
            vm,
            host,
            has_live: live.is_some(),
        }),
    }
}

fn live_reading(
    before: &LiveState,
    from: Reading,
    after: &LiveState,
    to: Reading,
) -> Result<LiveReading, TimelineError> {
    Ok(LiveReading {
        pv_before: before.pv_at(from.guest)?,
        pv_after: after.pv_at(to.guest)?,
        distance: after.distance_at(to.guest)?,
        hold_ticks: after.hold_ticks(to.guest)?,
    })
}

impl Phase {
    const fn describe(&self) -> &'static str {
        match self {
            Self::Created => "was not started yet",
            Self::Running { .. } => "runs",
            Self::Stopped(_) => "is stopped",
        }
    }
}
