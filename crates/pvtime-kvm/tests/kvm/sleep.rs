//! Stops of the whole VMM against real KVM: nobody enters the guest on a clock from before.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::machine::{Machine, NOWHERE, RAM, set, x};
use crate::stopper::{Stop, Stopper};
use kvm_ioctls::{DeviceFd, VcpuExit, VcpuFd};
use pvtime::host::Cause;
use pvtime::host::timeline::{Policies, StallPolicy};
use pvtime_kvm::record::Record;
use pvtime_kvm::sleep::BOUND;
use pvtime_kvm::{RunningVcpu, VmTime, VmTimeConfig, clock, counter};

/// Shows the virtual counter, again and again.
const PROGRAM: [u32; 4] = [
    0xd503_3fdf, // isb
    0xd53b_e040, // mrs x0, cntvct_el0
    0xf900_0260, // str x0, [x19]
    0x17ff_fffd, // b . - 12
];

/// A vCPU on its thread, and the counts that its guest showed.
pub struct Guest {
    time: Arc<VmTime>,
    /// How often a guest of this VM showed its count.
    shown: Arc<AtomicU64>,
    running: RunningVcpu,
    fd: VcpuFd,
    last: u64,
    largest_step: u64,
    backwards_steps: u64,
}

impl Guest {
    /// Enters the guest once, after `before`, which is done between the gate and `KVM_RUN`. The
    /// count, if the guest was entered and showed one; `Err` when the VM was shut down.
    fn enter(&mut self, before: impl FnOnce()) -> Result<Option<u64>, ()> {
        let entered = self.running.run_with(&mut self.fd, |fd| {
            before();
            fd.run()
        });
        let count = match entered {
            None => return Err(()),
            Some(Ok(VcpuExit::MmioWrite(_, data))) => u64::from_le_bytes(data.try_into().unwrap()),
            Some(Ok(VcpuExit::Intr)) => return Ok(None),
            Some(Err(error)) if error.errno() == libc::EINTR => return Ok(None),
            other => panic!("the guest left with {other:?}"),
        };
        match count.checked_sub(self.last) {
            Some(step) if self.last > 0 => self.largest_step = self.largest_step.max(step),
            Some(_) => {}
            None => self.backwards_steps += 1,
        }
        self.last = count;
        self.shown.fetch_add(1, Ordering::SeqCst);
        Ok(Some(count))
    }

    /// The next count.
    fn show(&mut self) -> Result<u64, ()> {
        loop {
            if let Some(count) = self.enter(|| ())? {
                return Ok(count);
            }
        }
    }
}

/// A VM that was started, and what its vCPUs' threads return.
pub struct Vm<R> {
    pub time: Arc<VmTime>,
    pub shown: Arc<AtomicU64>,
    threads: Vec<JoinHandle<R>>,
    _gic: DeviceFd,
    _machine: Machine,
}

impl<R: Send + 'static> Vm<R> {
    fn start(config: VmTimeConfig, play: impl Fn(Guest) -> R + Send + Sync + 'static) -> Self {
        Self::start_with(config, |machine| machine.time(config).unwrap(), play)
    }

    /// With time that `time` makes of `config`.
    pub fn start_with(
        config: VmTimeConfig,
        time: impl FnOnce(&Machine) -> Arc<VmTime>,
        play: impl Fn(Guest) -> R + Send + Sync + 'static,
    ) -> Self {
        let machine = Machine::new(&PROGRAM);
        let time = time(&machine);
        let fds: Vec<_> = (0..config.vcpus as u64)
            .map(|index| machine.vcpu(index))
            .collect();
        let gic = machine.gic();
        let play = Arc::new(play);
        let shown = Arc::new(AtomicU64::new(0));
        let mut threads = Vec::new();
        for (index, fd) in fds.into_iter().enumerate() {
            set(&fd, x(19), NOWHERE);
            set(&fd, x(32), RAM);
            let attached = time.attach(&fd, index).unwrap();
            let (bound, is_bound) = mpsc::channel();
            let play = Arc::clone(&play);
            let (its_time, shown) = (Arc::clone(&time), Arc::clone(&shown));
            threads.push(thread::spawn(move || {
                let running = attached.bind_thread().unwrap();
                bound.send(()).unwrap();
                play(Guest {
                    time: its_time,
                    shown,
                    running,
                    fd,
                    last: 0,
                    largest_step: 0,
                    backwards_steps: 0,
                })
            }));
            is_bound.recv().unwrap();
        }
        time.start().unwrap();
        Self {
            time,
            shown,
            threads,
            _gic: gic,
            _machine: machine,
        }
    }

    fn join(mut self) -> Vec<R> {
        let threads = std::mem::take(&mut self.threads);
        threads.into_iter().map(|it| it.join().unwrap()).collect()
    }

    /// Shuts the VM down, once its guests have shown what they see now.
    pub fn end(self) -> Vec<R> {
        let enough = self.shown.load(Ordering::SeqCst) + self.threads.len() as u64;
        let limit = Instant::now() + Duration::from_secs(20);
        while self.shown.load(Ordering::SeqCst) < enough {
            assert!(Instant::now() < limit, "the guest does not run");
            thread::sleep(Duration::from_millis(1));
        }
        self.time.shut_down();
        self.join()
    }
}

