use super::{Shape, Word, WriteWords};
use core::sync::atomic::Ordering;

/// Why a structure cannot be published.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    /// The memory is smaller than the structure.
    #[error(
        "the structure needs {needed_bytes} bytes and the guest has {actual_bytes} there: \
         give it a larger region"
    )]
    TooShort {
        /// Bytes of the structure.
        needed_bytes: usize,
        /// Bytes of the memory.
        actual_bytes: usize,
    },
    /// A saved count is odd, which no finished publication leaves behind.
    #[error("the saved sequence {sequence} is odd: refuse the saved state, it is damaged")]
    OddSequence {
        /// The count that was to be resumed from.
        sequence: u64,
    },
}

/// The writing side of a structure under a sequence count: the host's own copy of the count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SequenceWriter<W> {
    shape: Shape<W>,
    sequence: W,
}

impl<W: Word> SequenceWriter<W> {
    /// A structure that was never published; its first count will be 2.
    #[must_use]
    pub fn start(shape: Shape<W>) -> Self {
        Self {
            shape,
            sequence: W::default(),
        }
    }

    /// A structure whose last publication had this count, as [`sequence`](Self::sequence) gave it
    /// when the VM was saved; 0 for none.
    ///
    /// # Errors
    ///
    /// [`WriteError::OddSequence`].
    pub fn resume(shape: Shape<W>, sequence: W) -> Result<Self, WriteError> {
        if sequence.is_odd() {
            return Err(WriteError::OddSequence {
                sequence: sequence.into(),
            });
        }
        Ok(Self { shape, sequence })
    }

    /// The count of the last publication, 0 before the first.
    #[must_use]
    pub fn sequence(&self) -> W {
        self.sequence
    }

    /// Publishes the bytes of a structure; those at the count's place are ignored.
    ///
    /// One writer at a time: `&mut` keeps it so within a program.
    ///
    /// # Errors
    ///
    /// [`WriteError::TooShort`], and then nothing was written.
    ///
    /// # Panics
    ///
    /// If `image` is not as long as the structure.
    pub fn publish(
        &mut self,
        memory: &(impl WriteWords<W> + ?Sized),
        image: &[u8],
    ) -> Result<(), WriteError> {
        let (needed_bytes, actual_bytes) = (self.shape.size_bytes(), memory.len() * W::BYTES);
        assert!(
            image.len() == needed_bytes,
            "the image is as long as the structure"
        );
        if actual_bytes < needed_bytes {
            return Err(WriteError::TooShort {
                needed_bytes,
                actual_bytes,
            });
        }
        let count = self.shape.sequence_word;
        memory.store(count, self.sequence.wrapping_add(1));
        // Pairs with the reader's fence before its second load of the count: a reader that saw any
        // store below sees the odd count too.
        memory.fence(Ordering::Release);
        for (index, bytes) in image.chunks_exact(W::BYTES).enumerate() {
            if index != count {
                memory.store(index, W::read_le(bytes));
            }
        }
        // Pairs with the reader's fence after its first load of the count: a reader that saw the
        // even count sees every store above.
        memory.fence(Ordering::Release);
        self.sequence = even_after(self.sequence);
        memory.store(count, self.sequence);
        Ok(())
    }
}

/// The next even count that is not 0.
fn even_after<W: Word>(sequence: W) -> W {
    let next = sequence.wrapping_add(2);
    if next == W::default() {
        next.wrapping_add(2)
    } else {
        next
    }
}
