//! Writing a snapshot.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use vm_memory::{Bytes, GuestMemoryMmap};

use super::disk::{Disk, FileSystem, Output, failed};
use super::manifest::{Facts, Manifest, Section};
use super::memory::{self, CHUNK_BYTES, Checksum, Index, Place};
use super::{
    FORMAT, INDEX_FILE, MACHINE_FILE, MANIFEST_FILE, MEMORY_FILE, Progress, SaveError, TIME_FILE,
    parallel,
};
use crate::state::MachineState;

/// What a snapshot is made of. Nothing may change while it is written.
#[derive(Clone, Copy, Debug)]
pub struct Contents<'a> {
    /// The state of vCPUs, interrupt controller and devices.
    pub machine: &'a MachineState,
    /// The machine's time, in its owner's format.
    pub time: &'a [u8],
    /// Its memory.
    pub memory: &'a GuestMemoryMmap,
    /// The rate of the host's counter.
    pub counter_frequency_hz: u64,
}

/// Writes a snapshot into a directory that must not exist yet, in a folder that does. It is there
/// whole and on the disk when this returns, and not at all before.
///
/// # Errors
///
/// [`SaveError`].
///
/// # Panics
///
/// If a state of a machine cannot be written as JSON, which no state is.
pub fn save(
    directory: &Path,
    contents: &Contents<'_>,
    progress: &mut dyn FnMut(Progress),
) -> Result<(), SaveError> {
    save_on(&FileSystem, directory, contents, progress)
}

/// Whether a snapshot could have this place, as far as looking tells: before a machine is stopped
/// for it.
///
/// # Errors
///
/// [`SaveError::NoName`], [`SaveError::Exists`] and [`SaveError::Write`].
pub fn check_place(directory: &Path) -> Result<(), SaveError> {
    let path = Destination::new(directory)?.folder;
    match path.metadata() {
        Ok(_) => Ok(()),
        Err(source) => Err(SaveError::Write { path, source }),
    }
}

pub(super) fn save_on(
    disk: &dyn Disk,
    directory: &Path,
    contents: &Contents<'_>,
    progress: &mut dyn FnMut(Progress),
) -> Result<(), SaveError> {
    let place = Destination::new(directory)?;
    let partial = Partial::create(disk, place.partial.clone())?;
    let index = write_memory(disk, &partial.path, contents.memory, progress)?;
    let machine = serde_json::to_vec_pretty(contents.machine).expect("numbers and strings");
    let index = serde_json::to_vec_pretty(&index).expect("numbers and strings");
    let manifest = Manifest {
        format: FORMAT,
        facts: Facts {
            pvtime: env!("CARGO_PKG_VERSION").into(),
            architecture: std::env::consts::ARCH.into(),
            counter_frequency_hz: contents.counter_frequency_hz,
            memory_bytes: memory::total_bytes(&memory::ranges(contents.memory))
                .expect("what is mapped"),
            vcpus: contents.machine.vcpus.len(),
        },
        machine: Section::of(&machine),
        time: Section::of(contents.time),
        memory: Section::of(&index),
    };
    for (name, bytes) in [
        (INDEX_FILE, &index[..]),
        (MACHINE_FILE, &machine),
        (TIME_FILE, contents.time),
        (MANIFEST_FILE, &manifest.emit()),
    ] {
        write_file(disk, partial.path.join(name), bytes)?;
    }
    partial.finish(&place)
}

/// Where a snapshot goes.
struct Destination {
    path: PathBuf,
    partial: PathBuf,
    folder: PathBuf,
}

