use core::fmt;

/// The structures that this crate parses, for messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Structure {
    /// A vCPU's stolen time, [`stolen_time`](super::stolen_time).
    StolenTime,
}

impl fmt::Display for Structure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::StolenTime => "stolen-time structure",
        })
    }
}

/// Why the bytes of a structure are not a value of it.
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
}
