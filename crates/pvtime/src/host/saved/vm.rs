//! A VM's record.

use super::layout::{
    FLAG_GUEST_SUSPENDED, FLAG_LIVE, FLAG_LIVE_FOUND, FLAG_LIVE_RAN, FLAG_TOLD, FLAG_VIRTUAL_ONLY,
    FLAGS, VmLayout, by_cause, open, seal,
};
use super::{Record, SavedError};
use crate::abi::paused_time::{self, Pause, PausedTime};
use crate::host::live::{LiveError, LiveParts, LiveState};
use crate::host::timeline::{self, CounterScope, HostSample, TimelineError, WallStandard};
use crate::host::{Cause, GuestCount, HostCount, PausedNs};
use crate::scale::{Frequency, LiveTime};
use core::mem::size_of;

/// Sequence counts of the last publications, for
/// [`SequenceWriter::resume`](crate::seqlock::SequenceWriter::resume); 0 for none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sequences {
    /// Of live physical time.
    pub live_physical_time: u64,
    /// Of paused time.
    pub paused_time: u32,
}

/// A stopped VM's time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SavedVm {
    /// The host's clocks when the VM stopped.
    pub sample: HostSample,
    /// The guest's counter then.
    pub count: GuestCount,
    /// Why it stopped.
    pub cause: Cause,
    /// Whether its guest suspended itself, and is to be woken; the cause is then
    /// [`Cause::HostSuspend`], and there is no live physical time.
    pub guest_suspended: bool,
    /// Which counters the offset applied to.
    pub counters: CounterScope,
    /// Live physical time, if the VM has it.
    pub live: Option<LiveParts>,
    /// Time in which the VM was stopped.
    pub paused: PausedNs,
    /// What the guest was told of it, if it is told.
    pub paused_time: Option<PausedTime>,
    /// How far the publications went.
    pub sequences: Sequences,
}

impl SavedVm {
    /// Bytes of the record.
    pub const SIZE_BYTES: usize = size_of::<VmLayout>();

    /// The record's bytes.
    #[must_use]
    pub fn emit(&self) -> [u8; Self::SIZE_BYTES] {
        zerocopy::transmute!(seal(self.layout()))
    }

    /// The record in `bytes`.
    ///
    /// # Errors
    ///
    /// [`SavedError`] for everything but what [`emit`](Self::emit) gives.
    pub fn parse(bytes: &[u8]) -> Result<Self, SavedError> {
        let layout: VmLayout = open(bytes)?;
        let saved = Self::from_layout(&layout)?;
        saved.check()?;
        Ok(saved)
    }

    /// Whether the VM could go on at a host whose counter runs at `host`: as
    /// [`Timeline::admits`](crate::host::timeline::Timeline::admits), before there is a timeline.
    ///
    /// # Errors
    ///
    /// [`TimelineError::FrequencyDiffers`], and a rate that the structure cannot hold.
    pub fn admits(&self, host: Frequency) -> Result<(), TimelineError> {
        timeline::admits(self.sample.frequency, self.live, host)
    }

    /// Live physical time, checked against the rest.
    pub(in crate::host) fn checked_live(&self) -> Result<Option<LiveState>, LiveError> {
        let Some(parts) = self.live else {
            return Ok(None);
        };
        if parts.native != self.sample.frequency {
            return Err(LiveError::Inconsistent {
                what: "the native frequency",
            });
        }
        let live = LiveState::from_parts(parts)?;
        live.check_seen(self.count)?;
        Ok(Some(live))
    }

