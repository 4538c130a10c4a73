//! What was done to a VM's time, for the operator.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pvtime::host::timeline::{Adjustment, Gap, LiveReading, Reading};
use pvtime::host::timers::{TimerControl, TranslatedTimers};
use pvtime::scale::TranslatedDeadline;
use serde::{Deserialize, Serialize};

/// One intervention: what, why, by how much, with what error.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
    /// changed, and for a sleep of the host that was noticed afterwards.
    pub shown_ticks: Option<u64>,
    /// Whether a negative gap was taken for none.
    pub clamped: bool,
    /// The counters before.
    pub before: ReadingRecord,
    /// The counters after.
    pub after: ReadingRecord,
    /// Live physical time; absent where the VM does not have it.
    pub live: Option<LiveRecord>,
    /// What became of the vCPUs' timers; absent where the counter's frequency stayed.
    pub timers: Option<TimersRecord>,
    /// For how long the guest was asked before to suspend itself and did not, in ms; absent where it
    /// was not asked, or did.
    pub unanswered_ms: Option<u64>,
    /// For how long the host was awake, in ms, while nobody said that the sleep was over for which the VM
    /// was stopped, until it went on by itself; absent where somebody did.
    pub unfinished_ms: Option<u64>,
}

/// Physical time in which the VM did not run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GapRecord {
    /// In ns; negative if two hosts' clocks say so.
    pub ns: i128,
    /// In ticks of the host's counter after it.
    pub ticks: i128,
    /// Bound on the error, in ns; absent where nothing bounds it.
    pub error_ns: Option<u64>,
    /// How it is known.
    pub source: String,
}

/// Counters at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
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

/// Live physical time at one intervention.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LiveRecord {
    /// What the guest computed when it stopped, in PV ticks.
    pub pv_before: u64,
    /// What it computes when it goes on, in PV ticks; below `pv_before` only until `hold_ticks`
    /// have passed.
    pub pv_after: u64,
    /// How far that is ahead of the ideal: signed PV ticks with six decimals.
    pub distance: String,
    /// Native ticks for which no vCPU was let into the guest.
    pub hold_ticks: u64,
}

/// Timers and event streams of all vCPUs, taken to ticks of another frequency.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimersRecord {
    /// Timers that were on and whose deadline this host's counter does not reach, in 136 years or
    /// more: they are set as for never.
    pub unreachable: usize,
    /// By how many bits the event stream furthest from what its guest chose is off, because the
    /// hardware has no such bit; positive where a higher one was meant.
    pub lost_stream_bits: i16,
}

impl TimersRecord {
    /// Adds what became of one vCPU's.
    #[must_use]
    pub fn with(self, translated: &TranslatedTimers) -> Self {
        let TranslatedTimers {
            timers,
            virtual_deadline,
            physical_deadline,
            lost_stream_bits,
        } = translated;
        let both = [
            (timers.virtual_timer, virtual_deadline),
            (timers.physical_timer, physical_deadline),
        ];
        let lost = both.into_iter().filter(|(timer, deadline)| {
            timer.control.0 & TimerControl::ENABLE != 0
                && **deadline == TranslatedDeadline::Unreachable
        });
        Self {
            unreachable: self.unreachable + lost.count(),
            lost_stream_bits: if lost_stream_bits.unsigned_abs()
                > self.lost_stream_bits.unsigned_abs()
            {
                *lost_stream_bits
            } else {
                self.lost_stream_bits
            },
        }
    }
}

impl Record {
    /// The record of an adjustment that was made at `wall_ns`; it is numbered when it is kept.
    #[must_use]
    pub fn new(adjustment: &Adjustment, wall_ns: u64) -> Self {
        let gap = adjustment
            .gap
            .zip(adjustment.gap_ticks())
            .map(|(gap, ticks)| GapRecord::new(gap, ticks));
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
            live: adjustment.live.map(LiveRecord::from),
            timers: None,
            unanswered_ms: None,
            unfinished_ms: None,
        }
    }
}

impl GapRecord {
    fn new(gap: Gap, ticks: i128) -> Self {
        Self {
            ns: gap.ns,
            ticks,
            error_ns: (gap.error_ns != u64::MAX).then_some(gap.error_ns),
            source: gap.source.to_string(),
        }
    }
}

impl From<LiveReading> for LiveRecord {
    fn from(reading: LiveReading) -> Self {
        let LiveReading {
            pv_before,
            pv_after,
            distance,
            hold_ticks,
        } = reading;
        Self {
            pv_before,
            pv_after,
            distance: distance.to_string(),
            hold_ticks,
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
    finished: bool,
}

impl Records {
    /// How many are kept; older ones are gone, and the numbers tell.
    pub const CAPACITY: usize = 4096;

    /// Numbers a record and keeps it.
    pub fn push(&self, mut record: Record) {
        let mut kept = self.lock();
        kept.last += 1;
        record.sequence = kept.last;
        if kept.records.len() == Self::CAPACITY {
            kept.records.pop_front();
        }
        kept.records.push_back(record);
        self.added.notify_all();
    }

    /// The records after number `sequence`, waiting up to `patience` for the first, but not for
    /// one that will not come.
    #[must_use]
    pub fn after(&self, sequence: u64, patience: Duration) -> Vec<Record> {
        self.wait_after(sequence, patience)
            .records
            .iter()
            .filter(|record| record.sequence > sequence)
            .cloned()
            .collect()
    }

    /// Number of the newest, waiting as [`after`](Self::after) does; 0 where there is none.
    #[must_use]
    pub fn last_after(&self, sequence: u64, patience: Duration) -> u64 {
        self.wait_after(sequence, patience).last
    }

    /// Number of the newest; 0 where there is none.
    #[must_use]
    pub fn last(&self) -> u64 {
        self.lock().last
    }

    /// Says that the VM has ended: whoever waits need not go on.
    pub fn finish(&self) {
        self.lock().finished = true;
        self.added.notify_all();
    }

    /// Whether the VM has ended.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.lock().finished
    }

    fn wait_after(&self, sequence: u64, patience: Duration) -> MutexGuard<'_, Kept> {
        let waits = |kept: &mut Kept| kept.last <= sequence && !kept.finished;
        let waited = self.added.wait_timeout_while(self.lock(), patience, waits);
        waited.unwrap_or_else(PoisonError::into_inner).0
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
