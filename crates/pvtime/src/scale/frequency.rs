//! Rates of counters, and the exact ratio of two.

use super::ScaleError;
use core::fmt;
use core::num::{NonZeroU32, NonZeroU64};

/// Nanoseconds in a second.
pub const NS_PER_S: u64 = 1_000_000_000;

const NS_RATE: NonZeroU64 = NonZeroU64::new(NS_PER_S).unwrap();

/// Which of the two neighbouring integers a result is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rounding {
    /// The largest integer that is not above the exact value.
    Down,
    /// The smallest integer that is not below the exact value.
    Up,
    /// The nearest integer, the upper one of two that are equally near.
    Nearest,
}

/// The rate of a counter: whole Hz, 1 to 2^64 - 1.
///
/// Arm counters fit 32 bits (`CNTFRQ_EL0`), a TSC need not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Frequency(NonZeroU64);

impl Frequency {
    /// A rate in Hz.
    ///
    /// # Errors
    ///
    /// [`ScaleError::ZeroFrequency`] for 0.
    pub const fn from_hz(frequency_hz: u64) -> Result<Self, ScaleError> {
        match NonZeroU64::new(frequency_hz) {
            Some(frequency_hz) => Ok(Self(frequency_hz)),
            None => Err(ScaleError::ZeroFrequency),
        }
    }

    /// The rate in Hz.
    #[must_use]
    pub const fn hz(self) -> u64 {
        self.0.get()
    }

    /// The rate as `CNTFRQ_EL0` holds it.
    ///
    /// # Errors
    ///
    /// [`ScaleError::AboveCntfrq`] above 2^32 - 1 Hz.
    pub fn cntfrq(self) -> Result<NonZeroU32, ScaleError> {
        let frequency_hz = self.hz();
        NonZeroU32::try_from(self.0).map_err(|_| ScaleError::AboveCntfrq { frequency_hz })
    }

    /// How long `ticks` of this counter take, in nanoseconds.
    ///
    /// # Errors
    ///
    /// [`ScaleError::SpanTooLong`] if that is 2^64 ns (584 years) or more.
    pub fn ticks_to_ns(self, ticks: u64, rounding: Rounding) -> Result<u64, ScaleError> {
        Ratio::new(NS_RATE, self.0).scale(ticks, rounding)
    }

    /// How many ticks this counter makes in `ns` nanoseconds.
    ///
    /// # Errors
    ///
    /// [`ScaleError::SpanTooLong`] if the ticks do not fit 64 bits.
    pub fn ns_to_ticks(self, ns: u64, rounding: Rounding) -> Result<u64, ScaleError> {
        Ratio::new(self.0, NS_RATE).scale(ns, rounding)
    }
}

impl From<NonZeroU32> for Frequency {
    /// The rate that `CNTFRQ_EL0` says.
    fn from(cntfrq: NonZeroU32) -> Self {
        Self(cntfrq.into())
    }
}

impl fmt::Display for Frequency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} Hz", self.0)
    }
}

/// A positive rational number, the factor between two units.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ratio {
    numerator: NonZeroU64,
    denominator: NonZeroU64,
}

impl Ratio {
    /// `numerator / denominator`, not reduced.
    #[must_use]
    pub const fn new(numerator: NonZeroU64, denominator: NonZeroU64) -> Self {
        Self {
            numerator,
            denominator,
        }
    }

    /// The factor that takes ticks of `from` to ticks of `to`.
    #[must_use]
    pub const fn between(from: Frequency, to: Frequency) -> Self {
        Self::new(to.0, from.0)
    }

