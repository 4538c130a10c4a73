//! Words at an address.
#![expect(
    unsafe_code,
    reason = "memory that a hypervisor shares has an address and no Rust owner"
)]

use super::{ReadWords, Word, WriteWords};
use core::marker::PhantomData;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Shared memory at an address that was mapped by other means.
///
/// Each access is one relaxed atomic load or store of a word, so nothing is assumed about what the
/// other side does meanwhile.
#[derive(Clone, Copy, Debug)]
pub struct MappedWords<W> {
    base: NonNull<W>,
    words: usize,
    word: PhantomData<W>,
}

impl<W: Word> MappedWords<W> {
    /// The `size_bytes` bytes from `base`, of which whole words are used.
    ///
    /// # Safety
    ///
    /// As long as the value or a copy of it lives:
    ///
    /// - `base` is aligned to the word, and the bytes are mapped, readable, and writable too if
    ///   [`WriteWords`] is used;
    /// - this program reaches them through such values alone, or through atomics of the same width.
    ///   What another program or the hypervisor does with them does not matter.
    #[must_use]
    pub const unsafe fn new(base: NonNull<u8>, size_bytes: usize) -> Self {
        Self {
            base: base.cast(),
            words: size_bytes / W::BYTES,
            word: PhantomData,
        }
    }

    fn at(&self, index: usize) -> *const W {
        assert!(index < self.words, "the word lies in the mapping");
        // SAFETY: by the contract of `new` all words below `words` lie in one mapping, and `index`
        // is below it.
        unsafe { self.base.add(index).as_ptr() }
    }
}

// SAFETY: the value is an address whose memory, by the contract of `new`, stays mapped and is
// reached by atomics from any thread.
unsafe impl<W: Word> Send for MappedWords<W> {}
// SAFETY: as for `Send`; no method has any other effect than an atomic access.
unsafe impl<W: Word> Sync for MappedWords<W> {}

macro_rules! words_at_an_address {
    ($word:ty, $atomic:ty) => {
        impl ReadWords<$word> for MappedWords<$word> {
            fn len(&self) -> usize {
                self.words
            }

            #[inline]
            fn load(&self, index: usize) -> $word {
                // SAFETY: `at` checked that the word is mapped and aligned; all accesses of this
                // program are atomics of this width. Where the mapping may only be read, this is
                // the exception that `core::sync::atomic` makes: a relaxed load of a word that
                // the processor loads at once.
                let word = unsafe { &*self.at(index).cast::<$atomic>() };
                <$word>::from_le(word.load(Ordering::Relaxed))
            }
        }

        impl WriteWords<$word> for MappedWords<$word> {
            #[inline]
            fn store(&self, index: usize, value: $word) {
                // SAFETY: as in `load`; who stores mapped the memory writable.
                let word = unsafe { &*self.at(index).cast::<$atomic>() };
                word.store(value.to_le(), Ordering::Relaxed);
            }
        }
    };
}

words_at_an_address!(u32, AtomicU32);
words_at_an_address!(u64, AtomicU64);

#[cfg(test)]
mod tests {
    use super::*;
    use core::cell::UnsafeCell;

    #[test]
    fn words_are_where_the_address_says() {
        let memory = UnsafeCell::new([0x0706_0504_0302_0100u64.to_le(), 0, 0xa5a5]);
        let base = NonNull::new(memory.get()).unwrap().cast();
        // SAFETY: 24 bytes of this test, which it reaches through `words` until it drops it.
        let words = unsafe { MappedWords::<u64>::new(base, 23) };
        assert_eq!((words.len(), words.load(0)), (2, 0x0706_0504_0302_0100));
        words.store(1, 0x0807_0605_0403_0201);
        assert_eq!(
            memory.into_inner()[1].to_ne_bytes(),
            [1, 2, 3, 4, 5, 6, 7, 8]
        );
    }

    #[test]
    #[should_panic(expected = "the word lies in the mapping")]
    fn a_word_outside_is_a_mistake() {
        let memory = UnsafeCell::new([0u32; 2]);
        let base = NonNull::new(memory.get()).unwrap().cast();
        // SAFETY: 8 bytes of this test, which it reaches through this value alone.
        let words = unsafe { MappedWords::<u32>::new(base, 8) };
        words.store(1, 7);
        assert_eq!(words.load(1), 7);
        words.load(2);
    }
}
