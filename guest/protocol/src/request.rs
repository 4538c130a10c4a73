//! What a runner asks of its guest.

use core::fmt;
use core::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::report::Timer;
use crate::wire::{self, EmitError, Head, ParseError};

/// One request: an action, and the number by which its answer is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// Repeated by the report that answers, chosen by the runner.
    pub id: Option<u32>,
    /// What to do.
    pub action: Action,
}

/// What a guest can be asked to do, and what it answers with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Introduce yourself again. Answer: [`Hello`](crate::report::Hello).
    Hello,
    /// Take one sample now. Answer: [`Sample`](crate::report::Sample).
    Sample,
    /// Report what the spinning threads saw, and start afresh. Answer: one
    /// [`Spin`](crate::report::Spin) a spinning CPU, then `done`.
    Spin,
    /// Take a sample every `period_ms` milliseconds; 0 stops. Answer: `done`.
    SetPeriod {
        /// Milliseconds from one sample to the next, or 0.
        period_ms: u32,
    },
    /// Give a CPU other work. Answer: `done`.
    SetWorkload {
        /// Number of the CPU in the guest.
        cpu: u32,
        /// Its work from now on.
        workload: Workload,
    },
    /// Take a CPU off or bring it back; it is idle afterwards. Answer: `done`.
    SetOnline {
        /// Number of the CPU in the guest.
        cpu: u32,
        /// Whether it is to run.
        online: bool,
    },
    /// Say which time interfaces there are and what they show. Answer:
    /// [`Interfaces`](crate::report::Interfaces).
    Interfaces,
    /// Read every counter now. Answer: [`Clocks`](crate::report::Clocks).
    Clocks,
    /// Arm a CPU's timer, once or again and again; one that was armed before is forgotten. Answer:
    /// `done`.
    ArmTimer(ArmTimer),
    /// Report every timer that was armed. Answer: one
    /// [`TimerState`](crate::report::TimerState) each, then `done`.
    Timers,
    /// Have every CPU's counter make events at about this rate, and follow changes of the counter's
    /// frequency with it. Answer: `done`.
    SetEventStream {
        /// Events a second; 0 turns the stream off.
        rate_hz: u32,
    },
    /// Fill memory with a pattern. Answer: `done`.
    Fill(Fill),
    /// Compare all of that memory with what was last written. Answer:
    /// [`Memory`](crate::report::Memory).
    Verify,
    /// Run the guest's own tests. Answer: one [`TestResult`](crate::report::TestResult) each, then
    /// `done`.
    RunTests,
    /// Suspend the machine (PSCI `SYSTEM_SUSPEND`). Answer, when it was resumed: `done`.
    Suspend,
    /// Power the machine off. Answer: [`Bye`](crate::report::Bye).
    PowerOff,
    /// Reset the machine. Answer: [`Bye`](crate::report::Bye).
    Reset,
    /// Start another kernel in the place of this one. Answer: [`Bye`](crate::report::Bye), and the other
    /// one's [`Hello`](crate::report::Hello).
    Kexec,
}

/// What a CPU of a guest does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Workload {
    /// Nothing: it waits for interrupts.
    #[default]
    Idle,
    /// Computes without end.
    Busy,
    /// Reads the counter without end and keeps account of gaps and backwards steps.
    Spin,
    /// The same with the physical counter.
    SpinPhysical,
    /// The same with live physical time.
    SpinLive,
    /// Waits for events (`WFE`).
    Events,
    /// Changes the memory that was filled, at the rate that was asked for.
    Change,
}

/// Every workload with its name.
const WORKLOADS: [(Workload, &str); 7] = [
    (Workload::Idle, "idle"),
    (Workload::Busy, "busy"),
    (Workload::Spin, "spin"),
    (Workload::SpinPhysical, "spin_physical"),
    (Workload::SpinLive, "spin_live"),
    (Workload::Events, "events"),
    (Workload::Change, "change"),
];

/// When a timer is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArmTimer {
    /// Number of the CPU in the guest.
    pub cpu: u32,
    /// Which of its timers.
    pub timer: Timer,
    /// On live physical time rather than on the counter itself.
    pub live: bool,
    /// Microseconds from now until it is due, in the past if negative; none is never.
    pub delay_us: Option<i64>,
    /// Whether its interrupt stays masked, so that only its status shows when it is due.
    pub masked: bool,
    /// Microseconds from one deadline to the next, if it is armed anew whenever it fires.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub period_us: Option<u64>,
    /// Whether a CPU with the workload [`SpinLive`](Workload::SpinLive) puts it off by its period before
    /// it is due, as long as the counter has one frequency: then it is pending whenever the VM stops,
    /// and fires when it has moved.
    #[serde(default, skip_serializing_if = "core::ops::Not::not")]
    pub put_off: bool,
}

/// Memory with a pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fill {
    /// What the pattern is made of.
    pub seed: u64,
    /// MiB of memory.
    pub mib: u32,
    /// Pages that a CPU with the workload [`Change`](Workload::Change) changes each second; 0 is as
    /// many as it can.
    pub changes_per_s: u32,
}

/// A word that names no workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a workload; write idle, busy, spin, spin_physical, spin_live, events or change")]
pub struct UnknownWorkload;

