//! Paused time: how long the whole VM was stopped, for the guest to learn of it.
//!
//! One structure per VM, 64 bytes, which the VMM writes and the guest reads; a device-tree node
//! names its address and an interrupt that follows each change. Everything is cumulative, so an
//! interrupt that is lost or merged does no harm: a guest compares the totals with those it saw
//! last. It is this project's own interface, and answers what the kernel list asked for in
//! "x86/kvm: Virtual suspend time injection support" (2021): that time moved, and by how much.

use super::error::{check_sequence, take_bytes};
use super::{ParseError, Structure};
use crate::seqlock::Shape;
use core::fmt;
use core::mem::{offset_of, size_of};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// "PVPT" in memory.
pub const MAGIC: u32 = u32::from_le_bytes(*b"PVPT");
/// Size of the structure, and the alignment of its address.
pub const SIZE_BYTES: usize = 64;
const SIZE_FIELD: u32 = 64;
/// The version that this crate writes and reads.
pub const VERSION: u16 = 1;
/// Flag: the guest's counters did not move over the last pause.
pub const FLAG_FROZEN: u16 = 1 << 0;
/// Its words, and which of them is the sequence count.
pub const SHAPE: Shape<u32> = Shape::new(SIZE_BYTES, offset_of!(PausedTimeLayout, sequence));

/// The structure as it lies in guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(8))]
pub struct PausedTimeLayout {
    /// Offset 0: [`MAGIC`].
    pub magic: U32,
    /// Offset 4: 64, the size of the structure in bytes.
    pub size: U32,
    /// Offset 8: [`VERSION`].
    pub version: U16,
    /// Offset 10: [`FLAG_FROZEN`]; the other bits are written as 0 and not read.
    pub flags: U16,
    /// Offset 12: odd while it is written, never 0 after the first publication.
    pub sequence: U32,
    /// Offset 16: nanoseconds, the total that the guest's counters did not show.
    pub paused_ns: U64,
    /// Offset 24: pauses so far.
    pub events: U64,
    /// Offset 32: nanoseconds, the physical length of the last pause.
    pub last_paused_ns: U64,
    /// Offset 40: ticks, the guest's virtual counter when the last pause ended.
    pub last_counter: U64,
    /// Offset 48: nanoseconds, a bound on the error of `last_paused_ns`.
    pub last_error_ns: U64,
    /// Offset 56: why the last pause was, a [`Cause`].
    pub last_cause: U32,
    /// Offset 60: written as 0 and not read.
    pub reserved: U32,
}

const _: () = {
    assert!(size_of::<PausedTimeLayout>() == SIZE_BYTES);
    assert!(SIZE_FIELD as usize == SIZE_BYTES);
    assert!(offset_of!(PausedTimeLayout, magic) == 0);
    assert!(offset_of!(PausedTimeLayout, size) == 4);
    assert!(offset_of!(PausedTimeLayout, version) == 8);
    assert!(offset_of!(PausedTimeLayout, flags) == 10);
    assert!(offset_of!(PausedTimeLayout, sequence) == 12);
    assert!(offset_of!(PausedTimeLayout, paused_ns) == 16);
    assert!(offset_of!(PausedTimeLayout, events) == 24);
    assert!(offset_of!(PausedTimeLayout, last_paused_ns) == 32);
    assert!(offset_of!(PausedTimeLayout, last_counter) == 40);
    assert!(offset_of!(PausedTimeLayout, last_error_ns) == 48);
    assert!(offset_of!(PausedTimeLayout, last_cause) == 56);
    assert!(offset_of!(PausedTimeLayout, reserved) == 60);
};

/// Why a VM was paused: any 32 bits, of which these have a meaning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Cause(pub u32);

impl Cause {
    /// There was no pause yet.
    pub const NONE: Self = Self(0);
    /// The operator paused the VM.
    pub const OPERATOR: Self = Self(1);
    /// The VM was stopped for a snapshot, or came out of one.
    pub const SNAPSHOT: Self = Self(2);
    /// The VM moved to another host.
    pub const MIGRATION: Self = Self(3);
    /// The host slept.
    pub const HOST_SUSPEND: Self = Self(4);
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::NONE => f.write_str("none"),
            Self::OPERATOR => f.write_str("operator"),
            Self::SNAPSHOT => f.write_str("snapshot"),
            Self::MIGRATION => f.write_str("migration"),
            Self::HOST_SUSPEND => f.write_str("host suspend"),
            Self(other) => write!(f, "cause {other}"),
        }
    }
}

