//! The validated value of a VMClock structure.

use super::{
    FLAG_DISRUPTION_IMMINENT, FLAG_DISRUPTION_SOON, FLAG_NOTIFICATION_PRESENT,
    FLAG_PERIOD_ESTERROR_VALID, FLAG_PERIOD_MAXERROR_VALID, FLAG_TAI_OFFSET_VALID,
    FLAG_TIME_ESTERROR_VALID, FLAG_TIME_MAXERROR_VALID, FLAG_TIME_MONOTONIC,
    FLAG_VM_GEN_COUNTER_PRESENT, LEAST_BYTES, MAGIC, SIZE_BYTES, VERSION, VmClockLayout,
};
use crate::abi::error::take_bytes;
use crate::abi::{ParseError, Structure};
use core::num::NonZeroU64;

/// Which counter the time goes with: any byte, of which these have a meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CounterId(pub u8);

impl CounterId {
    /// The Arm virtual counter, `CNTVCT_EL0`.
    pub const ARM_VCNT: Self = Self(0);
    /// The x86 time-stamp counter.
    pub const X86_TSC: Self = Self(1);
    /// None: the structure tells no time.
    pub const INVALID: Self = Self(0xFF);
}

/// How well the host's clock is kept: any byte, of which these have a meaning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct ClockStatus(pub u8);

impl ClockStatus {
    /// Nothing is known; the time is not to be used.
    pub const UNKNOWN: Self = Self(0);
    /// Not yet synchronized; the time is not to be used.
    pub const INITIALIZING: Self = Self(1);
    /// Synchronized: right within the errors that the structure states.
    pub const SYNCHRONIZED: Self = Self(2);
    /// Not synchronized any more, and still right within the errors that the structure states.
    pub const FREERUNNING: Self = Self(3);
    /// Broken; the time is not to be used.
    pub const UNRELIABLE: Self = Self(4);
}

/// How a guest ought to smear a leap second: any byte, of which these have a meaning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct SmearingHint(pub u8);

impl SmearingHint {
    /// Not at all.
    pub const STRICT: Self = Self(0);
    /// Linearly from noon to noon.
    pub const NOON_LINEAR: Self = Self(1);
    /// Over the last 1000 s before it (UTC-SLS).
    pub const UTC_SLS: Self = Self(2);
}

/// Where in a leap second the time is: any byte, of which these have a meaning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct LeapIndicator(pub u8);

impl LeapIndicator {
    /// No leap second is known to be near.
    pub const NONE: Self = Self(0);
    /// One will be added at the end of this month.
    pub const PRE_POS: Self = Self(1);
    /// One will be left out at the end of this month.
    pub const PRE_NEG: Self = Self(2);
    /// This is it: 23:59:60.
    pub const POS: Self = Self(3);
    /// One was added at the end of last month.
    pub const POST_POS: Self = Self(4);
    /// One was left out at the end of last month.
    pub const POST_NEG: Self = Self(5);
}

/// What `time_sec` counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TimeType {
    /// Since 1970-01-01 00:00:00 UTC, leap seconds not counted.
    Utc,
    /// Since 1970-01-01 00:00:00 TAI.
    Tai,
    /// Since an unnamed moment.
    Monotonic,
}

impl TimeType {
    /// The last code that may be used; the two smeared ones above it are reserved.
    pub(super) const MOST: u8 = 2;

    pub(super) const fn from_code(code: u8) -> Option<Self> {
        match code {
            0 => Some(Self::Utc),
            1 => Some(Self::Tai),
            2 => Some(Self::Monotonic),
            _ => None,
        }
    }

    const fn code(self) -> u8 {
        match self {
            Self::Utc => 0,
            Self::Tai => 1,
            Self::Monotonic => 2,
        }
    }
}

/// Length of a counter's tick.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Period {
    frac_sec: NonZeroU64,
    shift: u8,
}

impl Period {
    /// The largest [`shift`](Self::shift).
    pub const MAX_SHIFT: u8 = 63;

