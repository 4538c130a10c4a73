//! What the guest does about each request, and what it says by itself.

use std::fmt::Display;
use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use guest_protocol::report::{Bye, ByeReason, Error, ErrorKind, Hello, Program, Sample};
use guest_protocol::{
    Action, Body, MAX_CPUS, ParseError, Report, Request, VERSION, Workload, clip,
};
use rustix::system::uname;
use rustix::thread::{CpuSet, sched_setaffinity};

use crate::clocks::Reading;
use crate::counter;
use crate::cpus::{self, CpuList};
use crate::kexec;
use crate::memory::Memory;
use crate::options::Options;
use crate::pauses::Pauses;
use crate::proc_stat::{self, parse_steal};
use crate::schedule::Schedule;
use crate::sleeping;
use crate::work::Workers;

/// The guest: its CPUs' work, and when it samples.
#[derive(Debug)]
pub struct Guest {
    possible: CpuList,
    online: CpuList,
    workers: Workers,
    memory: Arc<Memory>,
    schedule: Schedule,
    /// The VM's pauses; none where the wall clock is left alone.
    pauses: Option<Pauses>,
    /// Samples taken.
    samples: u64,
}

/// What a request leads to: reports, and whether the machine goes on.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    pub reports: Vec<Report>,
    pub next: Next,
}

/// Whether the machine goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    GoOn,
    Stop(ByeReason),
}

impl Guest {
    /// Starts the CPUs' work as the options say.
    pub fn start(options: &Options) -> Result<Self> {
        let mut guest = Self::on(CpuList::possible()?, CpuList::online()?, options.sample_ms);
        for (cpu, &workload) in (0..).zip(&options.workload) {
            guest.set_workload(cpu, workload)?;
        }
        if options.wall_clock_ms > 0 {
            guest.pauses = Some(Pauses::find(options.wall_clock_ms)?);
        }
        Ok(guest)
    }

    /// A guest with these CPUs, all idle.
    fn on(possible: CpuList, online: CpuList, sample_ms: u32) -> Self {
        let schedule = Schedule::start(Instant::now(), sample_ms);
        let memory = Arc::<Memory>::default();
        Self {
            possible,
            online,
            workers: Workers::new(Arc::clone(&memory)),
            memory,
            schedule,
            pauses: None,
            samples: 0,
        }
    }

    /// Who this is.
    pub fn hello(&self) -> Body {
        let system = uname();
        let (name, release) = (
            system.sysname().to_string_lossy(),
            system.release().to_string_lossy(),
        );
        let cpus = self.online.iter().last().map_or(0, |last| last + 1);
        Body::Hello(Hello {
            protocol: VERSION,
            program: Program::Linux,
            system: clip(&format!("{name} {release}")),
            cpus_possible: self.possible.count(),
            cpus_online: self.online.count(),
            counter_frequency_hz: counter::frequency_hz(),
            steal_unit_ns: proc_stat::unit_ns(),
            sample_period_ms: self.schedule.period_ms(),
            workloads: (0..cpus)
                .take(MAX_CPUS)
                .map(|cpu| self.workers.workload(cpu))
                .collect(),
        })
    }

    /// If a sample is due: it, and what the spinning CPUs saw since the last.
    pub fn sample_if_due(&mut self) -> Result<Vec<Body>> {
        if !self.schedule.take_due(Instant::now()) {
            return Ok(Vec::new());
        }
        let mut bodies = vec![self.sample()?];
        bodies.extend(self.spins());
        Ok(bodies)
    }

    /// If it is time to look: sets the wall clock forward by the VM's pauses since.
    pub fn follow_pauses(&mut self) -> Result<()> {
        self.pauses.as_mut().map_or(Ok(()), Pauses::follow_if_due)
    }

    /// How long until there is something to do; none if only requests bring it.
    pub fn until_next_turn(&self) -> Option<Duration> {
        let now = Instant::now();
        let look = self.pauses.as_ref().and_then(|it| it.looks.remaining(now));
        self.schedule.remaining(now).into_iter().chain(look).min()
    }

