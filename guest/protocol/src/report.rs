//! What a guest tells its runner.

use heapless::{String, Vec};
use serde::{Deserialize, Serialize};

use crate::request::Workload;
use crate::wire::{self, EmitError, Head, ParseError};
use crate::{MAX_CPUS, MAX_GAPS};

mod interfaces;
mod memory;
mod timers;

pub use interfaces::{
    Clocks, Conduit, EventStream, Interfaces, LiveTime, MAX_BARE_CPUS, PausedTime, StolenTime,
};
pub use memory::Memory;
pub use timers::{Firing, Periods, Timer, TimerState};

/// One report, and the number of the request that it answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The request's `id`; none for what the guest sends by itself.
    pub answers: Option<u32>,
    /// What it says.
    pub body: Body,
}

/// What a report says.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(
    clippy::large_enum_variant,
    reason = "there is no allocator to box a sample with"
)]
pub enum Body {
    /// Who is there: the first report after every start of the program.
    Hello(Hello),
    /// The guest's clocks at one moment.
    Sample(Sample),
    /// What one spinning CPU saw of its counter.
    Spin(Spin),
    /// Which time interfaces there are.
    Interfaces(Interfaces),
    /// Every counter at one moment.
    Clocks(Clocks),
    /// What became of one timer.
    Timer(TimerState),
    /// What became of the pattern in memory.
    Memory(Memory),
    /// What one of the guest's own tests found.
    Test(TestResult),
    /// The request was carried out.
    Done,
    /// Something was refused or failed.
    Error(Error),
    /// The last report: the machine stops now.
    Bye(Bye),
}

/// Who is there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`VERSION`](crate::VERSION) of the sender.
    pub protocol: u16,
    /// Which program it is.
    pub program: Program,
    /// What it runs on, for people: the kernel and its release.
    pub system: String<96>,
    /// CPUs that may ever come online.
    pub cpus_possible: u32,
    /// CPUs online now.
    pub cpus_online: u32,
    /// Rate of the counter, as the guest reads it (`CNTFRQ_EL0`).
    pub counter_frequency_hz: u64,
    /// Step in which `steal_ns` moves: the guest's own accounting rounds down to it.
    pub steal_unit_ns: u64,
    /// Milliseconds between samples; 0 if they are taken on request only.
    pub sample_period_ms: u32,
    /// What each CPU does, by CPU number.
    pub workloads: Vec<Workload, MAX_CPUS>,
}

/// The program that reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Program {
    /// The init program of a Linux guest.
    Linux,
    /// The bare-metal guest.
    El1,
}

/// The guest's clocks at one moment, all read on one CPU between two reads of the counter.
///
/// The four clocks are `clock_gettime` of the clock named, in nanoseconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    /// Counts samples from 0: a hole is a lost report.
    pub sequence: u64,
    /// The CPU that took it.
    pub cpu: u32,
    /// Virtual counter before the clocks were read, in ticks.
    pub counter_before: u64,
    /// `CLOCK_MONOTONIC`.
    pub monotonic_ns: u64,
    /// `CLOCK_MONOTONIC_RAW`.
    pub monotonic_raw_ns: u64,
    /// `CLOCK_BOOTTIME`.
    pub boottime_ns: u64,
    /// `CLOCK_REALTIME`.
    pub realtime_ns: u64,
    /// Virtual counter after the clocks were read, in ticks.
    pub counter_after: u64,
    /// Stolen time by CPU number, as the guest accounts for it; none where the CPU is offline.
    pub steal_ns: Vec<Option<u64>, MAX_CPUS>,
    /// The VM's pauses that the counters did not show, in ns, as its paused-time structure said just
    /// after the clocks were read; none where the guest does not follow it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paused_ns: Option<u64>,
}

impl Sample {
    /// Ticks within which every clock was read: the uncertainty of one against another.
    #[must_use]
    pub const fn window_ticks(&self) -> u64 {
        self.counter_after.wrapping_sub(self.counter_before)
    }
}

/// What one spinning CPU saw of its counter since the last such report.
///
/// Account is kept without a break from one report to the next: the first gap of a report begins
/// at the last read of the one before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spin {
    /// The CPU.
    pub cpu: u32,
    /// The counter that it reads; all counts below are of it.
    #[serde(default, skip_serializing_if = "is_default")]
    pub clock: SpinClock,
    /// Reads of the counter. With 0, the fields below are 0 too.
    pub reads: u64,
    /// The counter at the first read.
    pub first_counter: u64,
    /// The counter at the last read.
    pub last_counter: u64,
    /// Largest steps from one read to the next, the largest first. Where there were fewer, the
    /// rest are 0.
    pub largest_gaps: [SpinGap; MAX_GAPS],
    /// Reads that were below the one before on the same CPU.
    pub backwards_steps: u64,
    /// The largest of these steps, in ticks.
    pub largest_backwards_ticks: u64,
    /// Reads that were below a value which any spinning CPU had read before.
    pub cross_backwards_steps: u64,
    /// The largest of these steps, in ticks.
    pub largest_cross_backwards_ticks: u64,
}

