//! Live physical time: a counter of constant frequency, whatever host the VM is on.
//!
//! One structure per VM, 48 bytes, which the hypervisor writes and every CPU of the guest reads.
//! It maps the native counter, whose frequency changes with the host, to the PV counter, whose
//! frequency does not: `PV = (native * scale_mult) >> fracbits`. The layout is that of the KVM
//! series of August 2020 ("Add pvtime LPT support"); no published text of DEN0057 has it.
//!
//! The sequence number counts runs in bits 63 to 1. That series never made it odd; this crate's
//! writer does while it writes, so a reader can tell an update in progress.

use super::error::{check_revision, check_sequence, take_bytes};
use super::{ParseError, Structure};
use crate::seqlock::Shape;
use core::mem::{offset_of, size_of};
use core::num::{NonZeroU32, NonZeroU64};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Size of the structure.
pub const SIZE_BYTES: usize = 48;
/// The structure's address is a multiple of this.
pub const ALIGNMENT_BYTES: usize = 64;
/// Its words, and which of them is the sequence number.
pub const SHAPE: Shape<u64> = Shape::new(
    SIZE_BYTES,
    offset_of!(LivePhysicalTimeLayout, sequence_number),
);

/// The two fields of the multiplier from native to PV ticks, for messages.
pub(crate) const TO_PV: [&str; 2] = ["scale_mult", "fracbits"];
const TO_NATIVE: [&str; 2] = ["rscale_mult", "rfracbits"];

/// The structure as it lies in guest memory; names and offsets as in the 2020 series.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(8))]
pub struct LivePhysicalTimeLayout {
    /// Offset 0: 0 for version 1.0.
    pub revision: U32,
    /// Offset 4: 0.
    pub attributes: U32,
    /// Offset 8: bits 63 to 1 count the runs, the first included; bit 0 says "being written".
    pub sequence_number: U64,
    /// Offset 16: frequency of this host's counter, Hz.
    pub native_freq: U32,
    /// Offset 20: frequency of the PV counter, Hz; constant for the life of the VM.
    pub pv_freq: U32,
    /// Offset 24: native to PV, a fraction with [`fracbits`](Self::fracbits) bits.
    pub scale_mult: U64,
    /// Offset 32: PV to native, a fraction with [`rfracbits`](Self::rfracbits) bits.
    pub rscale_mult: U64,
    /// Offset 40: fraction bits of [`scale_mult`](Self::scale_mult).
    pub fracbits: U32,
    /// Offset 44: fraction bits of [`rscale_mult`](Self::rscale_mult).
    pub rfracbits: U32,
}

const _: () = {
    assert!(size_of::<LivePhysicalTimeLayout>() == SIZE_BYTES);
    assert!(offset_of!(LivePhysicalTimeLayout, revision) == 0);
    assert!(offset_of!(LivePhysicalTimeLayout, attributes) == 4);
    assert!(offset_of!(LivePhysicalTimeLayout, sequence_number) == 8);
    assert!(offset_of!(LivePhysicalTimeLayout, native_freq) == 16);
    assert!(offset_of!(LivePhysicalTimeLayout, pv_freq) == 20);
    assert!(offset_of!(LivePhysicalTimeLayout, scale_mult) == 24);
    assert!(offset_of!(LivePhysicalTimeLayout, rscale_mult) == 32);
    assert!(offset_of!(LivePhysicalTimeLayout, fracbits) == 40);
    assert!(offset_of!(LivePhysicalTimeLayout, rfracbits) == 44);
};

/// A positive fixed-point number: `factor / 2^fraction_bits`.
///
/// At most 63 fraction bits, as the 2020 series has it, so that a 128-bit product shifted by them
/// is defined.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Multiplier {
    factor: NonZeroU64,
    fraction_bits: u32,
}

impl Multiplier {
    /// The most fraction bits that a multiplier has.
    pub const MAX_FRACTION_BITS: u32 = 63;

    /// `factor / 2^fraction_bits`, `None` above [`MAX_FRACTION_BITS`](Self::MAX_FRACTION_BITS).
    #[must_use]
    pub const fn new(factor: NonZeroU64, fraction_bits: u32) -> Option<Self> {
        if fraction_bits > Self::MAX_FRACTION_BITS {
            return None;
        }
        Some(Self {
            factor,
            fraction_bits,
        })
    }

    /// The numerator.
    #[must_use]
    pub const fn factor(self) -> NonZeroU64 {
        self.factor
    }

    /// The denominator's exponent of 2, 0 to 63.
    #[must_use]
    pub const fn fraction_bits(self) -> u32 {
        self.fraction_bits
    }