    /// Answers one line of input. Empty lines have no answer.
    ///
    /// # Errors
    /// Only where the guest itself fails; what is wrong with the request is a report.
    pub fn answer_line(&mut self, line: &[u8]) -> Result<Answer> {
        match Request::parse(line) {
            Ok(request) => self.answer(request),
            Err(ParseError::NotAMessage) if line.trim_ascii().is_empty() => Ok(Answer {
                reports: Vec::new(),
                next: Next::GoOn,
            }),
            Err(error) => {
                let kind = match error {
                    ParseError::UnknownType { .. } => ErrorKind::UnknownType,
                    _ => ErrorKind::Malformed,
                };
                Ok(refusal(kind, error.id(), error))
            }
        }
    }

    fn answer(&mut self, request: Request) -> Result<Answer> {
        let mut bodies = Vec::new();
        let mut next = Next::GoOn;
        match request.action {
            Action::Hello => bodies.push(self.hello()),
            Action::Sample => bodies.push(self.sample()?),
            Action::Spin => {
                bodies.extend(self.spins());
                bodies.push(Body::Done);
            }
            Action::SetPeriod { period_ms } => {
                self.schedule = Schedule::start(Instant::now(), period_ms);
                bodies.push(Body::Done);
            }
            Action::SetWorkload { cpu, workload } => match self.set_workload(cpu, workload) {
                Ok(()) => bodies.push(Body::Done),
                Err(error) => return Ok(refusal(ErrorKind::Refused, request.id, error)),
            },
            Action::SetOnline { cpu, online } => match self.set_online(cpu, online) {
                Ok(()) => bodies.push(Body::Done),
                Err(error) => return Ok(refusal(ErrorKind::Refused, request.id, error)),
            },
            Action::Fill(order) => match self.memory.fill(&order) {
                Ok(()) => bodies.push(Body::Done),
                Err(error) => return Ok(refusal(ErrorKind::Refused, request.id, error)),
            },
            Action::Verify => match self.memory.verify() {
                Ok(found) => bodies.push(Body::Memory(found)),
                Err(error) => return Ok(refusal(ErrorKind::Refused, request.id, error)),
            },
            Action::Suspend => match sleeping::suspend() {
                Ok(()) => bodies.push(Body::Done),
                Err(error) => return Ok(refusal(ErrorKind::Refused, request.id, error)),
            },
            Action::Interfaces
            | Action::Clocks
            | Action::ArmTimer(_)
            | Action::Timers
            | Action::SetEventStream { .. }
            | Action::RunTests => {
                let error = "this is for the bare-metal guest: boot guest/el1";
                return Ok(refusal(ErrorKind::Refused, request.id, error));
            }
            Action::PowerOff => next = Next::Stop(ByeReason::PowerOff),
            Action::Reset => next = Next::Stop(ByeReason::Reset),
            Action::Kexec => match kexec::load() {
                Ok(()) => next = Next::Stop(ByeReason::Kexec),
                Err(error) => return Ok(refusal(ErrorKind::Refused, request.id, error)),
            },
        }
        if let Next::Stop(reason) = next {
            bodies.push(Body::Bye(Bye { reason }));
        }
        let report = |body| Report {
            answers: request.id,
            body,
        };
        Ok(Answer {
            reports: bodies.into_iter().map(report).collect(),
            next,
        })
    }

    fn set_workload(&mut self, cpu: u32, workload: Workload) -> Result<()> {
        ensure!(
            self.online.contains(cpu),
            "CPU {cpu} has no work to take: the CPUs online are {}",
            self.online
        );
        self.workers.set(cpu, workload)?;
        self.stay_off_busy_cpus()
    }

    /// Its worker ends first: Linux would move it to another CPU, and not back.
    fn set_online(&mut self, cpu: u32, online: bool) -> Result<()> {
        self.workers.set(cpu, Workload::Idle)?;
        cpus::set_online(cpu, online)?;
        self.online = CpuList::online()?;
        self.stay_off_busy_cpus()
    }

