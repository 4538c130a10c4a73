//! What a runner asks of its guest.

use core::fmt;
use core::str::FromStr;

use serde::{Deserialize, Serialize};

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
    /// Power the machine off. Answer: [`Bye`](crate::report::Bye).
    PowerOff,
    /// Reset the machine. Answer: [`Bye`](crate::report::Bye).
    Reset,
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
}

/// A word that names no workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a workload; write idle, busy or spin")]
pub struct UnknownWorkload;

impl FromStr for Workload {
    type Err = UnknownWorkload;

    fn from_str(name: &str) -> Result<Self, UnknownWorkload> {
        match name {
            "idle" => Ok(Self::Idle),
            "busy" => Ok(Self::Busy),
            "spin" => Ok(Self::Spin),
            _ => Err(UnknownWorkload),
        }
    }
}

impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Idle => "idle",
            Self::Busy => "busy",
            Self::Spin => "spin",
        })
    }
}

#[derive(Serialize, Deserialize)]
struct Period {
    period_ms: u32,
}

#[derive(Serialize, Deserialize)]
struct CpuWorkload {
    cpu: u32,
    workload: Workload,
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
            Action::Hello | Action::Sample | Action::Spin | Action::PowerOff | Action::Reset => {
                wire::emit::<()>(name, id, None, buffer)
            }
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
            "power_off" => Action::PowerOff,
            "reset" => Action::Reset,
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
            Self::PowerOff => "power_off",
            Self::Reset => "reset",
        }
    }
}
