//! Live time as the host keeps it: PV ticks with a fraction.

use super::{Frequency, ScaleError, low_64_bits};
use core::fmt;

/// A point of live time: PV ticks with 64 fraction bits, from 0 to below 2^64 ticks.
///
/// Finer than any counter, so that what is rounded when a VM changes hosts (at most 2^-65 ticks
/// each time) stays below one tick for more than 2^64 changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LiveTime(u128);

impl LiveTime {
    /// The start of live time.
    pub const ZERO: Self = Self(0);

    /// `ticks + fraction / 2^64`.
    #[must_use]
    pub const fn from_parts(ticks: u64, fraction: u64) -> Self {
        Self((ticks as u128) << 64 | fraction as u128)
    }

    pub(super) const fn from_fixed(fixed: u128) -> Self {
        Self(fixed)
    }

    pub(super) const fn fixed(self) -> u128 {
        self.0
    }

    /// Whole PV ticks, rounded down.
    #[must_use]
    pub const fn ticks(self) -> u64 {
        (self.0 >> 64) as u64
    }

    /// The rest, in units of 2^-64 PV ticks.
    #[must_use]
    pub const fn fraction(self) -> u64 {
        low_64_bits(self.0)
    }

    /// Live time after the VM ran for `native_ticks` of a counter: `native_ticks * pv / native`
    /// later, to the nearest 2^-64 PV ticks.
    ///
    /// # Errors
    ///
    /// [`ScaleError::LiveTimeTooLong`] past 2^64 PV ticks.
    pub fn after(
        self,
        native_ticks: u64,
        native: Frequency,
        pv: Frequency,
    ) -> Result<Self, ScaleError> {
        let (native_hz, pv_hz) = (native.hz(), pv.hz());
        let too_long = ScaleError::LiveTimeTooLong {
            native_ticks,
            native_hz,
            pv_hz,
        };
        let denominator = u128::from(native_hz);
        let product = u128::from(native_ticks) * u128::from(pv_hz);
        let ticks = u64::try_from(product / denominator).map_err(|_| too_long)?;
        // The remainder is below the denominator, so it has room for 64 fraction bits.
        let remainder = (product % denominator) << 64;
        let (fraction, rest) = (remainder / denominator, remainder % denominator);
        let fraction = fraction + u128::from(rest >= denominator - rest);
        Self::from_parts(ticks, 0)
            .0
            .checked_add(fraction)
            .and_then(|passed| self.0.checked_add(passed))
            .map(Self)
            .ok_or(too_long)
    }

    /// How far this is ahead of `other`, exactly.
    #[must_use]
    pub const fn distance_from(self, other: Self) -> LiveDistance {
        LiveDistance {
            behind: self.0 < other.0,
            magnitude: self.0.abs_diff(other.0),
        }
    }
}

impl fmt::Display for LiveTime {
    /// Ticks with six decimals, rounded down.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millionths = (u128::from(self.fraction()) * 1_000_000) >> 64;
        write!(f, "{}.{millionths:06}", self.ticks())
    }
}

/// A signed difference of live time: PV ticks with 64 fraction bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct LiveDistance {
    behind: bool,
    magnitude: u128,
}

impl LiveDistance {
    /// Whether the distance is negative.
    #[must_use]
    pub const fn is_behind(self) -> bool {
        self.behind
    }

    /// The distance without its sign.
    #[must_use]
    pub const fn magnitude(self) -> LiveTime {
        LiveTime(self.magnitude)
    }
}

impl fmt::Display for LiveDistance {
    /// Signed PV ticks with six decimals, rounded towards 0.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.behind { "-" } else { "+" };
        write!(f, "{sign}{}", self.magnitude())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scale::exact::{any_frequency, edgy, int, magnitude, power};
    use num_bigint::BigInt;
    use proptest::prelude::*;
    use std::string::ToString;

    #[test]
    fn a_third_of_a_tick_is_kept() {
        let (native, pv) = (
            Frequency::from_hz(3).unwrap(),
            Frequency::from_hz(1).unwrap(),
        );
        let third = LiveTime::ZERO.after(1, native, pv).unwrap();
        assert_eq!(third, LiveTime::from_parts(0, 0x5555_5555_5555_5555));
        assert_eq!(third.to_string(), "0.333333");
        let two = LiveTime::ZERO.after(2, native, pv).unwrap();
        assert_eq!(
            two,
            LiveTime::from_parts(0, 0xaaaa_aaaa_aaaa_aaab),
            "to the nearest"
        );
        assert_eq!(
            LiveTime::ZERO.after(3, native, pv),
            Ok(LiveTime::from_parts(1, 0))
        );
    }

    #[test]
    fn distances_have_a_sign_and_the_whole_range() {
        let (first, last) = (LiveTime::ZERO, LiveTime(u128::MAX));
        assert_eq!(last.distance_from(first).magnitude(), last);
        assert!(!last.distance_from(first).is_behind());
        assert!(first.distance_from(last).is_behind());
        let half = LiveTime::from_parts(0, 1 << 63);
        assert_eq!(first.distance_from(half).to_string(), "-0.500000");
        assert_eq!(half.distance_from(first).to_string(), "+0.500000");
    }

    proptest! {
        #[test]
        fn l3_live_time_is_off_by_at_most_half_a_unit(
            start in any::<u128>(),
            ticks in edgy(),
            native in any_frequency(),
            pv in any_frequency(),
        ) {
            let exact = (int(ticks) * int(pv.hz())) << 64;
            let native_hz = int(native.hz());
            if let Ok(end) = LiveTime(start).after(ticks, native, pv) {
                let error: BigInt = (int(end.0) - int(start)) * &native_hz - exact;
                prop_assert!(magnitude(&error) * 2 <= native_hz);
            } else {
                let room = power(128) - int(start);
                prop_assert!(exact * 2 + &native_hz >= room * native_hz * 2);
            }
        }

        #[test]
        fn parts_come_back(fixed: u128) {
            let live = LiveTime(fixed);
            prop_assert_eq!(LiveTime::from_parts(live.ticks(), live.fraction()), live);
        }
    }
}
