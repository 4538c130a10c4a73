//! Reading a snapshot.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use pvtime::scale::Frequency;
use pvtime_kvm::SavedTime;
use rustix::fs::{OFlags, SeekFrom, seek};
use serde::de::DeserializeOwned;
use vm_memory::{Bytes, GuestMemoryMmap};

use super::manifest::{Facts, Manifest, Section};
use super::memory::{self, CHUNK_BYTES, Checksum, Index, Place};
use super::{
    INDEX_FILE, MACHINE_FILE, MANIFEST_FILE, MEMORY_FILE, OpenError, Progress, TIME_FILE, parallel,
};
use crate::state::MachineState;
use crate::state::profile::CpuProfile;
use crate::state::vcpu::VcpuState;

/// A snapshot whose small files have been verified. Its memory has not, which is why its state is
/// not to be had yet.
#[derive(Debug)]
#[must_use = "a machine is made of what `load` returns"]
pub struct Snapshot {
    directory: PathBuf,
    facts: Facts,
    machine: MachineState,
    time: Vec<u8>,
    index: Index,
    memory: File,
}

/// What a machine goes on with, all of it verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// The state of vCPUs, interrupt controller and devices.
    pub machine: MachineState,
    /// Its time, in its owner's format.
    pub time: Vec<u8>,
}

/// Opens a snapshot of this architecture and verifies all of its files but `memory`, of which only
/// the length.
///
/// # Errors
///
/// [`OpenError`].
pub fn open(directory: &Path) -> Result<Snapshot, OpenError> {
    let manifest = read_manifest(directory)?;
    let facts = manifest.facts;
    if facts.architecture != std::env::consts::ARCH {
        return Err(OpenError::Architecture {
            path: directory.to_owned(),
            saved: facts.architecture,
            here: std::env::consts::ARCH,
        });
    }
    let time = read_section(&directory.join(TIME_FILE), manifest.time)?;
    let machine = read_json(directory.join(MACHINE_FILE), manifest.machine)?;
    check_machine(directory, &facts, &machine)?;
    let index = read_json(directory.join(INDEX_FILE), manifest.memory)?;
    check_index(directory, &facts, &index)?;
    let path = directory.join(MEMORY_FILE);
    let (memory, bytes) = open_file(&path)?;
    check_length(&path, facts.memory_bytes, bytes)?;
    Ok(Snapshot {
        directory: directory.to_owned(),
        facts,
        machine,
        time,
        index,
        memory,
    })
}

impl Snapshot {
    /// What the machine was.
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// What its time says before a machine is made.
    ///
    /// # Errors
    ///
    /// [`OpenError::Content`] for time that this version does not read, or of another machine.
    pub fn time(&self) -> Result<SavedTime, OpenError> {
        let content = |reason| OpenError::Content {
            path: self.directory.join(TIME_FILE),
            reason,
        };
        let time = SavedTime::parse(&self.time).map_err(|error| content(error.to_string()))?;
        let (vcpus, expected) = (time.vcpus(), self.facts.vcpus);
        if vcpus != expected {
            let reason = format!("it has the time of {vcpus} vCPUs, of a machine of {expected}");
            return Err(content(reason));
        }
        Ok(time)
    }

    /// Refuses a host whose counter has another rate, where the guest has no live physical time
    /// that makes up for it.
    ///
    /// # Errors
    ///
    /// [`OpenError::Frequency`], [`OpenError::Content`].
    pub fn check_host(&self, here: Frequency) -> Result<(), OpenError> {
        let admitted = self.time()?.admits(here);
        admitted.map_err(|source| OpenError::Frequency {
            path: self.directory.clone(),
            source,
        })
    }

    /// What its vCPUs are, in order, before a machine is made.
    pub fn cpus(&self) -> impl Iterator<Item = CpuProfile> {
        self.machine.vcpus.iter().map(VcpuState::profile)
    }

    /// Which interrupt controller it had: `GICD_IIDR`.
    pub fn gic_implementation(&self) -> u32 {
        self.machine.gic.implementation
    }

    /// Refuses a host whose KVM has reasons against its vCPUs or its interrupt controller.
    ///
    /// # Errors
    ///
    /// [`OpenError::Foreign`].
    pub fn check_refusals(&self, reasons: Vec<String>) -> Result<(), OpenError> {
        if reasons.is_empty() {
            return Ok(());
        }
        Err(OpenError::Foreign {
            path: self.directory.clone(),
            reasons,
        })
    }