pub fn config(vcpus: usize, stall: StallPolicy) -> VmTimeConfig {
    let policies = Policies {
        stall,
        ..Policies::default()
    };
    VmTimeConfig {
        policies,
        watches_host_sleep: true,
        ..Machine::config(vcpus)
    }
}

fn ms(ticks: u64) -> u64 {
    ticks * 1000 / counter::frequency().unwrap().hz()
}

/// A stop of this process, and what was recorded from when it was asked for until the VM's time was
/// set right.
#[derive(Debug)]
struct Stopped {
    stop: Stop,
    /// How long all of that took.
    over_ns: u64,
    records: Vec<Record>,
}

impl Stopped {
    /// What was taken out of the counters.
    fn hidden_ns(&self) -> u64 {
        self.records.iter().map(|record| record.hidden_ns).sum()
    }

    /// The longest time that the records admit.
    fn possible_ns(&self) -> u64 {
        let gaps = self.records.iter().flat_map(|record| &record.gap);
        let each = gaps.map(|gap| u64::try_from(gap.ns).unwrap() + gap.error_ns.unwrap());
        each.sum()
    }

    /// Whether somebody must have noticed: nobody ran, and nobody had a lease.
    fn is_long(&self) -> bool {
        self.stop.whole_ns >= u64::try_from(BOUND.as_nanos()).unwrap()
    }

    /// All of a long stop is in the records, and nothing twice.
    fn check(&self) {
        if self.is_long() {
            assert!(self.possible_ns() >= self.stop.whole_ns, "lost: {self:?}");
        }
        assert!(self.hidden_ns() <= self.over_ns, "too much: {self:?}");
        for record in &self.records {
            let gap = record.gap.as_ref().unwrap();
            assert_eq!(
                (record.event.as_str(), record.cause.as_deref()),
                ("host sleep", Some("host suspend"))
            );
            assert_eq!(gap.source, "inferred from a stall");
            assert_eq!(record.shown_ticks, None);
            let hidden_ticks = record.before.guest - record.after.guest;
            let hz = counter::frequency().unwrap().hz();
            let ticks = u128::from(record.hidden_ns) * u128::from(hz) / 1_000_000_000;
            assert_eq!(u128::from(hidden_ticks), ticks, "{record:?}");
        }
    }
}

pub fn records(time: &VmTime) -> Vec<Record> {
    time.records().after(0, Duration::ZERO)
}

/// Has a VM stopped once, after a while.
fn stop(time: &VmTime, stopper: &mut Stopper, length_ms: u64) -> Stopped {
    thread::sleep(Duration::from_millis(400));
    // Whoever asks for the accounts waits until the VM's time is right.
    time.ledger().unwrap();
    let before = records(time).len();
    let stop = stopper.stop_for(Duration::from_millis(length_ms));
    time.ledger().unwrap();
    Stopped {
        stop,
        over_ns: clock::boottime_ns() - stop.asked_ns,
        records: records(time).split_off(before),
    }
}

/// What many stops between the gate and `KVM_RUN` led to.
#[derive(Debug, Default)]
struct Races {
    /// Stops of every thread while this one was between the gate and `KVM_RUN`, which lasted until
    /// its lease had ended.
    landed: u32,
    /// The guest was entered right after one of these, and showed a count.
    stale_entries: u32,
    /// As many of them as had a timer whose interrupt was late.
    late_entries: u32,
    /// It was not entered.
    refusals: u32,
    /// Timers of these stops that were late, whatever came of it.
    late_timers: u32,
    /// A stop that is corrected for and is not in the records with its whole length, or of which
    /// they hide more than passed.
    misrecorded: u32,
    /// Records of no stop.
    strays: u32,
    /// The first count after a stop is below what the counters were set to.
    low_counts: u32,
    backwards_steps: u64,
    largest_step_ms: u64,
}

