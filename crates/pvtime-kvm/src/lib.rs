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
pub mod gate;
mod kick;
pub mod probe;
pub mod record;
pub mod registers;
mod reserved_memory;
pub mod sleep;
mod stolen_time;
pub mod thread_stat;

#[cfg(target_arch = "aarch64")]
pub mod offset;
#[cfg(target_arch = "aarch64")]
mod region;
#[cfg(target_arch = "aarch64")]
mod timers;
#[cfg(target_arch = "aarch64")]
mod vm_time;

pub use probe::{HostTime, Support};
pub use reserved_memory::ReservedMemory;
pub use stolen_time::{StolenTimeChoice, StolenTimeProvider, StolenTimeUnavailable};

#[cfg(target_arch = "aarch64")]
pub use stolen_time::{PublishError, StolenTimeSample};
#[cfg(target_arch = "aarch64")]
pub use vm_time::{
    AccountError, CounterChoice, Error, LostTime, RunningVcpu, TimeSample, VcpuSample, VcpuTime,
    VmTime, VmTimeConfig,
};
