//! The mapping as a guest computes it on every read: without a division, a branch or an error.

use super::Multiplier;

impl Multiplier {
    /// The low 64 bits of `count` times the multiplier, rounded down: what the structure's
    /// `(count * scale_mult) >> fracbits` is on a machine whose counters have 64 bits.
    ///
    /// It equals [`apply`](Self::apply) wherever that has a result.
    #[inline]
    #[must_use]
    pub const fn apply_wrapping(self, count: u64) -> u64 {
        // `factor * 2^(64 - fraction_bits)` in two words, so that the result is the upper word of
        // a product. These shifts need no counter value: a processor does them while it waits for
        // the counter, and only a multiplication and an addition follow.
        let (factor, bits) = (self.factor().get(), self.fraction_bits());
        let whole = factor >> bits;
        let fraction = (factor << 1) << (Self::MAX_FRACTION_BITS - bits);
        let carried = (count as u128 * fraction as u128) >> 64;
        count
            .wrapping_mul(whole)
            .wrapping_add(super::low_64_bits(carried))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scale::exact::{edgy, int, power};
    use core::num::NonZeroU64;
    use proptest::prelude::*;

    #[test]
    fn l17_counts_of_the_2020_series() {
        let multiplier = |factor, bits| Multiplier::new(NonZeroU64::new(factor).unwrap(), bits);
        // 24 MHz seen as 100 MHz: 6 ticks are 25.
        let faster = multiplier(0x8555_5555_5555_5555, 61).unwrap();
        assert_eq!(
            [5, 6, 7].map(|count| faster.apply_wrapping(count)),
            [20, 24, 29]
        );
        let whole = multiplier(3, 0).unwrap();
        assert_eq!(whole.apply_wrapping(u64::MAX), u64::MAX - 2);
    }

    proptest! {
        #[test]
        fn it_is_the_low_half_of_the_exact_result(
            count in edgy(),
            factor in edgy(),
            bits in 0u32..64,
        ) {
            let Some(factor) = NonZeroU64::new(factor) else { return Ok(()) };
            let multiplier = Multiplier::new(factor, bits).unwrap();
            let exact = (int(count) * int(factor.get())) >> bits;
            prop_assert_eq!(int(multiplier.apply_wrapping(count)), exact % power(64));
            if let Ok(fits) = multiplier.apply(count) {
                prop_assert_eq!(multiplier.apply_wrapping(count), fits);
            }
        }
    }
}