/// One pause of the VM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pause {
    /// Whether the guest's counters stood still over it.
    pub frozen: bool,
    /// Nanoseconds of physical time that it took.
    pub physical_ns: u64,
    /// Bound on the error of `physical_ns`, nanoseconds.
    pub error_ns: u64,
    /// The guest's virtual counter when it ended, ticks.
    pub counter: u64,
    /// Why it was.
    pub cause: Cause,
}

/// What a VM's pauses amount to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PausedTime {
    /// Nanoseconds that passed and that the guest's counters did not show; never decreases.
    pub paused_ns: u64,
    /// Pauses so far, those that the counters showed included.
    pub events: u64,
    /// The last of them; all zero before the first.
    pub last: Pause,
}

impl PausedTime {
    /// Reads a structure's 64 bytes, a copy that nobody writes any more.
    ///
    /// # Errors
    ///
    /// [`ParseError::TooShort`] below 64 bytes, and what
    /// [`validate`](PausedTimeLayout::validate) refuses.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        let layout: PausedTimeLayout = take_bytes(Structure::PausedTime, SIZE_BYTES, bytes)?;
        layout.validate()
    }

    /// The layout of this value with the sequence count 0, which
    /// [`SequenceWriter`](crate::seqlock::SequenceWriter) replaces by its own.
    #[must_use]
    pub fn layout(&self) -> PausedTimeLayout {
        PausedTimeLayout {
            magic: MAGIC.into(),
            size: U32::new(SIZE_FIELD),
            version: VERSION.into(),
            flags: if self.last.frozen {
                FLAG_FROZEN.into()
            } else {
                U16::ZERO
            },
            sequence: U32::ZERO,
            paused_ns: self.paused_ns.into(),
            events: self.events.into(),
            last_paused_ns: self.last.physical_ns.into(),
            last_counter: self.last.counter.into(),
            last_error_ns: self.last.error_ns.into(),
            last_cause: self.last.cause.0.into(),
            reserved: U32::ZERO,
        }
    }

    /// The bytes of [`layout`](Self::layout).
    #[must_use]
    pub fn emit(&self) -> [u8; SIZE_BYTES] {
        zerocopy::transmute!(self.layout())
    }
}

