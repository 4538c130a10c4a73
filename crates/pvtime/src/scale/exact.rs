//! What the property tests compare with: unbounded integers, and inputs that seek the edges.

use super::Frequency;
use core::num::NonZeroU32;
use num_bigint::BigInt;
use proptest::prelude::*;

/// Any integer as an unbounded one.
pub fn int(value: impl Into<BigInt>) -> BigInt {
    value.into()
}

/// A value without its sign.
pub fn magnitude(value: &BigInt) -> BigInt {
    int(value.magnitude().clone())
}

/// `2^bits`.
pub fn power(bits: u32) -> BigInt {
    int(1) << bits
}

/// `numerator / denominator`, rounded down, for values that are not negative.
pub fn floor(numerator: BigInt, denominator: &BigInt) -> BigInt {
    assert!(numerator >= BigInt::ZERO && *denominator > BigInt::ZERO);
    numerator / denominator
}

/// Any 64 bits, with 0, 2^64 - 1 and the neighbours of powers of two much more often than by chance.
pub fn edgy() -> impl Strategy<Value = u64> + Clone {
    prop_oneof![
        2 => any::<u64>(),
        2 => (0u32..64, any::<u64>()).prop_map(|(shift, value)| value >> shift),
        1 => (0u32..64, -2i64..=2).prop_map(|(bit, by)| (1u64 << bit).wrapping_add_signed(by)),
        1 => 0u64..4,
        1 => (0u64..4).prop_map(|below| u64::MAX - below),
    ]
}

/// Any rate of an Arm counter, those of real machines and the extremes more often than by chance.
pub fn cntfrq() -> impl Strategy<Value = NonZeroU32> + Clone {
    let real = [
        1,
        2,
        3,
        19_200_000,
        24_000_000,
        25_000_000,
        31_250_000,
        54_000_000,
        62_500_000,
        100_000_000,
        1_000_000_000,
        1_050_000_000,
        4_000_000_000,
        u32::MAX - 1,
        u32::MAX,
    ];
    prop_oneof![
        1 => 1..=u32::MAX,
        1 => (0u32..32, any::<u32>()).prop_map(|(shift, hz)| (hz >> shift).max(1)),
        1 => proptest::sample::select(real.to_vec()),
    ]
    .prop_map(|hz| NonZeroU32::new(hz).unwrap())
}

/// Any rate: Arm counters as [`cntfrq`] gives them, and 64-bit ones.
pub fn any_frequency() -> impl Strategy<Value = Frequency> + Clone {
    prop_oneof![
        2 => cntfrq().prop_map(Frequency::from),
        1 => edgy().prop_map(|hz| Frequency::from_hz(hz.max(1)).unwrap()),
    ]
}
