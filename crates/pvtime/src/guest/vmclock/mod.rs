//! Real time from a VMClock.

mod utc;

pub use utc::Utc;

use super::{Counter, GuestError};
use crate::abi::vmclock::{
    ClockStatus, LeapIndicator, Period, Reference, SHAPE, SIZE_BYTES, TimeType, VmClock,
    VmClockLayout,
};
use crate::scale::{ScaleError, Timestamp};
use crate::seqlock::{ATTEMPTS, ReadWords, SequenceReader, Word};
use core::num::NonZeroU64;

const WORDS: usize = SIZE_BYTES / u32::BYTES;

/// A VM's VMClock, and the counter that it goes with.
#[derive(Clone, Copy, Debug)]
pub struct VmClockReader<M, C> {
    reader: SequenceReader<u32, M>,
    mapped_bytes: usize,
    counter: C,
    patience_ticks: u64,
}

impl<M: ReadWords<u32>, C: Counter> VmClockReader<M, C> {
    /// Checks the structure at the start of the region that the device tree or ACPI names.
    ///
    /// `memory` is all of the region: a structure that says it is larger is refused.
    ///
    /// # Errors
    ///
    /// As [`read`](Self::read), and [`ReadError::TooShort`](crate::seqlock::ReadError::TooShort)
    /// for a region of less than 112 bytes.
    pub fn attach(memory: M, counter: C) -> Result<Self, GuestError> {
        let mapped_bytes = memory.len() * u32::BYTES;
        let reader = SequenceReader::attach(memory, SHAPE)?;
        let attached = Self {
            reader,
            mapped_bytes,
            counter,
            patience_ticks: u64::MAX,
        };
        attached.read()?;
        Ok(attached)
    }

    /// Gives up an update that takes longer than `ticks` of the counter; Linux waits for 100 ms.
    ///
    /// Without it, and on a counter that stands still, the number of attempts is what ends a wait.
    #[must_use]
    pub fn with_patience_ticks(self, ticks: u64) -> Self {
        Self {
            patience_ticks: ticks,
            ..self
        }
    }

    /// What the host says about time.
    ///
    /// # Errors
    ///
    /// [`GuestError::Read`] if the structure is not still, [`GuestError::Parse`] if it is none.
    pub fn read(&self) -> Result<VmClock, GuestError> {
        Ok(self.sample()?.0)
    }

    /// Real time now.
    ///
    /// # Errors
    ///
    /// As [`read`](Self::read); [`GuestError::Untrusted`] unless the host's clock is synchronized
    /// or free-running; [`GuestError::NoTime`] and [`GuestError::OtherCounter`] if the structure
    /// has no time, or none for this counter; [`GuestError::Scale`] if the time is out of range.
    pub fn now(&self) -> Result<RealTime, GuestError> {
        let (clock, count) = self.sample()?;
        let status = clock.status;
        if ![ClockStatus::SYNCHRONIZED, ClockStatus::FREERUNNING].contains(&status) {
            return Err(GuestError::Untrusted { status });
        }
        let reference = clock.reference.ok_or(GuestError::NoTime)?;
        let (published, ours) = (reference.counter_id, self.counter.id());
        if published != ours {
            return Err(GuestError::OtherCounter { published, ours });
        }
        Ok(RealTime::at(count, &clock, &reference)?)
    }

    /// The structure and the counter, at one moment.
    fn sample(&self) -> Result<(VmClock, u64), GuestError> {
        let start = self.counter.read_unordered();
        let patient = |attempts| {
            let waited_ticks = self.counter.read_unordered().wrapping_sub(start);
            attempts < ATTEMPTS && waited_ticks <= self.patience_ticks
        };
        let (count, words) = self.reader.read_while(patient, |memory| {
            (self.counter.read_ordered(), memory.copy::<WORDS>())
        })?;
        let layout: VmClockLayout = zerocopy::transmute!(words);
        Ok((layout.validate(self.mapped_bytes)?, count))
    }
}

