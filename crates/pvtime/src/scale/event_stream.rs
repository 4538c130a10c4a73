//! The event stream: which bit of the counter makes events.
//!
//! `CNTKCTL_EL1` names a bit of the counter, so events come at a power of two of ticks and a
//! change of frequency can be followed to the nearest power of two only. That is an
//! approximation by nature, and this module says how coarse it became.

use super::Frequency;

const EVNTI_SHIFT: u32 = 4;
const EVNTI: u64 = 0xf << EVNTI_SHIFT;
/// With `FEAT_ECV`: the bits counted from are 8 higher.
const EVNTIS: u64 = 1 << 17;
const EVNTIS_BITS: u8 = 8;
const LAST_BIT: u8 = 15;

/// The counter bit whose transitions make events: 0 to 15, and to 23 with `FEAT_ECV`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EventStream {
    bit: u8,
}

/// An event stream for another frequency.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TranslatedStream {
    /// The counter bit.
    pub stream: EventStream,
    /// How many bits above (or, negative, below) the chosen one the nearest would have been, had
    /// the hardware had it. Not 0 means that translating back gives another bit.
    pub lost_bits: i16,
}

impl EventStream {
    /// The stream of a counter bit; `None` above 23, which no hardware has.
    #[must_use]
    pub const fn from_bit(bit: u8) -> Option<Self> {
        if bit > LAST_BIT + EVNTIS_BITS {
            None
        } else {
            Some(Self { bit })
        }
    }

    /// The counter bit in a value of `CNTKCTL_EL1`; its other fields are not looked at.
    #[must_use]
    pub const fn from_cntkctl(cntkctl: u64) -> Self {
        let field = ((cntkctl & EVNTI) >> EVNTI_SHIFT) as u8;
        let high = cntkctl & EVNTIS != 0;
        Self {
            bit: if high { field + EVNTIS_BITS } else { field },
        }
    }

    /// `cntkctl` with this counter bit in it, its other fields as they were.
    #[must_use]
    pub const fn to_cntkctl(self, cntkctl: u64) -> u64 {
        let rest = cntkctl & !(EVNTI | EVNTIS);
        if self.bit > LAST_BIT {
            rest | EVNTIS | ((self.bit - EVNTIS_BITS) as u64) << EVNTI_SHIFT
        } else {
            rest | (self.bit as u64) << EVNTI_SHIFT
        }
    }

    /// The counter bit.
    #[must_use]
    pub const fn bit(self) -> u8 {
        self.bit
    }

    /// The bit of a counter at `to` that is nearest in time to `bit` of a counter at `from`,
    /// whether hardware has such bits or not.
    ///
    /// The factor between the two periods is below the square root of 2. Two translations between
    /// the same two frequencies, there and back, cancel out.
    #[must_use]
    pub fn translate_bit(bit: i16, from: Frequency, to: Frequency) -> i16 {
        bit.saturating_add(log2_nearest(from, to))
    }

    /// The stream that hardware has, with `FEAT_ECV` or without, which is nearest to `bit`.
    #[must_use]
    pub fn nearest(bit: i16, has_ecv: bool) -> TranslatedStream {
        let last = if has_ecv {
            LAST_BIT + EVNTIS_BITS
        } else {
            LAST_BIT
        };
        let there_is = u8::try_from(bit.max(0)).map_or(last, |bit| bit.min(last));
        TranslatedStream {
            stream: Self { bit: there_is },
            lost_bits: bit.saturating_sub(there_is.into()),
        }
    }

    /// The stream of a counter at `to` that is nearest in time to this stream of a counter at
    /// `from`: [`translate_bit`](Self::translate_bit), then [`nearest`](Self::nearest).
    #[must_use]
    pub fn translate(self, from: Frequency, to: Frequency, has_ecv: bool) -> TranslatedStream {
        Self::nearest(Self::translate_bit(self.bit.into(), from, to), has_ecv)
    }
}

