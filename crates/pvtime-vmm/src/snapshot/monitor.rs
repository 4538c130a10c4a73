//! How far a snapshot is, for whoever asks.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::Progress;

/// `GET /snapshot`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Saving {
    /// What is being done, or came of the last one.
    pub phase: Phase,
    /// The folder; absent where the VM was never saved.
    pub snapshot_path: Option<PathBuf>,
    /// Bytes of the VM's memory; 0 before the first of it was looked at.
    pub memory_bytes: u64,
    /// Bytes of memory that were looked at: those that are not zero are written.
    pub done_bytes: u64,
}

/// What a snapshot does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// There is none.
    #[default]
    #[serde(rename = "None")]
    Idle,
    /// The VM is stopped and written.
    Saving,
    /// The folder holds it whole.
    Saved,
    /// It does not.
    Failed,
}

/// A snapshot's progress.
#[derive(Debug, Default)]
pub struct Monitor(Mutex<Saving>);

impl Monitor {
    /// Begins anew.
    pub fn begin(&self, folder: &Path) {
        *self.lock() = Saving {
            phase: Phase::Saving,
            snapshot_path: Some(folder.into()),
            ..Saving::default()
        };
    }

    /// Shows how far memory is.
    pub fn update(&self, progress: Progress) {
        let mut saving = self.lock();
        saving.memory_bytes = progress.total_bytes;
        saving.done_bytes = progress.done_bytes;
    }

    /// It is over.
    pub fn end(&self, is_saved: bool) {
        self.lock().phase = if is_saved {
            Phase::Saved
        } else {
            Phase::Failed
        };
    }

    /// What is shown.
    pub fn saving(&self) -> Saving {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Saving> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_snapshot_begins_anew_and_what_came_of_the_last_stays() {
        let monitor = Monitor::default();
        assert_eq!(monitor.saving(), Saving::default());
        let progress = |done_bytes| Progress {
            done_bytes,
            total_bytes: 8,
        };
        let saving = |folder: &str, phase, done_bytes, memory_bytes| Saving {
            phase,
            snapshot_path: Some(folder.into()),
            memory_bytes,
            done_bytes,
        };
        monitor.begin(Path::new("/a"));
        assert_eq!(monitor.saving(), saving("/a", Phase::Saving, 0, 0));
        monitor.update(progress(2));
        assert_eq!(monitor.saving(), saving("/a", Phase::Saving, 2, 8));
        monitor.update(progress(8));
        monitor.end(true);
        assert_eq!(monitor.saving(), saving("/a", Phase::Saved, 8, 8));
        monitor.begin(Path::new("/b"));
        monitor.end(false);
        assert_eq!(monitor.saving(), saving("/b", Phase::Failed, 0, 0));
    }
}