    fn check(&self) -> Result<(), SavedError> {
        self.checked_live()?;
        expect(
            !self.guest_suspended || self.cause == Cause::HostSuspend && self.live.is_none(),
            "a guest that suspended itself",
        )?;
        let Sequences {
            live_physical_time,
            paused_time,
        } = self.sequences;
        expect(
            live_physical_time % 2 == 0 && paused_time % 2 == 0,
            "an odd sequence",
        )?;
        expect(
            live_physical_time == 0 || self.live.is_some(),
            "the sequence of live physical time, which it does not have,",
        )?;
        expect(
            paused_time == 0 || self.paused_time.is_some(),
            "the sequence of paused time, which it does not have,",
        )?;
        let Some(told) = self.paused_time else {
            return Ok(());
        };
        let total_ns = self.paused.total_ns();
        expect(u128::from(told.paused_ns) <= total_ns, "the paused time")?;
        if told.events == 0 {
            return expect(told == PausedTime::default(), "a pause that never was");
        }
        expect(
            Cause::from_code(told.last.cause).is_some(),
            "the last cause",
        )?;
        expect(
            told.last.counter <= self.count.0,
            "the last pause's counter",
        )
    }

    fn layout(&self) -> VmLayout {
        let flag = |condition, flag| if condition { flag } else { 0 };
        let live = |flag: fn(&LiveParts) -> bool| self.live.as_ref().is_some_and(flag);
        let flags = flag(
            self.counters == CounterScope::VirtualOnly,
            FLAG_VIRTUAL_ONLY,
        ) | flag(self.live.is_some(), FLAG_LIVE)
            | flag(live(|live| live.found), FLAG_LIVE_FOUND)
            | flag(live(|live| live.ran), FLAG_LIVE_RAN)
            | flag(self.paused_time.is_some(), FLAG_TOLD)
            | flag(self.guest_suspended, FLAG_GUEST_SUSPENDED);
        let mut layout = VmLayout {
            frequency_hz: self.sample.frequency.hz().into(),
            host_counter: self.sample.counter.0.into(),
            guest_counter: self.count.0.into(),
            wall_ns: self.sample.wall_ns.into(),
            wall_error_ns: self.sample.wall_error_ns.into(),
            boottime_ns: self.sample.boottime_ns.into(),
            monotonic_ns: self.sample.monotonic_ns.into(),
            monotonic_raw_ns: self.sample.monotonic_raw_ns.into(),
            span_ns: self.sample.span_ns.into(),
            wall_standard: match self.sample.wall_standard {
                WallStandard::Realtime => 0.into(),
                WallStandard::Tai => 1.into(),
            },
            cause: paused_time::Cause::from(self.cause).0.into(),
            flags: flags.into(),
            live_sequence: self.sequences.live_physical_time.into(),
            paused_ns: self.paused.by_cause_ns().map(Into::into),
            told_sequence: self.sequences.paused_time.into(),
            ..VmLayout::default()
        };
        if let Some(live) = &self.live {
            lay_out_live(live, &mut layout);
        }
        if let Some(told) = &self.paused_time {
            lay_out_told(told, &mut layout);
        }
        layout
    }

    fn from_layout(layout: &VmLayout) -> Result<Self, SavedError> {
        let flags = layout.flags.get();
        expect(flags & !FLAGS == 0, "a flag")?;
        expect(layout.reserved == 0, "a reserved field")?;
        let has = |flag| flags & flag != 0;
        Ok(Self {
            sample: HostSample {
                counter: HostCount(layout.host_counter.get()),
                frequency: frequency(layout.frequency_hz.get(), "the counter's frequency")?,
                wall_ns: layout.wall_ns.get(),
                wall_standard: match layout.wall_standard.get() {
                    0 => WallStandard::Realtime,
                    1 => WallStandard::Tai,
                    _ => return Err(impossible("the wall clock")),
                },
                wall_error_ns: layout.wall_error_ns.get(),
                boottime_ns: layout.boottime_ns.get(),
                monotonic_ns: layout.monotonic_ns.get(),
                monotonic_raw_ns: layout.monotonic_raw_ns.get(),
                span_ns: layout.span_ns.get(),
            },
            count: GuestCount(layout.guest_counter.get()),
            cause: Cause::from_code(paused_time::Cause(layout.cause.get()))
                .ok_or(impossible("the cause"))?,
            guest_suspended: has(FLAG_GUEST_SUSPENDED),
            counters: if has(FLAG_VIRTUAL_ONLY) {
                CounterScope::VirtualOnly
            } else {
                CounterScope::Both
            },
            live: live(layout)?,
            paused: PausedNs::new(by_cause(layout.paused_ns)),
            paused_time: told(layout)?,
            sequences: Sequences {
                live_physical_time: layout.live_sequence.get(),
                paused_time: layout.told_sequence.get(),
            },
        })
    }
}

