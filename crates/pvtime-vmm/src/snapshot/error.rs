//! What can go wrong with a snapshot.

use std::io;
use std::path::PathBuf;

use pvtime::host::timeline::TimelineError;

/// A snapshot could not be written. There is none then, unless it is only its entry in the folder
/// above that may not have reached the disk.
#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    /// The path has no last component.
    #[error("{path} names no new directory; end it with a name for the snapshot")]
    NoName {
        /// The path.
        path: PathBuf,
    },
    /// Something is there.
    #[error("{path} exists already; choose a name that is free, or remove it")]
    Exists {
        /// The path.
        path: PathBuf,
    },
    /// Another writer is at it, or one was interrupted.
    #[error(
        "{path} exists: another snapshot of this name is being written, or one was interrupted; \
         remove it if it is not"
    )]
    Unfinished {
        /// The directory of what is not finished.
        path: PathBuf,
    },
    /// The file system refused.
    #[error("cannot write {path}: {source}; choose a folder that can be written and has room")]
    Write {
        /// What was written.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// A snapshot cannot be restored.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// There is none.
    #[error("{path} is no snapshot: there is no snapshot.json in it; name the directory of one")]
    NotASnapshot {
        /// The directory.
        path: PathBuf,
    },
    /// A file of it is not there.
    #[error("{path} is missing; copy the snapshot again, with all of its files")]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// A file of it is something else.
    #[error("{path} is no regular file; copy the snapshot again")]
    NotAFile {
        /// What should be a file.
        path: PathBuf,
    },
    /// A file cannot be read.
    #[error("cannot read {path}: {source}; make it readable, or copy the snapshot again")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A file has been cut or has grown.
    #[error(
        "{path} has {actual} bytes and was written with {expected}; copy the snapshot again, or \
         take another"
    )]
    Length {
        /// The file.
        path: PathBuf,
        /// Bytes that were written.
        expected: u64,
        /// Bytes that are there.
        actual: u64,
    },
    /// A file is not what was written.
    #[error("{path} is damaged: its checksum is wrong; copy the snapshot again, or take another")]
    Damaged {
        /// The file.
        path: PathBuf,
    },
    /// Memory is not what was written.
    #[error(
        "{path} is damaged between the bytes {start:#x} and {end:#x}: their checksum is wrong; \
         copy the snapshot again, or take another"
    )]
    DamagedMemory {
        /// The file.
        path: PathBuf,
        /// First byte of the part with that checksum.
        start: u64,
        /// The byte after its last.
        end: u64,
    },
    /// A later version wrote it.
    #[error(
        "{path} has format {format}, written by pvtime {pvtime}; this version reads up to format \
         {newest}: restore it with that version or a newer one",
        newest = super::FORMAT
    )]
    Newer {
        /// The directory.
        path: PathBuf,
        /// Its format.
        format: u32,
        /// The version that wrote it.
        pvtime: String,
    },
    /// It is of another kind of machine.
    #[error("{path} is of an {saved} machine, and this is {here}; restore it on an {saved} host")]
    Architecture {
        /// The directory.
        path: PathBuf,
        /// What it was saved on.
        saved: String,
        /// What this is.
        here: &'static str,
    },
    /// Its host's counter ran at another rate.
    #[error("{path} cannot go on here: {source}")]
    Frequency {
        /// The directory.
        path: PathBuf,
        /// With both frequencies.
        source: TimelineError,
    },
    /// This host's KVM cannot have its vCPUs or its interrupt controller. On another CPU nearly
    /// every register of identity differs: the first says enough.
    #[error(
        "{path} cannot go on here, for {} reason(s), first: {}",
        reasons.len(),
        reasons.first().map_or("", String::as_str)
    )]
    Foreign {
        /// The directory.
        path: PathBuf,
        /// Sentences, each with what was saved, what is here, and the way out.
        reasons: Vec<String>,
    },
    /// Its checksums are right and it makes no sense.
    #[error("{path} makes no sense: {reason}; it was written so, take another")]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The machine has its memory elsewhere.
    #[error(
        "{path} is for a machine with its memory at {saved}, and this one has it at {here}; give \
         the machine as much memory as the snapshot has"
    )]
    Memory {
        /// The directory.
        path: PathBuf,
        /// Where it was.
        saved: String,
        /// Where it is.
        here: String,
    },
}
