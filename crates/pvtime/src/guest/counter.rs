//! Counters, as a CPU reads them.

use crate::abi::vmclock::CounterId;

/// A counter that every CPU of the machine reads alike, that counts at one rate and that never
/// goes back.
///
/// Processors read a counter early or late if they are let: an unordered read may be anything
/// between the last and the next event that waits for it.
pub trait Counter {
    /// The count, read after every earlier instruction whose result the program has looked at, and
    /// before any later load whose position in the program matters to
    /// [`SequenceReader`](crate::seqlock::SequenceReader).
    fn read_ordered(&self) -> u64;

    /// The count, read whenever the processor likes.
    ///
    /// For measuring spans much longer than a processor's window of some hundred instructions.
    fn read_unordered(&self) -> u64;

    /// What a VMClock calls this counter.
    fn id(&self) -> CounterId {
        CounterId::INVALID
    }
}

impl<C: Counter + ?Sized> Counter for &C {
    fn read_ordered(&self) -> u64 {
        (**self).read_ordered()
    }

    fn read_unordered(&self) -> u64 {
        (**self).read_unordered()
    }

    fn id(&self) -> CounterId {
        (**self).id()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fixed;

    impl Counter for Fixed {
        fn read_ordered(&self) -> u64 {
            1
        }

        fn read_unordered(&self) -> u64 {
            2
        }
    }

    #[test]
    fn a_borrowed_counter_is_the_counter() {
        fn all(counter: impl Counter) -> (u64, u64, CounterId) {
            (
                counter.read_ordered(),
                counter.read_unordered(),
                counter.id(),
            )
        }
        assert_eq!(all(&Fixed), all(Fixed));
        assert_eq!(all(Fixed), (1, 2, CounterId::INVALID));
    }
}