fn lay_out_live(live: &LiveParts, layout: &mut VmLayout) {
    // A rate that does not fit was never published, and 0 is refused when it is read.
    let pv_hz = live.pv.cntfrq().map_or(0, core::num::NonZeroU32::get);
    layout.pv_frequency_hz = pv_hz.into();
    layout.live_base_count = live.base_count.0.into();
    layout.live_base_ticks = live.base.ticks().into();
    layout.live_base_fraction = live.base.fraction().into();
    layout.live_seen = live.seen_pv.into();
}

fn live(layout: &VmLayout) -> Result<Option<LiveParts>, SavedError> {
    let has = |flag| layout.flags.get() & flag != 0;
    if !has(FLAG_LIVE) {
        let unused = [
            layout.pv_frequency_hz.get().into(),
            layout.live_base_count.get(),
            layout.live_base_ticks.get(),
            layout.live_base_fraction.get(),
            layout.live_seen.get(),
            u64::from(has(FLAG_LIVE_FOUND) || has(FLAG_LIVE_RAN)),
        ];
        expect(
            unused == [0; 6],
            "live physical time, which it does not have,",
        )?;
        return Ok(None);
    }
    Ok(Some(LiveParts {
        native: frequency(layout.frequency_hz.get(), "the counter's frequency")?,
        pv: frequency(layout.pv_frequency_hz.get().into(), "the PV frequency")?,
        base_count: GuestCount(layout.live_base_count.get()),
        base: LiveTime::from_parts(
            layout.live_base_ticks.get(),
            layout.live_base_fraction.get(),
        ),
        seen_pv: layout.live_seen.get(),
        ran: has(FLAG_LIVE_RAN),
        found: has(FLAG_LIVE_FOUND),
    }))
}

fn lay_out_told(told: &PausedTime, layout: &mut VmLayout) {
    layout.told_paused_ns = told.paused_ns.into();
    layout.told_events = told.events.into();
    layout.told_last_ns = told.last.physical_ns.into();
    layout.told_last_counter = told.last.counter.into();
    layout.told_last_error_ns = told.last.error_ns.into();
    layout.told_last_cause = told.last.cause.0.into();
    layout.told_last_frozen = u32::from(told.last.frozen).into();
}

fn told(layout: &VmLayout) -> Result<Option<PausedTime>, SavedError> {
    let told = PausedTime {
        paused_ns: layout.told_paused_ns.get(),
        events: layout.told_events.get(),
        last: Pause {
            frozen: match layout.told_last_frozen.get() {
                0 => false,
                1 => true,
                _ => return Err(impossible("whether the last pause froze")),
            },
            physical_ns: layout.told_last_ns.get(),
            error_ns: layout.told_last_error_ns.get(),
            counter: layout.told_last_counter.get(),
            cause: paused_time::Cause(layout.told_last_cause.get()),
        },
    };
    if layout.flags.get() & FLAG_TOLD == 0 {
        let unused = told == PausedTime::default();
        return expect(unused, "paused time, which it does not have,").map(|()| None);
    }
    Ok(Some(told))
}

fn frequency(hz: u64, field: &'static str) -> Result<Frequency, SavedError> {
    Frequency::from_hz(hz).map_err(|_| impossible(field))
}

const fn expect(holds: bool, field: &'static str) -> Result<(), SavedError> {
    if holds {
        Ok(())
    } else {
        Err(impossible(field))
    }
}

const fn impossible(field: &'static str) -> SavedError {
    SavedError::Field {
        record: Record::Vm,
        field,
    }
}
