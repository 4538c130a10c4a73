//! `pvtime-kvm` against real KVM.
//!
//! Runs on arm64 hosts with KVM; `cargo xtask test` runs it on an emulated one.
#![cfg(target_arch = "aarch64")]

mod bent_host;
mod caller;
mod counters;
mod host_sleep;
mod live_physical_time;
mod machine;
mod offset;
mod paused_time;
mod reporter;
mod restoring;
mod sleep;
mod stolen_time;
mod stolen_time_anew;
mod stolen_time_saved;
mod stopper;
mod timer_interrupts;
mod timers;