    /// Copies the memory into that of a machine that was just made, all of it zero, and verifies
    /// it. After an error it holds no guest's memory but parts of one.
    ///
    /// # Errors
    ///
    /// [`OpenError::Memory`], [`OpenError::DamagedMemory`], [`OpenError::Read`].
    pub fn load(
        self,
        memory: &GuestMemoryMmap,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Loaded, OpenError> {
        let here = memory::ranges(memory);
        if here != self.index.ranges {
            return Err(OpenError::Memory {
                path: self.directory,
                saved: format!("{:x?}", self.index.ranges),
                here: format!("{here:x?}"),
            });
        }
        let total_bytes = self.facts.memory_bytes;
        let mut done_bytes = 0;
        parallel::for_each(
            &memory::places(&self.index.ranges),
            CHUNK_BYTES,
            |place, buffer| {
                let expected = self.index.checksums.get(&place.offset).copied();
                self.load_chunk(memory, place, expected, buffer)
            },
            |place, ()| {
                done_bytes += place.bytes as u64;
                progress(Progress {
                    done_bytes,
                    total_bytes,
                });
            },
        )?;
        Ok(Loaded {
            machine: self.machine,
            time: self.time,
        })
    }

    /// Verifies a chunk and copies what is not zero. The bytes that are verified are those that are
    /// copied. One that was all zero is not read where the file still has a hole.
    fn load_chunk(
        &self,
        memory: &GuestMemoryMmap,
        place: &Place,
        expected: Option<Checksum>,
        buffer: &mut [u8],
    ) -> Result<(), OpenError> {
        let end = place.offset + place.bytes as u64;
        if expected.is_none() && is_hole(&self.memory, place.offset, end) {
            return Ok(());
        }
        let path = || self.directory.join(MEMORY_FILE);
        let bytes = &mut buffer[..place.bytes];
        self.memory
            .read_exact_at(bytes, place.offset)
            .map_err(|source| OpenError::Read {
                path: path(),
                source,
            })?;
        if Checksum::of(bytes) != expected {
            return Err(OpenError::DamagedMemory {
                path: path(),
                start: place.offset,
                end,
            });
        }
        for run in memory::runs(bytes) {
            let address = place.address.0 + run.start as u64;
            memory
                .write_slice(&bytes[run], vm_memory::GuestAddress(address))
                .expect("a place in this memory");
        }
        Ok(())
    }
}

/// Whether a part of a file has no data, as far as the file system can tell.
fn is_hole(file: &File, start: u64, end: u64) -> bool {
    match seek(file, SeekFrom::Data(start)) {
        Ok(data) => data >= end,
        Err(error) => error == rustix::io::Errno::NXIO,
    }
}

fn read_manifest(directory: &Path) -> Result<Manifest, OpenError> {
    /// Many times what it has.
    const MOST_BYTES: u64 = 1 << 20;
    let path = directory.join(MANIFEST_FILE);
    let (file, bytes) = match open_file(&path) {
        Err(OpenError::Missing { .. }) => {
            return Err(OpenError::NotASnapshot {
                path: directory.to_owned(),
            });
        }
        result => result?,
    };
    if bytes > MOST_BYTES {
        return Err(OpenError::Damaged { path });
    }
    Manifest::parse(directory, &read_all(&path, file, bytes)?)
}

fn read_json<T: DeserializeOwned>(path: PathBuf, section: Section) -> Result<T, OpenError> {
    let bytes = read_section(&path, section)?;
    serde_json::from_slice(&bytes).map_err(|error| OpenError::Content {
        path,
        reason: error.to_string(),
    })
}

fn read_section(path: &Path, section: Section) -> Result<Vec<u8>, OpenError> {
    let (file, bytes) = open_file(path)?;
    check_length(path, section.bytes, bytes)?;
    let bytes = read_all(path, file, bytes)?;
    if Section::of(&bytes) != section {
        return Err(OpenError::Damaged {
            path: path.to_owned(),
        });
    }
    Ok(bytes)
}

/// A regular file and its length.
fn open_file(path: &Path) -> Result<(File, u64), OpenError> {
    let path = || path.to_owned();
    // Opening a pipe must not wait for somebody to write to it.
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(flags)
        .open(path())
        .and_then(|file| Ok((file.metadata()?, file)));
    match opened {
        Ok((metadata, file)) if metadata.is_file() => Ok((file, metadata.len())),
        Ok(_) => Err(OpenError::NotAFile { path: path() }),
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            Err(OpenError::Missing { path: path() })
        }
        Err(source) => Err(OpenError::Read {
            path: path(),
            source,
        }),
    }
}

fn read_all(path: &Path, file: File, bytes: u64) -> Result<Vec<u8>, OpenError> {
    let mut contents = Vec::new();
    match file.take(bytes).read_to_end(&mut contents) {
        Ok(_) => Ok(contents),
        Err(source) => Err(OpenError::Read {
            path: path.to_owned(),
            source,
        }),
    }
}

fn check_length(path: &Path, expected: u64, actual: u64) -> Result<(), OpenError> {
    if actual == expected {
        return Ok(());
    }
    Err(OpenError::Length {
        path: path.to_owned(),
        expected,
        actual,
    })
}

fn check_machine(directory: &Path, facts: &Facts, machine: &MachineState) -> Result<(), OpenError> {
    let (vcpus, cpus) = (machine.vcpus.len(), machine.gic.cpus.len());
    if vcpus == facts.vcpus && cpus == facts.vcpus {
        return Ok(());
    }
    Err(OpenError::Content {
        path: directory.join(MACHINE_FILE),
        reason: format!(
            "it has {vcpus} vCPUs and interrupt controllers for {cpus}, of a machine of {}",
            facts.vcpus
        ),
    })
}

fn check_index(directory: &Path, facts: &Facts, index: &Index) -> Result<(), OpenError> {
    let total = memory::total_bytes(&index.ranges);
    if total == Some(facts.memory_bytes) {
        return Ok(());
    }
    Err(OpenError::Content {
        path: directory.join(INDEX_FILE),
        reason: format!(
            "it has {total:?} bytes of memory, of a machine of {}",
            facts.memory_bytes
        ),
    })
}
