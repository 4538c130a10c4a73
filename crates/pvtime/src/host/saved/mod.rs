//! A stopped VM's time as bytes, and back: one record for the VM, one for each vCPU.
//!
//! Little-endian, at fixed offsets, with a version and a checksum (CRC-32, the one of zlib and
//! Ethernet). A record is taken back only if it is what [`emit`](SavedVm::emit) would write: another
//! length, a newer version, a reserved bit, a value that no history leads to, all are refused with
//! what is wrong. The checksum finds damage, not forgery: who must not be able to write the state
//! is a matter of the container.
//!
//! Guest memory is not in here; the structures in it are published anew from these records.

mod layout;
#[cfg(test)]
mod tests;
mod vcpu;
mod vm;

pub use vcpu::SavedVcpu;
pub use vm::{SavedVm, Sequences};

use super::live::LiveError;
use core::fmt;

/// The version that is written, and the newest that is read.
pub const VERSION: u16 = 1;

/// The records that there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Record {
    /// A VM's.
    Vm,
    /// A vCPU's.
    Vcpu,
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Vm => "VM",
            Self::Vcpu => "vCPU",
        })
    }
}

/// Why bytes are not a saved state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SavedError {
    /// Too few bytes, or too many.
    #[error("a saved {record} time has {expected} bytes and this has {actual}: save it again")]
    Length {
        /// What was being parsed.
        record: Record,
        /// Bytes of the record.
        expected: usize,
        /// Bytes given.
        actual: usize,
    },
    /// The bytes are of something else.
    #[error("this starts with {found:#010x} and is no saved time: check where it comes from")]
    Magic {
        /// First 32 bits.
        found: u32,
    },
    /// The bytes are of the other record.
    #[error("this is record kind {found} and not that of a {record}: check the order of records")]
    Kind {
        /// What was being parsed.
        record: Record,
        /// The code in the bytes.
        found: u16,
    },
    /// A later program wrote it.
    #[error(
        "this saved {record} time has version {found}, known is {VERSION}: update this program, or \
         save with the version that is to read it"
    )]
    Version {
        /// What was being parsed.
        record: Record,
        /// Version in the bytes.
        found: u16,
    },
    /// Some bits changed.
    #[error(
        "this saved {record} time has checksum {computed:#010x} and says {stored:#010x}: it is \
         damaged, use another copy"
    )]
    Checksum {
        /// What was being parsed.
        record: Record,
        /// Checksum in the bytes.
        stored: u32,
        /// Checksum of the bytes.
        computed: u32,
    },
    /// A value that means nothing, or that contradicts another.
    #[error("{field} of this saved {record} time is not possible: do not run it, report it")]
    Field {
        /// What was being parsed.
        record: Record,
        /// The field.
        field: &'static str,
    },
    /// Live physical time that no history leads to.
    #[error(transparent)]
    Live(#[from] LiveError),
}
