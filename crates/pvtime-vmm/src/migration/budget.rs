//! How long a source may take for memory, by what of it has come.

use std::ops::Range;
use std::time::Duration;

use super::{PATIENCE, SLOWEST_BYTES_PER_S, SLOWEST_ZEROS_PER_S, WORK_PATIENCE};
use crate::snapshot::MemoryRange;

/// What of a VM's memory has come, in all rounds.
///
/// Of the first round a source sends nothing of what is zero, so what it has passed counts, at the
/// rate at which memory is looked through; of the others only what was sent.
#[derive(Debug)]
pub struct Budget {
    memory: MemoryRange,
    rounds: u32,
    contents_bytes: u64,
    /// How far the first round has got.
    passed_bytes: u64,
    zero_bytes: u64,
}

impl Budget {
    /// For memory of which nothing has come.
    #[must_use]
    pub const fn new(memory: MemoryRange) -> Self {
        Self {
            memory,
            rounds: 0,
            contents_bytes: 0,
            passed_bytes: 0,
            zero_bytes: 0,
        }
    }

    /// Rounds that have begun.
    #[must_use]
    pub const fn rounds(&self) -> u32 {
        self.rounds
    }

    /// Another round begins, and the one before has passed all memory.
    pub fn begin_round(&mut self) {
        if self.rounds > 0 {
            self.passed_bytes = self.memory.bytes;
        }
        self.rounds += 1;
    }

    /// Contents came, for these addresses.
    pub fn contents(&mut self, place: &Range<u64>) {
        self.contents_bytes += place.end - place.start;
        self.pass(place);
    }

    /// The word came that these addresses are zero.
    pub fn zeros(&mut self, place: &Range<u64>) {
        if self.rounds > 1 {
            self.zero_bytes += place.end - place.start;
        }
        self.pass(place);
    }

    fn pass(&mut self, place: &Range<u64>) {
        let passed_bytes = place.end.saturating_sub(self.memory.start);
        self.passed_bytes = self.passed_bytes.max(passed_bytes);
    }

    /// How long all of that may have taken.
    #[must_use]
    pub fn allowed(&self) -> Duration {
        let contents_s = self.contents_bytes / SLOWEST_BYTES_PER_S;
        let zeros_s = (self.passed_bytes + self.zero_bytes) / SLOWEST_ZEROS_PER_S;
        WORK_PATIENCE + PATIENCE * self.rounds + Duration::from_secs(contents_s + zeros_s)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::RAM;
    use crate::migration::MAX_ROUNDS;

    const GIB: u64 = 1 << 30;
    const PIECE: u64 = 256 << 10;

    fn begun() -> Budget {
        let mut budget = Budget::new(MemoryRange {
            start: RAM,
            bytes: GIB,
        });
        budget.begin_round();
        budget
    }

    #[test]
    fn a_peer_that_drips_is_left_within_a_minute_and_with_new_rounds_within_minutes() {
        const APART: Duration = Duration::from_secs(9);
        let mut budget = begun();
        let mut elapsed = Duration::ZERO;
        while elapsed <= budget.allowed() {
            elapsed += APART;
            budget.contents(&(RAM..RAM + 1));
        }
        assert!(elapsed < Duration::from_secs(60), "{elapsed:?}");
        while budget.rounds() < MAX_ROUNDS {
            budget.begin_round();
        }
        let minutes = budget.allowed().as_secs() / 60;
        assert!(minutes < 10, "{minutes} minutes");
    }

    #[test]
    fn a_slow_connection_and_memory_that_is_zero_have_their_time() {
        let mut budget = begun();
        let mut elapsed = Duration::ZERO;
        for start in (RAM..RAM + GIB / 64).step_by(usize::try_from(PIECE).unwrap()) {
            budget.contents(&(start..start + PIECE));
            elapsed += Duration::from_secs(PIECE / SLOWEST_BYTES_PER_S);
            assert!(elapsed <= budget.allowed());
        }
        let mut budget = begun();
        // A page is all that comes of what was looked through meanwhile.
        budget.zeros(&(RAM + GIB - 4096..RAM + GIB));
        assert!(Duration::from_secs(GIB / SLOWEST_ZEROS_PER_S) <= budget.allowed());
        let before = budget.allowed();
        budget.begin_round();
        for _ in 0..100 {
            budget.zeros(&(RAM..RAM + 4096));
        }
        assert_eq!(budget.allowed(), before + PATIENCE, "it is the same page");
    }
}