    /// `frac_sec` units of 2^-(64 + `shift`) s; `None` above [`MAX_SHIFT`](Self::MAX_SHIFT).
    #[must_use]
    pub const fn new(frac_sec: NonZeroU64, shift: u8) -> Option<Self> {
        if shift > Self::MAX_SHIFT {
            return None;
        }
        Some(Self { frac_sec, shift })
    }

    /// The length in units of 2^-(64 + [`shift`](Self::shift)) s.
    #[must_use]
    pub const fn frac_sec(self) -> NonZeroU64 {
        self.frac_sec
    }

    /// How much finer the unit is than 2^-64 s, 0 to 63.
    #[must_use]
    pub const fn shift(self) -> u8 {
        self.shift
    }
}

/// A moment, on a counter and on a clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reference {
    /// The counter.
    pub counter_id: CounterId,
    /// Its value at the moment, ticks.
    pub counter_value: u64,
    /// Length of its tick.
    pub period: Period,
    /// Estimated error of the period, in the period's unit, if the host states it.
    pub period_esterror_frac_sec: Option<u64>,
    /// Bound on the error of the period, in the period's unit, if the host states it.
    pub period_maxerror_frac_sec: Option<u64>,
    /// The moment's whole seconds, since what [`VmClock::time_type`] says.
    pub time_sec: u64,
    /// The rest of them, in 2^-64 s.
    pub time_frac_sec: u64,
    /// Estimated error of the time, nanoseconds, if the host states it.
    pub time_esterror_ns: Option<u64>,
    /// Bound on the error of the time, nanoseconds, if the host states it.
    pub time_maxerror_ns: Option<u64>,
}

/// When the host expects the next disruption.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Disruption {
    /// None is announced.
    #[default]
    None,
    /// Within about a day.
    Soon,
    /// Within about an hour.
    Imminent,
}

/// What the host says about time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VmClock {
    /// Bytes of the region that holds the structure.
    pub region_bytes: u32,
    /// Another value after each disruption: what the guest knew about its counter is void.
    pub disruption_marker: u64,
    /// Whether the next disruption is near.
    pub next_disruption: Disruption,
    /// How well the host's clock is kept.
    pub status: ClockStatus,
    /// What the seconds of [`reference`](Self::reference) count.
    pub time_type: TimeType,
    /// A moment to compute time from, if the host gives one.
    pub reference: Option<Reference>,
    /// Whether a time from an older publication is never later than one from a newer.
    pub monotonic: bool,
    /// Seconds to add to TAI for UTC, if known; -37 in 2026.
    pub tai_offset_sec: Option<i16>,
    /// Where in a leap second the time is.
    pub leap_indicator: LeapIndicator,
    /// How a guest ought to smear a leap second.
    pub smearing_hint: SmearingHint,
    /// Another value when the VM may exist twice, if the host keeps one.
    pub vm_generation: Option<u64>,
    /// Whether an interrupt follows each publication.
    pub notifies: bool,
}

impl VmClock {
    /// A clock that tells no time, only disruptions: all that an untrusted or clockless host can
    /// say.
    #[must_use]
    pub const fn without_time(region_bytes: u32) -> Self {
        Self {
            region_bytes,
            disruption_marker: 0,
            next_disruption: Disruption::None,
            status: ClockStatus::UNKNOWN,
            time_type: TimeType::Utc,
            reference: None,
            monotonic: false,
            tai_offset_sec: None,
            leap_indicator: LeapIndicator::NONE,
            smearing_hint: SmearingHint::STRICT,
            vm_generation: None,
            notifies: false,
        }
    }

