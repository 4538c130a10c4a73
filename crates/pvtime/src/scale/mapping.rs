//! The pair of multipliers that a VM's structure publishes, and deadlines across two of them.

use super::{CompareValue, Frequency, Multiplier, ScaleError};
use crate::abi::live_physical_time::LivePhysicalTime;

impl LivePhysicalTime {
    /// What is published for a host whose counter runs at `native`, and a guest that believes in
    /// `pv`; see [`Multiplier::between`].
    ///
    /// # Errors
    ///
    /// [`ScaleError::AboveCntfrq`] if one of the rates does not fit its 32-bit field.
    pub fn between(native: Frequency, pv: Frequency) -> Result<Self, ScaleError> {
        Ok(Self {
            native_frequency_hz: native.cntfrq()?,
            pv_frequency_hz: pv.cntfrq()?,
            to_pv: Multiplier::between(native, pv)?,
            to_native: Multiplier::between(pv, native)?,
        })
    }

    /// The PV count at which a timer with this compare value fires: exactly what the guest computes
    /// of it, and [`PvDeadline::NEVER`] of [`CompareValue::NEVER`].
    #[must_use]
    pub fn pv_deadline(&self, value: CompareValue) -> PvDeadline {
        if value == CompareValue::NEVER {
            return PvDeadline::NEVER;
        }
        PvDeadline(self.to_pv.apply_wide(value.0))
    }

    /// Where to set a timer that is to fire at `deadline`: the smallest native count whose PV count
    /// is not below it.
    ///
    /// So in PV ticks a timer is never early, it is late by less than one native tick, and one that
    /// has expired stays so.
    #[must_use]
    pub fn compare_value(&self, deadline: PvDeadline) -> TranslatedDeadline {
        if deadline == PvDeadline::NEVER {
            return TranslatedDeadline::Never;
        }
        let last = CompareValue::NEVER.0 - 1;
        if deadline.0 > self.to_pv.apply_wide(last) {
            return TranslatedDeadline::Unreachable;
        }
        // Reached by a 64-bit count, so the shift leaves it in 128 bits.
        let factor = u128::from(self.to_pv.factor().get());
        let count = (deadline.0 << self.to_pv.fraction_bits()).div_ceil(factor);
        u64::try_from(count).map_or(TranslatedDeadline::Unreachable, |count| {
            TranslatedDeadline::At(CompareValue(count))
        })
    }

    /// Where a timer goes when the VM changes from this mapping to `to`:
    /// [`pv_deadline`](Self::pv_deadline) here, [`compare_value`](Self::compare_value) there.
    #[must_use]
    pub fn translate(&self, value: CompareValue, to: &Self) -> TranslatedDeadline {
        to.compare_value(self.pv_deadline(value))
    }
}

/// The PV count at which a timer fires, which for a far deadline needs more than 64 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PvDeadline(pub u128);

impl PvDeadline {
    /// All ones: later than any compare value.
    pub const NEVER: Self = Self(u128::MAX);
}

/// A deadline in native ticks of another host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TranslatedDeadline {
    /// The compare value.
    At(CompareValue),
    /// It was "never" and still is.
    Never,
    /// That host's counter would pass 2^64 first, in 136 years or more: set as "never".
    Unreachable,
}

