//! Why a conversion has no result.

/// A quantity that does not exist or does not fit.
///
/// Frequencies are in Hz; counts are in the ticks that the message names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScaleError {
    /// A counter that does not count.
    #[error("a counter of 0 Hz measures nothing: give the rate of the host's counter")]
    ZeroFrequency,
    /// A rate above what `CNTFRQ_EL0` and the live-physical-time structure hold.
    #[error("{frequency_hz} Hz does not fit the 32 bits of CNTFRQ: use a counter below 4.29 GHz")]
    AboveCntfrq {
        /// The rate.
        frequency_hz: u64,
    },
    /// The result of an exact conversion has more than 64 bits.
    #[error(
        "{count} * {numerator} / {denominator} needs more than 64 bits: convert a shorter span"
    )]
    SpanTooLong {
        /// What was to be converted.
        count: u64,
        /// Numerator of the ratio.
        numerator: u64,
        /// Denominator of the ratio.
        denominator: u64,
    },
    /// Two rates so far apart that a 64-bit multiplier with 63 fraction bits would be 0.
    #[error(
        "no 64-bit multiplier takes {from_hz} Hz to {to_hz} Hz: choose rates less than 2^63 apart"
    )]
    RatioTooSmall {
        /// Rate of the ticks to convert.
        from_hz: u64,
        /// Rate of the ticks to convert to.
        to_hz: u64,
    },
    /// A native count whose PV count needs more than 64 bits.
    #[error(
        "count {count} times {factor:#x} / 2^{fraction_bits} needs more than 64 bits: \
         start the guest's counter lower, or choose a lower PV frequency"
    )]
    PvCountTooLarge {
        /// The native count.
        count: u64,
        /// Numerator of the multiplier.
        factor: u64,
        /// Fraction bits of the multiplier.
        fraction_bits: u32,
    },
    /// A PV count that no 64-bit native count reaches.
    #[error(
        "no 64-bit native count reaches PV count {pv_count} at {factor:#x} / 2^{fraction_bits}: \
         treat the deadline as never"
    )]
    Unreachable {
        /// The PV count, whole ticks.
        pv_count: u64,
        /// Numerator of the multiplier.
        factor: u64,
        /// Fraction bits of the multiplier.
        fraction_bits: u32,
    },
    /// A deadline past the last count.
    #[error("count {count} plus {ticks} ticks is past 2^64: treat the deadline as never")]
    DeadlineTooFar {
        /// The count that the deadline is relative to.
        count: u64,
        /// How far ahead it is.
        ticks: i32,
    },
    /// Live time past 2^64 PV ticks.
    #[error(
        "{native_ticks} ticks of {native_hz} Hz take live time past 2^64 ticks of {pv_hz} Hz: \
         choose a lower PV frequency"
    )]
    LiveTimeTooLong {
        /// Native ticks that were to be added.
        native_ticks: u64,
        /// Their rate.
        native_hz: u64,
        /// Rate of the PV counter.
        pv_hz: u64,
    },
    /// A tick of a whole second or more, which a `VMClock` period cannot say.
    #[error("a VMClock cannot say the period of {frequency_hz} Hz: use a counter of 2 Hz or more")]
    PeriodTooLong {
        /// The counter's rate.
        frequency_hz: u64,
    },
    /// A time that needs more than 64 bits of seconds.
    #[error("the time is past 2^64 s: the VMClock's counter value or period is wrong")]
    TimestampTooLate,
    /// A time before the start of its scale.
    #[error("the time is before 0: the VMClock's counter value or period is wrong")]
    TimestampTooEarly,
    /// An error bound that grew past 2^64 ns.
    #[error("the error bound is past 2^64 ns: the VMClock was not updated for too long")]
    BoundTooLarge,
}

#[cfg(test)]
mod tests {
    use super::ScaleError;
    use std::string::ToString;

    #[test]
    fn each_error_says_what_was_wrong_and_what_to_do() {
        let cases = [
            (
                ScaleError::ZeroFrequency,
                "a counter of 0 Hz measures nothing: give the rate of the host's counter",
            ),
            (
                ScaleError::AboveCntfrq {
                    frequency_hz: 5_000_000_000,
                },
                "5000000000 Hz does not fit the 32 bits of CNTFRQ: use a counter below 4.29 GHz",
            ),
            (
                ScaleError::SpanTooLong {
                    count: 9,
                    numerator: 7,
                    denominator: 3,
                },
                "9 * 7 / 3 needs more than 64 bits: convert a shorter span",
            ),
            (
                ScaleError::RatioTooSmall {
                    from_hz: 9,
                    to_hz: 1,
                },
                "no 64-bit multiplier takes 9 Hz to 1 Hz: choose rates less than 2^63 apart",
            ),
            (
                ScaleError::PvCountTooLarge {
                    count: 9,
                    factor: 16,
                    fraction_bits: 3,
                },
                "count 9 times 0x10 / 2^3 needs more than 64 bits: start the guest's counter \
                 lower, or choose a lower PV frequency",
            ),
            (
                ScaleError::Unreachable {
                    pv_count: 9,
                    factor: 16,
                    fraction_bits: 3,
                },
                "no 64-bit native count reaches PV count 9 at 0x10 / 2^3: treat the deadline as \
                 never",
            ),
            (
                ScaleError::DeadlineTooFar { count: 9, ticks: 7 },
                "count 9 plus 7 ticks is past 2^64: treat the deadline as never",
            ),
            (
                ScaleError::LiveTimeTooLong {
                    native_ticks: 9,
                    native_hz: 1,
                    pv_hz: 2,
                },
                "9 ticks of 1 Hz take live time past 2^64 ticks of 2 Hz: choose a lower PV \
                 frequency",
            ),
            (
                ScaleError::PeriodTooLong { frequency_hz: 1 },
                "a VMClock cannot say the period of 1 Hz: use a counter of 2 Hz or more",
            ),
            (
                ScaleError::TimestampTooLate,
                "the time is past 2^64 s: the VMClock's counter value or period is wrong",
            ),
            (
                ScaleError::TimestampTooEarly,
                "the time is before 0: the VMClock's counter value or period is wrong",
            ),
            (
                ScaleError::BoundTooLarge,
                "the error bound is past 2^64 ns: the VMClock was not updated for too long",
            ),
        ];
        for (error, message) in cases {
            assert_eq!(error.to_string(), message);
        }
    }
}
