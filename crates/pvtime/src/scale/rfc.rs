//! The arithmetic of the KVM series of August 2020 ("Add pvtime LPT support"), for comparison.
//!
//! It computes what that series computes, defects included, so that a test or a report can show
//! where the two differ. Nothing else in this crate uses it. The multipliers are the same,
//! [`LivePhysicalTime::between`].
//!
//! ```
//! use pvtime::scale::{CompareValue, Frequency, rfc};
//!
//! // A timer 60 s ahead, taken from 100 MHz to 1 GHz, fires after 4.165 s.
//! let (from, to) = (Frequency::from_hz(100_000_000)?, Frequency::from_hz(1_000_000_000)?);
//! let moved = rfc::migrate(0, CompareValue(6_000_000_000), from, to);
//! assert_eq!(moved.compare_value.0, 4_165_425_152);
//! # Ok::<(), pvtime::scale::ScaleError>(())
//! ```

use super::{CompareValue, Frequency, low_64_bits};
use crate::abi::live_physical_time::LivePhysicalTime;

/// Native to PV, rounded down, the low 64 bits kept.
#[must_use]
pub fn to_pv(mapping: &LivePhysicalTime, native_count: u64) -> u64 {
    low_64_bits(mapping.to_pv.apply_wide(native_count))
}

/// PV to native, rounded down, the low 64 bits kept: the result may map to less than `pv_count`.
#[must_use]
pub fn to_native(mapping: &LivePhysicalTime, pv_count: u64) -> u64 {
    low_64_bits(mapping.to_native.apply_wide(pv_count))
}

/// The virtual counter and timer after a change of frequency.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Migrated {
    /// The guest's counter at the moment of the change, in ticks of the new frequency.
    pub count: u64,
    /// Its timer's compare value.
    pub compare_value: CompareValue,
}

/// What the series does to a vCPU's virtual counter and timer at the first run on a host of
/// another frequency: the count scaled and rounded down, the remaining ticks scaled in 32 bits.
#[must_use]
pub fn migrate(
    count: u64,
    compare_value: CompareValue,
    from: Frequency,
    to: Frequency,
) -> Migrated {
    let scale = |value: u64| {
        let product = u128::from(value) * u128::from(to.hz()) / u128::from(from.hz());
        low_64_bits(product)
    };
    let low_32_bits = |value: u64| value & u64::from(u32::MAX);
    let remaining = low_32_bits(compare_value.0.wrapping_sub(count));
    let count = scale(count);
    let compare_value = CompareValue(count.wrapping_add(low_32_bits(scale(remaining))));
    Migrated {
        count,
        compare_value,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scale::exact::{cntfrq, edgy, int, power};
    use proptest::prelude::*;

    fn hz(hz: u64) -> Frequency {
        Frequency::from_hz(hz).unwrap()
    }

    const MHZ: u64 = 1_000_000;
    const GHZ: u64 = 1_000_000_000;

    #[test]
    fn l17_a_migration_steps_back() {
        let pv_after = |native: u64, count: u64| {
            let before = LivePhysicalTime::between(hz(native), hz(GHZ)).unwrap();
            let after = LivePhysicalTime::between(hz(24 * MHZ), hz(GHZ)).unwrap();
            let moved = migrate(count, CompareValue::NEVER, hz(native), hz(24 * MHZ));
            (
                to_pv(&before, count),
                moved.count,
                to_pv(&after, moved.count),
            )
        };
        // Exactly 250 and 41.67 PV ticks after; the truncated multiplier gives 249 and 41.
        assert_eq!(pv_after(100 * MHZ, 29), (290, 6, 249));
        assert_eq!(pv_after(GHZ, 83), (83, 1, 41));
    }

    #[test]
    fn l17_deadlines_are_cut_to_32_bits() {
        let ahead = |ticks| {
            migrate(0, CompareValue(ticks), hz(100 * MHZ), hz(GHZ))
                .compare_value
                .0
        };
        assert_eq!(ahead(6_000_000_000), 4_165_425_152);
        assert_eq!(ahead(4_300_000_000), 50_327_040);
        assert_eq!(ahead(1_000_000_000), 1_410_065_408);
    }

    #[test]
    fn l17_expired_and_never_become_finite() {
        let now = 1_000_000_000_000;
        let moved = migrate(now, CompareValue(now - 1), hz(GHZ), hz(GHZ));
        assert_eq!(moved.compare_value.0 - moved.count, u64::from(u32::MAX));
        let moved = migrate(now, CompareValue::NEVER, hz(GHZ), hz(100 * MHZ));
        assert_eq!(moved.compare_value.0 - moved.count, 72_737_996, "0.727 s");
    }

    #[test]
    fn l17_the_way_back_is_rounded_down() {
        let mapping = LivePhysicalTime::between(hz(24 * MHZ), hz(GHZ)).unwrap();
        assert_eq!(to_native(&mapping, 100), 2);
        assert_eq!(to_pv(&mapping, 2), 83, "before the deadline of 100");
    }

    proptest! {
        #[test]
        fn l17_products_keep_their_low_64_bits(count in edgy(), native in cntfrq(), pv in cntfrq()) {
            let mapping = LivePhysicalTime::between(native.into(), pv.into())?;
            for (result, multiplier) in [
                (to_pv(&mapping, count), mapping.to_pv),
                (to_native(&mapping, count), mapping.to_native),
            ] {
                let product = int(count) * int(multiplier.factor().get());
                let exact = (product >> multiplier.fraction_bits()) % power(64);
                prop_assert_eq!(int(result), exact);
            }
        }
    }
}
