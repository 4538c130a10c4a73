use crate::abi::ParseError;
use crate::abi::vmclock::{ClockStatus, CounterId, LeapIndicator, TimeType};
use crate::scale::ScaleError;
use crate::seqlock::ReadError;

/// Why an interface gives no time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GuestError {
    /// The structure is not what it should be.
    #[error(transparent)]
    Parse(#[from] ParseError),
    /// The structure was never still.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The result does not fit.
    #[error(transparent)]
    Scale(#[from] ScaleError),
    /// The PV frequency is not what it was when the clock was attached.
    #[error(
        "the PV frequency was {attached_hz} Hz and is {found_hz} Hz: report it to the VMM's \
         authors, and attach again"
    )]
    FrequencyChanged {
        /// Rate when the clock was attached.
        attached_hz: u32,
        /// Rate now.
        found_hz: u32,
    },
    /// The host does not vouch for its clock.
    #[error("the VMClock's status is {}, not synchronized or free-running: use another clock", status.0)]
    Untrusted {
        /// What the host says.
        status: ClockStatus,
    },
    /// The VMClock has no moment to compute from.
    #[error("the VMClock tells no time, only disruptions: use another clock")]
    NoTime,
    /// The VMClock's times go with a counter that this reader was not given.
    #[error(
        "the VMClock goes with counter {}, this reader has counter {}: give it that counter, or use another clock",
        published.0, ours.0
    )]
    OtherCounter {
        /// The counter in the structure.
        published: CounterId,
        /// The counter that the reader has.
        ours: CounterId,
    },
    /// There is no way from the time to UTC.
    #[error("the VMClock has {time_type:?} time without a UTC offset: use its time as a span only")]
    NotUtc {
        /// What the time counts.
        time_type: TimeType,
    },
    /// The structure says "this is a leap second" at a moment that cannot be one.
    #[error(
        "the VMClock says that UTC second {sec} is a leap second, which ends no day: use another clock"
    )]
    LeapOutOfPlace {
        /// The second, since 1970.
        sec: u64,
    },
    /// The structure says something about leap seconds that version 1 does not define.
    #[error("the VMClock's leap indicator is {}, at most 5 is defined: use another clock", indicator.0)]
    LeapUnknown {
        /// What it says.
        indicator: LeapIndicator,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;

    #[test]
    fn each_error_says_what_was_wrong_and_what_to_do() {
        let (published, ours) = (CounterId::X86_TSC, CounterId::ARM_VCNT);
        for (error, message) in [
            (
                GuestError::FrequencyChanged {
                    attached_hz: 7,
                    found_hz: 8,
                },
                "the PV frequency was 7 Hz and is 8 Hz: report it to the VMM's authors, and attach \
                 again",
            ),
            (
                GuestError::Untrusted {
                    status: ClockStatus::UNRELIABLE,
                },
                "the VMClock's status is 4, not synchronized or free-running: use another clock",
            ),
            (
                GuestError::NoTime,
                "the VMClock tells no time, only disruptions: use another clock",
            ),
            (
                GuestError::OtherCounter { published, ours },
                "the VMClock goes with counter 1, this reader has counter 0: give it that counter, \
                 or use another clock",
            ),
            (
                GuestError::NotUtc {
                    time_type: TimeType::Monotonic,
                },
                "the VMClock has Monotonic time without a UTC offset: use its time as a span only",
            ),
            (
                GuestError::LeapOutOfPlace { sec: 7 },
                "the VMClock says that UTC second 7 is a leap second, which ends no day: use \
                 another clock",
            ),
            (
                GuestError::LeapUnknown {
                    indicator: LeapIndicator(6),
                },
                "the VMClock's leap indicator is 6, at most 5 is defined: use another clock",
            ),
            (
                ReadError::KeepsChanging {
                    sequence: 8,
                    attempts: 2,
                }
                .into(),
                "the structure changed (sequence now 8) in each of 2 attempts: go on with the last \
                 time read, and try again later",
            ),
            (
                ReadError::StaysOdd {
                    sequence: 7,
                    attempts: 2,
                }
                .into(),
                "the structure was being written (sequence 7) at each of 2 attempts: go on with the \
                 last time read, and try again later",
            ),
            (
                ReadError::TooShort {
                    needed_bytes: 48,
                    actual_bytes: 40,
                }
                .into(),
                "the structure needs 48 bytes and 40 are mapped: map all of it",
            ),
        ] {
            assert_eq!(error.to_string(), message);
        }
    }
}
