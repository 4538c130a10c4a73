//! Stolen time: how long the host let a vCPU wait although it could run (DEN0057A 1.0).
//!
//! One structure per vCPU, 64 bytes, which the hypervisor writes and the guest reads. There is no
//! sequence count: the counter is one aligned 64-bit store, so it is whole at any moment. Only the
//! calling vCPU's own address is known to a guest; how the structures of several vCPUs lie to each
//! other is the VMM's choice.

use super::error::{check_revision, take_bytes};
use super::{ParseError, Structure};
use core::mem::{offset_of, size_of};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Bytes from one vCPU's structure to the next, and the alignment of each address.
pub const STRIDE_BYTES: usize = 64;
/// Bytes that a guest may rely on; the rest of the 64 is padding.
pub const MEANINGFUL_BYTES: usize = 16;
/// The 64-bit word of the structure that holds the counter.
pub const STOLEN_WORD: usize = offset_of!(StolenTimeLayout, stolen_ns) / 8;

/// The structure as it lies in guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(8))]
pub struct StolenTimeLayout {
    /// Offset 0: 0, the revision of DEN0057A 1.0.
    pub revision: U32,
    /// Offset 4: 0 in revision 0.
    pub attributes: U32,
    /// Offset 8: nanoseconds, unsigned, never decreasing between two `PV_TIME_ST` calls.
    pub stolen_ns: U64,
    /// Offset 16: zero when the structure starts, not guaranteed to stay so.
    pub padding: [u8; 48],
}

const _: () = {
    assert!(size_of::<StolenTimeLayout>() == STRIDE_BYTES);
    assert!(offset_of!(StolenTimeLayout, revision) == 0);
    assert!(offset_of!(StolenTimeLayout, attributes) == 4);
    assert!(offset_of!(StolenTimeLayout, stolen_ns) == 8);
    assert!(offset_of!(StolenTimeLayout, padding) == MEANINGFUL_BYTES);
};

/// A vCPU's stolen time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct StolenTime {
    /// Nanoseconds stolen since the guest's last `PV_TIME_ST` call on this vCPU.
    pub stolen_ns: u64,
}

impl StolenTime {
    /// Reads the first 16 bytes or more of a structure.
    ///
    /// # Errors
    ///
    /// [`ParseError::TooShort`] below 16 bytes, [`ParseError::Revision`] and
    /// [`ParseError::Attributes`] where these are not 0: a later revision may mean anything.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        let layout: StolenTimeLayout = take_bytes(Structure::StolenTime, MEANINGFUL_BYTES, bytes)?;
        layout.validate()
    }

    /// The 64 bytes that say this value, padding zero.
    #[must_use]
    pub fn emit(self) -> [u8; STRIDE_BYTES] {
        let stolen_ns = self.stolen_ns.into();
        zerocopy::transmute!(StolenTimeLayout {
            stolen_ns,
            ..StolenTimeLayout::ZERO
        })
    }
}

impl StolenTimeLayout {
    /// What `PV_TIME_ST` leaves behind: revision 0, nothing stolen.
    pub const ZERO: Self = Self {
        revision: U32::ZERO,
        attributes: U32::ZERO,
        stolen_ns: U64::ZERO,
        padding: [0; 48],
    };

    /// The value, if the revision and the attributes are the known ones.
    ///
    /// # Errors
    ///
    /// [`ParseError::Revision`] and [`ParseError::Attributes`].
    pub fn validate(&self) -> Result<StolenTime, ParseError> {
        check_revision(
            Structure::StolenTime,
            self.revision.get(),
            self.attributes.get(),
        )?;
        Ok(StolenTime {
            stolen_ns: self.stolen_ns.get(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bytes(stolen_ns: u64) -> [u8; STRIDE_BYTES] {
        StolenTime { stolen_ns }.emit()
    }

    #[test]
    fn m1_little_endian_at_offset_8_and_zero_elsewhere() {
        let mut expected = [0; 64];
        expected[8..16].copy_from_slice(&[8, 7, 6, 5, 4, 3, 2, 1]);
        assert_eq!(bytes(0x0102_0304_0506_0708), expected);
    }

    #[test]
    fn m1_sixteen_bytes_are_enough_and_fifteen_are_not() {
        assert_eq!(
            StolenTime::parse(&bytes(7)[..16]),
            Ok(StolenTime { stolen_ns: 7 })
        );
        for actual_bytes in 0..16 {
            assert_eq!(
                StolenTime::parse(&bytes(7)[..actual_bytes]),
                Err(ParseError::TooShort {
                    structure: Structure::StolenTime,
                    needed_bytes: 16,
                    actual_bytes
                })
            );
        }
    }

    #[test]
    fn m2_other_revisions_and_attributes_are_refused() {
        let structure = Structure::StolenTime;
        let mut later = bytes(7);
        later[0] = 1;
        let error = ParseError::Revision {
            structure,
            found: 1,
            known: 0,
        };
        assert_eq!(StolenTime::parse(&later), Err(error));
        let mut flagged = bytes(7);
        flagged[7] = 0x80;
        let error = ParseError::Attributes {
            structure,
            found: 0x8000_0000,
        };
        assert_eq!(StolenTime::parse(&flagged), Err(error));
    }

    proptest! {
        #[test]
        fn stolen_time_round_trips(stolen_ns: u64, padding: [u8; 32]) {
            let mut bytes = bytes(stolen_ns);
            bytes[20..52].copy_from_slice(&padding);
            prop_assert_eq!(StolenTime::parse(&bytes), Ok(StolenTime { stolen_ns }));
        }

        #[test]
        fn any_bytes_parse_or_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            if let Ok(value) = StolenTime::parse(&bytes) {
                prop_assert_eq!(&value.emit()[..16], &bytes[..16]);
            }
        }
    }
}
