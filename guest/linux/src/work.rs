//! The CPUs' work: one pinned thread for each that is not idle.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use guest_protocol::Workload;
use guest_protocol::report::{Spin, SpinClock};
use guest_protocol::spin::Account;
use rustix::io::Errno;
use rustix::process::setpriority_process;
use rustix::thread::{CpuSet, sched_setaffinity};

use crate::memory::Memory;
use crate::spin::Highest;

/// What a worker is told, looked at between two pieces of work.
const GO_ON: u8 = 0;
const REPORT: u8 = 1;
const STOP: u8 = 2;

/// Workers give way to the thread that samples and reports.
const NICE: i32 = 19;

/// Patience with a worker's report, as a number of waits: a clock that jumps over a pause of the
/// machine ends one wait, not all of them.
const WAITS: u32 = 10;
const WAIT: Duration = Duration::from_secs(1);

/// Why a CPU's work cannot be changed or reported.
#[derive(Debug, thiserror::Error)]
pub enum WorkError {
    /// A program on Linux cannot do that.
    #[error(
        "{workload} is work for the bare-metal guest; give CPU {cpu} idle, busy, spin or change"
    )]
    BareMetalOnly {
        /// The CPU.
        cpu: u32,
        /// The work.
        workload: Workload,
    },
    /// There is no such CPU, or it is offline.
    #[error("CPU {cpu} takes no thread ({reason}); is it online?")]
    Pin {
        /// The CPU.
        cpu: u32,
        /// What the kernel says.
        reason: Errno,
    },
    /// No thread could be made.
    #[error("no thread for CPU {cpu} ({reason}); give the guest more memory")]
    Thread {
        /// The CPU.
        cpu: u32,
        /// What the kernel says.
        reason: io::Error,
    },
    /// A spinning thread did not report.
    #[error("CPU {cpu} did not report in {} s; is it being run?", WAITS)]
    Silent {
        /// The CPU.
        cpu: u32,
    },
}

/// The workers of all CPUs.
#[derive(Debug, Default)]
pub struct Workers {
    by_cpu: BTreeMap<u32, Worker>,
    highest: Arc<Highest>,
    /// What they change.
    memory: Arc<Memory>,
}

#[derive(Debug)]
struct Worker {
    cpu: u32,
    workload: Workload,
    command: Arc<AtomicU8>,
    reports: Receiver<Spin>,
    thread: JoinHandle<()>,
}

impl Workers {
    /// No workers yet, for CPUs that may change this memory.
    pub fn new(memory: Arc<Memory>) -> Self {
        let mut workers = Self::default();
        workers.memory = memory;
        workers
    }

    /// Gives a CPU its work; what it did before ends first.
    pub fn set(&mut self, cpu: u32, workload: Workload) -> Result<(), WorkError> {
        if matches!(
            workload,
            Workload::SpinPhysical | Workload::SpinLive | Workload::Events
        ) {
            return Err(WorkError::BareMetalOnly { cpu, workload });
        }
        if let Some(worker) = self.by_cpu.remove(&cpu) {
            worker.stop();
        }
        if workload != Workload::Idle {
            let shared = (Arc::clone(&self.highest), Arc::clone(&self.memory));
            let worker = Worker::start(cpu, workload, shared)?;
            self.by_cpu.insert(cpu, worker);
        }
        Ok(())
    }

    /// What a CPU does.
    pub fn workload(&self, cpu: u32) -> Workload {
        self.by_cpu
            .get(&cpu)
            .map_or(Workload::Idle, |worker| worker.workload)
    }

    /// Has every spinning CPU report and start afresh.
    pub fn take_spins(&self) -> impl Iterator<Item = Result<Spin, WorkError>> {
        let spinning = |worker: &&Worker| worker.workload == Workload::Spin;
        self.by_cpu.values().filter(spinning).map(Worker::report)
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        for (_, worker) in std::mem::take(&mut self.by_cpu) {
            worker.stop();
        }
    }
}

impl Worker {
    fn start(
        cpu: u32,
        workload: Workload,
        (highest, memory): (Arc<Highest>, Arc<Memory>),
    ) -> Result<Self, WorkError> {
        let command = Arc::new(AtomicU8::new(GO_ON));
        let (report, reports) = mpsc::sync_channel(1);
        let (started, start) = mpsc::sync_channel(1);
        let commands = Arc::clone(&command);
        let body = move || {
            let pinned = pin_to(cpu);
            let go = pinned.is_ok();
            // Nobody listens only if `start` itself went away.
            let _ = started.send(pinned);
            match workload {
                Workload::Busy if go => compute(&commands),
                Workload::Spin if go => spin(cpu, &highest, &commands, &report),
                Workload::Change if go => change(&memory, &commands),
                _ => {}
            }
        };
        let thread = thread::Builder::new()
            .name(format!("{workload}/{cpu}"))
            .spawn(body)
            .map_err(|reason| WorkError::Thread { cpu, reason })?;
        start
            .recv()
            .expect("the thread sends before anything else")
            .map_err(|reason| WorkError::Pin { cpu, reason })?;
        Ok(Self {
            cpu,
            workload,
            command,
            reports,
            thread,
        })
    }

    fn stop(self) {
        self.command.store(STOP, Ordering::Relaxed);
        self.thread.join().expect("a worker does not panic");
    }

