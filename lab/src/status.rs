//! What a VMM says of its VM.

use serde::Deserialize;

/// What `pvtime ctl SOCKET status --json` says, as far as the lab judges it.
#[derive(Debug, Clone, Deserialize)]
pub struct Status {
    /// What the VM does.
    pub state: String,
    /// Physical time since the start.
    pub elapsed_ns: u64,
    /// As much of it as the VM was stopped for.
    pub paused_ns: u64,
    /// Which generation of its VM it is.
    pub generation: Generation,
    /// One for each vCPU.
    pub vcpus: Vec<VcpuStatus>,
}

/// A generation of a VM.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct Generation {
    /// Counts from 1.
    pub count: u64,
    /// What the guest finds, in hexadecimal digits.
    pub id: String,
}

/// One vCPU, its figures sampled close together.
#[derive(Debug, Clone, Deserialize)]
pub struct VcpuStatus {
    /// Thread on the host.
    pub thread_id: u32,
    /// Time it ran.
    pub run_ns: u64,
    /// Time it was runnable and did not run.
    pub run_delay_ns: u64,
    /// Its structure; none where stolen time is off.
    pub stolen_time: Option<Structure>,
}

/// A stolen-time structure.
#[derive(Debug, Clone, Copy, Deserialize)]
pub struct Structure {
    /// Where it is in guest memory.
    pub address: u64,
    /// The guest has asked for it.
    pub claimed: bool,
    /// What it says.
    pub stolen_ns: u64,
    /// As much of it as nobody stole.
    pub surplus_ns: u64,
}
