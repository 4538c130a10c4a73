//! What was done to a VM's time, for the operator.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use pvtime::host::timeline::{Adjustment, Reading};
use serde::Serialize;

/// One intervention: what, why, by how much, with what error.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Record {
    /// Counts from 1, without gaps.
    pub sequence: u64,
    /// When: `CLOCK_REALTIME` of the host, in ns.
    pub wall_ns: u64,
    /// What happened.
    pub event: String,
    /// Why the VM did not run; absent for a start.
    pub cause: Option<String>,
    /// `freeze` or `advance`; absent where the event does not decide it.
    pub policy: Option<String>,
    /// For how long the VM did not run; absent where that is not over.
    pub gap: Option<GapRecord>,
    /// How much of the gap the guest's counters do not show, in ns.
    pub hidden_ns: u64,
    /// By how much the guest's counter moved over the gap, in ticks; absent where its frequency
    /// changed.
    pub shown_ticks: Option<u64>,
    /// Whether a negative gap was taken for none.
    pub clamped: bool,
    /// The counters before.
    pub before: ReadingRecord,
    /// The counters after.
    pub after: ReadingRecord,
}

/// Physical time in which the VM did not run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct GapRecord {
    /// In ns.
    pub ns: i128,
    /// In ticks of the host's counter.
    pub ticks: i128,
    /// Bound on the error, in ns.
    pub error_ns: u64,
    /// How it is known.
    pub source: String,
}

/// Counters at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ReadingRecord {
    /// The host's counter.
    pub host: u64,
    /// The guest's counter.
    pub guest: u64,
    /// What is subtracted from the first to give the second, modulo 2^64.
    pub offset: u64,
    /// Rate of both, in Hz.
    pub frequency_hz: u64,
}

impl Record {
    /// The record of an adjustment that was made at `wall_ns`; it is numbered when it is kept.
    #[must_use]
    pub fn new(adjustment: &Adjustment, wall_ns: u64) -> Self {
        let gap = adjustment
            .gap
            .zip(adjustment.gap_ticks())
            .map(|(gap, ticks)| GapRecord {
                ns: gap.ns,
                ticks,
                error_ns: gap.error_ns,
                source: gap.source.to_string(),
            });
        Self {
            sequence: 0,
            wall_ns,
            event: adjustment.event.to_string(),
            cause: adjustment.cause.map(|cause| cause.to_string()),
            policy: adjustment.policy.map(|policy| policy.to_string()),
            shown_ticks: gap.is_some().then(|| adjustment.shown_ticks()).flatten(),
            gap,
            hidden_ns: adjustment.hidden_ns,
            clamped: adjustment.clamped,
            before: adjustment.before.into(),
            after: adjustment.after.into(),
        }
    }
}

impl From<Reading> for ReadingRecord {
    fn from(reading: Reading) -> Self {
        Self {
            host: reading.host.0,
            guest: reading.guest.0,
            offset: reading.offset.0,
            frequency_hz: reading.frequency.hz(),
        }
    }
}

/// The last records of a VM, numbered.
#[derive(Debug, Default)]
pub struct Records {
    kept: Mutex<Kept>,
    added: Condvar,
}

#[derive(Debug, Default)]
struct Kept {
    /// Number of the newest.
    last: u64,
    records: VecDeque<Record>,
}

impl Records {
    /// How many are kept; older ones are gone, and the numbers tell.
    pub const CAPACITY: usize = 4096;

    /// Numbers a record and keeps it.
    pub(crate) fn push(&self, mut record: Record) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.last += 1;
        record.sequence = kept.last;
        if kept.records.len() == Self::CAPACITY {
            kept.records.pop_front();
        }
        kept.records.push_back(record);
        self.added.notify_all();
    }

    /// The records after number `sequence`, waiting up to `patience` for the first.
    #[must_use]
    pub fn after(&self, sequence: u64, patience: Duration) -> Vec<Record> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let (kept, _) = self
            .added
            .wait_timeout_while(kept, patience, |kept| kept.last <= sequence)
            .unwrap_or_else(PoisonError::into_inner);
        kept.records
            .iter()
            .filter(|record| record.sequence > sequence)
            .cloned()
            .collect()
    }
}
