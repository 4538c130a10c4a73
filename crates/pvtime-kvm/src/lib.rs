//! The time of a Linux KVM virtual machine, behind one object.
//!
//! A virtual machine's time has one owner, [`VmTime`]. A VMM builds it once, attaches every vCPU
//! to it, describes its memory in the device tree, and asks it where the time went:
//!
//! ```text
//! HostTime::probe(&kvm)            what this host can do, each with its reason
//! VmTime::new(&vm, &host, config)  the interfaces that are on, and the memory they live in
//! time.attach(&vcpu, index)        after KVM_ARM_VCPU_INIT, before the first KVM_RUN
//! time.reserved_memory()           one node for each under /reserved-memory
//! vcpu_time.bind_thread()          on the thread that will call KVM_RUN
//! time.sample()                    the host's clocks and every vCPU's accounts, together
//! ```
//!
//! The order is kept by the types where they can keep it, and is an error where they cannot.
//! `VmTime` and what it attaches exist on arm64 alone, because the interfaces do; probing and
//! sampling work on every Linux.

pub mod clock;
pub mod counter;
pub mod gate;
mod kick;
pub mod probe;
pub mod registers;
mod reserved_memory;
pub mod schedstat;
mod stolen_time;

#[cfg(target_arch = "aarch64")]
mod region;
#[cfg(target_arch = "aarch64")]
mod vm_time;

pub use probe::{HostTime, Support};
pub use reserved_memory::ReservedMemory;
pub use stolen_time::{StolenTimeChoice, StolenTimeProvider, StolenTimeUnavailable};

#[cfg(target_arch = "aarch64")]
pub use vm_time::{
    Error, StolenTimeSample, TimeSample, VcpuSample, VcpuTime, VmTime, VmTimeConfig,
};
