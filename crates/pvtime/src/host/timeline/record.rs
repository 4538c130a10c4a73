//! What goes into a step and what comes out: events, actions, adjustment records.

use super::{HostSample, Policy, TimelineError};
use crate::abi::live_physical_time::LivePhysicalTime;
use crate::abi::paused_time::PausedTime;
use crate::host::saved::SavedVm;
use crate::host::timers::Translation;
use crate::host::{Cause, CounterOffset, GuestCount, HostCount};
use crate::scale::{Frequency, LiveDistance};
use core::fmt;

/// What happens to a VM's time. Unless it says otherwise, every vCPU is out of the guest when the
/// sample for the event is taken, and stays out until the actions are carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// The VM runs for the first time, from here on.
    Start,
    /// The VM was saved, and is restored here, stopped. It comes out of a snapshot or from another
    /// host; how long it was away is for the wall clocks to say.
    Restore {
        /// The saved state.
        saved: &'a SavedVm,
        /// [`Cause::Snapshot`] or [`Cause::Migration`].
        cause: Cause,
    },
    /// A running VM's clocks were looked at; vCPUs may be in the guest. What a later [`Slept`]
    /// knows reaches back to here, so do this once a second or more: a sleep that is shorter than
    /// the five-hundredth part of the time since cannot be told from the drift of two clocks, and
    /// stays in the guest's counters.
    ///
    /// [`Slept`]: Self::Slept
    Observe,
    /// The VM stops.
    Pause(Cause),
    /// The guest suspended itself (PSCI `SYSTEM_SUSPEND`) and knows that it did: its counters run
    /// on, whatever the policy is.
    GuestSuspend,
    /// A stopped VM goes on, from here on.
    Resume,
    /// The host slept, or the VMM stalled, since the last sample, and the VM was not paused.
    Slept(Evidence),
    /// The guest asked where the live-physical-time structure is; vCPUs may be in the guest.
    LivePhysicalTimeFound,
    /// The guest starts anew and knows nothing of what it asked for before.
    GuestReset,
}

impl Event<'_> {
    /// The record's name of the event.
    #[must_use]
    pub const fn kind(&self) -> EventKind {
        match self {
            Self::Start => EventKind::Start,
            Self::Restore { .. } => EventKind::Restore,
            Self::Observe => EventKind::Observe,
            Self::Pause(_) => EventKind::Pause,
            Self::GuestSuspend => EventKind::GuestSuspend,
            Self::Resume => EventKind::Resume,
            Self::Slept(_) => EventKind::Slept,
            Self::LivePhysicalTimeFound => EventKind::LivePhysicalTimeFound,
            Self::GuestReset => EventKind::GuestReset,
        }
    }
}

/// How a sleep is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Evidence {
    /// From the samples: `CLOCK_BOOTTIME` gained on `CLOCK_MONOTONIC`.
    Clocks {
        /// How far the kernel's idea of the sleep may be off: 0 where the clock source counts
        /// while the host sleeps, [`RTC_ERROR_NS`](super::RTC_ERROR_NS) where the kernel asked the
        /// RTC; and as much more as a vCPU may have run through.
        error_ns: u64,
    },
    /// Inferred: the clocks ran on and the VMM did not.
    Stall {
        /// For this long no vCPU can have run.
        certain_ns: u64,
        /// For this long at most.
        possible_ns: u64,
    },
}

/// An [`Event`] without its contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EventKind {
    /// [`Event::Start`]
    Start,
    /// [`Event::Restore`]
    Restore,
    /// [`Event::Observe`]
    Observe,
    /// [`Event::Pause`]
    Pause,
    /// [`Event::GuestSuspend`]
    GuestSuspend,
    /// [`Event::Resume`]
    Resume,
    /// [`Event::Slept`]
    Slept,
    /// [`Event::LivePhysicalTimeFound`]
    LivePhysicalTimeFound,
    /// [`Event::GuestReset`]
    GuestReset,
}

impl fmt::Display for EventKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Start => "start",
            Self::Restore => "restore",
            Self::Observe => "observe",
            Self::Pause => "pause",
            Self::GuestSuspend => "guest suspend",
            Self::Resume => "resume",
            Self::Slept => "host sleep",
            Self::LivePhysicalTimeFound => "live physical time found",
            Self::GuestReset => "guest reset",
        })
    }
}

/// What is to be done before a vCPU runs again, in the order of [`Actions`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Set the VM-wide offset: guest counter = host counter - offset, virtual and physical.
    SetCounterOffset(CounterOffset),
    /// Read every vCPU's timers, [`apply`](Translation::apply) this, write them back.
    TranslateTimers(Translation),
    /// Publish this as the VM's live physical time.
    PublishLivePhysicalTime(LivePhysicalTime),
    /// Publish this as the VM's paused time, and then, if `notify`, raise its interrupt.
    PublishPausedTime {
        /// What to publish.
        value: PausedTime,
        /// Whether the guest has something to learn.
        notify: bool,
    },
    /// Let no vCPU into the guest before the host's counter has reached this count. It is void with
    /// the next [`SetCounterOffset`](Self::SetCounterOffset), after which another may follow.
    HoldUntil(HostCount),
}

