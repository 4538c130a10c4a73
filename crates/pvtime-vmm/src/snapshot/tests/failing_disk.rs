//! A disk on which an operation fails, and which knows what a loss of power would take away.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};

use crate::snapshot::disk::{Disk, FileSystem, Output};

/// The file system until one operation fails; a write that fails gets half of its bytes down.
pub struct FailingDisk {
    fails_at: usize,
    /// Whether the writer ends there, so that all further operations fail as well.
    is_fatal: bool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    operations: usize,
    /// Files whose contents are not on the disk yet.
    contents: BTreeSet<PathBuf>,
    /// Files and directories whose names are not on the disk yet.
    names: BTreeSet<PathBuf>,
    /// A rename that is not on the disk yet.
    rename: Option<(PathBuf, PathBuf)>,
}

/// How it ended.
#[derive(Clone, Copy, Debug)]
pub enum End {
    /// The writer was killed, and all that it had written is there.
    Killed,
    /// Power was lost, and with it all that was not on the disk but renames.
    PowerLost,
    /// And renames.
    PowerLostWithRenames,
}

enum Outcome {
    Success,
    Failure,
}

impl FailingDisk {
    pub fn new(fails_at: usize, is_fatal: bool) -> Self {
        Self {
            fails_at,
            is_fatal,
            state: Mutex::default(),
        }
    }

    /// Leaves on the disk what such an end leaves there.
    pub fn end(self, end: End) {
        let state = self.state.into_inner().unwrap();
        if matches!(end, End::Killed) {
            return;
        }
        for path in state.contents {
            if let Ok(file) = File::options().write(true).open(path) {
                file.set_len(0).unwrap();
            }
        }
        for path in state.names {
            if path.is_dir() {
                fs::remove_dir_all(path).unwrap();
            } else if path.exists() {
                fs::remove_file(path).unwrap();
            }
        }
        if let (Some((from, to)), End::PowerLostWithRenames) = (state.rename, end) {
            fs::rename(to, from).unwrap();
        }
    }

    fn begin(&self) -> io::Result<(Outcome, MutexGuard<'_, State>)> {
        let mut state = self.state.lock().unwrap();
        let number = state.operations;
        state.operations += 1;
        if number == self.fails_at {
            Ok((Outcome::Failure, state))
        } else if number > self.fails_at && self.is_fatal {
            Err(io::Error::other("the writer is dead"))
        } else {
            Ok((Outcome::Success, state))
        }
    }

    /// Begins an operation that does nothing if it fails.
    fn begin_whole(&self) -> io::Result<MutexGuard<'_, State>> {
        match self.begin()? {
            (Outcome::Success, state) => Ok(state),
            (Outcome::Failure, _) => Err(failure()),
        }
    }
}

fn failure() -> io::Error {
    io::Error::other("the disk fails")
}

impl Disk for FailingDisk {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.begin_whole()?.names.insert(path.to_owned());
        FileSystem.create_dir(path)
    }

    fn create(&self, path: &Path) -> io::Result<File> {
        self.begin_whole()?.names.insert(path.to_owned());
        FileSystem.create(path)
    }

    fn set_len(&self, output: &Output, bytes: u64) -> io::Result<()> {
        self.begin_whole()?.contents.insert(output.path.clone());
        FileSystem.set_len(output, bytes)
    }

    fn write_all_at(&self, output: &Output, bytes: &[u8], offset: u64) -> io::Result<()> {
        let (outcome, mut state) = self.begin()?;
        state.contents.insert(output.path.clone());
        match outcome {
            Outcome::Success => FileSystem.write_all_at(output, bytes, offset),
            Outcome::Failure => {
                FileSystem.write_all_at(output, &bytes[..bytes.len() / 2], offset)?;
                Err(failure())
            }
        }
    }

    fn sync(&self, output: &Output) -> io::Result<()> {
        self.begin_whole()?.contents.remove(&output.path);
        Ok(())
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let mut state = self.begin_whole()?;
        let is_here = |name: &Path| name.parent() == Some(path);
        state.names.retain(|name| !is_here(name));
        state.rename.take_if(|(_, to)| is_here(to));
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.begin_whole()?;
        let moved = |paths: &BTreeSet<PathBuf>| {
            let moved = |path: &PathBuf| match path.strip_prefix(from) {
                Ok(rest) => to.join(rest),
                Err(_) => path.clone(),
            };
            paths.iter().map(moved).collect()
        };
        state.names.remove(from);
        state.names = moved(&state.names);
        state.contents = moved(&state.contents);
        state.rename = Some((from.to_owned(), to.to_owned()));
        FileSystem.rename(from, to)
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        drop(self.begin_whole()?);
        FileSystem.remove_dir_all(path)
    }
}
