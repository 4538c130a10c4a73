//! What a hypervisor does: calls answered, stolen time counted.
//!
//! Nothing here reads a clock or touches memory.
//!
//! | Module | Holds |
//! |---|---|
//! | [`hypercalls`] | which time call a guest made, and the answer |
//! | [`stolen`] | a vCPU's stolen time from its thread's run delay |
//! | [`ledger`] | where a vCPU's physical time went |

mod cause;
mod counter;
pub mod hypercalls;
pub mod ledger;
pub mod stolen;

pub use cause::{Cause, PausedNs};
pub use counter::{CounterOffset, GuestCount, HostCount};
