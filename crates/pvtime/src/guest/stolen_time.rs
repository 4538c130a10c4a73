//! Reading a CPU's stolen time.

use crate::abi::ParseError;
use crate::abi::Structure;
use crate::abi::stolen_time::{MEANINGFUL_BYTES, STOLEN_WORD, StolenTimeLayout};
use crate::seqlock::{ReadWords, Word};

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
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::stolen_time::StolenTime;
    use core::sync::atomic::{AtomicU64, Ordering};

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