    /// The multiplier of two fields, named as in the structure.
    ///
    /// # Errors
    ///
    /// [`ParseError::Zero`] for a factor of 0, [`ParseError::OutOfRange`] above 63 fraction bits.
    pub(crate) fn parse(
        fields: [&'static str; 2],
        factor: u64,
        fraction_bits: u32,
    ) -> Result<Self, ParseError> {
        let structure = Structure::LivePhysicalTime;
        let [field, bits_field] = fields;
        let factor = NonZeroU64::new(factor).ok_or(ParseError::Zero { structure, field })?;
        Self::new(factor, fraction_bits).ok_or(ParseError::OutOfRange {
            structure,
            field: bits_field,
            found: fraction_bits,
            most: Self::MAX_FRACTION_BITS,
        })
    }
}

/// How a VM's PV counter follows from its native counter on this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LivePhysicalTime {
    /// Frequency of this host's counter.
    pub native_frequency_hz: NonZeroU32,
    /// Frequency of the PV counter.
    pub pv_frequency_hz: NonZeroU32,
    /// Native ticks to PV ticks.
    pub to_pv: Multiplier,
    /// PV ticks to native ticks.
    pub to_native: Multiplier,
}

impl LivePhysicalTime {
    /// Reads a structure's 48 bytes, a copy that nobody writes any more.
    ///
    /// # Errors
    ///
    /// [`ParseError::TooShort`] below 48 bytes, and what
    /// [`validate`](LivePhysicalTimeLayout::validate) refuses.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        let layout: LivePhysicalTimeLayout =
            take_bytes(Structure::LivePhysicalTime, SIZE_BYTES, bytes)?;
        layout.validate()
    }

    /// The layout of this value with the sequence number 0, which
    /// [`SequenceWriter`](crate::seqlock::SequenceWriter) replaces by its own.
    #[must_use]
    pub fn layout(&self) -> LivePhysicalTimeLayout {
        LivePhysicalTimeLayout {
            revision: U32::ZERO,
            attributes: U32::ZERO,
            sequence_number: U64::ZERO,
            native_freq: self.native_frequency_hz.get().into(),
            pv_freq: self.pv_frequency_hz.get().into(),
            scale_mult: self.to_pv.factor.get().into(),
            rscale_mult: self.to_native.factor.get().into(),
            fracbits: self.to_pv.fraction_bits.into(),
            rfracbits: self.to_native.fraction_bits.into(),
        }
    }

    /// The bytes of [`layout`](Self::layout).
    #[must_use]
    pub fn emit(&self) -> [u8; SIZE_BYTES] {
        zerocopy::transmute!(self.layout())
    }
}