/// A reading of real time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RealTime {
    /// The time, since what [`time_type`](Self::time_type) says.
    pub time: Timestamp,
    /// What the time counts.
    pub time_type: TimeType,
    /// Estimated error of the time, nanoseconds, if the host states it.
    pub esterror_ns: Option<u64>,
    /// Bound on the error of the time, nanoseconds, if the host states it.
    pub maxerror_ns: Option<u64>,
    /// The disruption marker that holds for the time.
    pub disruption_marker: u64,
    reference_sec: u64,
    tai_offset_sec: Option<i16>,
    leap_indicator: LeapIndicator,
}

impl RealTime {
    /// `reference + (count - counter_value) * period`, with the difference taken modulo 2^64 and
    /// read as signed: a count may lie shortly before the reference.
    fn at(count: u64, clock: &VmClock, reference: &Reference) -> Result<Self, ScaleError> {
        let ticks = count.wrapping_sub(reference.counter_value).cast_signed();
        let period = reference.period;
        let span = period.elapsed(ticks.unsigned_abs());
        let start = Timestamp::from_parts(reference.time_sec, reference.time_frac_sec);
        let error = |at_reference_ns, rate| bound(at_reference_ns, rate, period, ticks);
        Ok(Self {
            time: if ticks < 0 {
                start.minus(span)?
            } else {
                start.plus(span)?
            },
            time_type: clock.time_type,
            esterror_ns: error(
                reference.time_esterror_ns,
                reference.period_esterror_frac_sec,
            )?,
            maxerror_ns: error(
                reference.time_maxerror_ns,
                reference.period_maxerror_frac_sec,
            )?,
            disruption_marker: clock.disruption_marker,
            reference_sec: reference.time_sec,
            tai_offset_sec: clock.tai_offset_sec,
            leap_indicator: clock.leap_indicator,
        })
    }

    /// The time as UTC, with the leap second that the structure announces or is in.
    ///
    /// # Errors
    ///
    /// [`GuestError::NotUtc`] for monotonic time, and for TAI without an offset;
    /// [`GuestError::LeapOutOfPlace`] and [`GuestError::LeapUnknown`] if the leap indicator cannot
    /// be; [`GuestError::Scale`] before 1970.
    pub fn utc(&self) -> Result<Utc, GuestError> {
        let offset_sec = match (self.time_type, self.tai_offset_sec) {
            (TimeType::Utc, _) => 0,
            (TimeType::Tai, Some(offset_sec)) => offset_sec.into(),
            (time_type, _) => return Err(GuestError::NotUtc { time_type }),
        };
        let utc_sec = |sec: u64| {
            sec.checked_add_signed(offset_sec)
                .ok_or(ScaleError::TimestampTooEarly)
        };
        let (reference_sec, sec) = (utc_sec(self.reference_sec)?, utc_sec(self.time.sec())?);
        let (sec, leap_second) = utc::with_leap_second(self.leap_indicator, reference_sec, sec)?;
        Ok(Utc {
            sec,
            frac_sec: self.time.frac_sec(),
            leap_second,
        })
    }
}

/// An error that was `at_reference_ns` and grows by `rate` a tick in the period's unit, after
/// `ticks`; unknown if either is.
fn bound(
    at_reference_ns: Option<u64>,
    rate: Option<u64>,
    period: Period,
    ticks: i64,
) -> Result<Option<u64>, ScaleError> {
    let (Some(at_reference_ns), Some(rate)) = (at_reference_ns, rate) else {
        return Ok(None);
    };
    let rate = NonZeroU64::new(rate).and_then(|rate| Period::new(rate, period.shift()));
    // An error that does not grow has no rate.
    rate.map_or(Ok(at_reference_ns), |rate| {
        rate.bound_ns(at_reference_ns, ticks.unsigned_abs())
    })
    .map(Some)
}

#[cfg(test)]
mod tests;
