//! The file operations of a writer, one by one, so that a test can end the world at each.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::SaveError;

/// What a snapshot is written to.
pub(super) trait Disk: Sync {
    fn create_dir(&self, path: &Path) -> io::Result<()>;
    fn create(&self, path: &Path) -> io::Result<File>;
    fn set_len(&self, output: &Output, bytes: u64) -> io::Result<()>;
    fn write_all_at(&self, output: &Output, bytes: &[u8], offset: u64) -> io::Result<()>;
    fn sync(&self, output: &Output) -> io::Result<()>;
    fn sync_dir(&self, path: &Path) -> io::Result<()>;
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    fn remove_dir_all(&self, path: &Path) -> io::Result<()>;
}

/// A file that is being written.
pub(super) struct Output {
    pub path: PathBuf,
    pub file: File,
}

impl Output {
    pub fn create(disk: &dyn Disk, path: PathBuf) -> Result<Self, SaveError> {
        match disk.create(&path) {
            Ok(file) => Ok(Self { path, file }),
            Err(source) => Err(SaveError::Write { path, source }),
        }
    }

    pub fn failed(&self) -> impl FnOnce(io::Error) -> SaveError {
        failed(&self.path)
    }
}

/// The error of an operation on `path`.
pub(super) fn failed(path: &Path) -> impl FnOnce(io::Error) -> SaveError {
    let path = path.to_owned();
    |source| SaveError::Write { path, source }
}

/// The file system.
pub(super) struct FileSystem;

impl Disk for FileSystem {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        DirBuilder::new().mode(0o700).create(path)
    }

    fn create(&self, path: &Path) -> io::Result<File> {
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
    }

    fn set_len(&self, output: &Output, bytes: u64) -> io::Result<()> {
        output.file.set_len(bytes)
    }

    fn write_all_at(&self, output: &Output, bytes: &[u8], offset: u64) -> io::Result<()> {
        output.file.write_all_at(bytes, offset)
    }

    fn sync(&self, output: &Output) -> io::Result<()> {
        output.file.sync_all()
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_dir_all(path)
    }
}