/// For how long the process is stopped: often about as long as a lease, but longer, else up to
/// 200 ms; and one in eleven is shorter than a lease.
fn length_ms(stop: u32, random: u64) -> u64 {
    match stop % 11 {
        10 => 20 + random % 25,
        it if it % 2 == 0 => 50 + random % 20,
        _ => 50 + random % 150,
    }
}

impl Races {
    /// Enters the guest over one stop between the gate and `KVM_RUN`.
    fn race(&mut self, guest: &mut Guest, stopper: &mut Stopper, length: Duration) {
        let before = records(&guest.time).len();
        let mut stop = None;
        let entered = guest.enter(|| stop = Some(stopper.stop_for_lease(length)));
        let entered = entered.unwrap();
        let stop = stop.expect("the gate was open");
        // It passes the gate when the VM's time is right; whoever saw to that tells afterwards.
        let count = guest.show().unwrap();
        assert!(guest.time.is_running());
        let after = Stopped {
            stop,
            over_ns: clock::boottime_ns() - stop.asked_ns,
            records: records(&guest.time).split_off(before),
        };
        let is_lost = after.is_long() && after.possible_ns() < stop.whole_ns;
        self.misrecorded += u32::from(is_lost || after.hidden_ns() > after.over_ns);
        let is_low = |record: &Record| count < record.after.guest;
        self.low_counts += u32::from(after.records.iter().any(is_low));
        if !stop.outlasts_lease() {
            return;
        }
        self.landed += 1;
        self.stale_entries += u32::from(entered.is_some());
        self.late_entries += u32::from(entered.is_some() && stop.timer_was_late);
        self.refusals += u32::from(entered.is_none());
        self.late_timers += u32::from(stop.timer_was_late);
    }
}

/// Stops the process between the gate and `KVM_RUN` until so many stops have outlasted the lease.
fn race(landed: u32, seed: u64) -> Races {
    println!("gate race: seed {seed:#x}");
    let stopper = Mutex::new(Stopper::start());
    let vm = Vm::start(config(1, StallPolicy::Freeze), move |mut guest| {
        let mut races = Races::default();
        let mut stopper = stopper.lock().unwrap();
        let mut random = seed;
        for stop in 0.. {
            let told = records(&guest.time).len();
            for _ in 0..20 {
                guest.show().unwrap();
            }
            let strays = records(&guest.time).len() - told;
            races.strays += u32::try_from(strays).unwrap();
            if races.landed == landed {
                break;
            }
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let length = Duration::from_millis(length_ms(stop, random));
            races.race(&mut guest, &mut stopper, length);
        }
        races.backwards_steps = guest.backwards_steps;
        races.largest_step_ms = ms(guest.largest_step);
        races
    });
    vm.join().remove(0)
}

/// What holds on a machine that is busy with other things too. There a timer of an emulated host can be
/// late, and its thread is taken back out; and where the thread that renews the lease is held up with
/// the VM's state in its hands, the vCPU's sleeps for it, which is taken for a stop.
fn check(races: &Races) {
    println!("gate race: {races:?}");
    let in_time = races.stale_entries - races.late_entries;
    assert_eq!((in_time, races.low_counts), (0, 0));
    assert_eq!(races.misrecorded, 0);
    assert_eq!(races.refusals + races.stale_entries, races.landed);
}

#[test]
fn s2_a_thread_that_is_stopped_between_the_gate_and_the_guest_does_not_enter() {
    let races = race(50, 0x9e37_79b9_7f4a_7c15);
    check(&races);
    if races.late_entries == 0 {
        assert_eq!(races.backwards_steps, 0);
    }
}

#[test]
#[ignore = "takes minutes: the scenario gate-race runs it, and judges what a quiet machine keeps"]
fn s2_a_thousand_stops_between_the_gate_and_the_guest() {
    check(&race(1000, std::process::id().into()));
}

/// Runs until the VM is shut down: steps back, and the largest step in ms.
pub fn run_on(mut guest: Guest) -> (u64, u64) {
    while guest.show().is_ok() {}
    (guest.backwards_steps, ms(guest.largest_step))
}

