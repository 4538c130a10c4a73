//! Requests and their answers, on the first CPU.

use core::fmt::{Display, Write};

use guest_protocol::heapless::{String, Vec};
use guest_protocol::report::{
    Bye, ByeReason, Error, ErrorKind, Hello, MAX_BARE_CPUS, Outcome, Program, Spin, TestResult,
    Timer,
};
use guest_protocol::request::ArmTimer;
use guest_protocol::{
    Action, Body, LineBuffer, MAX_LINE, ParseError, Report, Request, VERSION, Workload, clip,
};
use pvtime::guest::arm64::counter_frequency;

use super::cpus::{self, Errand, Silent};
use super::events::NoFrequency;
use super::interfaces::{self, number};
use super::machine::machine;
use super::memory::DoesNotFit;
use super::timers::ArmError;
use super::{events, failure, memory, port, spinning, suspend, tests, timers};

/// Lines that arrive, and their answers.
pub struct Service {
    lines: LineBuffer,
}

/// Sends the first report.
pub fn introduce() {
    send(None, hello());
}

/// Answers a request to suspend the machine, which was suspended and woken.
pub fn suspended(id: Option<u32>) {
    send(id, Body::Done);
}

impl Service {
    /// Nothing has arrived.
    pub const fn new() -> Self {
        Self {
            lines: LineBuffer::new(),
        }
    }

    /// Answers every line that has arrived.
    pub fn answer_input(&mut self) {
        while let Some(byte) = port::next() {
            match self.lines.push(byte) {
                Ok(Some(line)) => answer_line(line),
                Ok(None) => {}
                Err(too_long) => refuse(None, ErrorKind::Malformed, too_long),
            }
        }
    }
}

fn answer_line(line: &[u8]) {
    match Request::parse(line) {
        Ok(request) => answer(request),
        Err(ParseError::NotAMessage) if line.trim_ascii().is_empty() => {}
        Err(error @ ParseError::UnknownType { .. }) => {
            refuse(error.id(), ErrorKind::UnknownType, error);
        }
        Err(error) => refuse(error.id(), ErrorKind::Malformed, error),
    }
}

fn answer(request: Request) {
    let id = request.id;
    match request.action {
        Action::Hello => send(id, hello()),
        Action::Sample | Action::SetPeriod { .. } => {
            let error = "this guest has none of Linux's clocks; ask for clocks";
            refuse(id, ErrorKind::Refused, error);
        }
        Action::Spin => report_spins(id),
        Action::SetWorkload { cpu, workload } => done(id, set_workload(cpu, workload)),
        Action::SetOnline { .. } => {
            let error = "this guest's CPUs stay on; boot the Linux guest to take one off";
            refuse(id, ErrorKind::Refused, error);
        }
        Action::Interfaces => {
            if let Some(machine) = machine() {
                send(id, Body::Interfaces(interfaces::describe(machine)));
            }
        }
        Action::Clocks => send(id, Body::Clocks(interfaces::clocks())),
        Action::ArmTimer(order) => done(id, arm(order)),
        Action::Timers => report_timers(id),
        Action::SetEventStream { rate_hz } => {
            done(id, events::set_rate(rate_hz).map_err(Refusal::from));
        }
        Action::Fill(fill) => done(id, memory::fill(&fill).map_err(Refusal::from)),
        Action::Verify => match memory::verify() {
            Some(found) => send(id, Body::Memory(found)),
            None => refuse(
                id,
                ErrorKind::Refused,
                "no memory is filled; ask for fill first",
            ),
        },
        Action::RunTests => run_tests(id),
        Action::Suspend => {
            let Err(error) = suspend::suspend(id);
            refuse(id, ErrorKind::Refused, error);
        }
        Action::Kexec => {
            let error = "this guest is no kernel that starts others; boot the Linux guest";
            refuse(id, ErrorKind::Refused, error);
        }
        Action::PowerOff => {
            bye(id, ByeReason::PowerOff);
            failure::power_off()
        }
        Action::Reset => {
            bye(id, ByeReason::Reset);
            failure::reset()
        }
    }
}

