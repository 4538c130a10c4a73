//! The time of a Linux KVM virtual machine, behind one object.
//!
//! A virtual machine's time has one owner, `VmTime`. A VMM builds it once, attaches every vCPU
//! to it, describes its memory in the device tree, and tells it of events:
//!
//! ```text
//! HostTime::probe(&kvm)            what this host can do, each with its reason
//! VmTime::new(&vm, &host, config)  the interfaces that are on, and the memory they live in
//! time.attach(&vcpu, index)        after KVM_ARM_VCPU_INIT, before the first KVM_RUN
//! time.reserved_memory()           one node for each under /reserved-memory
//! time.paused_time_interrupt()     to be connected to an interrupt, where paused time is on
//! vcpu_time.bind_thread()          on the thread that will run the vCPU
//! time.start()                     all vCPUs have threads; the counters start at 0
//!   running.run(&mut vcpu)           instead of KVM_RUN: waits while the VM is stopped
//!   running.hypercall(&vcpu)         for KVM_EXIT_HYPERCALL
//!   time.pause(cause)                every vCPU is out of the guest, its counter taken once
//!   time.save()                      counters, timers, stolen time, ledgers
//!   time.resume()                    counters set by the policy, then vCPUs let in
//! time.restore(&saved, cause)      instead of start; resume follows
//! ```
//!
//! The order is kept by the types where they can keep it, and is an error where they cannot.
//! `VmTime` and what it attaches exist on arm64 alone, because the interfaces do; the rest works on
//! every Linux.

pub mod clock;
pub mod counter;
mod counter_plan;
pub mod gate;
mod kick;
pub mod probe;
pub mod record;
pub mod registers;
mod reserved_memory;
mod saved_time;
pub mod sleep;
mod stolen_time;
pub mod thread_stat;

#[cfg(target_arch = "aarch64")]
mod filter;
#[cfg(target_arch = "aarch64")]
pub mod offset;
#[cfg(target_arch = "aarch64")]
mod published;
#[cfg(target_arch = "aarch64")]
mod region;
#[cfg(target_arch = "aarch64")]
mod timers;
#[cfg(any(target_arch = "aarch64", test))]
mod untranslated;
#[cfg(target_arch = "aarch64")]
mod vm_time;

pub use counter_plan::{CounterChoice, CounterPlan, REGISTER_LIMITS};
pub use probe::{HostTime, Support};
pub use reserved_memory::ReservedMemory;
pub use saved_time::SavedTime;
pub use stolen_time::{StolenTimeChoice, StolenTimeProvider, StolenTimeUnavailable};

#[cfg(target_arch = "aarch64")]
pub use stolen_time::{PublishError, StolenTimeSample};
#[cfg(target_arch = "aarch64")]
pub use vm_time::{
    AccountError, Error, LivePhysicalTimeSample, LostTime, PausedTimeSample, RunningVcpu,
    TimeSample, VcpuSample, VcpuTime, VmTime, VmTimeConfig,
};
#[cfg(target_arch = "aarch64")]
#[doc(hidden)]
pub use vm_time::{Host, KvmHost};

use std::ops::RangeInclusive;

/// The rates that a PV counter may have, in Hz: from a tick of a microsecond, coarser than which no
/// counter of a guest is, to what the 32 bits of `CNTFRQ_EL0` can say.
pub const PV_FREQUENCY_HZ: RangeInclusive<u64> = 1_000_000..=u32::MAX as u64;

/// What live physical time does not cover, for the operator.
pub const LIVE_PHYSICAL_TIME_LIMITS: &str = "firmware and a guest without a driver for it count \
    native ticks, and a VM whose guest has not asked for it goes to no host of another frequency; a \
    kernel that is started by kexec counts as having asked if the one before did; it excludes nested virtualization and counters that advance over a pause";