#[test]
fn s3_s10_a_stop_of_the_vmm_is_hidden_but_for_the_bound() {
    let vm = Vm::start(config(2, StallPolicy::Freeze), run_on);
    let mut stopper = Stopper::start();
    let lengths_ms = [300, 1_000, 20, 150];
    let stops = lengths_ms.map(|length_ms| stop(&vm.time, &mut stopper, length_ms));
    for stopped in &stops {
        stopped.check();
    }
    let whole_ns = |stopped: &Stopped| stopped.stop.whole_ns;
    let long = || stops.iter().filter(|stopped| stopped.is_long());
    let long_ns: u64 = long().map(whole_ns).sum();
    let hidden_ns: u64 = stops.iter().map(Stopped::hidden_ns).sum();
    // What is certain of a stop lacks the bound, and what the thread that looks was held up for.
    assert!(2 * hidden_ns >= long_ns, "{stops:?}");

    assert!(vm.time.sample().unwrap().paused_ns >= hidden_ns);
    let over_ns = clock::boottime_ns() - stops[0].stop.asked_ns;
    for account in vm.time.ledger().unwrap() {
        let slept_ns = account.paused.of(Cause::HostSuspend);
        assert!((long_ns..over_ns).contains(&slept_ns), "{account:?}");
        // All of them are in that account, and none is in another as well.
        let shortest_ns = long().map(whole_ns).min().unwrap();
        let residual_ns = account.residual_ns();
        assert!(residual_ns > -i128::from(shortest_ns), "{account:?}");
    }
    for (backwards_steps, _) in vm.end() {
        assert_eq!(backwards_steps, 0);
    }
}

#[test]
fn a_stop_is_reported_and_shown_by_default() {
    let vm = Vm::start(config(1, StallPolicy::default()), run_on);
    let stopped = stop(&vm.time, &mut Stopper::start(), 500);
    stopped.check();
    for record in &stopped.records {
        assert_eq!(record.policy.as_deref(), Some("advance"));
        assert_eq!((record.hidden_ns, &record.before), (0, &record.after));
    }
    let (backwards_steps, largest_step_ms) = vm.end()[0];
    assert_eq!(backwards_steps, 0);
    assert!(largest_step_ms >= 500, "{largest_step_ms} ms");
}

#[test]
fn s16_a_stop_is_left_alone_where_nobody_watches() {
    let config = VmTimeConfig {
        watches_host_sleep: false,
        ..config(1, StallPolicy::Freeze)
    };
    let vm = Vm::start(config, run_on);
    assert_eq!(stop(&vm.time, &mut Stopper::start(), 300).records, []);
    assert!(vm.end()[0].1 >= 300);
}

#[test]
fn a_stop_while_the_vm_is_paused_is_part_of_the_pause() {
    let vm = Vm::start(config(1, StallPolicy::Freeze), run_on);
    vm.time.pause(Cause::HostSuspend).unwrap();
    let before = records(&vm.time).len();
    let stopped = stop(&vm.time, &mut Stopper::start(), 300);
    assert_eq!(stopped.records, []);
    vm.time.resume().unwrap();
    let resumed = records(&vm.time).remove(before);
    assert_eq!(
        (resumed.event.as_str(), resumed.shown_ticks),
        ("resume", Some(0))
    );
    assert!(resumed.hidden_ns >= stopped.stop.whole_ns);
    vm.end();
}

#[test]
fn s8_a_guest_that_looks_at_nothing_has_continuous_counters() {
    const PAUSES: u64 = 3;
    const LENGTH: Duration = Duration::from_secs(1);
    let config = VmTimeConfig {
        paused_time: true,
        ..config(2, StallPolicy::Freeze)
    };
    let vm = Vm::start(config, run_on);
    for _ in 0..PAUSES {
        thread::sleep(Duration::from_millis(100));
        vm.time.pause(Cause::HostSuspend).unwrap();
        thread::sleep(LENGTH);
        vm.time.resume().unwrap();
    }
    // It is told, by an interrupt too, and has neither a handler nor a look at the structure.
    let told = vm.time.paused_time().unwrap();
    assert_eq!(told.events, PAUSES);
    assert!(Duration::from_nanos(told.paused_ns) >= LENGTH * 3);
    for (backwards_steps, largest_step_ms) in vm.end() {
        assert_eq!(backwards_steps, 0);
        assert!(largest_step_ms < 1_000, "{largest_step_ms} ms");
    }
}

#[test]
fn a_vm_that_was_started_a_moment_ago_is_saved() {
    for watches_host_sleep in [true, false] {
        let config = VmTimeConfig {
            watches_host_sleep,
            ..config(2, StallPolicy::Freeze)
        };
        let vm = Vm::start(config, |guest| {
            // Long after it was started from elsewhere.
            thread::sleep(Duration::from_millis(100));
            run_on(guest)
        });
        vm.time.pause(Cause::Operator).unwrap();
        let accounts = vm.time.ledger().unwrap();
        assert_eq!(accounts.len(), 2);
        assert!(accounts.iter().all(|it| it.run_ns <= it.physical_ns));
        vm.time.save().unwrap();
        vm.time.resume().unwrap();
        vm.end();
    }
}