impl TranslatedDeadline {
    /// What to write to the timer.
    #[must_use]
    pub const fn compare_value(self) -> CompareValue {
        match self {
            Self::At(value) => value,
            Self::Never | Self::Unreachable => CompareValue::NEVER,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scale::exact::{cntfrq, edgy, int};
    use proptest::prelude::*;

    fn mapping(native_hz: u64, pv_hz: u64) -> LivePhysicalTime {
        let hz = |hz| Frequency::from_hz(hz).unwrap();
        LivePhysicalTime::between(hz(native_hz), hz(pv_hz)).unwrap()
    }

    fn at(value: u64) -> TranslatedDeadline {
        TranslatedDeadline::At(CompareValue(value))
    }

    #[test]
    fn l10_rates_above_32_bits_are_refused() {
        let hz = |hz| Frequency::from_hz(hz).unwrap();
        let error = ScaleError::AboveCntfrq {
            frequency_hz: 1 << 32,
        };
        assert_eq!(LivePhysicalTime::between(hz(1 << 32), hz(1)), Err(error));
        assert_eq!(LivePhysicalTime::between(hz(1), hz(1 << 32)), Err(error));
    }

    #[test]
    fn l4_a_deadline_between_two_ticks_is_rounded_up() {
        let (fast, slow) = (
            mapping(1_000_000_000, 1_000_000_000),
            mapping(24_000_000, 1_000_000_000),
        );
        // 41.67 ns a tick: 100 ns falls into the third, which ends at 125 ns.
        assert_eq!(fast.translate(CompareValue(100), &slow), at(3));
        assert_eq!(
            slow.to_pv.apply(3),
            Ok(124),
            "the truncated multiplier is just below 125"
        );
        assert_eq!(fast.translate(CompareValue(125), &slow), at(4));
    }

    #[test]
    fn l5_long_deadlines_expired_ones_and_never() {
        let (slow, fast) = (
            mapping(100_000_000, 1_000_000_000),
            mapping(1_000_000_000, 1_000_000_000),
        );
        // 60 s ahead, which the 2020 series made 4.165 s.
        assert_eq!(
            slow.translate(CompareValue(6_000_000_000), &fast),
            at(60_000_000_000)
        );
        assert_eq!(slow.translate(CompareValue(0), &fast), at(0));
        assert_eq!(
            slow.translate(CompareValue::NEVER, &fast),
            TranslatedDeadline::Never
        );
        assert_eq!(
            fast.translate(CompareValue(1 << 63), &slow),
            at((1 << 63) / 10 + 1)
        );
        let far = slow.translate(CompareValue(1 << 63), &fast);
        assert_eq!(far, TranslatedDeadline::Unreachable);
        assert_eq!(
            slow.pv_deadline(CompareValue(1 << 63)),
            PvDeadline(10 << 63),
            "still known"
        );
        let past_all = PvDeadline(u128::MAX - 1);
        assert_eq!(
            slow.compare_value(past_all),
            TranslatedDeadline::Unreachable
        );
        assert_eq!(far.compare_value(), CompareValue::NEVER);
    }

    #[test]
    fn l5_an_expired_timer_stays_expired() {
        // One tick ago, which the 2020 series put 2^32 ticks into the future.
        for (from, to) in [(24_000_000, 1_000_000_000), (1_000_000_000, 24_000_000)] {
            let (from, to) = (mapping(from, 1_000_000_000), mapping(to, 1_000_000_000));
            let now = 1_000_000_007;
            let resumed = to
                .to_pv
                .first_reaching(from.to_pv.apply(now).unwrap())
                .unwrap();
            let translated = from.translate(CompareValue(now - 1), &to).compare_value();
            assert!(translated.is_met(resumed));
        }
    }

    proptest! {
        #[test]
        fn l4_the_smallest_count_at_or_after_the_deadline(
            value in edgy(),
            from in cntfrq(),
            to in cntfrq(),
            pv in cntfrq(),
        ) {
            let from = LivePhysicalTime::between(from.into(), pv.into())?;
            let to = LivePhysicalTime::between(to.into(), pv.into())?;
            // Unbounded integers, since a deadline may lie past 2^64 PV ticks.
            let pv_count = |mapping: &LivePhysicalTime, count: u64| {
                (int(count) * int(mapping.to_pv.factor().get())) >> mapping.to_pv.fraction_bits()
            };
            let deadline = pv_count(&from, value);
            match from.translate(CompareValue(value), &to) {
                TranslatedDeadline::At(CompareValue(count)) => {
                    prop_assert!(pv_count(&to, count) >= deadline, "early");
                    prop_assert!(count == 0 || pv_count(&to, count - 1) < deadline, "late");
                }
                TranslatedDeadline::Never => prop_assert_eq!(value, u64::MAX),
                TranslatedDeadline::Unreachable => {
                    prop_assert!(pv_count(&to, u64::MAX - 1) < deadline);
                }
            }
        }
    }
}
