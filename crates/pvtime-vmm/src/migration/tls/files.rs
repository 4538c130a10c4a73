//! The files that TLS goes by, read once and checked.

use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde::{Deserialize, Serialize};

/// More than any chain of certificates.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// What an operator gave, for both sides the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Files {
    /// This side's certificate and those between it and its authority, PEM.
    pub cert: PathBuf,
    /// The key to it, PEM.
    pub key: PathBuf,
    /// The certificates of whoever signs the other side's, PEM.
    pub ca: PathBuf,
    /// The name that the other side's certificate has to have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// What was in them.
#[derive(Debug)]
pub struct Identity {
    pub chain: Vec<CertificateDer<'static>>,
    pub key: PrivateKeyDer<'static>,
    pub roots: RootCertStore,
}

/// TLS cannot be spoken with what was given.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// The cipher needs instructions that this CPU lacks.
    #[error(
        "TLS needs a CPU with {missing}, which this one has not; go by a tunnel and its loopback \
         address instead"
    )]
    Cpu {
        /// The instructions.
        missing: &'static str,
    },
    /// A file cannot be read.
    #[error("cannot read {}: {source}; give a file that the VM's process may read", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A private key is no secret.
    #[error(
        "the key {} can be read or changed by others (mode {mode:04o}, owner {owner}); \
         `chmod 600` it, or let root own it with 640", path.display()
    )]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
        /// Whose it is.
        owner: u32,
    },
    /// A file does not have what it is for.
    #[error("{} has no {what}; give one in PEM form, without a password", path.display())]
    Lacks {
        /// The file.
        path: PathBuf,
        /// What it should have.
        what: &'static str,
    },
    /// What is in a file cannot be used.
    #[error("cannot use the {what} in {}: {reason}; {}", path.display(), super::refusal::KEYS)]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What it is.
        what: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// A key of another certificate.
    #[error(
        "the key {} is not that of the certificate {}; give the two that belong together",
        key.display(), cert.display()
    )]
    Mismatch {
        /// The key's file.
        key: PathBuf,
        /// The certificate's.
        cert: PathBuf,
    },
    /// Nothing says who the other side is to be.
    #[error(
        "{text:?} is no name that a certificate can have; give the other side's with --tls-name"
    )]
    Name {
        /// What there is instead.
        text: String,
    },
}

impl Files {
    /// Reads them.
    pub(super) fn load(&self) -> Result<Identity, SetupError> {
        Ok(Identity {
            chain: certificates(&self.cert)?,
            key: self.load_key()?,
            roots: self.load_roots()?,
        })
    }

    fn load_key(&self) -> Result<PrivateKeyDer<'static>, SetupError> {
        let path = &self.key;
        let mut file = open(path)?;
        let metadata = file.metadata().map_err(unreadable(path))?;
        let (mode, owner) = (metadata.mode() & 0o7777, metadata.uid());
        let us = rustix::process::geteuid().as_raw();
        if !is_secret(mode, owner, us) {
            let path = path.clone();
            return Err(SetupError::Exposed { path, mode, owner });
        }
        let bytes = read(&mut file, path)?;
        PrivateKeyDer::from_pem_slice(&bytes).map_err(|_| SetupError::Lacks {
            path: path.clone(),
            what: "private key",
        })
    }

    fn load_roots(&self) -> Result<RootCertStore, SetupError> {
        let mut roots = RootCertStore::empty();
        for certificate in certificates(&self.ca)? {
            let added = roots.add(certificate);
            added.map_err(|error| SetupError::Unusable {
                path: self.ca.clone(),
                what: "certificate",
                reason: error.to_string(),
            })?;
        }
        Ok(roots)
    }
}

/// Nobody but its owner touches it, who is us; or root, whose group may read it.
pub(super) fn is_secret(mode: u32, owner: u32, us: u32) -> bool {
    const OTHERS: u32 = 0o077;
    const OTHERS_THAN_ITS_READERS: u32 = 0o027;
    let exposed = |to: u32| mode & to != 0;
    (owner == us && !exposed(OTHERS)) || (owner == 0 && !exposed(OTHERS_THAN_ITS_READERS))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, SetupError> {
    let bytes = read(&mut open(path)?, path)?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    match certificates {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        _ => Err(SetupError::Lacks {
            path: path.into(),
            what: "certificate",
        }),
    }
}

/// Opens a file, without waiting for one that is a pipe.
fn open(path: &Path) -> Result<File, SetupError> {
    let file = File::options()
        .read(true)
        .custom_flags(OFlags::NONBLOCK.bits().cast_signed())
        .open(path)
        .map_err(unreadable(path))?;
    let metadata = file.metadata().map_err(unreadable(path))?;
    if metadata.is_file() {
        return Ok(file);
    }
    let source = io::Error::new(ErrorKind::InvalidInput, "it is no regular file");
    Err(unreadable(path)(source))
}

fn read(file: &mut File, path: &Path) -> Result<Vec<u8>, SetupError> {
    let mut bytes = Vec::new();
    file.take(MAX_FILE_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(unreadable(path))?;
    if bytes.len() as u64 <= MAX_FILE_BYTES {
        return Ok(bytes);
    }
    let source = io::Error::new(ErrorKind::FileTooLarge, "it has more than 1 MiB");
    Err(unreadable(path)(source))
}

fn unreadable(path: &Path) -> impl FnOnce(io::Error) -> SetupError {
    move |source| SetupError::Unreadable {
        path: path.into(),
        source,
    }
}