/// What a spinning CPU reads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SpinClock {
    /// The virtual counter.
    #[default]
    Virtual,
    /// The physical counter.
    Physical,
    /// Live physical time, in ticks of the PV frequency.
    Live,
}

/// A step from one read of the counter to the next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpinGap {
    /// The counter where it began.
    pub start: u64,
    /// How far it went.
    pub ticks: u64,
    /// What the CPU's stolen time grew by meanwhile; 0 too where the guest does not look.
    #[serde(default, skip_serializing_if = "is_default")]
    pub stolen_ns: u64,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// What one of the guest's own tests found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TestResult {
    /// The test.
    pub name: String<64>,
    /// What it came to.
    pub outcome: Outcome,
    /// What was measured, what failed, or what is not there to be tested.
    pub message: String<256>,
}

/// What a test came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// All was as it should be.
    Passed,
    /// Something was not.
    Failed,
    /// The machine lacks what is tested.
    Absent,
}

impl Spin {
    /// The step that began at or before a count and ended after it; none if it was not among the
    /// largest.
    #[must_use]
    pub fn gap_over(&self, count: u64) -> Option<SpinGap> {
        let is_over = |gap: &&SpinGap| count.wrapping_sub(gap.start) < gap.ticks;
        self.largest_gaps.iter().find(is_over).copied()
    }
}

/// Something was refused or failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Error {
    /// What kind of trouble.
    pub kind: ErrorKind,
    /// One sentence that says what happened and what to do.
    pub message: String<256>,
}

/// What kind of trouble an error report is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// A line that could not be read.
    Malformed,
    /// A request of a type that this guest does not know.
    UnknownType,
    /// A request that was understood and cannot be carried out.
    Refused,
    /// The guest's own failure.
    Failed,
}

/// The last report of a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bye {
    /// Why the machine, or the kernel, stops.
    pub reason: ByeReason,
}

/// Why a guest's machine stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ByeReason {
    /// It was asked to power off.
    PowerOff,
    /// It was asked to reset.
    Reset,
    /// Another kernel takes its place.
    Kexec,
    /// It cannot go on and powers off; an error report came before.
    Failed,
}

impl Report {
    /// A report that the guest sends by itself.
    #[must_use]
    pub const fn new(body: Body) -> Self {
        Self {
            answers: None,
            body,
        }
    }

    /// Writes the report as a line with its newline, and returns its length in bytes.
    ///
    /// # Errors
    /// [`EmitError`] if `buffer` is too short; [`MAX_LINE`](crate::MAX_LINE) bytes are enough.
    pub fn emit(&self, buffer: &mut [u8]) -> Result<usize, EmitError> {
        let id = wire::Id::Answer(self.answers);
        match &self.body {
            Body::Hello(body) => wire::emit("hello", id, Some(body), buffer),
            Body::Sample(body) => wire::emit("sample", id, Some(body), buffer),
            Body::Spin(body) => wire::emit("spin", id, Some(body), buffer),
            Body::Interfaces(body) => wire::emit("interfaces", id, Some(body), buffer),
            Body::Clocks(body) => wire::emit("clocks", id, Some(body), buffer),
            Body::Timer(body) => wire::emit("timer", id, Some(body), buffer),
            Body::Memory(body) => wire::emit("memory", id, Some(body), buffer),
            Body::Test(body) => wire::emit("test", id, Some(body), buffer),
            Body::Done => wire::emit::<()>("done", id, None, buffer),
            Body::Error(body) => wire::emit("error", id, Some(body), buffer),
            Body::Bye(body) => wire::emit("bye", id, Some(body), buffer),
        }
    }

    /// Reads one line, with or without its line end.
    ///
    /// # Errors
    /// [`ParseError`] says what is wrong. [`ParseError::NotAMessage`] is what a console's other
    /// text gives.
    pub fn parse(line: &[u8]) -> Result<Self, ParseError> {
        let head = Head::parse(line)?;
        let body = match head.name {
            "hello" => Body::Hello(head.parse_body("hello")?),
            "sample" => Body::Sample(head.parse_body("sample")?),
            "spin" => Body::Spin(head.parse_body("spin")?),
            "interfaces" => Body::Interfaces(head.parse_body("interfaces")?),
            "clocks" => Body::Clocks(head.parse_body("clocks")?),
            "timer" => Body::Timer(head.parse_body("timer")?),
            "memory" => Body::Memory(head.parse_body("memory")?),
            "test" => Body::Test(head.parse_body("test")?),
            "done" => Body::Done,
            "error" => Body::Error(head.parse_body("error")?),
            "bye" => Body::Bye(head.parse_body("bye")?),
            _ => return Err(head.unknown_type()),
        };
        Ok(Self {
            answers: head.answers,
            body,
        })
    }
}