/// Why something was not done.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("there is no CPU {cpu}: there are {count}, from 0")]
    NoCpu { cpu: u32, count: usize },
    #[error("there is no live physical time to spin on")]
    NoLiveTime,
    #[error(transparent)]
    Arm(#[from] ArmError),
    #[error(transparent)]
    Silent(#[from] Silent),
    #[error(transparent)]
    Events(#[from] NoFrequency),
    #[error(transparent)]
    Memory(#[from] DoesNotFit),
}

fn known_cpu(cpu: u32) -> Result<usize, Refusal> {
    let (index, count) = (cpu as usize, cpus::count());
    let is_known = index < count;
    is_known
        .then_some(index)
        .ok_or(Refusal::NoCpu { cpu, count })
}

fn set_workload(cpu: u32, workload: Workload) -> Result<(), Refusal> {
    let cpu = known_cpu(cpu)?;
    if workload == Workload::SpinLive && interfaces::live().is_none() {
        return Err(Refusal::NoLiveTime);
    }
    cpus::set_workload(cpu, workload);
    Ok(())
}

fn arm(order: ArmTimer) -> Result<(), Refusal> {
    match cpus::send(known_cpu(order.cpu)?, Errand::Arm(order))? {
        cpus::Outcome::Armed(armed) => Ok(armed?),
        cpus::Outcome::Looked(_) => Ok(()),
    }
}

fn report_spins(id: Option<u32>) {
    for cpu in 0..cpus::count() {
        let is_spinning = matches!(
            cpus::workload(cpu),
            Workload::Spin | Workload::SpinPhysical | Workload::SpinLive
        );
        if is_spinning {
            match spun(cpu) {
                Some(spin) => send(id, Body::Spin(spin)),
                None => fail(format_args!("CPU {cpu} does not spin; is it being run?")),
            }
        }
    }
    send(id, Body::Done);
}

/// What a CPU saw; the first one spins by itself between two requests alone.
fn spun(cpu: usize) -> Option<Spin> {
    if cpu == 0 {
        let empty = Spin::default();
        return Some(spinning::take(cpu).unwrap_or(empty));
    }
    cpus::await_that(|| spinning::take(cpu))
}

fn report_timers(id: Option<u32>) {
    for cpu in 0..cpus::count() {
        for timer in [Timer::Virtual, Timer::Physical] {
            if !timers::is_armed(cpu, timer) {
                continue;
            }
            match cpus::send(cpu, Errand::Look(timer)) {
                Ok(cpus::Outcome::Looked(Some(state))) => send(id, Body::Timer(state)),
                Ok(_) => fail("a timer that was armed cannot be read"),
                Err(silent) => fail(silent),
            }
        }
    }
    send(id, Body::Done);
}

fn run_tests(id: Option<u32>) {
    for test in tests::ALL {
        let (outcome, message) = match (test.run)() {
            Ok(message) => (Outcome::Passed, message),
            Err(tests::NotPassed::Failed(message)) => (Outcome::Failed, message),
            Err(tests::NotPassed::Absent(message)) => (Outcome::Absent, message),
        };
        let result = TestResult {
            name: clip(test.name),
            outcome,
            message,
        };
        send(id, Body::Test(result));
    }
    send(id, Body::Done);
}

fn hello() -> Body {
    let cpus_possible = machine().map_or(0, |machine| machine.cpus.len());
    let workloads: Vec<_, MAX_BARE_CPUS> = (0..cpus::count()).map(cpus::workload).collect();
    Body::Hello(Hello {
        protocol: VERSION,
        program: Program::El1,
        system: clip("no operating system, EL1"),
        cpus_possible: number(cpus_possible),
        cpus_online: number(cpus::count()),
        counter_frequency_hz: counter_frequency().map_or(0, pvtime::scale::Frequency::hz),
        steal_unit_ns: 1,
        sample_period_ms: 0,
        workloads: workloads.into_iter().collect(),
    })
}

fn done(id: Option<u32>, result: Result<(), Refusal>) {
    match result {
        Ok(()) => send(id, Body::Done),
        Err(refusal) => refuse(id, ErrorKind::Refused, refusal),
    }
}

fn refuse(id: Option<u32>, kind: ErrorKind, reason: impl Display) {
    let mut text = String::<512>::new();
    // What does not fit is cut off.
    let _ = write!(text, "{reason}");
    let message = clip(&text);
    send(id, Body::Error(Error { kind, message }));
}

fn fail(reason: impl Display) {
    refuse(None, ErrorKind::Failed, reason);
}

fn bye(id: Option<u32>, reason: ByeReason) {
    send(id, Body::Bye(Bye { reason }));
}

fn send(answers: Option<u32>, body: Body) {
    let mut line = [0; MAX_LINE];
    match (Report { answers, body }).emit(&mut line) {
        Ok(length) => port::send(&line[..length]),
        Err(error) => fail(error),
    }
}
