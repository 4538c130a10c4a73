//! Exact arithmetic on ticks: integers only, every rounding stated, nothing cut off in silence.
//!
//! | Type | Represents | Used for |
//! |---|---|---|
//! | [`Frequency`], [`Ratio`] | a counter's rate, the exact quotient of two | ticks to nanoseconds and back |
//! | [`Multiplier`], [`LivePhysicalTime`] | a truncated binary fraction, the pair that a VM's structure holds | native to PV ticks and back |
//! | [`LiveTime`] | PV ticks with 64 fraction bits | what the PV counter should show |
//! | [`CompareValue`], [`TimerValue`], [`PvDeadline`] | when a timer fires: native, as the signed 32-bit view, PV | deadlines |
//! | [`EventStream`] | which counter bit makes events | `CNTKCTL_EL1` |
//! | [`Timestamp`], [`Period`] | seconds with 64 fraction bits, the length of a tick | `VMClock` |
//! | [`rfc`] | the arithmetic of the 2020 KVM series, defects included | comparison |
//!
//! # Error bounds
//!
//! A result that does not fit its type is a [`ScaleError`], never a truncation, except in [`rfc`]
//! and where the architecture itself counts modulo 2^64 ([`CompareValue::after`]). With `n` native
//! ticks, frequencies `native` and `pv`, and `f` fraction bits:
//!
//! | Function | Rounds | Error |
//! |---|---|---|
//! | [`Ratio::scale`] | as asked | below 1, at most 1/2 for [`Rounding::Nearest`] |
//! | [`Multiplier::apply`] | down | behind `n * pv / native` by less than `1 + n / 2^f` PV ticks |
//! | [`Multiplier::apply_wrapping`] | down | as `apply`, modulo 2^64 |
//! | [`Multiplier::position`] | exact for the multiplier | behind `n * pv / native` by less than `n / 2^f` |
//! | [`Multiplier::first_reaching`] | up | 0: the smallest count that does it |
//! | [`Multiplier::nearest`] | nearest, half down | at most half a native tick |
//! | [`LiveTime::after`] | nearest | at most 2^-65 PV ticks |
//! | [`LivePhysicalTime::translate`] | up | late by less than one native tick, never early |
//! | [`EventStream::translate`] | nearest power of two | factor below the square root of 2, unless clamped |
//! | [`Period::elapsed`] | down | below 2^-64 s, and the period's own |

mod deadline;
mod error;
mod event_stream;
#[cfg(test)]
pub(crate) mod exact;
mod frequency;
mod live_time;
mod mapping;
mod multiplier;
pub mod rfc;
mod vmclock;
mod wrapping;

pub use crate::abi::live_physical_time::{LivePhysicalTime, Multiplier};
pub use crate::abi::vmclock::Period;
pub use deadline::{CompareValue, TimerValue};
pub use error::ScaleError;
pub use event_stream::{EventStream, TranslatedStream};
pub use frequency::{Frequency, NS_PER_S, Ratio, Rounding};
pub use live_time::{LiveDistance, LiveTime};
pub use mapping::{PvDeadline, TranslatedDeadline};
pub use vmclock::Timestamp;

#[expect(
    clippy::cast_possible_truncation,
    reason = "the upper half is meant to go"
)]
const fn low_64_bits(value: u128) -> u64 {
    value as u64
}
