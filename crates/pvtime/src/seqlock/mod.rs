//! The sequence protocol: one side writes a structure while the other reads it.
//!
//! A sequence count in the structure is odd while it is written and changes with each publication.
//! A reader takes the count, the fields and the count again, and keeps what it read if the count
//! was even and did not change. Nobody waits for anybody: a writer that dies in the middle costs its
//! readers a bounded number of attempts and an error. Both widths of the count are the same code:
//! 32 bits in paused time and VMClock, 64 in live physical time, where bits 63 to 1 count the
//! publications and bit 0, which older writers left 0, is the one that says "being written".
//!
//! [`SequenceWriter`] never reads the shared memory: its count is the host's own. It starts at 2,
//! because a reader may take 0 for a structure that nobody published, and comes back to 2 rather
//! than to 0 when a 32-bit count is used up.
//!
//! # Memory
//!
//! All accesses go through [`ReadWords`] and [`WriteWords`], so the code that a guest runs on
//! mapped memory is the code that the tests run under loom, under Miri and on a fake that reorders
//! and tears. Accesses to one structure all have the width of its count.
//!
//! # Which fence holds what
//!
//! Two pairs of fences carry the protocol; each names its partner where it stands. Each of the four
//! was taken out once, and every one of these tests failed:
//!
//! - `l12_no_reordering_shows_a_reader_parts_of_two_publications`, where a fake reorders the
//!   accesses between two fences at random;
//! - `l12_loom_finds_no_torn_read_with_a_32_bit_count` and its 64-bit sister, where loom tries all
//!   orders;
//! - `l12_threads_never_see_parts_of_two_publications` under Miri with 64 seeds. The same test
//!   without Miri did *not* fail: an x86 machine keeps these orders by itself.
//!
//! | without the fence | what a reader then takes for one publication |
//! |---|---|
//! | of the writer, after the odd count | fields of the next, with the count of the last before and after |
//! | of the writer, before the even count | the new count, with fields that are not stored yet |
//! | of the reader, after the first count | fields that it loaded before it loaded the count |
//! | of the reader, before the second count | fields that it loaded after the count was compared |
//!
//! ```text
//! cargo test -p pvtime --lib seqlock
//! RUSTFLAGS="--cfg loom" cargo test -p pvtime --lib --release --target-dir target/loom loom
//! MIRIFLAGS=-Zmiri-many-seeds=0..64 cargo +nightly miri test -p pvtime --lib -- l12_threads seqlock::mapped
//! ```

mod mapped;
mod memory;
mod reader;
mod writer;

pub use mapped::MappedWords;
pub use memory::{ReadWords, Word, WriteWords};
pub use reader::{ATTEMPTS, ReadError, SequenceReader};
pub use writer::{SequenceWriter, WriteError};

use core::marker::PhantomData;

/// The words of a structure under a sequence count, and which of them is the count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape<W> {
    words: usize,
    sequence_word: usize,
    word: PhantomData<W>,
}

impl<W: Word> Shape<W> {
    /// A structure of `size_bytes` with its count `sequence_offset_bytes` from the start.
    ///
    /// # Panics
    ///
    /// If either is no multiple of the word, or the count lies outside.
    #[must_use]
    pub const fn new(size_bytes: usize, sequence_offset_bytes: usize) -> Self {
        assert!(
            size_bytes.is_multiple_of(W::BYTES),
            "a structure is whole words"
        );
        assert!(
            sequence_offset_bytes.is_multiple_of(W::BYTES),
            "the count is aligned"
        );
        assert!(
            sequence_offset_bytes < size_bytes,
            "the count is in the structure"
        );
        let words = size_bytes / W::BYTES;
        Self {
            words,
            sequence_word: sequence_offset_bytes / W::BYTES,
            word: PhantomData,
        }
    }

    /// Size of the structure.
    #[must_use]
    pub const fn size_bytes(self) -> usize {
        self.words * W::BYTES
    }
}

#[cfg(all(test, not(loom)))]
mod tests;

#[cfg(all(test, loom))]
mod loom_tests;
