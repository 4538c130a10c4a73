//! Native to PV ticks and back, with the multipliers that the guest uses too.
//!
//! A guest computes `PV(n) = (n * factor) >> fraction_bits`. In units of 2^-64 PV ticks that is
//! `n * step` with the integer `step = factor << (64 - fraction_bits)`, so what the guest's
//! mapping says is known here without any rounding, and inverting it is one division.

use super::{Frequency, LiveTime, Multiplier, ScaleError};
use core::num::NonZeroU64;

impl Multiplier {
    /// The multiplier that takes ticks of `from` to ticks of `to`, as the KVM series of 2020
    /// computes it: the most fraction bits, at most 63, that leave `factor` in 64 bits for every
    /// ratio with the same integer logarithm; `factor` rounded down.
    ///
    /// # Errors
    ///
    /// [`ScaleError::RatioTooSmall`] where that is 0, which takes a ratio below 2^-63.
    pub fn between(from: Frequency, to: Frequency) -> Result<Self, ScaleError> {
        let (from_hz, to_hz) = (from.hz(), to.hz());
        let integer_bits = (to_hz / from_hz).checked_ilog2().unwrap_or(0) + 1;
        let fraction_bits = 64 - integer_bits;
        let factor = (u128::from(to_hz) << fraction_bits) / u128::from(from_hz);
        u64::try_from(factor)
            .ok()
            .and_then(NonZeroU64::new)
            .and_then(|factor| Self::new(factor, fraction_bits))
            .ok_or(ScaleError::RatioTooSmall { from_hz, to_hz })
    }

    /// `count` times the multiplier, rounded down: behind the exact ratio by less than
    /// `1 + count / 2^fraction_bits`, never ahead of it.
    ///
    /// # Errors
    ///
    /// [`ScaleError::PvCountTooLarge`] if the result does not fit 64 bits.
    pub fn apply(self, count: u64) -> Result<u64, ScaleError> {
        u64::try_from(self.apply_wide(count)).map_err(|_| self.too_large(count))
    }

    /// As [`apply`](Self::apply), with room for every result.
    pub(super) fn apply_wide(self, count: u64) -> u128 {
        (u128::from(count) * u128::from(self.factor().get())) >> self.fraction_bits()
    }

    /// `count` times the multiplier, exactly; [`apply`](Self::apply) is its whole ticks.
    ///
    /// # Errors
    ///
    /// [`ScaleError::PvCountTooLarge`] if it is 2^64 or more.
    pub fn position(self, count: u64) -> Result<LiveTime, ScaleError> {
        u128::from(count)
            .checked_mul(self.step())
            .map(LiveTime::from_fixed)
            .ok_or_else(|| self.too_large(count))
    }

    /// The smallest count whose [`apply`](Self::apply) is not below `pv_count`.
    ///
    /// # Errors
    ///
    /// [`ScaleError::Unreachable`] if there is none in 64 bits.
    pub fn first_reaching(self, pv_count: u64) -> Result<u64, ScaleError> {
        let target = LiveTime::from_parts(pv_count, 0).fixed();
        u64::try_from(target.div_ceil(self.step())).map_err(|_| self.unreachable(pv_count))
    }

    /// The count whose [`position`](Self::position) is nearest to `live`, the lower one of two
    /// that are equally near; at most half a native tick away.
    ///
    /// # Errors
    ///
    /// [`ScaleError::Unreachable`] if it does not fit 64 bits.
    pub fn nearest(self, live: LiveTime) -> Result<u64, ScaleError> {
        let (below, past) = (live.fixed() / self.step(), live.fixed() % self.step());
        let up = past > self.step() - past;
        u64::try_from(below + u128::from(up)).map_err(|_| self.unreachable(live.ticks()))
    }

    /// PV ticks per native tick, in units of 2^-64.
    pub(crate) fn step(self) -> u128 {
        u128::from(self.factor().get()) << (64 - self.fraction_bits())
    }

