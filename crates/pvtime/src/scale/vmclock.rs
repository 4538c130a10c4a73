//! The arithmetic of `VMClock`: seconds with 64 fraction bits, and the length of a tick.
//!
//! `time = reference + ((counter - counter_value) * period) >> shift`, where the period is in
//! units of `2^-(64 + shift)` s (VMClock specification, "Calculating the time").

use super::{Frequency, NS_PER_S, Rounding, ScaleError, low_64_bits};
use crate::abi::vmclock::Period;
use core::num::NonZeroU64;

/// A point in time or a span: seconds with 64 fraction bits, 0 to below 2^64 s.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(u128);

impl Timestamp {
    /// `sec + frac_sec / 2^64` seconds.
    #[must_use]
    pub const fn from_parts(sec: u64, frac_sec: u64) -> Self {
        Self((sec as u128) << 64 | frac_sec as u128)
    }

    /// Whole seconds, rounded down.
    #[must_use]
    pub const fn sec(self) -> u64 {
        (self.0 >> 64) as u64
    }

    /// The rest, in units of 2^-64 s.
    #[must_use]
    pub const fn frac_sec(self) -> u64 {
        low_64_bits(self.0)
    }

    /// Nanoseconds within the second, 0 to 999,999,999, rounded down.
    #[must_use]
    pub const fn subsec_ns(self) -> u64 {
        ((self.frac_sec() as u128 * NS_PER_S as u128) >> 64) as u64
    }

    /// The sum, exactly.
    ///
    /// # Errors
    ///
    /// [`ScaleError::TimestampTooLate`] past 2^64 s.
    pub fn plus(self, span: Self) -> Result<Self, ScaleError> {
        self.0
            .checked_add(span.0)
            .map(Self)
            .ok_or(ScaleError::TimestampTooLate)
    }

    /// The difference, exactly.
    ///
    /// # Errors
    ///
    /// [`ScaleError::TimestampTooEarly`] before 0.
    pub fn minus(self, span: Self) -> Result<Self, ScaleError> {
        self.0
            .checked_sub(span.0)
            .map(Self)
            .ok_or(ScaleError::TimestampTooEarly)
    }

    /// Nanoseconds since 0, rounded as asked.
    ///
    /// # Errors
    ///
    /// [`ScaleError::TimestampTooLate`] past 2^64 ns.
    pub fn to_ns(self, rounding: Rounding) -> Result<u64, ScaleError> {
        // Below 2^64 * 10^9 < 2^94 in the upper part; the lower half is rounded with a carry.
        let seconds = u128::from(self.sec()) * u128::from(NS_PER_S);
        let fraction = u128::from(self.frac_sec()) * u128::from(NS_PER_S);
        let rest = fraction & u128::from(u64::MAX);
        let round_up = match rounding {
            Rounding::Down => false,
            Rounding::Up => rest != 0,
            Rounding::Nearest => rest >> 63 != 0,
        };
        u64::try_from(seconds + (fraction >> 64) + u128::from(round_up))
            .map_err(|_| ScaleError::TimestampTooLate)
    }
}

impl Period {
    /// The period of `frequency` with the most bits that fit: off by less than 2^-(64 + shift) s.
    ///
    /// # Errors
    ///
    /// [`ScaleError::PeriodTooLong`] for 1 Hz, whose period is not below a second.
    pub fn of(frequency: Frequency, rounding: Rounding) -> Result<Self, ScaleError> {
        let frequency_hz = frequency.hz();
        let too_long = ScaleError::PeriodTooLong { frequency_hz };
        // The largest shift with 2^shift below the frequency: the quotient has exactly 64 bits,
        // rounded up too.
        let shift = (frequency_hz - 1).checked_ilog2().ok_or(too_long)?;
        let frac_sec = Self::rounded(frequency_hz, shift, rounding);
        u64::try_from(frac_sec)
            .ok()
            .and_then(NonZeroU64::new)
            .zip(u8::try_from(shift).ok())
            .and_then(|(frac_sec, shift)| Self::new(frac_sec, shift))
            .ok_or(too_long)
    }

