//! Reading a CPU's stolen time.

use super::Counter;
use crate::abi::stolen_time::{MEANINGFUL_BYTES, STOLEN_WORD, StolenTimeLayout};
use crate::abi::{ParseError, Structure};
use crate::seqlock::{ReadWords, Word};
use core::sync::atomic::Ordering;

/// A CPU's stolen-time structure, checked once and read often.
///
/// Any CPU may read any CPU's structure. A read is one 64-bit load.
#[derive(Clone, Copy, Debug)]
pub struct StolenTimeReader<M> {
    memory: M,
}

impl<M: ReadWords<u64>> StolenTimeReader<M> {
    /// Checks the structure at the address that [`PvTime::stolen_time`] returned.
    ///
    /// `memory` is mapped as Normal, write-back, inner-shareable memory.
    ///
    /// [`PvTime::stolen_time`]: super::PvTime::stolen_time
    ///
    /// # Errors
    ///
    /// [`ParseError::TooShort`] below two words, [`ParseError::Revision`] and
    /// [`ParseError::Attributes`] where these are not 0.
    pub fn attach(memory: M) -> Result<Self, ParseError> {
        if memory.len() < MEANINGFUL_BYTES / u64::BYTES {
            return Err(ParseError::TooShort {
                structure: Structure::StolenTime,
                needed_bytes: MEANINGFUL_BYTES,
                actual_bytes: memory.len() * u64::BYTES,
            });
        }
        let header = memory.load(0).to_le_bytes();
        let mut layout = StolenTimeLayout::ZERO;
        [layout.revision, layout.attributes] = zerocopy::transmute!(header);
        layout.validate()?;
        Ok(Self { memory })
    }

    /// Nanoseconds stolen since the CPU's last `PV_TIME_ST` call.
    pub fn stolen_ns(&self) -> u64 {
        self.memory.load(STOLEN_WORD)
    }

    /// The stolen time and a counter at one moment: the counter is read between two readings of
    /// the stolen time that are equal.
    ///
    /// `None` if they differed [`MOMENTS`] times, which takes a host that stops the CPU between
    /// any two instructions. Who charges through [`VirtualTime`](super::VirtualTime) may read the
    /// two one after the other instead: what was stolen in between is then charged later.
    pub fn moment(&self, counter: &impl Counter) -> Option<Moment> {
        let mut stolen_ns = self.stolen_ns();
        for _ in 0..MOMENTS {
            let count = counter.read_ordered();
            // Pairs with nothing: it keeps the load below behind the one that the ordered read
            // ends with.
            self.memory.fence(Ordering::Acquire);
            let after_ns = self.stolen_ns();
            if after_ns == stolen_ns {
                return Some(Moment { stolen_ns, count });
            }
            stolen_ns = after_ns;
        }
        None
    }
}

/// How often [`StolenTimeReader::moment`] tries.
pub const MOMENTS: u32 = 64;

/// A CPU's stolen time and a counter, read together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// Nanoseconds stolen since the CPU's last `PV_TIME_ST` call.
    pub stolen_ns: u64,
    /// The counter, ticks.
    pub count: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::stolen_time::StolenTime;
    use crate::seqlock::WriteWords;
    use core::cell::Cell;
    use core::sync::atomic::AtomicU64;
    use std::thread;

    fn memory(stolen_ns: u64) -> [AtomicU64; 8] {
        let words: [u64; 8] = zerocopy::transmute!(StolenTime { stolen_ns }.emit());
        words.map(AtomicU64::new)
    }

    #[test]
    fn m4_reads_what_the_host_published() {
        let memory = memory(0x0102_0304_0506_0708);
        let reader = StolenTimeReader::attach(&memory[..]).unwrap();
        assert_eq!(reader.stolen_ns(), 0x0102_0304_0506_0708);
        memory[1].store(u64::MAX, Ordering::Relaxed);
        assert_eq!(reader.stolen_ns(), u64::MAX);
    }

    /// A host that steals 5 ns before each of the first `steals` counter reads.
    struct Stealing<'a> {
        memory: &'a [AtomicU64],
        steals: Cell<u32>,
        reads: Cell<u64>,
    }

    impl Counter for Stealing<'_> {
        fn read_ordered(&self) -> u64 {
            if let Some(steals) = self.steals.get().checked_sub(1) {
                self.steals.set(steals);
                self.memory.store(1, self.memory.load(1) + 5);
            }
            self.reads.set(self.reads.get() + 1);
            self.reads.get()
        }

        fn read_unordered(&self) -> u64 {
            unreachable!("a moment is read in order")
        }
    }

    #[test]
    fn m13_the_counter_is_read_between_two_equal_readings() {
        let memory = memory(100);
        let reader = StolenTimeReader::attach(&memory[..]).unwrap();
        let host = |steals| Stealing {
            memory: &memory,
            steals: Cell::new(steals),
            reads: Cell::new(0),
        };
        assert_eq!(
            reader.moment(&host(0)),
            Some(Moment {
                stolen_ns: 100,
                count: 1
            })
        );
        assert_eq!(
            reader.moment(&host(2)),
            Some(Moment {
                stolen_ns: 110,
                count: 3
            })
        );
        let last = reader.moment(&host(MOMENTS - 1)).unwrap();
        assert_eq!(last.count, MOMENTS.into());
        assert_eq!(reader.moment(&host(MOMENTS)), None);
    }

    #[test]
    fn m2_a_later_revision_or_an_attribute_is_refused() {
        let structure = Structure::StolenTime;
        let later = memory(0);
        later[0].store(1u64.to_le(), Ordering::Relaxed);
        assert_eq!(
            StolenTimeReader::attach(&later[..]).unwrap_err(),
            ParseError::Revision {
                structure,
                found: 1,
                known: 0
            }
        );
        later[0].store((1u64 << 32).to_le(), Ordering::Relaxed);
        assert_eq!(
            StolenTimeReader::attach(&later[..]).unwrap_err(),
            ParseError::Attributes {
                structure,
                found: 1
            }
        );
    }

    #[test]
    fn m3_a_reader_never_sees_half_of_a_store() {
        let last = if cfg!(miri) { 100 } else { 200_000u64 };
        let memory = memory(0);
        thread::scope(|scope| {
            scope.spawn(|| {
                for half in 1..=last {
                    memory[..].store(STOLEN_WORD, half << 32 | half);
                }
            });
            let reader = StolenTimeReader::attach(&memory[..]).unwrap();
            let mut seen = 0;
            while seen < last << 32 {
                let stolen_ns = reader.stolen_ns();
                assert_eq!(stolen_ns >> 32, stolen_ns & 0xffff_ffff);
                assert!(stolen_ns >= seen, "stolen time went back");
                seen = stolen_ns;
            }
        });
    }

    #[test]
    fn m1_two_words_are_enough_and_one_is_not() {
        assert!(StolenTimeReader::attach(&memory(0)[..2]).is_ok());
        assert_eq!(
            StolenTimeReader::attach(&memory(0)[..1]).unwrap_err(),
            ParseError::TooShort {
                structure: Structure::StolenTime,
                needed_bytes: 16,
                actual_bytes: 8
            }
        );
    }
}