    /// `count` times the ratio, rounded as asked: off by less than 1, and by at most 1/2 for
    /// [`Rounding::Nearest`].
    ///
    /// # Errors
    ///
    /// [`ScaleError::SpanTooLong`] if the result does not fit 64 bits.
    pub fn scale(self, count: u64, rounding: Rounding) -> Result<u64, ScaleError> {
        let denominator = u128::from(self.denominator.get());
        let product = u128::from(count) * u128::from(self.numerator.get());
        let (quotient, remainder) = (product / denominator, product % denominator);
        let round_up = match rounding {
            Rounding::Down => false,
            Rounding::Up => remainder != 0,
            Rounding::Nearest => remainder >= denominator - remainder,
        };
        u64::try_from(quotient + u128::from(round_up)).map_err(|_| ScaleError::SpanTooLong {
            count,
            numerator: self.numerator.get(),
            denominator: self.denominator.get(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scale::exact::{any_frequency, edgy, int};
    use num_bigint::BigInt;
    use proptest::prelude::*;

    fn frequency(hz: u64) -> Frequency {
        Frequency::from_hz(hz).unwrap()
    }

    #[test]
    fn l10_a_rate_of_zero_is_refused() {
        assert_eq!(Frequency::from_hz(0), Err(ScaleError::ZeroFrequency));
    }

    #[test]
    fn a_rate_above_32_bits_is_no_cntfrq() {
        let largest = frequency(u64::from(u32::MAX));
        assert_eq!(largest.cntfrq(), Ok(NonZeroU32::MAX));
        let frequency_hz = 1 << 32;
        assert_eq!(
            frequency(frequency_hz).cntfrq(),
            Err(ScaleError::AboveCntfrq { frequency_hz })
        );
        assert_eq!(Frequency::from(NonZeroU32::MAX), largest);
    }

    #[test]
    fn roundings_differ_where_the_result_is_no_integer() {
        let third = frequency(3);
        assert_eq!(third.ticks_to_ns(1, Rounding::Down), Ok(333_333_333));
        assert_eq!(third.ticks_to_ns(1, Rounding::Up), Ok(333_333_334));
        assert_eq!(third.ticks_to_ns(1, Rounding::Nearest), Ok(333_333_333));
        assert_eq!(third.ticks_to_ns(2, Rounding::Nearest), Ok(666_666_667));
        let half = frequency(500_000_000);
        assert_eq!(half.ns_to_ticks(1, Rounding::Down), Ok(0));
        assert_eq!(half.ns_to_ticks(1, Rounding::Nearest), Ok(1));
        assert_eq!(half.ns_to_ticks(2, Rounding::Up), Ok(1));
    }

    #[test]
    fn a_span_that_does_not_fit_is_an_error_with_its_inputs() {
        let error = frequency(1)
            .ticks_to_ns(1 << 35, Rounding::Down)
            .unwrap_err();
        assert_eq!(
            error,
            ScaleError::SpanTooLong {
                count: 1 << 35,
                numerator: NS_PER_S,
                denominator: 1
            }
        );
        // Rounding up alone can take a result out of range.
        let ratio = Ratio::new(NonZeroU64::MAX, NonZeroU64::new(2).unwrap());
        assert_eq!(ratio.scale(2, Rounding::Up), Ok(u64::MAX));
        assert!(ratio.scale(3, Rounding::Down).is_err());
    }

    fn check(count: u64, ratio: Ratio, rounding: Rounding) -> Result<(), TestCaseError> {
        let (numerator, denominator) = (int(ratio.numerator.get()), int(ratio.denominator.get()));
        let exact = int(count) * numerator;
        if let Ok(result) = ratio.scale(count, rounding) {
            // result * denominator against count * numerator, so that nothing is rounded here.
            let error = int(result) * &denominator - &exact;
            let zero = BigInt::ZERO;
            let within = match rounding {
                Rounding::Down => error <= zero && -&error < denominator,
                Rounding::Up => error >= zero && error < denominator,
                Rounding::Nearest => -&denominator < &error * 2 && &error * 2 <= denominator,
            };
            prop_assert!(within, "error {error} of {denominator}");
        } else {
            let largest = int(u64::MAX) * &denominator;
            let least = match rounding {
                Rounding::Down => largest + &denominator,
                Rounding::Up => largest + 1,
                Rounding::Nearest => largest + (&denominator + 1) / 2,
            };
            prop_assert!(exact >= least, "{exact} is representable");
        }
        Ok(())
    }

    proptest! {
        #[test]
        fn ratios_are_exact_up_to_their_rounding(
            count in edgy(),
            from in any_frequency(),
            to in any_frequency(),
        ) {
            for rounding in [Rounding::Down, Rounding::Up, Rounding::Nearest] {
                check(count, Ratio::between(from, to), rounding)?;
            }
        }

        #[test]
        fn nanoseconds_are_exact_up_to_their_rounding(count in edgy(), rate in any_frequency()) {
            for rounding in [Rounding::Down, Rounding::Up, Rounding::Nearest] {
                check(count, Ratio::new(NS_RATE, rate.0), rounding)?;
                check(count, Ratio::new(rate.0, NS_RATE), rounding)?;
                prop_assert_eq!(
                    rate.ticks_to_ns(count, rounding),
                    Ratio::new(NS_RATE, rate.0).scale(count, rounding)
                );
                prop_assert_eq!(
                    rate.ns_to_ticks(count, rounding),
                    Ratio::new(rate.0, NS_RATE).scale(count, rounding)
                );
            }
        }

        #[test]
        fn ticks_survive_nanoseconds_when_a_tick_is_no_shorter(
            ticks in 0..u64::MAX / NS_PER_S,
            hz in 1..=NS_PER_S,
        ) {
            let rate = frequency(hz);
            let ns = rate.ticks_to_ns(ticks, Rounding::Up)?;
            prop_assert_eq!(rate.ns_to_ticks(ns, Rounding::Down), Ok(ticks));
        }
    }
}
