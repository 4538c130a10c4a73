//! Learning that the VM was paused.

use super::GuestError;
use crate::abi::paused_time::{PausedTime, PausedTimeLayout, SHAPE, SIZE_BYTES};
use crate::seqlock::{ReadWords, SequenceReader, Word};

const WORDS: usize = SIZE_BYTES / u32::BYTES;

/// A VM's paused-time structure.
#[derive(Clone, Copy, Debug)]
pub struct PausedTimeReader<M> {
    reader: SequenceReader<u32, M>,
}

impl<M: ReadWords<u32>> PausedTimeReader<M> {
    /// Checks the structure at the address that the device tree names.
    ///
    /// # Errors
    ///
    /// As [`read`](Self::read), and [`ReadError::TooShort`](crate::seqlock::ReadError::TooShort)
    /// for a region of less than 64 bytes.
    pub fn attach(memory: M) -> Result<Self, GuestError> {
        let attached = Self {
            reader: SequenceReader::attach(memory, SHAPE)?,
        };
        attached.read()?;
        Ok(attached)
    }

    /// What the VM's pauses amount to now.
    ///
    /// # Errors
    ///
    /// [`GuestError::Read`] if the structure is not still, [`GuestError::Parse`] if it is none.
    pub fn read(&self) -> Result<PausedTime, GuestError> {
        let layout: PausedTimeLayout = zerocopy::transmute!(self.reader.copy::<WORDS>()?);
        Ok(layout.validate()?)
    }
}

/// Pauses that a guest did not know of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UnseenPauses {
    /// How many.
    pub events: u64,
    /// Nanoseconds of them that the guest's counters did not show.
    pub paused_ns: u64,
}

/// What a guest already knows of its VM's pauses.
///
/// An interrupt says that there is something to know, and may come once for several pauses, twice
/// for one, or never: the totals tell each pause exactly once all the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PauseTracker {
    events: u64,
    paused_ns: u64,
}

impl PauseTracker {
    /// Knows of all pauses up to this reading: what was before the guest looked first is no news.
    #[must_use]
    pub const fn start(now: &PausedTime) -> Self {
        Self {
            events: now.events,
            paused_ns: now.paused_ns,
        }
    }

    /// What is new in a reading, which is then known; `None` if nothing is.
    ///
    /// Totals below the known ones are no news either: they start a new count.
    pub fn step(&mut self, now: &PausedTime) -> Option<UnseenPauses> {
        let events = now.events.saturating_sub(self.events);
        let paused_ns = now.paused_ns.saturating_sub(self.paused_ns);
        *self = Self::start(now);
        (events > 0).then_some(UnseenPauses { events, paused_ns })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::ParseError;
    use crate::seqlock::{ReadError, SequenceWriter, WriteWords};
    use core::sync::atomic::AtomicU32;

    fn paused(events: u64, paused_ns: u64) -> PausedTime {
        PausedTime {
            paused_ns,
            events,
            ..PausedTime::default()
        }
    }

    #[test]
    fn s1_a_guest_reads_what_the_host_published() {
        let memory = [const { AtomicU32::new(0xa5a5_a5a5) }; 16];
        let mut writer = SequenceWriter::start(SHAPE);
        writer.publish(&memory[..], &paused(0, 0).emit()).unwrap();
        let reader = PausedTimeReader::attach(&memory[..]).unwrap();
        assert_eq!(reader.read(), Ok(paused(0, 0)));
        writer.publish(&memory[..], &paused(2, 500).emit()).unwrap();
        assert_eq!(reader.read(), Ok(paused(2, 500)));
    }

    #[test]
    fn what_is_no_structure_is_refused_with_its_reason() {
        let zero = [const { AtomicU32::new(0) }; 16];
        assert!(matches!(
            PausedTimeReader::attach(&zero[..]).unwrap_err(),
            GuestError::Parse(ParseError::Magic { found: 0, .. })
        ));
        assert_eq!(
            PausedTimeReader::attach(&zero[..15]).unwrap_err(),
            GuestError::Read(ReadError::TooShort {
                needed_bytes: 64,
                actual_bytes: 60
            })
        );
        zero[..].store(3, 1);
        assert!(matches!(
            PausedTimeReader::attach(&zero[..]).unwrap_err(),
            GuestError::Read(ReadError::StaysOdd { sequence: 1, .. })
        ));
    }

    #[test]
    fn s6_several_pauses_are_told_once_as_their_sum() {
        let mut tracker = PauseTracker::start(&paused(0, 0));
        assert_eq!(tracker.step(&paused(0, 0)), None);
        let news = UnseenPauses {
            events: 3,
            paused_ns: 700,
        };
        assert_eq!(tracker.step(&paused(3, 700)), Some(news));
        assert_eq!(tracker.step(&paused(3, 700)), None, "an interrupt too many");
    }

    #[test]
    fn s7_a_pause_that_the_counters_showed_adds_no_time() {
        let mut tracker = PauseTracker::start(&paused(3, 700));
        let news = UnseenPauses {
            events: 1,
            paused_ns: 0,
        };
        assert_eq!(tracker.step(&paused(4, 700)), Some(news));
    }

    #[test]
    fn s15_pauses_before_the_first_look_are_no_news() {
        let mut tracker = PauseTracker::start(&paused(9, 9_000));
        assert_eq!(tracker.step(&paused(9, 9_000)), None);
        assert_eq!(tracker.step(&paused(1, 10)), None, "another count");
        let news = UnseenPauses {
            events: 1,
            paused_ns: 5,
        };
        assert_eq!(tracker.step(&paused(2, 15)), Some(news));
    }
}
