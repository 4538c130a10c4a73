//! The time interfaces that a bare-metal guest found, and what they show.

use heapless::{String, Vec};
use serde::{Deserialize, Serialize};

/// Most CPUs of a bare-metal guest: what it says of each has to fit into one line.
pub const MAX_BARE_CPUS: usize = 16;

/// Which time interfaces there are, and what they show now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interfaces {
    /// How the guest calls the hypervisor.
    pub conduit: Conduit,
    /// `SMCCC_VERSION`: major version in the upper half, minor in the lower.
    pub smccc_version: Option<u32>,
    /// Stolen time by CPU number; none where a CPU has none.
    pub stolen_time: Vec<Option<StolenTime>, MAX_BARE_CPUS>,
    /// Why the first CPU without it has none.
    pub stolen_time_missing: Option<String<160>>,
    /// Live physical time.
    pub live_time: Option<LiveTime>,
    /// Why there is none.
    pub live_time_missing: Option<String<160>>,
    /// Paused time; none if the device tree has no such node.
    pub paused_time: Option<PausedTime>,
    /// The event stream, if one is on.
    pub event_stream: Option<EventStream>,
}

/// How a guest calls its hypervisor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Conduit {
    /// Not at all: the device tree names no conduit.
    None,
    /// `HVC`.
    Hvc,
    /// `SMC`.
    Smc,
}

/// One CPU's stolen time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StolenTime {
    /// Guest physical address of its structure.
    pub address: u64,
    /// What it shows.
    pub stolen_ns: u64,
}

/// The VM's live physical time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LiveTime {
    /// Guest physical address of its structure.
    pub address: u64,
    /// Frequency of the host's counter, as the structure has it.
    pub native_frequency_hz: u32,
    /// Frequency of the PV counter.
    pub pv_frequency_hz: u32,
    /// How often the guest found another native frequency than before.
    pub changes: u32,
}

/// The VM's paused time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PausedTime {
    /// Guest physical address of its structure.
    pub address: u64,
    /// Total that the counters did not show.
    pub paused_ns: u64,
    /// Pauses.
    pub events: u64,
    /// Physical length of the last.
    pub last_paused_ns: u64,
    /// The virtual counter at its end.
    pub last_counter: u64,
    /// Bound on the error of its length.
    pub last_error_ns: u64,
    /// Its cause, by number.
    pub last_cause: u32,
    /// Whether the counters were frozen over it.
    pub last_frozen: bool,
    /// Interrupts that announced a pause.
    pub interrupts: u32,
}

/// The event stream of the counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventStream {
    /// Bit of the counter whose changes make events.
    pub bit: u8,
    /// How many bits above (or, negative, below) it the nearest would have been, had the CPU had it.
    pub lost_bits: i16,
    /// Events a second at that bit: two in each of its periods.
    pub rate_hz: u32,
    /// How often it was translated to another frequency.
    pub translations: u32,
    /// Events that CPUs waited for and had.
    pub events: u64,
}

/// Every counter, read on one CPU in the order of the fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Clocks {
    /// The CPU.
    pub cpu: u32,
    /// Virtual counter.
    pub virtual_before: u64,
    /// Physical counter.
    pub physical: u64,
    /// Live physical time.
    pub live: Option<u64>,
    /// Virtual counter again.
    pub virtual_after: u64,
    /// Stolen time of the CPU.
    pub stolen_ns: Option<u64>,
}
