//! When a timer fires: the 64-bit compare value, and the signed 32-bit view of it.

use super::ScaleError;

/// The count at which a timer's condition holds, as in `CNTV_CVAL_EL0` and `CNTP_CVAL_EL0`.
///
/// Any 64 bits, in ticks of the counter that it is compared with, unsigned. All ones is how
/// guests write "never", and what translation keeps as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CompareValue(pub u64);

impl CompareValue {
    /// All ones.
    pub const NEVER: Self = Self(u64::MAX);

    /// Whether an enabled timer's condition holds at `count`.
    #[must_use]
    pub const fn is_met(self, count: u64) -> bool {
        count >= self.0
    }

    /// What a write of `value` to the timer's `TVAL` register at `count` makes the compare value:
    /// `count` plus the signed value, modulo 2^64 as the architecture has it.
    #[must_use]
    pub const fn after(count: u64, value: TimerValue) -> Self {
        Self(count.wrapping_add_signed(value.0 as i64))
    }

    /// What a read of the `TVAL` register at `count` gives: the low 32 bits of the difference,
    /// whatever the distance.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "TVAL is a 32-bit view")]
    pub const fn timer_value(self, count: u64) -> TimerValue {
        TimerValue((self.0.wrapping_sub(count) as u32).cast_signed())
    }
}

/// A deadline relative to now, as in `CNTV_TVAL_EL0`: signed ticks.
///
/// It is a view of a compare value in the same ticks. It is never scaled by itself: 32 bits of
/// native ticks are not 32 bits of PV ticks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TimerValue(pub i32);

impl TimerValue {
    /// The count of the deadline, in the ticks of `count`. One before count 0 is 0, which has
    /// passed just as well.
    ///
    /// # Errors
    ///
    /// [`ScaleError::DeadlineTooFar`] past 2^64 - 1.
    pub const fn deadline(self, count: u64) -> Result<u64, ScaleError> {
        if self.0 < 0 {
            return Ok(count.saturating_sub(self.0.unsigned_abs() as u64));
        }
        match count.checked_add(self.0.unsigned_abs() as u64) {
            Some(deadline) => Ok(deadline),
            None => Err(ScaleError::DeadlineTooFar {
                count,
                ticks: self.0,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scale::exact::{edgy, int, power};
    use proptest::prelude::*;

    #[test]
    fn t10_the_condition_is_unsigned_and_includes_the_value() {
        assert!(CompareValue(5).is_met(5));
        assert!(!CompareValue(5).is_met(4));
        assert!(CompareValue(0).is_met(0));
        assert!(!CompareValue(1 << 63).is_met(1), "no sign bit");
        assert!(!CompareValue::NEVER.is_met(u64::MAX - 1));
    }

    #[test]
    fn t10_timer_values_are_signed() {
        assert_eq!(CompareValue::after(100, TimerValue(-1)), CompareValue(99));
        assert_eq!(
            CompareValue::after(0, TimerValue(-1)),
            CompareValue(u64::MAX)
        );
        assert_eq!(CompareValue(99).timer_value(100), TimerValue(-1));
        assert_eq!(CompareValue((1 << 32) + 7).timer_value(0), TimerValue(7));
        assert_eq!(CompareValue(1 << 31).timer_value(0), TimerValue(i32::MIN));
    }

    #[test]
    fn l6_negative_and_large_values_keep_their_meaning() {
        assert_eq!(TimerValue(-5).deadline(100), Ok(95));
        assert_eq!(TimerValue(-5).deadline(3), Ok(0), "passed, not 2^64 - 2");
        assert_eq!(
            TimerValue(i32::MIN).deadline(u64::MAX),
            Ok(u64::MAX - (1 << 31))
        );
        assert_eq!(TimerValue(i32::MAX).deadline(0), Ok(0x7fff_ffff));
        let error = ScaleError::DeadlineTooFar {
            count: u64::MAX,
            ticks: 1,
        };
        assert_eq!(TimerValue(1).deadline(u64::MAX), Err(error));
    }

    proptest! {
        #[test]
        fn t15_the_view_comes_back_modulo_two_to_the_64(count in edgy(), value: i32) {
            let compare = CompareValue::after(count, TimerValue(value));
            prop_assert_eq!(compare.timer_value(count), TimerValue(value));
            let exact = (int(count) + int(value) + power(64)) % power(64);
            prop_assert_eq!(int(compare.0), exact);
        }

        #[test]
        fn l6_a_deadline_is_the_sum_or_says_why_not(count in edgy(), value: i32) {
            let exact = (int(count) + int(value)).max(int(0));
            match TimerValue(value).deadline(count) {
                Ok(deadline) => prop_assert_eq!(int(deadline), exact),
                Err(_) => prop_assert!(exact >= power(64)),
            }
        }
    }
}
