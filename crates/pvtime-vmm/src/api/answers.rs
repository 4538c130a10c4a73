//! What the resources say, for both ends of the socket.

pub use crate::migration::monitor::{Phase, Progress as Migration};
pub use crate::migration::report::{
    Clocks as MigrationClocks, Outcome as MigrationOutcome, Report as MigrationReport, Transfer,
};
use pvtime::host::{Cause, PausedNs, ledger};
use pvtime_kvm::record::Record;
use serde::{Deserialize, Serialize};
use time_figure::Sample;

pub use crate::generation::{Generation, GenerationId};
pub use crate::snapshot::monitor::{Phase as SnapshotPhase, Saving};
pub use crate::suspension::Prepared;

/// `GET /`: what runs, as Firecracker describes an instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    /// Always `pvtime`.
    pub app_name: String,
    /// The VM's name.
    pub id: String,
    /// What it does.
    pub state: VmState,
    /// The VMM's version.
    pub vmm_version: String,
}

/// What a VM does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum VmState {
    /// It never ran.
    #[serde(rename = "Not started")]
    NotStarted,
    /// Its vCPUs are let into the guest.
    Running,
    /// They are not.
    Paused,
    /// They are not, because the guest has suspended itself.
    Suspended,
    /// They are not, and another host may run it.
    #[serde(rename = "In doubt")]
    InDoubt,
    /// Another host runs it.
    Moved,
}

impl std::fmt::Display for VmState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::NotStarted => "not started",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Suspended => "suspended",
            Self::InDoubt => "in doubt",
            Self::Moved => "moved",
        })
    }
}

/// `GET /time`: clocks, and what the host counted for each vCPU's thread.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Time {
    /// Rate of the host's counter, which is the guest's, in Hz.
    pub counter_frequency_hz: Option<u64>,
    /// Why this host cannot offset all of the guest's counters, and what is lost; absent where it
    /// can.
    pub counter_limits: Option<String>,
    /// Why the VM waits since the host slept: its time could not be set right yet. Absent where it
    /// does not.
    pub held_up_by: Option<String>,
    /// Who keeps stolen time: `kernel`, `user` or `off`.
    pub stolen_time: String,
    /// Why it could not be brought up to date when that was tried last; absent where it was.
    pub stolen_time_failure: Option<String>,
    /// What the VM has of live physical time; absent where it is off.
    pub live_physical_time: Option<LivePhysicalTime>,
    /// What the guest is told of its pauses; absent where it is not.
    pub paused_time: Option<PausedTime>,
    /// Physical time since the VM's time was made in this VMM, in ns.
    pub elapsed_ns: u64,
    /// As much of it as the VM was paused for, in ns.
    pub paused_ns: u64,
    /// Which generation of its VM this is.
    pub generation: Generation,
    /// One for each vCPU, in order.
    pub vcpus: Vec<VcpuTime>,
}

/// Live physical time as the guest is offered it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LivePhysicalTime {
    /// Guest physical address of the structure.
    pub address: u64,
    /// Rate of the PV counter, in Hz.
    pub frequency_hz: u64,
    /// Whether the guest asked for it, and so goes to hosts of other frequencies.
    pub claimed: bool,
}

/// Paused time as the guest reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PausedTime {
    /// Guest physical address of the structure.
    pub address: u64,
    /// Pauses so far.
    pub events: u64,
    /// Time of them that the guest's counters did not show, in ns.
    pub paused_ns: u64,
}

/// What the host counted for one vCPU's thread.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VcpuTime {
    /// The vCPU's index.
    pub index: usize,
    /// Its thread, as `gettid` numbers it.
    pub thread_id: Option<i32>,
    /// Time on a CPU, in ns.
    pub run_ns: u64,
    /// Time runnable without a CPU, in ns; a wait counts when it has ended.
    pub run_delay_ns: u64,
    /// The structure in guest memory; absent where stolen time is off.
    pub stolen_time: Option<StolenTime>,
}

/// A vCPU's structure as it lies in guest memory, where the guest may have written to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StolenTime {
    /// Its guest physical address.
    pub address: u64,
    /// Whether the guest asked for it since it started.
    pub claimed: bool,
    /// Stolen time since then, in ns.
    pub stolen_ns: u64,
    /// As much of it as the thread waited for outside the guest, in ns: nobody stole it, and it could
    /// not be taken from a value that was less.
    pub surplus_ns: u64,
}

/// `GET /time/ledger`: where each vCPU's physical time went since the VM was started first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ledger {
    /// One for each vCPU, in order.
    pub vcpus: Vec<Accounts>,
}

/// `physical = run + idle + stolen + paused + residual`, all in ns.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accounts {
    /// The vCPU's index.
    pub index: usize,
    /// All of it.
    pub physical_ns: u64,
    /// On a CPU.
    pub run_ns: u64,
    /// Nothing to do.
    pub idle_ns: u64,
    /// Could run, and did not get a CPU.
    pub stolen_ns: u64,
    /// The VM was stopped.
    pub paused_ns: PausedByCause,
    /// Physical time that no account has; negative where they have more than there was.
    pub residual_ns: i128,
    /// Virtual time: run and idle.
    pub virtual_ns: u128,
    /// Live physical time: virtual time and stolen time.
    pub live_ns: u128,
}

/// Paused time by its cause, in ns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PausedByCause {
    /// The operator.
    pub operator_ns: u64,
    /// A snapshot was made, or the VM came out of one.
    pub snapshot_ns: u64,
    /// The VM moved.
    pub migration_ns: u64,
    /// The host slept.
    pub host_suspend_ns: u64,
}

impl From<PausedNs> for PausedByCause {
    fn from(paused: PausedNs) -> Self {
        Self {
            operator_ns: paused.of(Cause::Operator),
            snapshot_ns: paused.of(Cause::Snapshot),
            migration_ns: paused.of(Cause::Migration),
            host_suspend_ns: paused.of(Cause::HostSuspend),
        }
    }
}

impl Accounts {
    /// The accounts of vCPU `index`.
    #[must_use]
    pub fn new(index: usize, accounts: &ledger::Accounts) -> Self {
        Self {
            index,
            physical_ns: accounts.physical_ns,
            run_ns: accounts.run_ns,
            idle_ns: accounts.idle_ns,
            stolen_ns: accounts.stolen_ns,
            paused_ns: accounts.paused.into(),
            residual_ns: accounts.residual_ns(),
            virtual_ns: accounts.virtual_ns(),
            live_ns: accounts.live_ns(),
        }
    }
}

/// `GET /time/events`: what was done to the VM's time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Events {
    /// In order; [`Events::PAGE`] at most.
    pub events: Vec<Record>,
    /// Number of the newest record that there is; 0 where there is none.
    pub last: u64,
    /// Whether the VM has ended: no record will follow the newest.
    pub ended: bool,
}

impl Events {
    /// Most records in one answer.
    pub const PAGE: usize = 256;
}

/// `GET /time/history`: one vCPU's physical, live physical and virtual time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VcpuHistory {
    /// The vCPU's index.
    pub vcpu: usize,
    /// From the start of this VMM's guest up to now, in order.
    pub samples: Vec<Sample>,
}

/// What went wrong, as Firecracker says it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FaultMessage {
    /// One sentence.
    pub fault_message: String,
}
