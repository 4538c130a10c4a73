use super::{ReadWords, Shape, Word};
use core::hint::spin_loop;
use core::sync::atomic::Ordering;

/// How often a reader tries by default: tens of milliseconds, longer than a writer that was
/// preempted in the middle usually is away.
pub const ATTEMPTS: u32 = 1 << 20;

/// Why a structure could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// The memory is smaller than the structure.
    #[error(
        "the structure needs {needed_bytes} bytes and {actual_bytes} are mapped: map all of it"
    )]
    TooShort {
        /// Bytes of the structure.
        needed_bytes: usize,
        /// Bytes of the memory.
        actual_bytes: usize,
    },
    /// The count stayed odd: its writer stopped in the middle.
    #[error(
        "the structure was being written (sequence {sequence}) at each of {attempts} attempts: \
         go on with the last time read, and try again later"
    )]
    StaysOdd {
        /// The count at the last attempt.
        sequence: u64,
        /// Attempts that were made.
        attempts: u32,
    },
    /// The count changed during each attempt: the writer publishes faster than this CPU reads.
    #[error(
        "the structure changed (sequence now {sequence}) in each of {attempts} attempts: \
         go on with the last time read, and try again later"
    )]
    KeepsChanging {
        /// The count at the last attempt.
        sequence: u64,
        /// Attempts that were made.
        attempts: u32,
    },
}

/// The reading side of a structure under a sequence count.
#[derive(Clone, Copy, Debug)]
pub struct SequenceReader<W, M> {
    memory: M,
    shape: Shape<W>,
}

impl<W: Word, M: ReadWords<W>> SequenceReader<W, M> {
    /// Reads a structure that begins with the first word of `memory`.
    ///
    /// # Errors
    ///
    /// [`ReadError::TooShort`].
    pub fn attach(memory: M, shape: Shape<W>) -> Result<Self, ReadError> {
        let (needed_bytes, actual_bytes) = (shape.size_bytes(), memory.len() * W::BYTES);
        if actual_bytes < needed_bytes {
            return Err(ReadError::TooShort {
                needed_bytes,
                actual_bytes,
            });
        }
        Ok(Self { memory, shape })
    }

    /// Runs `section` until it saw one publication and no part of another.
    ///
    /// `section` loads what it needs and reads what belongs to it, such as a counter; it runs once
    /// for each attempt, of which there are at most [`ATTEMPTS`], and its results from attempts
    /// that overlapped an update are dropped.
    ///
    /// # Errors
    ///
    /// [`ReadError::StaysOdd`] and [`ReadError::KeepsChanging`].
    #[inline]
    pub fn read<T>(&self, section: impl FnMut(&M) -> T) -> Result<T, ReadError> {
        self.read_while(|attempts| attempts < ATTEMPTS, section)
    }

    /// As [`read`](Self::read), for as long as `go_on` agrees.
    ///
    /// `go_on` is asked after each failed attempt, with the number of attempts so far.
    ///
    /// # Errors
    ///
    /// [`ReadError::StaysOdd`] and [`ReadError::KeepsChanging`].
    #[inline]
    pub fn read_while<T>(
        &self,
        mut go_on: impl FnMut(u32) -> bool,
        mut section: impl FnMut(&M) -> T,
    ) -> Result<T, ReadError> {
        let mut attempts = 0u32;
        loop {
            let failure = match self.attempt(&mut section) {
                Ok(value) => return Ok(value),
                Err(failure) => failure,
            };
            attempts = attempts.saturating_add(1);
            if !go_on(attempts) || attempts == u32::MAX {
                return Err(failure.error(attempts));
            }
            spin_loop();
        }
    }

    /// All words of one publication, the count included, with their bytes in memory order.
    ///
    /// # Errors
    ///
    /// [`ReadError::StaysOdd`] and [`ReadError::KeepsChanging`].
    ///
    /// # Panics
    ///
    /// If `N` is not the number of the structure's words.
    pub fn copy<const N: usize>(&self) -> Result<[W; N], ReadError> {
        assert!(
            N == self.shape.words,
            "the copy is as long as the structure"
        );
        self.read(ReadWords::copy)
    }

    #[inline]
    fn attempt<T>(&self, section: &mut impl FnMut(&M) -> T) -> Result<T, Failure> {
        let before = self.memory.load(self.shape.sequence_word);
        if before.is_odd() {
            return Err(Failure {
                sequence: before.into(),
            });
        }
        // Pairs with the writer's fence before the even count: who sees that count sees the fields
        // that were stored before it, or later ones.
        self.memory.fence(Ordering::Acquire);
        let value = section(&self.memory);
        // Pairs with the writer's fence after the odd count: who saw a field of a later publication
        // sees here that it had begun.
        self.memory.fence(Ordering::Acquire);
        let after = self.memory.load(self.shape.sequence_word);
        if before == after {
            Ok(value)
        } else {
            Err(Failure {
                sequence: after.into(),
            })
        }
    }
}

/// An attempt that overlapped an update, and the last count that it saw.
struct Failure {
    sequence: u64,
}

impl Failure {
    #[cold]
    fn error(self, attempts: u32) -> ReadError {
        let sequence = self.sequence;
        if sequence.is_odd() {
            ReadError::StaysOdd { sequence, attempts }
        } else {
            ReadError::KeepsChanging { sequence, attempts }
        }
    }
}
