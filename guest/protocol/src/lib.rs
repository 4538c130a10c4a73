//! The messages between a test guest and whoever runs it.
//!
//! A guest *reports*, its runner *requests*. Each message is one JSON object on one line of at most
//! [`MAX_LINE`] bytes, over any byte stream: a serial port, a console shared with a kernel's log.
//!
//! ```text
//! runner: {"type":"set_workload","id":4,"body":{"cpu":1,"workload":"spin"}}
//! guest:  {"type":"done","answers":4}
//! ```
//!
//! `type` names the message, `body` holds its fields and is absent where there are none. A request
//! may carry an `id`; the report that answers it repeats the number as `answers`. Fields that a
//! receiver does not know are ignored, so that a message can grow; a type that a guest does not
//! know is answered with an [`Error`](report::Error) report.
//!
//! Counters and times are whole numbers of up to 64 bits: read them with a parser that does not
//! turn numbers into floating point.
//!
//! ```
//! use guest_protocol::{Action, Body, Report, Request, Workload, MAX_LINE};
//!
//! let mut line = [0; MAX_LINE];
//! let request = Request::new(Action::SetWorkload { cpu: 1, workload: Workload::Spin }).with_id(4);
//! let length = request.emit(&mut line)?;
//! assert_eq!(Request::parse(&line[..length])?, request);
//!
//! let report = Report::parse(br#"{"type":"done","answers":4}"#)?;
//! assert_eq!(report, Report { answers: Some(4), body: Body::Done });
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![no_std]

#[cfg(test)]
extern crate std;
#[cfg(test)]
mod tests;

pub use heapless;

mod lines;
pub mod pattern;
pub mod report;
pub mod request;
pub mod spin;
mod wire;

pub use lines::{LineBuffer, LineTooLong};
pub use report::{Body, Report};
pub use request::{Action, Request, UnknownWorkload, Workload};
pub use wire::{EmitError, ParseError, clip};

/// Version of the messages in this crate, as [`Hello`](report::Hello) gives it. It grows when an old
/// receiver would misread a new sender; a new field or type alone does not change it.
pub const VERSION: u16 = 1;

/// Longest line in bytes, its newline included. The largest report fits, whatever its contents.
pub const MAX_LINE: usize = 4096;

/// Most CPUs that a guest can report about.
pub const MAX_CPUS: usize = 64;

/// Gaps in one report of a spinning CPU.
pub const MAX_GAPS: usize = 8;
