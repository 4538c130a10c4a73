//! What each CPU is to do, and errands that the first one has for the others.

use core::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};

use guest_protocol::Workload;
use guest_protocol::report::{MAX_BARE_CPUS, Timer, TimerState};
use guest_protocol::request::ArmTimer;
use pvtime::guest::Counter;
use pvtime::guest::arm64::VirtualCounter;
use spin::Mutex;

use super::timers::{self, ArmError};
use super::{gic, interfaces, registers};

/// Workloads by the number that stands for each.
const WORKLOADS: [Workload; 7] = [
    Workload::Idle,
    Workload::Busy,
    Workload::Spin,
    Workload::SpinPhysical,
    Workload::SpinLive,
    Workload::Events,
    Workload::Change,
];

static WORK: [AtomicU8; MAX_BARE_CPUS] = [const { AtomicU8::new(0) }; MAX_BARE_CPUS];
static ARRIVED: AtomicUsize = AtomicUsize::new(0);

/// What only a CPU itself can do.
pub enum Errand {
    /// Arm one of its timers.
    Arm(ArmTimer),
    /// Look at one of its timers.
    Look(Timer),
}

/// What came of it.
pub enum Outcome {
    /// The timer was armed, or not.
    Armed(Result<(), ArmError>),
    /// The timer.
    Looked(Option<TimerState>),
}

enum Mail {
    Empty,
    Errand(Errand),
    Outcome(Outcome),
}

static MAIL: [Mutex<Mail>; MAX_BARE_CPUS] = [const { Mutex::new(Mail::Empty) }; MAX_BARE_CPUS];
static HAS_ERRAND: [AtomicBool; MAX_BARE_CPUS] = [const { AtomicBool::new(false) }; MAX_BARE_CPUS];

/// A CPU does not answer.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("CPU {cpu} did not answer within {PATIENCE_S} s of the counter; is it being run?")]
pub struct Silent {
    cpu: usize,
}

impl Silent {
    /// That CPU.
    pub const fn new(cpu: usize) -> Self {
        Self { cpu }
    }
}

/// Seconds.
const PATIENCE_S: u64 = 10;

/// Says that this CPU is set up.
pub fn arrive() {
    ARRIVED.fetch_add(1, Ordering::Release);
}

/// Says that this CPU is to be turned off.
pub fn depart() {
    ARRIVED.fetch_sub(1, Ordering::Release);
}

/// CPUs that are set up.
pub fn count() -> usize {
    ARRIVED.load(Ordering::Acquire)
}

/// Waits until so many CPUs are set up, or patience ends.
pub fn await_all(cpus: usize) {
    await_that(|| (count() >= cpus).then_some(()));
}

/// Waits for something, until patience ends.
pub fn await_that<T>(find: impl Fn() -> Option<T>) -> Option<T> {
    let start = VirtualCounter.read_ordered();
    loop {
        let found = find();
        if found.is_some() || is_over(start) {
            return found;
        }
        core::hint::spin_loop();
    }
}

fn is_over(start: u64) -> bool {
    let patience = PATIENCE_S.saturating_mul(interfaces::native_hz());
    VirtualCounter.read_ordered().wrapping_sub(start) > patience
}

/// What a CPU does.
pub fn workload(cpu: usize) -> Workload {
    WORKLOADS[usize::from(WORK[cpu].load(Ordering::Relaxed))]
}

/// Gives a CPU other work.
pub fn set_workload(cpu: usize, workload: Workload) {
    let number = (0..).zip(WORKLOADS).find(|(_, known)| *known == workload);
    WORK[cpu].store(number.map_or(0, |(number, _)| number), Ordering::Relaxed);
    gic::wake_others();
}

/// Whether there is an errand for a CPU.
pub fn has_errand(cpu: usize) -> bool {
    HAS_ERRAND[cpu].load(Ordering::Acquire)
}

/// Runs the errand of this CPU, if it has one.
pub fn run_errand(cpu: usize) {
    if !HAS_ERRAND[cpu].swap(false, Ordering::Acquire) {
        return;
    }
    let mut mail = MAIL[cpu].lock();
    if let Mail::Errand(errand) = &*mail {
        *mail = Mail::Outcome(run(errand));
    }
}

fn run(errand: &Errand) -> Outcome {
    match errand {
        Errand::Arm(order) => Outcome::Armed(timers::arm(order)),
        Errand::Look(timer) => Outcome::Looked(timers::look(*timer)),
    }
}

/// Has a CPU run an errand, and waits for what comes of it.
///
/// # Errors
/// [`Silent`].
pub fn send(cpu: usize, errand: Errand) -> Result<Outcome, Silent> {
    if cpu == registers::cpu() {
        return Ok(run(&errand));
    }
    *MAIL[cpu].lock() = Mail::Errand(errand);
    HAS_ERRAND[cpu].store(true, Ordering::Release);
    gic::wake_others();
    let start = VirtualCounter.read_ordered();
    loop {
        let mut mail = MAIL[cpu].lock();
        match core::mem::replace(&mut *mail, Mail::Empty) {
            Mail::Outcome(outcome) => return Ok(outcome),
            // Too late to be run: it was taken back.
            _ if is_over(start) => return Err(Silent::new(cpu)),
            other => *mail = other,
        }
        drop(mail);
        core::hint::spin_loop();
    }
}