impl FromStr for Workload {
    type Err = UnknownWorkload;

    fn from_str(name: &str) -> Result<Self, UnknownWorkload> {
        let found = WORKLOADS.iter().find(|(_, known)| *known == name);
        found.map(|(workload, _)| *workload).ok_or(UnknownWorkload)
    }
}

impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let found = WORKLOADS.iter().find(|(workload, _)| workload == self);
        f.write_str(found.map_or("", |(_, name)| name))
    }
}

#[derive(Serialize, Deserialize)]
struct Period {
    period_ms: u32,
}

#[derive(Serialize, Deserialize)]
struct EventRate {
    rate_hz: u32,
}

#[derive(Serialize, Deserialize)]
struct CpuWorkload {
    cpu: u32,
    workload: Workload,
}

#[derive(Serialize, Deserialize)]
struct CpuOnline {
    cpu: u32,
    online: bool,
}

impl Request {
    /// A request whose answer carries no number.
    #[must_use]
    pub const fn new(action: Action) -> Self {
        Self { id: None, action }
    }

    /// The same request with a number for its answer.
    #[must_use]
    pub const fn with_id(self, id: u32) -> Self {
        Self {
            id: Some(id),
            ..self
        }
    }

    /// Writes the request as a line with its newline, and returns its length in bytes.
    ///
    /// # Errors
    /// [`EmitError`] if `buffer` is too short; [`MAX_LINE`](crate::MAX_LINE) bytes are enough.
    pub fn emit(&self, buffer: &mut [u8]) -> Result<usize, EmitError> {
        let name = self.action.name();
        let id = wire::Id::Request(self.id);
        match self.action {
            Action::SetPeriod { period_ms } => {
                wire::emit(name, id, Some(&Period { period_ms }), buffer)
            }
            Action::SetWorkload { cpu, workload } => {
                wire::emit(name, id, Some(&CpuWorkload { cpu, workload }), buffer)
            }
            Action::SetOnline { cpu, online } => {
                wire::emit(name, id, Some(&CpuOnline { cpu, online }), buffer)
            }
            Action::ArmTimer(order) => wire::emit(name, id, Some(&order), buffer),
            Action::SetEventStream { rate_hz } => {
                wire::emit(name, id, Some(&EventRate { rate_hz }), buffer)
            }
            Action::Fill(fill) => wire::emit(name, id, Some(&fill), buffer),
            Action::Hello
            | Action::Sample
            | Action::Spin
            | Action::Interfaces
            | Action::Clocks
            | Action::Timers
            | Action::Verify
            | Action::RunTests
            | Action::Suspend
            | Action::PowerOff
            | Action::Reset
            | Action::Kexec => wire::emit::<()>(name, id, None, buffer),
        }
    }

    /// Reads one line, with or without its line end.
    ///
    /// # Errors
    /// [`ParseError`] says what is wrong; [`ParseError::id`] is the request's number where it could
    /// be read, so that the refusal can be answered to.
    pub fn parse(line: &[u8]) -> Result<Self, ParseError> {
        let head = Head::parse(line)?;
        let action = match head.name {
            "hello" => Action::Hello,
            "sample" => Action::Sample,
            "spin" => Action::Spin,
            "set_period" => {
                let Period { period_ms } = head.parse_body("set_period")?;
                Action::SetPeriod { period_ms }
            }
            "set_workload" => {
                let CpuWorkload { cpu, workload } = head.parse_body("set_workload")?;
                Action::SetWorkload { cpu, workload }
            }
            "set_online" => {
                let CpuOnline { cpu, online } = head.parse_body("set_online")?;
                Action::SetOnline { cpu, online }
            }
            "interfaces" => Action::Interfaces,
            "clocks" => Action::Clocks,
            "arm_timer" => Action::ArmTimer(head.parse_body("arm_timer")?),
            "timers" => Action::Timers,
            "set_event_stream" => {
                let EventRate { rate_hz } = head.parse_body("set_event_stream")?;
                Action::SetEventStream { rate_hz }
            }
            "fill" => Action::Fill(head.parse_body("fill")?),
            "verify" => Action::Verify,
            "run_tests" => Action::RunTests,
            "suspend" => Action::Suspend,
            "power_off" => Action::PowerOff,
            "reset" => Action::Reset,
            "kexec" => Action::Kexec,
            _ => return Err(head.unknown_type()),
        };
        Ok(Self {
            id: head.id,
            action,
        })
    }
}

impl Action {
    const fn name(self) -> &'static str {
        match self {
            Self::Hello => "hello",
            Self::Sample => "sample",
            Self::Spin => "spin",
            Self::SetPeriod { .. } => "set_period",
            Self::SetWorkload { .. } => "set_workload",
            Self::SetOnline { .. } => "set_online",
            Self::Interfaces => "interfaces",
            Self::Clocks => "clocks",
            Self::ArmTimer(_) => "arm_timer",
            Self::Timers => "timers",
            Self::SetEventStream { .. } => "set_event_stream",
            Self::Fill(_) => "fill",
            Self::Verify => "verify",
            Self::RunTests => "run_tests",
            Self::Suspend => "suspend",
            Self::PowerOff => "power_off",
            Self::Reset => "reset",
            Self::Kexec => "kexec",
        }
    }
}
