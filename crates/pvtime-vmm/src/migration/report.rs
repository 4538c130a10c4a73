//! What a migration did, for the operator.

use pvtime_kvm::record::Record;
use serde::{Deserialize, Serialize};

use super::message::{Answer, Offer};

/// The answer to `PUT /migration`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// What became of it.
    pub outcome: Outcome,
    /// Where the VM was to go.
    pub destination: String,
    /// Who answered there.
    pub who: String,
    /// Why the VM cannot go there; none where it can.
    pub refusals: Vec<String>,
    /// The two hosts' clocks.
    pub clocks: Clocks,
    /// What was sent, and how long it took; absent where nothing was.
    pub transfer: Option<Transfer>,
    /// What had been stolen from each vCPU when it stopped, in ns, by its structure, which goes on from
    /// there; absent for one whose guest has not asked for it. Empty where the VM did not go.
    pub stolen_at_stop_ns: Vec<Option<u64>>,
    /// What the destination did to the VM's time; absent where it stays paused there or did not go.
    pub record: Option<Record>,
}

/// What became of a migration that was carried out as asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// The destination would take the VM; it was a dry run.
    Accepted,
    /// The destination does not take it; it never noticed.
    Refused,
    /// It is there.
    Moved,
}

/// The clocks of the two hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Clocks {
    /// Rate of the source's counter, in Hz.
    pub source_frequency_hz: u64,
    /// Rate of the destination's counter, in Hz.
    pub destination_frequency_hz: u64,
    /// Bound on the error of the source's wall clock in ns; absent where nothing bounds it.
    pub source_error_ns: Option<u64>,
    /// Bound on the error of the destination's wall clock in ns; absent where nothing bounds it.
    pub destination_error_ns: Option<u64>,
}

/// What was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transfer {
    /// Rounds of memory, that of the stopped VM among them.
    pub rounds: u32,
    /// Bytes of the VM's memory.
    pub memory_bytes: u64,
    /// Bytes that were sent.
    pub sent_bytes: u64,
    /// As many of them as were sent while the VM was stopped.
    pub stopped_bytes: u64,
    /// From the first byte to the destination's word that the VM runs, in ms.
    pub total_ms: u64,
    /// From before the first vCPU was stopped to that word, by the source's clock, in ms.
    pub downtime_ms: u64,
    /// Whether the VM was stopped because the rest fitted into the downtime that was asked for.
    pub converged: bool,
}

impl Report {
    /// Of a migration that did not begin to move memory.
    #[must_use]
    pub fn of_answer(destination: &str, offer: &Offer, answer: Answer) -> Self {
        let outcome = if answer.refusals.is_empty() {
            Outcome::Accepted
        } else {
            Outcome::Refused
        };
        Self {
            outcome,
            destination: destination.into(),
            who: answer.who,
            refusals: answer.refusals,
            clocks: Clocks {
                source_frequency_hz: offer.counter_frequency_hz,
                destination_frequency_hz: answer.counter_frequency_hz,
                source_error_ns: offer.wall_error_ns,
                destination_error_ns: answer.wall_error_ns,
            },
            transfer: None,
            stolen_at_stop_ns: Vec::new(),
            record: None,
        }
    }
}