    /// Reads a structure from all the bytes of its region, a copy that nobody writes any more.
    ///
    /// Fields beyond the size that the structure says are absent, and so are those that its flags
    /// do not vouch for.
    ///
    /// # Errors
    ///
    /// [`ParseError::TooShort`] below 0x20 bytes; [`ParseError::Magic`]; [`ParseError::Version`];
    /// [`ParseError::Size`] below 0x20 or above the length of `bytes`;
    /// [`ParseError::BeingWritten`] for an odd sequence count; [`ParseError::OutOfRange`] for a
    /// time type above 2 or a shift above 63; [`ParseError::Zero`] for a counter without a period.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        let layout: VmClockLayout = take_bytes(Structure::VmClock, LEAST_BYTES, bytes)?;
        layout.validate(bytes.len())
    }

    /// The layout of this value with the sequence count 0, which
    /// [`SequenceWriter`](crate::seqlock::SequenceWriter) replaces by its own.
    #[must_use]
    pub fn layout(&self) -> VmClockLayout {
        let mut layout = VmClockLayout {
            magic: MAGIC.into(),
            size: self.region_bytes.into(),
            version: VERSION.into(),
            counter_id: CounterId::INVALID.0,
            time_type: self.time_type.code(),
            disruption_marker: self.disruption_marker.into(),
            flags: self.flags().into(),
            clock_status: self.status.0,
            leap_second_smearing_hint: self.smearing_hint.0,
            tai_offset_sec: self.tai_offset_sec.unwrap_or(0).into(),
            leap_indicator: self.leap_indicator.0,
            vm_generation_counter: self.vm_generation.unwrap_or(0).into(),
            ..zerocopy::transmute!([0u8; SIZE_BYTES])
        };
        if let Some(reference) = &self.reference {
            reference.fill(&mut layout);
        }
        layout
    }

    /// The bytes of [`layout`](Self::layout).
    #[must_use]
    pub fn emit(&self) -> [u8; SIZE_BYTES] {
        zerocopy::transmute!(self.layout())
    }

    fn flags(&self) -> u64 {
        let flag = |holds, flag| if holds { flag } else { 0 };
        let disruption = match self.next_disruption {
            Disruption::None => 0,
            Disruption::Soon => FLAG_DISRUPTION_SOON,
            Disruption::Imminent => FLAG_DISRUPTION_IMMINENT,
        };
        disruption
            | flag(self.tai_offset_sec.is_some(), FLAG_TAI_OFFSET_VALID)
            | flag(self.monotonic, FLAG_TIME_MONOTONIC)
            | flag(self.vm_generation.is_some(), FLAG_VM_GEN_COUNTER_PRESENT)
            | flag(self.notifies, FLAG_NOTIFICATION_PRESENT)
            | self.reference.map_or(0, |reference| reference.flags())
    }
}

impl Reference {
    fn flags(&self) -> u64 {
        let flag = |holds, flag| if holds { flag } else { 0 };
        flag(
            self.period_esterror_frac_sec.is_some(),
            FLAG_PERIOD_ESTERROR_VALID,
        ) | flag(
            self.period_maxerror_frac_sec.is_some(),
            FLAG_PERIOD_MAXERROR_VALID,
        ) | flag(self.time_esterror_ns.is_some(), FLAG_TIME_ESTERROR_VALID)
            | flag(self.time_maxerror_ns.is_some(), FLAG_TIME_MAXERROR_VALID)
    }

    fn fill(&self, layout: &mut VmClockLayout) {
        layout.counter_id = self.counter_id.0;
        layout.counter_period_shift = self.period.shift;
        layout.counter_value = self.counter_value.into();
        layout.counter_period_frac_sec = self.period.frac_sec.get().into();
        layout.counter_period_esterror_rate_frac_sec =
            self.period_esterror_frac_sec.unwrap_or(0).into();
        layout.counter_period_maxerror_rate_frac_sec =
            self.period_maxerror_frac_sec.unwrap_or(0).into();
        layout.time_sec = self.time_sec.into();
        layout.time_frac_sec = self.time_frac_sec.into();
        layout.time_esterror_nanosec = self.time_esterror_ns.unwrap_or(0).into();
        layout.time_maxerror_nanosec = self.time_maxerror_ns.unwrap_or(0).into();
    }
}