    fn too_large(self, count: u64) -> ScaleError {
        let (factor, fraction_bits) = (self.factor().get(), self.fraction_bits());
        ScaleError::PvCountTooLarge {
            count,
            factor,
            fraction_bits,
        }
    }

    fn unreachable(self, pv_count: u64) -> ScaleError {
        let (factor, fraction_bits) = (self.factor().get(), self.fraction_bits());
        ScaleError::Unreachable {
            pv_count,
            factor,
            fraction_bits,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scale::exact::{any_frequency, cntfrq, edgy, floor, int, magnitude, power};
    use proptest::prelude::*;

    fn hz(hz: u64) -> Frequency {
        Frequency::from_hz(hz).unwrap()
    }

    fn multiplier(from_hz: u64, to_hz: u64) -> Multiplier {
        Multiplier::between(hz(from_hz), hz(to_hz)).unwrap()
    }

    #[test]
    fn l17_multipliers_are_those_of_the_2020_series() {
        let vectors = [
            (
                100_000_000,
                100_000_000,
                63,
                0x8000_0000_0000_0000,
                63,
                0x8000_0000_0000_0000,
            ),
            (
                50_000_000,
                100_000_000,
                62,
                0x8000_0000_0000_0000,
                63,
                0x4000_0000_0000_0000,
            ),
            (
                62_500_000,
                100_000_000,
                63,
                0xCCCC_CCCC_CCCC_CCCC,
                63,
                0x5000_0000_0000_0000,
            ),
            (
                24_000_000,
                100_000_000,
                61,
                0x8555_5555_5555_5555,
                63,
                0x1EB8_51EB_851E_B851,
            ),
            (
                1_000_000_000,
                100_000_000,
                63,
                0x0CCC_CCCC_CCCC_CCCC,
                60,
                0xA000_0000_0000_0000,
            ),
            (
                100_000_000,
                1_000_000_000,
                60,
                0xA000_0000_0000_0000,
                63,
                0x0CCC_CCCC_CCCC_CCCC,
            ),
            (
                25_000_000,
                1_000_000_000,
                58,
                0xA000_0000_0000_0000,
                63,
                0x0333_3333_3333_3333,
            ),
            (
                31_250_000,
                1_000_000_000,
                58,
                0x8000_0000_0000_0000,
                63,
                0x0400_0000_0000_0000,
            ),
        ];
        for (native, pv, bits, factor, reverse_bits, reverse) in vectors {
            let forward = multiplier(native, pv);
            assert_eq!(
                (forward.fraction_bits(), forward.factor().get()),
                (bits, factor)
            );
            let back = multiplier(pv, native);
            assert_eq!(
                (back.fraction_bits(), back.factor().get()),
                (reverse_bits, reverse)
            );
        }
    }

    #[test]
    fn l10_absurd_ratios_work_or_are_refused() {
        let largest = u64::from(u32::MAX);
        assert_eq!(multiplier(1, largest).apply(3), Ok(3 * largest));
        assert_eq!(
            multiplier(largest, 1).apply(3 * largest),
            Ok(2),
            "truncated, never ahead"
        );
        assert_eq!(
            Multiplier::between(hz(u64::MAX), hz(1)),
            Err(ScaleError::RatioTooSmall {
                from_hz: u64::MAX,
                to_hz: 1
            })
        );
        assert_eq!(multiplier(1, u64::MAX).fraction_bits(), 0);
    }

    #[test]
    fn counts_near_the_end_are_exact_or_refused() {
        let double = multiplier(1, 2);
        assert_eq!(double.apply(u64::MAX / 2), Ok(u64::MAX - 1));
        let error = ScaleError::PvCountTooLarge {
            count: u64::MAX / 2 + 1,
            factor: 1 << 63,
            fraction_bits: 62,
        };
        assert_eq!(double.apply(u64::MAX / 2 + 1), Err(error));
        assert_eq!(double.position(u64::MAX / 2 + 1), Err(error));
        let half = multiplier(2, 1);
        let error = ScaleError::Unreachable {
            pv_count: 1 << 63,
            factor: 1 << 62,
            fraction_bits: 63,
        };
        assert_eq!(half.first_reaching(1 << 63), Err(error));
        assert_eq!(half.nearest(LiveTime::from_parts(1 << 63, 0)), Err(error));
    }

    #[test]
    fn a_tie_goes_to_the_lower_count() {
        let double = multiplier(1, 2);
        assert_eq!(double.nearest(LiveTime::from_parts(5, 0)), Ok(2));
        assert_eq!(double.nearest(LiveTime::from_parts(5, 1)), Ok(3));
    }

    proptest! {
        #[test]
        fn multipliers_are_the_largest_below_the_ratio(
            from in any_frequency(),
            to in any_frequency(),
        ) {
            let exact = |bits: u32| floor(int(to.hz()) << bits, &int(from.hz()));
            if let Ok(multiplier) = Multiplier::between(from, to) {
                let bits = multiplier.fraction_bits();
                prop_assert_eq!(int(multiplier.factor().get()), exact(bits));
                // One more bit is more than the series allows, or more than 64 bits can hold
                // for some ratio with the same integer logarithm.
                let whole = to.hz() / from.hz();
                prop_assert!(bits == 63 || whole >> (63 - bits) == 1);
            } else { prop_assert_eq!(exact(63), int(0)) }
        }

        #[test]
        fn applying_is_behind_the_ratio_by_less_than_its_bound(
            count in edgy(),
            from in any_frequency(),
            to in any_frequency(),
        ) {
            let Ok(multiplier) = Multiplier::between(from, to) else { return Ok(()) };
            let exact = int(count) * int(to.hz());
            let bits = multiplier.fraction_bits();
            if let Ok(pv) = multiplier.apply(count) {
                let behind = exact - int(pv) * int(from.hz());
                prop_assert!(behind >= int(0), "ahead of the ratio");
                let bound = int(from.hz()) * (power(bits) + int(count));
                prop_assert!((behind << bits) < bound);
                let position = multiplier.position(count)?;
                prop_assert_eq!(position.ticks(), pv);
                let fixed = int(position.ticks()) * power(64) + int(position.fraction());
                let behind = ((int(count) * int(to.hz())) << 64) - fixed * int(from.hz());
                let bound = int(from.hz()) * int(count) * power(64 - bits);
                prop_assert!(behind >= int(0) && (behind < bound || count == 0));
            } else {
                prop_assert!(exact >= power(64) * int(from.hz()), "{count} is representable");
                prop_assert!(multiplier.position(count).is_err());
            }
        }

        #[test]
        fn the_first_count_reaches_and_the_one_before_does_not(
            pv in edgy(),
            from in any_frequency(),
            to in any_frequency(),
        ) {
            let Ok(multiplier) = Multiplier::between(from, to) else { return Ok(()) };
            let value = |count: u64| multiplier.apply_wide(count);
            match multiplier.first_reaching(pv) {
                Ok(count) => {
                    prop_assert!(value(count) >= u128::from(pv));
                    prop_assert!(count == 0 || value(count - 1) < u128::from(pv));
                }
                Err(_) => prop_assert!(value(u64::MAX) < u128::from(pv)),
            }
        }

        #[test]
        fn no_count_is_nearer_than_the_nearest(
            ticks in edgy(),
            fraction in edgy(),
            from in cntfrq(),
            to in cntfrq(),
        ) {
            let multiplier = Multiplier::between(from.into(), to.into())?;
            let live = LiveTime::from_parts(ticks, fraction);
            let distance = |count: u64| {
                let fixed = int(count) * int(multiplier.step());
                magnitude(&(fixed - int(live.fixed())))
            };
            match multiplier.nearest(live) {
                Ok(count) => {
                    prop_assert!((distance(count)) * 2 <= int(multiplier.step()));
                    prop_assert!(count == 0 || distance(count - 1) > distance(count));
                    prop_assert!(count == u64::MAX || distance(count + 1) >= distance(count));
                }
                Err(_) => prop_assert!((distance(u64::MAX)) * 2 > int(multiplier.step())),
            }
        }
    }
}