/// The actions of one step, to be carried out in this order: first the counters, then what depends
/// on them, then what the guest reads, last what keeps it from running.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Actions {
    pub(super) counter_offset: Option<CounterOffset>,
    pub(super) timers: Option<Translation>,
    pub(super) live_physical_time: Option<LivePhysicalTime>,
    pub(super) paused_time: Option<(PausedTime, bool)>,
    pub(super) hold_until: Option<HostCount>,
}

impl Actions {
    /// The actions, in order.
    pub fn iter(&self) -> impl Iterator<Item = Action> + use<> {
        [
            self.counter_offset.map(Action::SetCounterOffset),
            self.timers.map(Action::TranslateTimers),
            self.live_physical_time.map(Action::PublishLivePhysicalTime),
            self.paused_time
                .map(|(value, notify)| Action::PublishPausedTime { value, notify }),
            self.hold_until.map(Action::HoldUntil),
        ]
        .into_iter()
        .flatten()
    }
}

/// How the length of a gap is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GapSource {
    /// From the host's counter, which counted all the time.
    Counter,
    /// From `CLOCK_BOOTTIME`, because the counter restarted or stood still.
    Boottime,
    /// From the wall clocks of two hosts.
    WallClocks,
    /// From a gain of `CLOCK_BOOTTIME` on `CLOCK_MONOTONIC`.
    SleepClocks,
    /// Inferred from a stall.
    Inferred,
    /// It is not: the two hosts' wall clocks count different things.
    Unknown,
}

impl fmt::Display for GapSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Counter => "counter",
            Self::Boottime => "CLOCK_BOOTTIME",
            Self::WallClocks => "wall clocks",
            Self::SleepClocks => "CLOCK_BOOTTIME against CLOCK_MONOTONIC",
            Self::Inferred => "inferred from a stall",
            Self::Unknown => "unknown",
        })
    }
}

/// Physical time in which the VM did not run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    /// Its length; negative if two hosts' clocks say so.
    pub ns: i128,
    /// Bound on the error of the length, nominal frequencies taken as exact; all ones if unknown.
    pub error_ns: u64,
    /// How it is known.
    pub source: GapSource,
}

impl Gap {
    /// The length, 0 where it is negative.
    pub(super) fn length_ns(&self) -> Result<u64, TimelineError> {
        let more_ns = self.ns;
        u64::try_from(more_ns.max(0)).map_err(|_| TimelineError::PausedTooLong { more_ns })
    }
}

/// The counters at one end of an intervention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    /// The host's counter.
    pub host: HostCount,
    /// Its frequency.
    pub frequency: Frequency,
    /// The guest's counter.
    pub guest: GuestCount,
    /// The offset between the two.
    pub offset: CounterOffset,
}

impl Reading {
    pub(super) const fn new(sample: &HostSample, guest: GuestCount) -> Self {
        Self {
            host: sample.counter,
            frequency: sample.frequency,
            guest,
            offset: sample.counter.offset_for(guest),
        }
    }
}

/// Live physical time at an intervention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LiveReading {
    /// What the guest computed when it stopped, PV ticks.
    pub pv_before: u64,
    /// What it computes when it goes on; below `pv_before` only until `hold_ticks` have passed.
    pub pv_after: u64,
    /// How far `pv_after` is ahead of the ideal.
    pub distance: LiveDistance,
    /// Native ticks for which no vCPU may run.
    pub hold_ticks: u64,
}

/// The record of one intervention in a VM's time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Adjustment {
    /// What happened.
    pub event: EventKind,
    /// Why the VM did not run; `None` for a start.
    pub cause: Option<Cause>,
    /// What the guest's counters did; `None` where the event does not decide it.
    pub policy: Option<Policy>,
    /// For how long the VM did not run; `None` where that is not over.
    pub gap: Option<Gap>,
    /// Nanoseconds of the gap that the guest's counters do not show.
    pub hidden_ns: u64,
    /// Whether a negative gap was taken for none.
    pub clamped: bool,
    /// The counters before.
    pub before: Reading,
    /// The counters after.
    pub after: Reading,
    /// Live physical time, if the VM has it.
    pub live: Option<LiveReading>,
}

impl Adjustment {
    /// Ticks by which the guest's counter moved over the gap, if its frequency stayed; `None` for a
    /// sleep that was noticed afterwards, where both readings are of the moment when it was.
    #[must_use]
    pub fn shown_ticks(&self) -> Option<u64> {
        let same = self.before.frequency == self.after.frequency;
        let both_ends = self.event != EventKind::Slept;
        (same && both_ends).then(|| self.after.guest.0.wrapping_sub(self.before.guest.0))
    }

    /// The gap in ticks of the host's counter after it, rounded towards 0.
    #[must_use]
    pub fn gap_ticks(&self) -> Option<i128> {
        let hz = i128::from(self.after.frequency.hz());
        self.gap.map(|gap| {
            let (seconds, rest) = (gap.ns / NS_PER_S, gap.ns % NS_PER_S);
            seconds * hz + rest * hz / NS_PER_S
        })
    }
}

const NS_PER_S: i128 = crate::scale::NS_PER_S as i128;

impl EventKind {
    /// What a VM would do, for messages.
    pub(super) const fn verb(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Restore => "be restored",
            Self::Observe => "be observed",
            Self::Pause => "be paused",
            Self::GuestSuspend => "suspend itself",
            Self::Resume => "be resumed",
            Self::Slept => "have slept through a host's sleep",
            Self::LivePhysicalTimeFound => "ask for live physical time",
            Self::GuestReset => "be reset",
        }
    }
}