impl Destination {
    fn new(path: &Path) -> Result<Self, SaveError> {
        let Some(name) = path.file_name() else {
            let path = path.to_owned();
            return Err(SaveError::NoName { path });
        };
        // Without what may follow the name: slashes and dots.
        let path = path.with_file_name(name);
        match path.symlink_metadata() {
            Ok(_) => return Err(SaveError::Exists { path }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(SaveError::Write { path, source }),
        }
        let mut partial = name.to_owned();
        partial.push(".partial");
        Ok(Self {
            partial: path.with_file_name(partial),
            folder: Path::new(".").join(path.parent().unwrap_or(Path::new(""))),
            path,
        })
    }
}

/// A directory that is removed unless it comes to its place.
struct Partial<'a> {
    disk: &'a dyn Disk,
    path: PathBuf,
    is_finished: bool,
}

impl<'a> Partial<'a> {
    fn create(disk: &'a dyn Disk, path: PathBuf) -> Result<Self, SaveError> {
        match disk.create_dir(&path) {
            Ok(()) => Ok(Self {
                disk,
                path,
                is_finished: false,
            }),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                Err(SaveError::Unfinished { path })
            }
            Err(source) => Err(SaveError::Write { path, source }),
        }
    }

    /// Takes its place, once its files' names are on the disk, as their contents are.
    fn finish(mut self, place: &Destination) -> Result<(), SaveError> {
        let disk = self.disk;
        disk.sync_dir(&self.path).map_err(failed(&self.path))?;
        // An empty directory that came there meanwhile is replaced, and nothing is lost by that.
        disk.rename(&self.path, &place.path)
            .map_err(|source| match source.kind() {
                io::ErrorKind::DirectoryNotEmpty
                | io::ErrorKind::AlreadyExists
                | io::ErrorKind::NotADirectory => SaveError::Exists {
                    path: place.path.clone(),
                },
                _ => failed(&place.path)(source),
            })?;
        self.is_finished = true;
        disk.sync_dir(&place.folder).map_err(failed(&place.folder))
    }
}

impl Drop for Partial<'_> {
    fn drop(&mut self) {
        if !self.is_finished {
            // What remains is named by the next attempt.
            let _ = self.disk.remove_dir_all(&self.path);
        }
    }
}

fn write_file(disk: &dyn Disk, path: PathBuf, bytes: &[u8]) -> Result<(), SaveError> {
    let output = Output::create(disk, path)?;
    disk.write_all_at(&output, bytes, 0)
        .and_then(|()| disk.sync(&output))
        .map_err(output.failed())
}

fn write_memory(
    disk: &dyn Disk,
    directory: &Path,
    memory: &GuestMemoryMmap,
    progress: &mut dyn FnMut(Progress),
) -> Result<Index, SaveError> {
    let ranges = memory::ranges(memory);
    let total_bytes = memory::total_bytes(&ranges).expect("what is mapped");
    let output = Output::create(disk, directory.join(MEMORY_FILE))?;
    disk.set_len(&output, total_bytes)
        .map_err(output.failed())?;
    let mut checksums = BTreeMap::new();
    let mut done_bytes = 0;
    parallel::for_each(
        &memory::places(&ranges),
        CHUNK_BYTES,
        |place, buffer| write_chunk(disk, &output, memory, place, buffer).map_err(output.failed()),
        |place, checksum| {
            checksums.extend(checksum.map(|checksum| (place.offset, checksum)));
            done_bytes += place.bytes as u64;
            progress(Progress {
                done_bytes,
                total_bytes,
            });
        },
    )?;
    disk.sync(&output).map_err(output.failed())?;
    Ok(Index { ranges, checksums })
}

/// Writes what is not zero.
fn write_chunk(
    disk: &dyn Disk,
    output: &Output,
    memory: &GuestMemoryMmap,
    place: &Place,
    buffer: &mut [u8],
) -> io::Result<Option<Checksum>> {
    let bytes = &mut buffer[..place.bytes];
    memory
        .read_slice(bytes, place.address)
        .expect("a place in this memory");
    for run in memory::runs(bytes) {
        let offset = place.offset + run.start as u64;
        disk.write_all_at(output, &bytes[run], offset)?;
    }
    Ok(Checksum::of(bytes))
}