    /// Moves this thread to the idle CPUs, if there are any: it would be a gap in a spinning one.
    fn stay_off_busy_cpus(&self) -> Result<()> {
        let is_idle = |cpu: &u32| self.workers.workload(*cpu) == Workload::Idle;
        let has_idle = self.online.iter().any(|cpu| is_idle(&cpu));
        let mut set = CpuSet::new();
        for cpu in self.online.iter().filter(|cpu| !has_idle || is_idle(cpu)) {
            set.set(cpu as usize);
        }
        sched_setaffinity(None, &set).context("cannot keep off the busy CPUs")
    }

    /// What each spinning CPU saw since it was last asked, or that it does not answer.
    fn spins(&self) -> impl Iterator<Item = Body> {
        self.workers
            .take_spins()
            .map(|spin| spin.map_or_else(failure, Body::Spin))
    }

    fn sample(&mut self) -> Result<Body> {
        let reading = Reading::take();
        let stat = fs::read_to_string("/proc/stat").context("cannot read /proc/stat")?;
        self.sample_of(&reading, &stat)
    }

    fn sample_of(&mut self, reading: &Reading, proc_stat: &str) -> Result<Body> {
        let steal_ns = parse_steal(proc_stat, proc_stat::unit_ns())?;
        let sequence = self.samples;
        self.samples += 1;
        Ok(Body::Sample(Sample {
            sequence,
            cpu: reading.cpu,
            counter_before: reading.counter_before,
            monotonic_ns: reading.monotonic_ns,
            monotonic_raw_ns: reading.monotonic_raw_ns,
            boottime_ns: reading.boottime_ns,
            realtime_ns: reading.realtime_ns,
            counter_after: reading.counter_after,
            steal_ns,
            paused_ns: self.pauses.as_ref().map(Pauses::paused_ns).transpose()?,
        }))
    }
}

/// The answer to what cannot be done.
pub fn refusal(kind: ErrorKind, id: Option<u32>, error: impl Display) -> Answer {
    let report = Report {
        answers: id,
        body: trouble(kind, error),
    };
    Answer {
        reports: vec![report],
        next: Next::GoOn,
    }
}

/// The report of a failure of the guest's own.
pub fn failure(error: impl Display) -> Body {
    trouble(ErrorKind::Failed, error)
}

fn trouble(kind: ErrorKind, error: impl Display) -> Body {
    let message = clip(&format!("{error:#}"));
    Body::Error(Error { kind, message })
}

#[cfg(test)]
mod tests {
    use rustix::thread::sched_getcpu;

    use super::*;

    /// A guest with one CPU, which this test runs on, and its number.
    fn guest() -> (Guest, u32) {
        let cpu = u32::try_from(sched_getcpu()).unwrap();
        let online: CpuList = cpu.to_string().parse().unwrap();
        (Guest::on("0-3".parse().unwrap(), online, 0), cpu)
    }

    fn bodies(guest: &mut Guest, line: &str, id: Option<u32>) -> Vec<Body> {
        let answer = guest.answer_line(line.as_bytes()).unwrap();
        assert_eq!(answer.next, Next::GoOn, "{line}");
        assert!(
            answer.reports.iter().all(|report| report.answers == id),
            "{answer:?}"
        );
        answer
            .reports
            .into_iter()
            .map(|report| report.body)
            .collect()
    }

    fn error(bodies: &[Body]) -> (ErrorKind, &str) {
        match bodies {
            [Body::Error(error)] => (error.kind, error.message.as_str()),
            other => panic!("no error: {other:?}"),
        }
    }

