//! How far a migration is, for whoever asks.

use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

/// `GET /migration`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// What is being done.
    pub phase: Phase,
    /// Where the VM goes; absent where it was never told to go.
    pub destination: Option<String>,
    /// Rounds of memory that have begun.
    pub round: u32,
    /// Bytes of the VM's memory.
    pub memory_bytes: u64,
    /// Bytes of memory that this round has yet to look at.
    pub left_bytes: u64,
    /// Bytes that were sent.
    pub sent_bytes: u64,
}

/// What a migration does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// There is none.
    #[default]
    #[serde(rename = "None")]
    Idle,
    /// The destination is asked.
    Asking,
    /// Memory is copied; the guest runs.
    Copying,
    /// The VM is stopped, and the rest is sent.
    Stopped,
    /// The VM was given away, and the destination has not said that it runs it.
    Committing,
    /// It runs at the destination.
    Moved,
    /// It does not.
    Failed,
}

/// A migration's progress.
#[derive(Debug, Default)]
pub struct Monitor(Mutex<Progress>);

impl Monitor {
    /// Begins anew.
    pub fn begin(&self, destination: String) {
        *self.lock() = Progress {
            phase: Phase::Asking,
            destination: Some(destination),
            ..Progress::default()
        };
    }

    /// Changes what is shown.
    pub fn update(&self, change: impl FnOnce(&mut Progress)) {
        change(&mut self.lock());
    }

    /// What is shown.
    pub fn progress(&self) -> Progress {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Progress> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