    fn rounded(frequency_hz: u64, shift: u32, rounding: Rounding) -> u128 {
        let (numerator, denominator) = (1u128 << (64 + shift), u128::from(frequency_hz));
        let (quotient, rest) = (numerator / denominator, numerator % denominator);
        let round_up = match rounding {
            Rounding::Down => false,
            Rounding::Up => rest != 0,
            Rounding::Nearest => rest >= denominator - rest,
        };
        quotient + u128::from(round_up)
    }

    /// How long `ticks` take, rounded down to 2^-64 s.
    ///
    /// For a counter that passed 2^64 since the reference, take the ticks modulo 2^64.
    #[must_use]
    pub const fn elapsed(self, ticks: u64) -> Timestamp {
        Timestamp((ticks as u128 * self.frac_sec().get() as u128) >> self.shift())
    }

    /// A bound that was `at_reference_ns` at the reference and grows by this rate a tick, after
    /// `ticks`: in nanoseconds, rounded up.
    ///
    /// # Errors
    ///
    /// [`ScaleError::BoundTooLarge`] past 2^64 ns.
    pub fn bound_ns(self, at_reference_ns: u64, ticks: u64) -> Result<u64, ScaleError> {
        let product = u128::from(ticks) * u128::from(self.frac_sec().get());
        let cut = product & ((1 << self.shift()) - 1) != 0;
        Timestamp(product >> self.shift())
            .0
            .checked_add(u128::from(cut))
            .and_then(|grown| Timestamp(grown).to_ns(Rounding::Up).ok())
            .and_then(|grown_ns| at_reference_ns.checked_add(grown_ns))
            .ok_or(ScaleError::BoundTooLarge)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scale::exact::{any_frequency, edgy, int, magnitude, power};
    use num_bigint::BigInt;
    use proptest::prelude::*;

    fn period(hz: u64, rounding: Rounding) -> Period {
        Period::of(Frequency::from_hz(hz).unwrap(), rounding).unwrap()
    }

    fn parts(frac_sec: u64, shift: u8) -> Period {
        Period::new(NonZeroU64::new(frac_sec).unwrap(), shift).unwrap()
    }

    #[test]
    fn v6_periods_of_common_counters() {
        let vectors = [
            (24_000_000, 24, 0xB2F4_FC07_9490_8CF2),
            (100_000_000, 26, 0xABCC_7711_8461_CEFC),
            (1_000_000_000, 29, 0x8970_5F41_36B4_A597),
            (3_000_000_000, 31, 0xB740_7F01_9E46_321E),
        ];
        for (hz, shift, frac_sec) in vectors {
            assert_eq!(period(hz, Rounding::Down), parts(frac_sec, shift));
        }
        // A nanosecond without a shift.
        assert_eq!(Period::rounded(NS_PER_S, 0, Rounding::Down), 0x4_4B82_FA09);
        assert_eq!(Period::rounded(NS_PER_S, 0, Rounding::Up), 0x4_4B82_FA0A);
    }

    #[test]
    fn v6_the_longest_and_the_shortest_period() {
        let hz = Frequency::from_hz;
        assert_eq!(period(2, Rounding::Down), parts(1 << 63, 0));
        assert_eq!(period(u64::MAX, Rounding::Down), parts(1 << 63, 63));
        assert_eq!(period((1 << 32) + 1, Rounding::Up).shift(), 32);
        assert_eq!(
            Period::of(hz(1).unwrap(), Rounding::Down),
            Err(ScaleError::PeriodTooLong { frequency_hz: 1 })
        );
    }

    #[test]
    fn v6_ends_of_the_range() {
        let second = Timestamp::from_parts(1, 0);
        let last = Timestamp::from_parts(u64::MAX, u64::MAX);
        assert_eq!(last.plus(second), Err(ScaleError::TimestampTooLate));
        assert_eq!(second.minus(last), Err(ScaleError::TimestampTooEarly));
        assert_eq!(
            last.to_ns(Rounding::Down),
            Err(ScaleError::TimestampTooLate)
        );
        assert_eq!(last.subsec_ns(), 999_999_999);
        assert_eq!(
            parts(u64::MAX, 0).elapsed(u64::MAX),
            Timestamp::from_parts(u64::MAX - 1, 1)
        );
        let error = Err(ScaleError::BoundTooLarge);
        assert_eq!(parts(u64::MAX, 0).bound_ns(0, u64::MAX), error);
        assert_eq!(parts(1, 63).bound_ns(u64::MAX, 1), error);
        assert_eq!(
            parts(1, 63).bound_ns(7, 1),
            Ok(8),
            "any error is an error of 1 ns"
        );
        assert_eq!(parts(1, 63).bound_ns(7, 0), Ok(7));
    }

    fn any_period(frac_sec: u64, shift: u8) -> Option<Period> {
        Period::new(NonZeroU64::new(frac_sec)?, shift)
    }

    proptest! {
        #[test]
        fn v6_periods_are_exact_up_to_their_rounding(frequency in any_frequency()) {
            let hz = int(frequency.hz());
            for rounding in [Rounding::Down, Rounding::Up, Rounding::Nearest] {
                let Ok(period) = Period::of(frequency, rounding) else {
                    prop_assert_eq!(frequency.hz(), 1);
                    return Ok(());
                };
                let exact = power(64 + u32::from(period.shift()));
                let error = int(period.frac_sec().get()) * &hz - exact;
                let within = match rounding {
                    Rounding::Down => error <= BigInt::ZERO && -error < hz,
                    Rounding::Up => error >= BigInt::ZERO && error < hz,
                    Rounding::Nearest => magnitude(&error) * 2 <= hz,
                };
                prop_assert!(within);
                prop_assert!(period.frac_sec().get() >> 63 == 1, "all 64 bits are used");
            }
        }

        #[test]
        fn v6_time_is_behind_by_less_than_its_unit(
            start: u128,
            ticks in edgy(),
            frac_sec in edgy(),
            shift in 0u8..64,
        ) {
            let Some(period) = any_period(frac_sec, shift) else { return Ok(()) };
            let exact = int(ticks) * int(frac_sec);
            let span = period.elapsed(ticks);
            let behind = &exact - (int(span.0) << shift);
            prop_assert!(behind >= int(0) && behind < power(shift.into()));
            match Timestamp(start).plus(span) {
                Ok(sum) => {
                    prop_assert_eq!(int(sum.0), int(start) + int(span.0));
                    prop_assert_eq!(sum.minus(span), Ok(Timestamp(start)));
                }
                Err(_) => prop_assert!(int(start) + int(span.0) >= power(128)),
            }
        }

        #[test]
        fn v7_a_bound_covers_the_exact_error(
            at_reference_ns in edgy(),
            ticks in edgy(),
            frac_sec in edgy(),
            shift in 0u8..64,
        ) {
            let Some(rate) = any_period(frac_sec, shift) else { return Ok(()) };
            let unit = power(64 + u32::from(shift));
            let exact = int(at_reference_ns) * &unit + int(ticks) * int(frac_sec) * int(NS_PER_S);
            match rate.bound_ns(at_reference_ns, ticks) {
                Ok(bound) => {
                    let spare = int(bound) * &unit - exact;
                    prop_assert!(spare >= int(0) && spare < unit * 2);
                }
                Err(_) => prop_assert!(exact > (power(64) - 2) * unit),
            }
        }

        #[test]
        fn nanoseconds_are_exact_up_to_their_rounding(sec in edgy(), frac_sec in edgy()) {
            let time = Timestamp::from_parts(sec >> 30, frac_sec);
            prop_assert_eq!((time.sec(), time.frac_sec()), (sec >> 30, frac_sec));
            let exact = int(time.0) * int(NS_PER_S);
            for rounding in [Rounding::Down, Rounding::Up, Rounding::Nearest] {
                let error: BigInt = (int(time.to_ns(rounding)?) << 64) - &exact;
                let within = match rounding {
                    Rounding::Down => error <= BigInt::ZERO && -error < power(64),
                    Rounding::Up => error >= BigInt::ZERO && error < power(64),
                    Rounding::Nearest => error > -power(63) && error <= power(63),
                };
                prop_assert!(within);
            }
            let within_second = (int(frac_sec) * int(NS_PER_S)) >> 64;
            prop_assert_eq!(int(time.subsec_ns()), within_second);
        }
    }
}