    #[test]
    fn work_is_set_seen_and_refused() {
        let (mut guest, cpu) = guest();
        let set = |cpu, work| {
            format!(
                r#"{{"type":"set_workload","id":5,"body":{{"cpu":{cpu},"workload":"{work}"}}}}"#
            )
        };
        assert_eq!(bodies(&mut guest, &set(cpu, "spin"), Some(5)), [Body::Done]);
        let Body::Hello(hello) = guest.hello() else {
            panic!("no hello")
        };
        assert_eq!(hello.workloads.last(), Some(&Workload::Spin));
        assert_eq!((hello.cpus_possible, hello.cpus_online), (4, 1));
        assert!(hello.system.starts_with("Linux "), "{}", hello.system);

        let spins = bodies(&mut guest, r#"{"type":"spin","id":6}"#, Some(6));
        assert!(
            matches!(&spins[..], [Body::Spin(spin), Body::Done] if spin.cpu == cpu),
            "{spins:?}"
        );

        let refused = bodies(&mut guest, &set(cpu + 1, "busy"), Some(5));
        let expected = format!(
            "CPU {} has no work to take: the CPUs online are {cpu}",
            cpu + 1
        );
        assert_eq!(error(&refused), (ErrorKind::Refused, expected.as_str()));
    }

    #[test]
    fn a_cpu_that_is_not_there_is_refused_and_not_brought_back() {
        let (mut guest, _) = guest();
        let line = r#"{"type":"set_online","id":7,"body":{"cpu":4096,"online":true}}"#;
        let refused = bodies(&mut guest, line, Some(7));
        let (kind, message) = error(&refused);
        assert_eq!(kind, ErrorKind::Refused);
        assert!(
            message.starts_with("CPU 4096 cannot be brought back; is it there"),
            "{message}"
        );
    }

    #[test]
    fn period_can_be_changed_and_stopped() {
        let (mut guest, _) = guest();
        assert_eq!(guest.until_next_turn(), None);
        let set = r#"{"type":"set_period","body":{"period_ms":60000}}"#;
        assert_eq!(bodies(&mut guest, set, None), [Body::Done]);
        assert_eq!(
            guest.until_next_turn(),
            Some(Duration::ZERO),
            "the first is due at once"
        );
        assert!(guest.schedule.take_due(Instant::now()));
        assert!(guest.until_next_turn().unwrap() > Duration::from_secs(50));
        assert!(guest.sample_if_due().unwrap().is_empty());
    }

    #[test]
    fn samples_are_numbered_and_carry_steal() {
        let (mut guest, _) = guest();
        let reading = Reading::take();
        for sequence in 0..3 {
            let stat = "cpu 1\ncpu1 1 2 3 4 5 6 7 8 9 10\n";
            let Body::Sample(sample) = guest.sample_of(&reading, stat).unwrap() else {
                panic!("no sample");
            };
            assert_eq!(sample.sequence, sequence);
            assert_eq!(sample.counter_before, reading.counter_before);
            assert_eq!(sample.steal_ns, [None, Some(80_000_000)]);
        }
    }

    #[test]
    fn power_requests_stop_the_machine_with_a_bye() {
        let (mut guest, _) = guest();
        for (line, reason) in [
            (r#"{"type":"power_off","id":1}"#, ByeReason::PowerOff),
            (r#"{"type":"reset","id":1}"#, ByeReason::Reset),
        ] {
            let answer = guest.answer_line(line.as_bytes()).unwrap();
            let bye = Report {
                answers: Some(1),
                body: Body::Bye(Bye { reason }),
            };
            assert_eq!(
                answer,
                Answer {
                    reports: vec![bye],
                    next: Next::Stop(reason)
                }
            );
        }
    }

    #[test]
    fn what_is_no_request_is_refused_and_empty_lines_are_not() {
        let (mut guest, _) = guest();
        for line in ["", "\r", "  "] {
            assert!(bodies(&mut guest, line, None).is_empty(), "{line:?}");
        }
        let unknown = bodies(&mut guest, r#"{"type":"set_time","id":9}"#, Some(9));
        let expected = (ErrorKind::UnknownType, "unknown message type `set_time`");
        assert_eq!(error(&unknown), expected);
        for (line, id) in [
            ("power_off", None),
            ("{\"type\":", None),
            (
                r#"{"type":"set_period","id":1,"body":{"period_ms":"1"}}"#,
                Some(1),
            ),
        ] {
            let refused = bodies(&mut guest, line, id);
            assert_eq!(error(&refused).0, ErrorKind::Malformed, "{line}");
        }
    }
}