impl LivePhysicalTimeLayout {
    /// The value, if every field has a meaning.
    ///
    /// # Errors
    ///
    /// [`ParseError::BeingWritten`] and [`ParseError::Unpublished`] for an odd sequence number and
    /// for 0, [`ParseError::Revision`] and [`ParseError::Attributes`] where these are not 0,
    /// [`ParseError::Zero`] for a frequency or a multiplier of 0, and [`ParseError::OutOfRange`]
    /// for more than 63 fraction bits.
    pub fn validate(&self) -> Result<LivePhysicalTime, ParseError> {
        let structure = Structure::LivePhysicalTime;
        let sequence = self.sequence_number.get();
        check_sequence(structure, sequence)?;
        if sequence == 0 {
            return Err(ParseError::Unpublished { structure });
        }
        check_revision(structure, self.revision.get(), self.attributes.get())?;
        let frequency = |field, value: U32| {
            NonZeroU32::new(value.get()).ok_or(ParseError::Zero { structure, field })
        };
        Ok(LivePhysicalTime {
            native_frequency_hz: frequency("native_freq", self.native_freq)?,
            pv_frequency_hz: frequency("pv_freq", self.pv_freq)?,
            to_pv: Multiplier::parse(TO_PV, self.scale_mult.get(), self.fracbits.get())?,
            to_native: Multiplier::parse(TO_NATIVE, self.rscale_mult.get(), self.rfracbits.get())?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const STRUCTURE: Structure = Structure::LivePhysicalTime;

    fn multiplier(factor: u64, fraction_bits: u32) -> Multiplier {
        Multiplier::new(NonZeroU64::new(factor).unwrap(), fraction_bits).unwrap()
    }

    /// 62.5 MHz seen as 100 MHz.
    fn value() -> LivePhysicalTime {
        LivePhysicalTime {
            native_frequency_hz: NonZeroU32::new(62_500_000).unwrap(),
            pv_frequency_hz: NonZeroU32::new(100_000_000).unwrap(),
            to_pv: multiplier(0xCCCC_CCCC_CCCC_CCCC, 63),
            to_native: multiplier(0x5000_0000_0000_0000, 63),
        }
    }

    fn published() -> [u8; SIZE_BYTES] {
        zerocopy::transmute!(LivePhysicalTimeLayout {
            sequence_number: 2.into(),
            ..value().layout()
        })
    }

    /// The published bytes with some at `offset` replaced.
    fn with<const N: usize>(offset: usize, bytes: [u8; N]) -> [u8; SIZE_BYTES] {
        let mut all = published();
        all[offset..offset + N].copy_from_slice(&bytes);
        all
    }

    #[test]
    fn the_bytes_are_those_of_the_2020_series() {
        let mut expected = [0; SIZE_BYTES];
        expected[16..20].copy_from_slice(&62_500_000u32.to_le_bytes());
        expected[20..24].copy_from_slice(&100_000_000u32.to_le_bytes());
        expected[24..32].copy_from_slice(&0xCCCC_CCCC_CCCC_CCCCu64.to_le_bytes());
        expected[32..40].copy_from_slice(&0x5000_0000_0000_0000u64.to_le_bytes());
        expected[40] = 63;
        expected[44] = 63;
        assert_eq!(value().emit(), expected);
    }

    #[test]
    fn l10_each_wrong_field_is_named() {
        let zero = |field| ParseError::Zero {
            structure: STRUCTURE,
            field,
        };
        let bits = |field, found| ParseError::OutOfRange {
            structure: STRUCTURE,
            field,
            found,
            most: 63,
        };
        for (bytes, error) in [
            (
                with(0, [1]),
                ParseError::Revision {
                    structure: STRUCTURE,
                    found: 1,
                    known: 0,
                },
            ),
            (
                with(7, [1]),
                ParseError::Attributes {
                    structure: STRUCTURE,
                    found: 1 << 24,
                },
            ),
            (
                with(8, [0]),
                ParseError::Unpublished {
                    structure: STRUCTURE,
                },
            ),
            (
                with(8, [5]),
                ParseError::BeingWritten {
                    structure: STRUCTURE,
                    sequence: 5,
                },
            ),
            (with(16, [0; 4]), zero("native_freq")),
            (with(20, [0; 4]), zero("pv_freq")),
            (with(24, [0; 8]), zero("scale_mult")),
            (with(32, [0; 8]), zero("rscale_mult")),
            (with(40, [64]), bits("fracbits", 64)),
            (with(44, [255; 4]), bits("rfracbits", u32::MAX)),
        ] {
            assert_eq!(LivePhysicalTime::parse(&bytes), Err(error));
        }
        assert_eq!(LivePhysicalTime::parse(&published()), Ok(value()));
    }

    #[test]
    fn l12_what_is_being_written_is_no_value_whatever_else_is_wrong() {
        let torn = [0xa5; SIZE_BYTES];
        assert_eq!(
            LivePhysicalTime::parse(&torn),
            Err(ParseError::BeingWritten {
                structure: STRUCTURE,
                sequence: 0xa5a5_a5a5_a5a5_a5a5
            })
        );
    }

    #[test]
    fn short_bytes_are_refused() {
        assert_eq!(
            LivePhysicalTime::parse(&published()[..47]),
            Err(ParseError::TooShort {
                structure: STRUCTURE,
                needed_bytes: 48,
                actual_bytes: 47
            })
        );
    }

    #[test]
    fn a_multiplier_has_at_most_63_fraction_bits() {
        assert_eq!(Multiplier::new(NonZeroU64::MIN, 64), None);
        assert_eq!(multiplier(7, 63).factor().get(), 7);
        assert_eq!(multiplier(7, 63).fraction_bits(), 63);
    }

    proptest! {
        #[test]
        fn any_value_round_trips(
            frequencies: [NonZeroU32; 2],
            factors: [NonZeroU64; 2],
            bits in [0u32..64, 0u32..64],
            runs in 1u64..1 << 63,
        ) {
            let value = LivePhysicalTime {
                native_frequency_hz: frequencies[0],
                pv_frequency_hz: frequencies[1],
                to_pv: Multiplier::new(factors[0], bits[0]).unwrap(),
                to_native: Multiplier::new(factors[1], bits[1]).unwrap(),
            };
            let sequence_number = (2 * runs).into();
            let layout = LivePhysicalTimeLayout { sequence_number, ..value.layout() };
            prop_assert_eq!(LivePhysicalTime::parse(layout.as_bytes()), Ok(value));
        }

        #[test]
        fn any_bytes_parse_or_are_refused(
            mut bytes: [u8; SIZE_BYTES],
            tame: bool,
        ) {
            if tame {
                bytes[..8].fill(0);
                bytes[8] &= !1;
                bytes[41..44].fill(0);
                bytes[45..].fill(0);
            }
            if let Ok(value) = LivePhysicalTime::parse(&bytes) {
                prop_assert_eq!(&value.emit()[16..], &bytes[16..]);
            }
        }
    }
}