impl PausedTimeLayout {
    /// The value, if the structure is one that this version describes.
    ///
    /// # Errors
    ///
    /// [`ParseError::Magic`], [`ParseError::Version`], [`ParseError::Size`] if it is not 64, and
    /// [`ParseError::BeingWritten`] and [`ParseError::Unpublished`] for an odd sequence count and
    /// for 0.
    pub fn validate(&self) -> Result<PausedTime, ParseError> {
        let structure = Structure::PausedTime;
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
        if self.size != SIZE_FIELD {
            let found = self.size.get();
            return Err(ParseError::Size {
                structure,
                found,
                least: SIZE_BYTES,
                most: SIZE_BYTES,
            });
        }
        check_sequence(structure, self.sequence.get().into())?;
        if self.sequence == 0 {
            return Err(ParseError::Unpublished { structure });
        }
        Ok(PausedTime {
            paused_ns: self.paused_ns.get(),
            events: self.events.get(),
            last: Pause {
                frozen: self.flags.get() & FLAG_FROZEN != 0,
                physical_ns: self.last_paused_ns.get(),
                error_ns: self.last_error_ns.get(),
                counter: self.last_counter.get(),
                cause: Cause(self.last_cause.get()),
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::string::ToString;

    const STRUCTURE: Structure = Structure::PausedTime;

    fn value() -> PausedTime {
        PausedTime {
            paused_ns: 0x1112_1314_1516_1718,
            events: 3,
            last: Pause {
                frozen: true,
                physical_ns: 4_000_000_000,
                error_ns: 250,
                counter: 0x2122_2324_2526_2728,
                cause: Cause::HOST_SUSPEND,
            },
        }
    }

    fn published() -> [u8; SIZE_BYTES] {
        zerocopy::transmute!(PausedTimeLayout {
            sequence: 8.into(),
            ..value().layout()
        })
    }

    fn with<const N: usize>(offset: usize, bytes: [u8; N]) -> [u8; SIZE_BYTES] {
        let mut all = published();
        all[offset..offset + N].copy_from_slice(&bytes);
        all
    }

    #[test]
    fn s1_the_bytes_say_that_and_by_how_much() {
        let mut expected = [0; SIZE_BYTES];
        expected[..16].copy_from_slice(b"PVPT\x40\0\0\0\x01\0\x01\0\0\0\0\0");
        expected[16..24].copy_from_slice(&0x1112_1314_1516_1718u64.to_le_bytes());
        expected[24] = 3;
        expected[32..40].copy_from_slice(&4_000_000_000u64.to_le_bytes());
        expected[40..48].copy_from_slice(&0x2122_2324_2526_2728u64.to_le_bytes());
        expected[48] = 250;
        expected[56] = 4;
        assert_eq!(value().emit(), expected);
    }

    #[test]
    fn each_wrong_field_is_named() {
        let size = |found| ParseError::Size {
            structure: STRUCTURE,
            found,
            least: 64,
            most: 64,
        };
        for (bytes, error) in [
            (
                with(0, *b"VCLK"),
                ParseError::Magic {
                    structure: STRUCTURE,
                    found: 0x4B4C_4356,
                    expected: MAGIC,
                },
            ),
            (with(4, [63]), size(63)),
            (with(4, [0, 1]), size(256)),
            (
                with(8, [2]),
                ParseError::Version {
                    structure: STRUCTURE,
                    found: 2,
                    known: 1,
                },
            ),
            (
                with(12, [0]),
                ParseError::Unpublished {
                    structure: STRUCTURE,
                },
            ),
            (
                with(12, [9]),
                ParseError::BeingWritten {
                    structure: STRUCTURE,
                    sequence: 9,
                },
            ),
        ] {
            assert_eq!(PausedTime::parse(&bytes), Err(error));
        }
        assert_eq!(PausedTime::parse(&published()), Ok(value()));
        assert_eq!(
            PausedTime::parse(&published()[..63]),
            Err(ParseError::TooShort {
                structure: STRUCTURE,
                needed_bytes: 64,
                actual_bytes: 63
            })
        );
    }

    #[test]
    fn later_flags_causes_and_reserved_bytes_are_let_be() {
        let mut bytes = with(10, [0xff, 0xff]);
        bytes[56..].fill(0xff);
        let cause = Cause(u32::MAX);
        let last = Pause {
            cause,
            ..value().last
        };
        assert_eq!(
            PausedTime::parse(&bytes),
            Ok(PausedTime { last, ..value() })
        );
    }

    #[test]
    fn causes_have_names() {
        let names = [0, 1, 2, 3, 4, 5].map(|cause| Cause(cause).to_string());
        assert_eq!(
            names,
            [
                "none",
                "operator",
                "snapshot",
                "migration",
                "host suspend",
                "cause 5"
            ]
        );
    }

    proptest! {
        #[test]
        fn any_value_round_trips(
            totals: [u64; 2],
            frozen: bool,
            last: [u64; 3],
            cause: u32,
            sequence in 1u32..1 << 31,
        ) {
            let value = PausedTime {
                paused_ns: totals[0],
                events: totals[1],
                last: Pause {
                    frozen,
                    physical_ns: last[0],
                    error_ns: last[1],
                    counter: last[2],
                    cause: Cause(cause),
                },
            };
            let layout = PausedTimeLayout { sequence: (2 * sequence).into(), ..value.layout() };
            prop_assert_eq!(PausedTime::parse(layout.as_bytes()), Ok(value));
        }

        #[test]
        fn any_bytes_parse_or_are_refused(mut bytes: [u8; SIZE_BYTES], tame: bool) {
            if tame {
                bytes[..10].copy_from_slice(&published()[..10]);
                bytes[12] &= !1;
            }
            if let Ok(value) = PausedTime::parse(&bytes) {
                prop_assert_eq!(&value.emit()[16..60], &bytes[16..60]);
            }
        }
    }
}
