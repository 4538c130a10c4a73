//! VMClock: what the host knows of real time, and whether the VM was disrupted.
//!
//! One structure per VM on a page of its own, which the host writes and the guest reads. The
//! canonical text is Linux's `include/uapi/linux/vmclock-abi.h`; version 1.0 of the published
//! specification had the generation counter at another offset and other flag bits, its version 1.1
//! agrees with the header, and so does this module.

mod value;

pub use value::{
    ClockStatus, CounterId, Disruption, LeapIndicator, Period, Reference, SmearingHint, TimeType,
    VmClock,
};

use super::error::check_sequence;
use super::{ParseError, Structure};
use crate::seqlock::Shape;
use core::mem::{offset_of, size_of};
use core::num::NonZeroU64;
use zerocopy::little_endian::{I16, U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// "VCLK" in memory.
pub const MAGIC: u32 = u32::from_le_bytes(*b"VCLK");
/// Size of the fields that this crate knows.
pub const SIZE_BYTES: usize = 0x70;
/// The least size that any version has: up to and with [`flags`](VmClockLayout::flags).
pub const LEAST_BYTES: usize = 0x20;
/// The version that this crate writes and reads.
pub const VERSION: u16 = 1;
/// Its words, and which of them is the sequence count.
pub const SHAPE: Shape<u32> = Shape::new(SIZE_BYTES, offset_of!(VmClockLayout, seq_count));

/// `tai_offset_sec` holds.
pub const FLAG_TAI_OFFSET_VALID: u64 = 1 << 0;
/// A disruption is expected within about a day.
pub const FLAG_DISRUPTION_SOON: u64 = 1 << 1;
/// A disruption is expected within about an hour.
pub const FLAG_DISRUPTION_IMMINENT: u64 = 1 << 2;
/// `counter_period_esterror_rate_frac_sec` holds.
pub const FLAG_PERIOD_ESTERROR_VALID: u64 = 1 << 3;
/// `counter_period_maxerror_rate_frac_sec` holds.
pub const FLAG_PERIOD_MAXERROR_VALID: u64 = 1 << 4;
/// `time_esterror_nanosec` holds.
pub const FLAG_TIME_ESTERROR_VALID: u64 = 1 << 5;
/// `time_maxerror_nanosec` holds.
pub const FLAG_TIME_MAXERROR_VALID: u64 = 1 << 6;
/// A time from an older publication is never later than one from a newer, leap seconds excepted.
pub const FLAG_TIME_MONOTONIC: u64 = 1 << 7;
/// `vm_generation_counter` holds.
pub const FLAG_VM_GEN_COUNTER_PRESENT: u64 = 1 << 8;
/// The host interrupts the guest after each publication.
pub const FLAG_NOTIFICATION_PRESENT: u64 = 1 << 9;

/// The structure as it lies in guest memory; names and offsets as in the Linux header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(8))]
pub struct VmClockLayout {
    /// Offset 0x00: [`MAGIC`].
    pub magic: U32,
    /// Offset 0x04: bytes of the region that holds the structure.
    pub size: U32,
    /// Offset 0x08: [`VERSION`].
    pub version: U16,
    /// Offset 0x0A: a [`CounterId`].
    pub counter_id: u8,
    /// Offset 0x0B: a [`TimeType`].
    pub time_type: u8,
    /// Offset 0x0C: odd while the structure is written.
    pub seq_count: U32,
    /// Offset 0x10: another value after each disruption.
    pub disruption_marker: U64,
    /// Offset 0x18: the `FLAG_` bits.
    pub flags: U64,
    /// Offset 0x20: nothing.
    pub pad: [u8; 2],
    /// Offset 0x22: a [`ClockStatus`].
    pub clock_status: u8,
    /// Offset 0x23: a [`SmearingHint`].
    pub leap_second_smearing_hint: u8,
    /// Offset 0x24: seconds to add to TAI for UTC, -37 in 2026.
    pub tai_offset_sec: I16,
    /// Offset 0x26: a [`LeapIndicator`].
    pub leap_indicator: u8,
    /// Offset 0x27: see `counter_period_frac_sec`.
    pub counter_period_shift: u8,
    /// Offset 0x28: ticks, the counter at the time below.
    pub counter_value: U64,
    /// Offset 0x30: length of a tick in 2^-(64 + `counter_period_shift`) s.
    pub counter_period_frac_sec: U64,
    /// Offset 0x38: estimated error of the period, in the period's unit.
    pub counter_period_esterror_rate_frac_sec: U64,
    /// Offset 0x40: bound on the error of the period, in the period's unit.
    pub counter_period_maxerror_rate_frac_sec: U64,
    /// Offset 0x48: whole seconds of the time at `counter_value`.
    pub time_sec: U64,
    /// Offset 0x50: the rest of it in 2^-64 s.
    pub time_frac_sec: U64,
    /// Offset 0x58: estimated error of that time, nanoseconds.
    pub time_esterror_nanosec: U64,
    /// Offset 0x60: bound on the error of that time, nanoseconds.
    pub time_maxerror_nanosec: U64,
    /// Offset 0x68: another value when the VM may exist twice.
    pub vm_generation_counter: U64,
}

const _: () = {
    assert!(size_of::<VmClockLayout>() == SIZE_BYTES);
    assert!(offset_of!(VmClockLayout, magic) == 0x00);
    assert!(offset_of!(VmClockLayout, size) == 0x04);
    assert!(offset_of!(VmClockLayout, version) == 0x08);
    assert!(offset_of!(VmClockLayout, counter_id) == 0x0A);
    assert!(offset_of!(VmClockLayout, time_type) == 0x0B);
    assert!(offset_of!(VmClockLayout, seq_count) == 0x0C);
    assert!(offset_of!(VmClockLayout, disruption_marker) == 0x10);
    assert!(offset_of!(VmClockLayout, flags) == 0x18);
    assert!(offset_of!(VmClockLayout, pad) == LEAST_BYTES);
    assert!(offset_of!(VmClockLayout, clock_status) == 0x22);
    assert!(offset_of!(VmClockLayout, leap_second_smearing_hint) == 0x23);
    assert!(offset_of!(VmClockLayout, tai_offset_sec) == 0x24);
    assert!(offset_of!(VmClockLayout, leap_indicator) == 0x26);
    assert!(offset_of!(VmClockLayout, counter_period_shift) == 0x27);
    assert!(offset_of!(VmClockLayout, counter_value) == 0x28);
    assert!(offset_of!(VmClockLayout, counter_period_frac_sec) == 0x30);
    assert!(offset_of!(VmClockLayout, counter_period_esterror_rate_frac_sec) == 0x38);
    assert!(offset_of!(VmClockLayout, counter_period_maxerror_rate_frac_sec) == 0x40);
    assert!(offset_of!(VmClockLayout, time_sec) == 0x48);
    assert!(offset_of!(VmClockLayout, time_frac_sec) == 0x50);
    assert!(offset_of!(VmClockLayout, time_esterror_nanosec) == 0x58);
    assert!(offset_of!(VmClockLayout, time_maxerror_nanosec) == 0x60);
    assert!(offset_of!(VmClockLayout, vm_generation_counter) == 0x68);
};

impl VmClockLayout {
    /// The value of a structure of which `mapped_bytes` bytes can be read.
    ///
    /// # Errors
    ///
    /// As [`VmClock::parse`].
    pub fn validate(&self, mapped_bytes: usize) -> Result<VmClock, ParseError> {
        let structure = Structure::VmClock;
        if self.magic != MAGIC {
            let found = self.magic.get();
            return Err(ParseError::Magic {
                structure,
                found,
                expected: MAGIC,
            });
        }
        if self.version != VERSION {
            let found = self.version.get();
            return Err(ParseError::Version {
                structure,
                found,
                known: VERSION,
            });
        }
        let found = self.size.get();
        if !(LEAST_BYTES..=mapped_bytes).contains(&(found as usize)) {
            return Err(ParseError::Size {
                structure,
                found,
                least: LEAST_BYTES,
                most: mapped_bytes,
            });
        }
        check_sequence(structure, self.seq_count.get().into())?;
        self.value()
    }

    fn value(&self) -> Result<VmClock, ParseError> {
        let present = |end: usize| self.size.get() as usize >= end;
        let status_present = present(offset_of!(Self, counter_value));
        let byte = |value| if status_present { value } else { 0 };
        Ok(VmClock {
            region_bytes: self.size.get(),
            disruption_marker: self.disruption_marker.get(),
            next_disruption: self.next_disruption(),
            status: ClockStatus(byte(self.clock_status)),
            time_type: TimeType::from_code(self.time_type).ok_or(out_of_range(
                "time_type",
                self.time_type,
                TimeType::MOST,
            ))?,
            reference: self.reference()?,
            monotonic: self.has(FLAG_TIME_MONOTONIC),
            tai_offset_sec: (status_present && self.has(FLAG_TAI_OFFSET_VALID))
                .then(|| self.tai_offset_sec.get()),
            leap_indicator: LeapIndicator(byte(self.leap_indicator)),
            smearing_hint: SmearingHint(byte(self.leap_second_smearing_hint)),
            vm_generation: (present(SIZE_BYTES) && self.has(FLAG_VM_GEN_COUNTER_PRESENT))
                .then(|| self.vm_generation_counter.get()),
            notifies: self.has(FLAG_NOTIFICATION_PRESENT),
        })
    }

    fn has(&self, flag: u64) -> bool {
        self.flags.get() & flag != 0
    }

    fn next_disruption(&self) -> Disruption {
        if self.has(FLAG_DISRUPTION_IMMINENT) {
            Disruption::Imminent
        } else if self.has(FLAG_DISRUPTION_SOON) {
            Disruption::Soon
        } else {
            Disruption::None
        }
    }

    fn reference(&self) -> Result<Option<Reference>, ParseError> {
        let size = self.size.get() as usize;
        let counter_id = CounterId(self.counter_id);
        if counter_id == CounterId::INVALID || size < offset_of!(Self, time_esterror_nanosec) {
            return Ok(None);
        }
        let stated = |flag, end, value: U64| (self.has(flag) && size >= end).then(|| value.get());
        Ok(Some(Reference {
            counter_id,
            counter_value: self.counter_value.get(),
            period: self.period()?,
            period_esterror_frac_sec: stated(
                FLAG_PERIOD_ESTERROR_VALID,
                offset_of!(Self, counter_period_maxerror_rate_frac_sec),
                self.counter_period_esterror_rate_frac_sec,
            ),
            period_maxerror_frac_sec: stated(
                FLAG_PERIOD_MAXERROR_VALID,
                offset_of!(Self, time_sec),
                self.counter_period_maxerror_rate_frac_sec,
            ),
            time_sec: self.time_sec.get(),
            time_frac_sec: self.time_frac_sec.get(),
            time_esterror_ns: stated(
                FLAG_TIME_ESTERROR_VALID,
                offset_of!(Self, time_maxerror_nanosec),
                self.time_esterror_nanosec,
            ),
            time_maxerror_ns: stated(
                FLAG_TIME_MAXERROR_VALID,
                offset_of!(Self, vm_generation_counter),
                self.time_maxerror_nanosec,
            ),
        }))
    }

    fn period(&self) -> Result<Period, ParseError> {
        let structure = Structure::VmClock;
        let frac_sec =
            NonZeroU64::new(self.counter_period_frac_sec.get()).ok_or(ParseError::Zero {
                structure,
                field: "counter_period_frac_sec",
            })?;
        let shift = self.counter_period_shift;
        Period::new(frac_sec, shift).ok_or(out_of_range(
            "counter_period_shift",
            shift,
            Period::MAX_SHIFT,
        ))
    }
}

fn out_of_range(field: &'static str, found: u8, most: u8) -> ParseError {
    let structure = Structure::VmClock;
    ParseError::OutOfRange {
        structure,
        field,
        found: found.into(),
        most: most.into(),
    }
}

#[cfg(test)]
mod tests;
