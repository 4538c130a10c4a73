//! Stops of the whole VMM against real KVM: nobody enters the guest on a clock from before.

use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::machine::{Machine, NOWHERE, RAM, set, x};
use crate::stopper::Stopper;
use kvm_ioctls::{DeviceFd, VcpuExit, VcpuFd};
use pvtime::host::Cause;
use pvtime::host::timeline::{Policies, StallPolicy};
use pvtime_kvm::record::Record;
use pvtime_kvm::sleep::BOUND;
use pvtime_kvm::{RunningVcpu, VmTime, VmTimeConfig, counter};

/// Shows the virtual counter, again and again.
const PROGRAM: [u32; 4] = [
    0xd503_3fdf, // isb
    0xd53b_e040, // mrs x0, cntvct_el0
    0xf900_0260, // str x0, [x19]
    0x17ff_fffd, // b . - 12
];

/// A vCPU on its thread, and the counts that its guest showed.
struct Guest {
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
struct Vm<R> {
    time: Arc<VmTime>,
    threads: Vec<JoinHandle<R>>,
    _gic: DeviceFd,
    _machine: Machine,
}

impl<R: Send + 'static> Vm<R> {
    fn start(config: VmTimeConfig, play: impl Fn(Guest) -> R + Send + Sync + 'static) -> Self {
        let machine = Machine::new(&PROGRAM);
        let time = machine.time(config).unwrap();
        let fds: Vec<_> = (0..config.vcpus as u64)
            .map(|index| machine.vcpu(index))
            .collect();
        let gic = machine.gic();
        let play = Arc::new(play);
        let mut threads = Vec::new();
        for (index, fd) in fds.into_iter().enumerate() {
            set(&fd, x(19), NOWHERE);
            set(&fd, x(32), RAM);
            let attached = time.attach(&fd, index).unwrap();
            let (bound, is_bound) = mpsc::channel();
            let play = Arc::clone(&play);
            threads.push(thread::spawn(move || {
                let running = attached.bind_thread().unwrap();
                bound.send(()).unwrap();
                play(Guest {
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
            threads,
            _gic: gic,
            _machine: machine,
        }
    }

    fn records(&self) -> Vec<Record> {
        self.time.records().after(0, Duration::ZERO)
    }

    fn join(mut self) -> Vec<R> {
        let threads = std::mem::take(&mut self.threads);
        threads.into_iter().map(|it| it.join().unwrap()).collect()
    }

    fn end(self) -> Vec<R> {
        self.time.shut_down();
        self.join()
    }
}

fn config(vcpus: usize, stall: StallPolicy) -> VmTimeConfig {
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

/// What many stops between the gate and `KVM_RUN` led to.
#[derive(Debug, Default)]
struct Races {
    /// The guest was entered right after a stop that is corrected for, and showed a count.
    stale_entries: u32,
    /// The guest was entered right after a stop that is too short for that.
    entries: u32,
    /// It was not.
    refusals: u32,
    backwards_steps: u64,
    largest_step_ms: u64,
}

/// Stops the process between the gate and `KVM_RUN`, for 20 to 200 ms and often about as long as
/// a lease.
fn race(stops: u32, seed: u64) -> Races {
    println!("gate race: seed {seed:#x}");
    let stopper = Mutex::new(Stopper::start());
    let vm = Vm::start(config(1, StallPolicy::Freeze), move |mut guest| {
        let mut races = Races::default();
        let mut stopper = stopper.lock().unwrap();
        let mut random = seed;
        for stop in 0..stops {
            for _ in 0..20 {
                guest.show().unwrap();
            }
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let length_ms = if stop % 2 == 0 {
                20 + random % 180
            } else {
                40 + random % 30
            };
            let length = Duration::from_millis(length_ms);
            let entered = guest.enter(|| stopper.stop_for(length)).unwrap();
            let is_corrected = length >= BOUND;
            races.stale_entries += u32::from(entered.is_some() && is_corrected);
            races.entries += u32::from(entered.is_some() && !is_corrected);
            races.refusals += u32::from(entered.is_none());
        }
        guest.show().unwrap();
        races.backwards_steps = guest.backwards_steps;
        races.largest_step_ms = ms(guest.largest_step);
        races
    });
    vm.join().remove(0)
}

fn check(races: &Races) {
    println!("gate race: {races:?}");
    assert_eq!((races.stale_entries, races.backwards_steps), (0, 0));
    assert!(races.refusals > 0, "no stop was longer than a lease");
}

#[test]
fn s2_a_thread_that_is_stopped_between_the_gate_and_the_guest_does_not_enter() {
    check(&race(50, 0x9e37_79b9_7f4a_7c15));
}

#[test]
#[ignore = "takes minutes: the scenario gate-race runs it"]
fn s2_a_thousand_stops_between_the_gate_and_the_guest() {
    check(&race(1000, std::process::id().into()));
}

/// Runs until the VM is shut down: steps back, and the largest step in ms.
fn run_on(mut guest: Guest) -> (u64, u64) {
    while guest.show().is_ok() {}
    (guest.backwards_steps, ms(guest.largest_step))
}

/// Stops a VM for each of these times, and returns the records of that.
fn stop(vm: &Vm<(u64, u64)>, lengths_ms: &[u64]) -> Vec<Record> {
    let mut stopper = Stopper::start();
    for length_ms in lengths_ms {
        thread::sleep(Duration::from_millis(400));
        stopper.stop_for(Duration::from_millis(*length_ms));
    }
    thread::sleep(Duration::from_millis(100));
    vm.records().split_off(1)
}

#[test]
fn s3_s10_a_stop_of_the_vmm_is_hidden_but_for_the_bound() {
    let vm = Vm::start(config(2, StallPolicy::Freeze), run_on);
    let lengths_ms = [300, 1_000, 20, 150];
    // Lack of CPU time may leave small records of its own, and makes the error of these larger.
    let all = stop(&vm, &lengths_ms);
    let large = |record: &&Record| record.hidden_ns > 40_000_000;
    let records: Vec<_> = all.iter().filter(large).collect();
    assert_eq!(records.len(), 3, "{all:?}");
    for (record, length_ms) in records.iter().zip([300, 1_000, 150]) {
        let gap = record.gap.as_ref().unwrap();
        assert_eq!(record.event, "host sleep");
        assert_eq!(record.cause.as_deref(), Some("host suspend"));
        assert_eq!(gap.source, "inferred from a stall");
        let error_ns = i128::from(gap.error_ns.unwrap());
        assert!(gap.ns + error_ns >= length_ms * 1_000_000, "{record:?}");
        assert_eq!(gap.ns, record.hidden_ns.into());
        assert!(record.after.guest < record.before.guest);
    }
    let hidden_ns: u64 = all.iter().map(|record| record.hidden_ns).sum();
    let accounts = vm.time.ledger().unwrap();
    assert!(vm.time.sample().unwrap().paused_ns >= hidden_ns);
    for account in accounts {
        let slept_ms = account.paused.of(Cause::HostSuspend) / 1_000_000;
        assert!((1_400..2_500).contains(&slept_ms), "{account:?}");
        let residual_ns = account.residual_ns().unsigned_abs();
        assert!(
            residual_ns <= u128::from(account.physical_ns / 50),
            "{account:?}"
        );
    }
    for (backwards_steps, largest_step_ms) in vm.end() {
        assert_eq!(backwards_steps, 0);
        assert!(largest_step_ms < 1_000, "{largest_step_ms} ms");
    }
}

#[test]
fn a_stop_is_reported_and_shown_by_default() {
    let vm = Vm::start(config(1, StallPolicy::default()), run_on);
    let records = stop(&vm, &[500]);
    let record = records.iter().max_by_key(|record| {
        let gap = record.gap.as_ref();
        gap.map(|gap| gap.ns)
    });
    let record = record.unwrap();
    assert_eq!((record.event.as_str(), record.hidden_ns), ("host sleep", 0));
    assert_eq!(record.policy.as_deref(), Some("advance"));
    assert_eq!(record.before, record.after);
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
    assert_eq!(stop(&vm, &[300]), []);
    assert!(vm.end()[0].1 >= 300);
}

#[test]
fn a_stop_while_the_vm_is_paused_is_part_of_the_pause() {
    let vm = Vm::start(config(1, StallPolicy::Freeze), run_on);
    vm.time.pause(Cause::HostSuspend).unwrap();
    let records = stop(&vm, &[300]);
    assert_eq!(records.len(), 1, "{records:?}");
    vm.time.resume().unwrap();
    thread::sleep(Duration::from_millis(100));
    let records = vm.records();
    let resumed = &records[2];
    assert_eq!(
        (resumed.event.as_str(), resumed.shown_ticks),
        ("resume", Some(0))
    );
    assert!(resumed.hidden_ns >= 800_000_000);
    assert!(vm.end()[0].1 < 300);
}
