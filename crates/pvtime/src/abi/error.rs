//! What can be wrong with a structure, and the one way to take its bytes.

use core::fmt;
use zerocopy::{FromBytes, IntoBytes};

/// The structures that this crate parses, for messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Structure {
    /// A vCPU's stolen time, [`stolen_time`](super::stolen_time).
    StolenTime,
    /// A VM's live physical time, [`live_physical_time`](super::live_physical_time).
    LivePhysicalTime,
    /// A VM's paused time, [`paused_time`](super::paused_time).
    PausedTime,
    /// A VM's clock, [`vmclock`](super::vmclock).
    VmClock,
}

impl fmt::Display for Structure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::StolenTime => "stolen-time structure",
            Self::LivePhysicalTime => "live-physical-time structure",
            Self::PausedTime => "paused-time structure",
            Self::VmClock => "VMClock structure",
        })
    }
}

/// Why the bytes of a structure are not a value of it.
///
/// The first two mean that the caller should look again or elsewhere; the others that this
/// structure is not to be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// Fewer bytes than the structure's fields take.
    #[error(
        "the {structure} needs {needed_bytes} bytes and got {actual_bytes}: map or pass all of it"
    )]
    TooShort {
        /// What was being parsed.
        structure: Structure,
        /// Bytes that its fields take.
        needed_bytes: usize,
        /// Bytes that were given.
        actual_bytes: usize,
    },
    /// The sequence count is odd: the bytes were taken in the middle of an update.
    #[error("the {structure} was being written (sequence {sequence}): take its bytes again")]
    BeingWritten {
        /// What was being parsed.
        structure: Structure,
        /// Sequence count in the bytes.
        sequence: u64,
    },
    /// The sequence count is 0: nothing was published yet.
    #[error(
        "nothing was published in the {structure} (sequence 0): check its address, or wait for the host"
    )]
    Unpublished {
        /// What was being parsed.
        structure: Structure,
    },
    /// The first word is not the structure's mark.
    #[error(
        "the {structure} starts with {found:#010x}, not with its magic {expected:#010x}: check its address"
    )]
    Magic {
        /// What was being parsed.
        structure: Structure,
        /// First 32 bits.
        found: u32,
        /// What they ought to be.
        expected: u32,
    },
    /// The structure says a size that its version cannot have, or that is not mapped.
    #[error(
        "the {structure} says it has {found} bytes, of {least} to {most}: map all of it, or do without it"
    )]
    Size {
        /// What was being parsed.
        structure: Structure,
        /// Size in the bytes.
        found: u32,
        /// Least size that the version has.
        least: usize,
        /// Most that the version has, or that was given.
        most: usize,
    },
    /// The version is one that this crate does not know.
    #[error(
        "the {structure} has version {found}, known is {known}: do without it, or update the reader"
    )]
    Version {
        /// What was being parsed.
        structure: Structure,
        /// Version in the bytes.
        found: u16,
        /// Version that this crate reads.
        known: u16,
    },
    /// The revision is one that this crate does not know.
    #[error(
        "the {structure} has revision {found}, known is {known}: do without it, or update the reader"
    )]
    Revision {
        /// What was being parsed.
        structure: Structure,
        /// Revision in the bytes.
        found: u32,
        /// Revision that this crate reads.
        known: u32,
    },
    /// The attributes are not those that the known revision has.
    #[error(
        "the {structure} has attributes {found:#x}, revision 0 has none: do without it, or update the reader"
    )]
    Attributes {
        /// What was being parsed.
        structure: Structure,
        /// Attributes in the bytes.
        found: u32,
    },
    /// A field that is divided by, or multiplied with, is zero.
    #[error(
        "the {structure} has a zero {field}: do without it, and report it to the VMM's authors"
    )]
    Zero {
        /// What was being parsed.
        structure: Structure,
        /// The specification's name of the field.
        field: &'static str,
    },
    /// A code or a number of bits has a value that the version does not define.
    #[error("the {structure} has {field} {found}, at most {most} is defined: do without it")]
    OutOfRange {
        /// What was being parsed.
        structure: Structure,
        /// The specification's name of the field.
        field: &'static str,
        /// Value in the bytes.
        found: u32,
        /// Largest value with a meaning.
        most: u32,
    },
}

