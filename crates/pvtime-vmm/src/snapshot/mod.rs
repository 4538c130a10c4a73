//! A stopped machine in a directory.
//!
//! | File | Holds |
//! |---|---|
//! | `snapshot.json` | which format this is, what the machine was, length and SHA-256 of the next three |
//! | `machine.json` | a [`MachineState`](crate::state::MachineState) |
//! | `time.bin` | its time, as bytes that its owner understands |
//! | `memory.json` | where memory is, and the XXH3 (128 bits) of every 2 MiB that are not all zero |
//! | `memory` | the memory, one range after the other; pages of zeros are holes |
//!
//! The last member of `snapshot.json` is the SHA-256 of everything before it; so it is in every
//! format to come. The checksums find damage, not malice: whoever can write to a snapshot can make
//! one. It holds all secrets of the guest and is readable by its owner alone.
//!
//! A snapshot is written beside its place, as `NAME.partial`, and takes its place once all of it is
//! on the disk. Reading one is two steps, so that no machine is made of what did not verify: [`open`]
//! reads and verifies everything but memory and says how large a machine it takes and of which CPUs, and
//! [`Snapshot::load`] hands out the state only after the memory has been verified and copied.
//!
//! The memory is copied and not mapped, although a private mapping would need no copy: every byte
//! has to be read for its checksum anyway, and what is verified is then what the guest gets, whatever
//! happens to the file afterwards.

mod disk;
mod error;
mod manifest;
mod memory;
pub mod monitor;
mod open;
mod parallel;
mod save;
#[cfg(test)]
mod tests;

use std::path::Path;

use anyhow::{Context, Result};

pub use error::{OpenError, SaveError};
pub use manifest::Facts;
pub use memory::MemoryRange;
pub(crate) use memory::{ranges, runs, total_bytes};
pub use open::{Loaded, Snapshot, open};
pub use save::{Contents, check_place, save};

/// What came of a snapshot of a VM that was to go on afterwards.
///
/// # Errors
///
/// That of either, with what that leaves.
pub fn outcome(folder: &Path, saved: Result<()>, resumed: Result<()>) -> Result<()> {
    match (saved, resumed) {
        (Ok(()), resumed) => resumed.with_context(|| {
            format!(
                "{} holds the whole VM, which could not go on and stays paused",
                folder.display()
            )
        }),
        (saved, Ok(())) => saved,
        (saved, Err(error)) => saved
            .with_context(|| format!("the VM could not go on either and stays paused ({error:#})")),
    }
}

/// How far saving or loading memory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of guest memory that were looked at.
    pub done_bytes: u64,
    /// Bytes of guest memory.
    pub total_bytes: u64,
}

/// The format that this version writes, and the newest that it reads. Format 1 has no generation.
const FORMAT: u32 = 2;

/// The files of a snapshot.
const MANIFEST_FILE: &str = "snapshot.json";
const MACHINE_FILE: &str = "machine.json";
const TIME_FILE: &str = "time.bin";
const INDEX_FILE: &str = "memory.json";
const MEMORY_FILE: &str = "memory";