/// The integer nearest to the logarithm of `to / from` to the base 2, -64 to 64.
fn log2_nearest(from: Frequency, to: Frequency) -> i16 {
    if to < from {
        return -log2_nearest(to, from);
    }
    let whole = (to.hz() / from.hz()).ilog2();
    // Above the square root of 2 times 2^whole; squared, since no ratio of integers is equal to it.
    let lower = u128::from(from.hz()) << whole;
    let past_half = (lower * lower)
        .checked_mul(2)
        .is_some_and(|middle| u128::from(to.hz()).pow(2) > middle);
    // At most 64, for 64-bit rates.
    i16::try_from(whole + u32::from(past_half)).unwrap_or(i16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scale::exact::{any_frequency, int};
    use proptest::prelude::*;

    fn hz(hz: u64) -> Frequency {
        Frequency::from_hz(hz).unwrap()
    }

    fn stream(bit: u8) -> EventStream {
        EventStream { bit }
    }

    #[test]
    fn l13_the_register_field_is_read_and_written_alone() {
        assert_eq!(EventStream::from_cntkctl(0xa5).bit(), 0xa);
        assert_eq!(EventStream::from_cntkctl(0x2_00a5).bit(), 0xa + 8);
        assert_eq!(stream(3).to_cntkctl(0xffff_ffff), 0xfffd_ff3f);
        assert_eq!(stream(15).to_cntkctl(0xa505), 0xa5f5);
        assert_eq!(stream(16).to_cntkctl(0xa505), 0x2_a585);
        assert_eq!(EventStream::from_bit(24), None);
        for bit in 0..=23 {
            assert_eq!(EventStream::from_bit(bit), Some(stream(bit)));
            assert_eq!(
                EventStream::from_cntkctl(stream(bit).to_cntkctl(0)),
                stream(bit)
            );
        }
    }

    #[test]
    fn l13_ratios_go_to_the_nearest_power_of_two() {
        // The 2020 series made a shift of 8 of the ratios 4 to 7, of 2 of the ratio 3.
        let ratios = [
            (1, 0),
            (2, 1),
            (3, 2),
            (4, 2),
            (5, 2),
            (6, 3),
            (7, 3),
            (31, 5),
            (41, 5),
        ];
        for (ratio, shift) in ratios {
            let translated = stream(4).translate(hz(1_000), hz(1_000 * ratio), false);
            assert_eq!(
                translated,
                TranslatedStream {
                    stream: stream(4 + shift),
                    lost_bits: 0
                }
            );
        }
        // 141/100 is below the square root of 2, 142/100 above.
        assert_eq!(log2_nearest(hz(100), hz(141)), 0);
        assert_eq!(log2_nearest(hz(100), hz(142)), 1);
        assert_eq!(log2_nearest(hz(142), hz(100)), -1);
    }

    #[test]
    fn l13_what_the_hardware_has_no_bit_for_is_reported() {
        let (slow, fast) = (hz(25_000_000), hz(1_000_000_000));
        let up = stream(14).translate(slow, fast, false);
        assert_eq!(
            up,
            TranslatedStream {
                stream: stream(15),
                lost_bits: 4
            }
        );
        let up = stream(14).translate(slow, fast, true);
        assert_eq!(
            up,
            TranslatedStream {
                stream: stream(19),
                lost_bits: 0
            }
        );
        let down = stream(3).translate(fast, slow, true);
        assert_eq!(
            down,
            TranslatedStream {
                stream: stream(0),
                lost_bits: -2
            }
        );
        let extreme = stream(23).translate(hz(1), hz(u64::MAX), true);
        assert_eq!(
            extreme,
            TranslatedStream {
                stream: stream(23),
                lost_bits: 64
            }
        );
        let extreme = stream(0).translate(hz(u64::MAX), hz(1), true);
        assert_eq!(
            extreme,
            TranslatedStream {
                stream: stream(0),
                lost_bits: -64
            }
        );
    }

    proptest! {
        #[test]
        fn l13_within_the_square_root_of_two(from in any_frequency(), to in any_frequency()) {
            let shift = log2_nearest(from, to);
            let squared = |f: Frequency| int(f.hz()) * int(f.hz());
            // (to / from)^2 against 4^shift / 2 and 4^shift * 2.
            let doubled = 2 * i32::from(shift);
            let (up, down) = (doubled.max(0), (-doubled).max(0));
            let (to_squared, from_squared) = (squared(to) << down, squared(from) << up);
            prop_assert!(&to_squared * 2 >= from_squared, "{shift} is too much");
            prop_assert!(to_squared <= from_squared * 2, "{shift} is too little");
        }

        #[test]
        fn l13_there_and_back_is_the_same_or_reported(
            bit in 0u8..=23,
            from in any_frequency(),
            to in any_frequency(),
            has_ecv: bool,
        ) {
            let there = stream(bit).translate(from, to, has_ecv);
            let last = if has_ecv { 23 } else { 15 };
            prop_assert!(there.stream.bit() <= last);
            let back = there.stream.translate(to, from, true);
            if there.lost_bits == 0 {
                prop_assert_eq!(back.stream, stream(bit));
            } else {
                let reached = i16::from(back.stream.bit()) + back.lost_bits;
                prop_assert_eq!(reached + there.lost_bits, i16::from(bit));
            }
        }
    }
}
