//! What a hypervisor does: calls answered, stolen time counted, and the VM's time as one value.
//!
//! Nothing here reads a clock or touches memory. A [`HostSample`](timeline::HostSample) comes in,
//! a new state, [`Action`](timeline::Action)s and an [`Adjustment`](timeline::Adjustment) come
//! out; whoever owns the VM's file descriptors carries the actions out.
//!
//! | Module | Holds |
//! |---|---|
//! | [`hypercalls`] | which time call a guest made, and the answer |
//! | [`stolen`] | a vCPU's stolen time from its thread's run delay |
//! | [`timeline`] | the VM's counters, offset and pauses as a state machine |
//! | [`live`] | live physical time across hosts of different frequencies |
//! | [`timers`] | a vCPU's timers and event stream across the same |
//! | [`ledger`] | where a vCPU's physical time went |
//! | [`saved`] | all of that as bytes, and back |

mod cause;
mod counter;
pub mod hypercalls;
pub mod ledger;
pub mod live;
pub mod saved;
pub mod stolen;
pub mod timeline;
pub mod timers;

pub use cause::{Cause, PausedNs};
pub use counter::{CounterOffset, GuestCount, HostCount};
