//! `snapshot.json`: what a snapshot is, and what its other files must be.

use std::fmt;
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::{FORMAT, MANIFEST_FILE, OpenError};

/// The SHA-256 of something.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Digest(#[serde(with = "hex::serde")] pub [u8; 32]);

impl Digest {
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

/// What a machine was, to make another like it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// The version of pvtime that wrote the snapshot.
    pub pvtime: String,
    /// Its host's architecture, as Rust calls it.
    pub architecture: String,
    /// The rate of its host's counter, in Hz.
    pub counter_frequency_hz: u64,
    /// Bytes of its memory.
    pub memory_bytes: u64,
    /// Its vCPUs.
    pub vcpus: usize,
}

/// The contents of `snapshot.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Manifest {
    pub format: u32,
    #[serde(flatten)]
    pub facts: Facts,
    pub machine: Section,
    pub time: Section,
    pub memory: Section,
}

/// What a file must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Section {
    pub bytes: u64,
    pub sha256: Digest,
}

impl Section {
    pub fn of(bytes: &[u8]) -> Self {
        Self {
            bytes: bytes.len() as u64,
            sha256: Digest::of(bytes),
        }
    }
}

/// How the members of an object end, in the way that `serde_json` writes them.
const END: &[u8] = b"\n}";

impl Manifest {
    /// The file's bytes.
    pub fn emit(&self) -> Vec<u8> {
        let json = serde_json::to_vec_pretty(self).expect("strings and numbers");
        let mut bytes = json.strip_suffix(END).expect("an object").to_vec();
        bytes.extend(checksum(&bytes));
        bytes
    }

    /// Reads the file's bytes; `directory` is for the error.
    pub fn parse(directory: &Path, bytes: &[u8]) -> Result<Self, OpenError> {
        /// What every format has.
        #[derive(Deserialize)]
        struct Header {
            format: u32,
            pvtime: String,
        }
        let path = || directory.join(MANIFEST_FILE);
        let content = |error: serde_json::Error| OpenError::Content {
            path: path(),
            reason: error.to_string(),
        };
        let body = bytes.len().checked_sub(checksum(b"").len());
        let (body, end) = bytes.split_at(body.unwrap_or_default());
        if end != checksum(body) {
            return Err(OpenError::Damaged { path: path() });
        }
        let json = [body, END].concat();
        let Header { format, pvtime } = serde_json::from_slice(&json).map_err(content)?;
        if format > FORMAT {
            return Err(OpenError::Newer {
                path: directory.to_owned(),
                format,
                pvtime,
            });
        }
        serde_json::from_slice(&json).map_err(content)
    }
}

/// The end of the file: the checksum of what precedes it, as the last member of the object.
fn checksum(body: &[u8]) -> Vec<u8> {
    format!(",\n  \"sha256\": \"{:?}\"\n}}\n", Digest::of(body)).into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(format: u32) -> Manifest {
        let section = Section::of(b"");
        Manifest {
            format,
            facts: Facts {
                pvtime: "1.2.3".into(),
                architecture: "aarch64".into(),
                counter_frequency_hz: 25_000_000,
                memory_bytes: 1 << 40,
                vcpus: 4,
            },
            machine: section,
            time: Section::of(b"abc"),
            memory: section,
        }
    }

    #[test]
    fn a_manifest_is_json_and_the_same_when_read() {
        let bytes = manifest(FORMAT).emit();
        let json: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(json["format"], FORMAT);
        assert_eq!(json["memory_bytes"], 1u64 << 40);
        assert_eq!(json["time"]["bytes"], 3);
        assert_eq!(
            json["time"]["sha256"],
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        assert_eq!(json["sha256"].as_str().unwrap().len(), 64);
        let read = Manifest::parse(Path::new("dir"), &bytes).unwrap();
        assert_eq!(read, manifest(FORMAT));
    }

    #[test]
    fn a_manifest_that_was_changed_or_cut_is_damaged() {
        let bytes = manifest(FORMAT).emit();
        let damaged = |bytes: &[u8]| {
            let error = Manifest::parse(Path::new("dir"), bytes).unwrap_err();
            assert!(matches!(error, OpenError::Damaged { .. }), "{error}");
        };
        for index in 0..bytes.len() {
            damaged(&bytes[..index]);
            for bit in 0..8 {
                let mut changed = bytes.clone();
                changed[index] ^= 1 << bit;
                damaged(&changed);
            }
        }
        damaged(&[&bytes[..], b"\n"].concat());
    }

    #[test]
    fn a_newer_format_is_told_with_who_wrote_it() {
        let error = Manifest::parse(Path::new("dir"), &manifest(FORMAT + 1).emit()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "dir has format 3, written by pvtime 1.2.3; this version reads up to format 2: restore \
             it with that version or a newer one"
        );
    }

    #[test]
    fn what_makes_no_sense_is_told() {
        let body = br#"{"format": 1, "pvtime": "1""#;
        let bytes = [&body[..], &checksum(body)].concat();
        let error = Manifest::parse(Path::new("dir"), &bytes).unwrap_err();
        assert!(matches!(error, OpenError::Content { .. }), "{error}");
    }
}
