//! Access to memory that another program writes or reads at the same time.

use core::array;
use core::fmt::Debug;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

mod sealed {
    pub trait Sealed {}
    impl Sealed for u32 {}
    impl Sealed for u64 {}
}

/// The unit in which a structure is accessed: `u32` or `u64`.
///
/// All accesses to one structure have one width, so that every one of them is single-copy atomic
/// and none overlaps another of a different size.
pub trait Word: Copy + Default + Eq + Debug + Into<u64> + sealed::Sealed {
    /// Size in bytes.
    const BYTES: usize;

    /// The word of `BYTES` little-endian bytes.
    ///
    /// # Panics
    ///
    /// If the slice has another length.
    fn read_le(bytes: &[u8]) -> Self;

    /// The word with its bytes in memory order.
    #[must_use]
    fn to_le(self) -> Self;

    /// Whether the word is the count of a structure that is being written.
    fn is_odd(self) -> bool;

    /// The word and `more`, modulo its width.
    #[must_use]
    fn wrapping_add(self, more: u8) -> Self;
}

macro_rules! word {
    ($word:ty) => {
        impl Word for $word {
            const BYTES: usize = size_of::<$word>();

            fn read_le(bytes: &[u8]) -> Self {
                let bytes = bytes.try_into().expect("the slice is one word");
                <$word>::from_le_bytes(bytes)
            }

            #[inline]
            fn to_le(self) -> Self {
                <$word>::to_le(self)
            }

            #[inline]
            fn is_odd(self) -> bool {
                self % 2 != 0
            }

            fn wrapping_add(self, more: u8) -> Self {
                <$word>::wrapping_add(self, more.into())
            }
        }
    };
}

word!(u32);
word!(u64);

/// Shared memory that can be read, as an array of words.
///
/// Words are little-endian in memory and native in the arguments and results.
pub trait ReadWords<W: Word> {
    /// Number of words.
    fn len(&self) -> usize;

    /// Whether there is no word at all.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Loads one word, single-copy atomic and otherwise unordered (`Relaxed`).
    ///
    /// # Panics
    ///
    /// If `index` is not below [`len`](Self::len); readers check the length once, when they attach.
    fn load(&self, index: usize) -> W;

    /// The first `N` words with their bytes in memory order, so that they can be taken for the
    /// structure that they are.
    ///
    /// # Panics
    ///
    /// If `N` is above [`len`](Self::len).
    fn copy<const N: usize>(&self) -> [W; N] {
        array::from_fn(|index| self.load(index).to_le())
    }

    /// Orders the accesses before it against those after it.
    #[inline]
    fn fence(&self, ordering: Ordering) {
        fence(ordering);
    }
}

/// Shared memory that can be written too.
pub trait WriteWords<W: Word>: ReadWords<W> {
    /// Stores one word, single-copy atomic and otherwise unordered (`Relaxed`).
    ///
    /// # Panics
    ///
    /// If `index` is not below [`len`](ReadWords::len).
    fn store(&self, index: usize, value: W);
}

macro_rules! words_in_atomics {
    ($word:ty, $atomic:ty) => {
        impl ReadWords<$word> for [$atomic] {
            #[inline]
            fn len(&self) -> usize {
                self.len()
            }

            #[inline]
            fn load(&self, index: usize) -> $word {
                <$word>::from_le(self[index].load(Ordering::Relaxed))
            }
        }

        impl WriteWords<$word> for [$atomic] {
            #[inline]
            fn store(&self, index: usize, value: $word) {
                self[index].store(value.to_le(), Ordering::Relaxed);
            }
        }
    };
}

words_in_atomics!(u32, AtomicU32);
words_in_atomics!(u64, AtomicU64);

impl<W: Word, M: ReadWords<W> + ?Sized> ReadWords<W> for &M {
    fn len(&self) -> usize {
        (**self).len()
    }

    fn load(&self, index: usize) -> W {
        (**self).load(index)
    }

    fn fence(&self, ordering: Ordering) {
        (**self).fence(ordering);
    }
}

impl<W: Word, M: WriteWords<W> + ?Sized> WriteWords<W> for &M {
    fn store(&self, index: usize, value: W) {
        (**self).store(index, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_little_endian_in_memory() {
        let memory = [AtomicU32::new(0xa5a5_a5a5), AtomicU32::new(0xa5a5_a5a5)];
        memory[..].store(1, 0x0102_0304);
        assert_eq!(
            memory[1].load(Ordering::Relaxed).to_ne_bytes(),
            [4, 3, 2, 1]
        );
        assert_eq!(
            (memory[..].load(0), memory[..].load(1)),
            (0xa5a5_a5a5, 0x0102_0304)
        );
        assert_eq!(ReadWords::len(&memory[..]), 2);
        assert!(!ReadWords::<u32>::is_empty(&&memory[..]));
    }

    #[test]
    #[should_panic(expected = "out of bounds")]
    fn a_load_past_the_end_panics() {
        [AtomicU64::new(0)][..].load(1);
    }
}