    fn report(&self) -> Result<Spin, WorkError> {
        // A report that came too late for the last request is not the answer to this one.
        while self.reports.try_recv().is_ok() {}
        self.command.store(REPORT, Ordering::Relaxed);
        (0..WAITS)
            .find_map(|_| self.reports.recv_timeout(WAIT).ok())
            .ok_or(WorkError::Silent { cpu: self.cpu })
    }
}

/// Moves the calling thread to one CPU, behind threads of ordinary priority.
fn pin_to(cpu: u32) -> Result<(), Errno> {
    let mut set = CpuSet::new();
    let index = usize::try_from(cpu)
        .ok()
        .filter(|&cpu| cpu < CpuSet::MAX_CPU);
    set.set(index.ok_or(Errno::INVAL)?);
    sched_setaffinity(None, &set)?;
    setpriority_process(None, NICE)
}

/// Computes until told to stop.
fn compute(commands: &AtomicU8) {
    let mut state = 1_u64;
    while commands.load(Ordering::Relaxed) != STOP {
        for _ in 0..1024 {
            // A linear congruential generator: each step needs the one before, so nothing is skipped.
            state = black_box(
                state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1),
            );
        }
    }
}

/// Changes the memory that was filled until told to stop.
fn change(memory: &Memory, commands: &AtomicU8) {
    while commands.load(Ordering::Relaxed) != STOP {
        memory.change();
    }
}

/// Reads the counter until told to stop, and reports when told to.
fn spin(cpu: u32, highest: &Highest, commands: &AtomicU8, reports: &SyncSender<Spin>) {
    let mut account = Account::new(cpu, SpinClock::Virtual);
    loop {
        highest.read_into(&mut account);
        match commands.load(Ordering::Relaxed) {
            GO_ON => {}
            REPORT => {
                // If STOP came meanwhile it stays.
                let _ =
                    commands.compare_exchange(REPORT, GO_ON, Ordering::Relaxed, Ordering::Relaxed);
                // Full means that the last report was never fetched, and is fetched first.
                let _ = reports.try_send(account.take());
            }
            _ => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::Instant;

    use rustix::thread::sched_getcpu;

    use super::*;

    /// One that this test may run on: it does.
    fn a_cpu() -> u32 {
        u32::try_from(sched_getcpu()).unwrap()
    }

    #[test]
    fn a_spinning_cpu_reports_without_a_break() {
        let cpu = a_cpu();
        let mut workers = Workers::default();
        workers.set(cpu, Workload::Spin).unwrap();
        assert_eq!(workers.workload(cpu), Workload::Spin);
        let [first, second] =
            [0; 2].map(|_| workers.take_spins().collect::<Result<Vec<_>, _>>().unwrap());
        let ([first], [second]) = (first.as_slice(), second.as_slice()) else {
            panic!("one CPU spins: {first:?} {second:?}");
        };
        assert_eq!((first.cpu, second.cpu), (cpu, cpu));
        assert!(first.reads > 0 && second.reads > 0);
        assert!(second.first_counter >= first.last_counter);
        assert!(second.largest_gaps[0].ticks >= second.first_counter - first.last_counter);
        assert_eq!(second.backwards_steps + second.cross_backwards_steps, 0);
    }

    /// How long the thread of that name ran on a CPU, in nanoseconds; none if there is none.
    fn ran_ns(name: &str) -> Option<u64> {
        let tasks = fs::read_dir("/proc/self/task").unwrap();
        tasks.flatten().find_map(|task| {
            let comm = fs::read_to_string(task.path().join("comm")).ok()?;
            let schedstat = fs::read_to_string(task.path().join("schedstat")).ok()?;
            let ran_ns = schedstat.split(' ').next()?.parse().ok()?;
            (comm.trim_end() == name).then_some(ran_ns)
        })
    }

    #[test]
    fn busy_computes_and_idle_ends_it() {
        let cpu = a_cpu();
        let name = format!("busy/{cpu}");
        let mut workers = Workers::default();
        workers.set(cpu, Workload::Busy).unwrap();
        assert_eq!(workers.workload(cpu), Workload::Busy);
        let before = ran_ns(&name).unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        while ran_ns(&name).unwrap() < before + 5_000_000 {
            assert!(Instant::now() < deadline, "5 ms of work took over 10 s");
            thread::sleep(Duration::from_millis(5));
        }
        assert!(
            workers.take_spins().next().is_none(),
            "only spinning CPUs report"
        );
        workers.set(cpu, Workload::Idle).unwrap();
        assert_eq!(workers.workload(cpu), Workload::Idle);
        // A thread that was joined stays listed for a moment.
        while ran_ns(&name).is_some() {
            assert!(Instant::now() < deadline, "the thread goes on");
            thread::yield_now();
        }
    }

    #[test]
    fn a_cpu_that_is_not_there_takes_no_work() {
        for cpu in [1023, 1024, u32::MAX] {
            let error = Workers::default().set(cpu, Workload::Busy).unwrap_err();
            let reason = "Invalid argument (os error 22)";
            let expected = format!("CPU {cpu} takes no thread ({reason}); is it online?");
            assert_eq!(error.to_string(), expected);
        }
    }

    #[test]
    fn work_of_the_bare_metal_guest_is_refused() {
        let mut workers = Workers::default();
        let error = workers.set(0, Workload::SpinLive).unwrap_err();
        assert_eq!(
            error.to_string(),
            "spin_live is work for the bare-metal guest; give CPU 0 idle, busy, spin or \
             change"
        );
        assert_eq!(workers.workload(0), Workload::Idle);
    }
}