/// Takes as much of a layout as there is, the rest zero; `needed_bytes` must be there.
pub(super) fn take_bytes<T: FromBytes + IntoBytes>(
    structure: Structure,
    needed_bytes: usize,
    bytes: &[u8],
) -> Result<T, ParseError> {
    let actual_bytes = bytes.len();
    if actual_bytes < needed_bytes {
        return Err(ParseError::TooShort {
            structure,
            needed_bytes,
            actual_bytes,
        });
    }
    let mut layout = T::new_zeroed();
    for (to, from) in layout.as_mut_bytes().iter_mut().zip(bytes) {
        *to = *from;
    }
    Ok(layout)
}

/// Refuses the revision and the attributes that the Arm structures have in common, if not 0.
pub(super) fn check_revision(
    structure: Structure,
    revision: u32,
    attributes: u32,
) -> Result<(), ParseError> {
    if revision != 0 {
        return Err(ParseError::Revision {
            structure,
            found: revision,
            known: 0,
        });
    }
    if attributes != 0 {
        return Err(ParseError::Attributes {
            structure,
            found: attributes,
        });
    }
    Ok(())
}

/// Refuses bytes that were taken during an update.
pub(super) fn check_sequence(structure: Structure, sequence: u64) -> Result<(), ParseError> {
    if !sequence.is_multiple_of(2) {
        return Err(ParseError::BeingWritten {
            structure,
            sequence,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;

    #[test]
    fn each_error_says_what_was_wrong_and_what_to_do() {
        use Structure::{LivePhysicalTime, PausedTime, StolenTime, VmClock};
        let (needed_bytes, actual_bytes) = (16, 8);
        for (error, message) in [
            (
                ParseError::TooShort {
                    structure: StolenTime,
                    needed_bytes,
                    actual_bytes,
                },
                "the stolen-time structure needs 16 bytes and got 8: map or pass all of it",
            ),
            (
                ParseError::BeingWritten {
                    structure: LivePhysicalTime,
                    sequence: 5,
                },
                "the live-physical-time structure was being written (sequence 5): take its bytes again",
            ),
            (
                ParseError::Unpublished {
                    structure: PausedTime,
                },
                "nothing was published in the paused-time structure (sequence 0): check its address, \
                 or wait for the host",
            ),
            (
                ParseError::Magic {
                    structure: VmClock,
                    found: 0,
                    expected: 0x4b4c_4356,
                },
                "the VMClock structure starts with 0x00000000, not with its magic 0x4b4c4356: \
                 check its address",
            ),
            (
                ParseError::Size {
                    structure: VmClock,
                    found: 4096,
                    least: 32,
                    most: 112,
                },
                "the VMClock structure says it has 4096 bytes, of 32 to 112: map all of it, or do \
                 without it",
            ),
            (
                ParseError::Version {
                    structure: PausedTime,
                    found: 2,
                    known: 1,
                },
                "the paused-time structure has version 2, known is 1: do without it, or update \
                 the reader",
            ),
            (
                ParseError::Revision {
                    structure: StolenTime,
                    found: 1,
                    known: 0,
                },
                "the stolen-time structure has revision 1, known is 0: do without it, or update \
                 the reader",
            ),
            (
                ParseError::Attributes {
                    structure: StolenTime,
                    found: 0x10,
                },
                "the stolen-time structure has attributes 0x10, revision 0 has none: do without \
                 it, or update the reader",
            ),
            (
                ParseError::Zero {
                    structure: LivePhysicalTime,
                    field: "pv_freq",
                },
                "the live-physical-time structure has a zero pv_freq: do without it, and report it \
                 to the VMM's authors",
            ),
            (
                ParseError::OutOfRange {
                    structure: VmClock,
                    field: "time_type",
                    found: 3,
                    most: 2,
                },
                "the VMClock structure has time_type 3, at most 2 is defined: do without it",
            ),
        ] {
            assert_eq!(error.to_string(), message);
        }
    }
}
