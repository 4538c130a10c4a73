//! Timers that are pending while a VM is paused, or saved and restored: none fires early, none gets
//! lost, an expired one stays expired and a far one stays far.
//!
//! A guest reads its timers' status, and then the counter that the timer compares with.

use std::mem::replace;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::thread::{JoinHandle, scope, sleep, spawn};
use std::time::Duration;

use crate::machine::{Machine, NOWHERE, RAM, get, line_levels, set, x};
use kvm_ioctls::{DeviceFd, VcpuExit, VcpuFd};
use pvtime::host::Cause;
use pvtime::host::timeline::{Policies, Policy};
use pvtime_kvm::registers::{PTIMER_CTL, PTIMER_CVAL, TIMER_CTL, TIMER_CVAL};
use pvtime_kvm::{VmTime, VmTimeConfig, counter};

const ISB: u32 = 0xd503_3fdf;

/// Shows, again and again, the virtual timer's control register and then the virtual count, and the
/// same of the physical timer.
const PROGRAM: [u32; 13] = [
    ISB,
    0xd53b_e320, // mrs x0, cntv_ctl_el0
    ISB,
    0xd53b_e041, // mrs x1, cntvct_el0
    ISB,
    0xd53b_e222, // mrs x2, cntp_ctl_el0
    ISB,
    0xd53b_e023, // mrs x3, cntpct_el0
    0xf900_0260, // str x0, [x19]
    0xf900_0661, // str x1, [x19, #8]
    0xf900_0a62, // str x2, [x19, #16]
    0xf900_0e63, // str x3, [x19, #24]
    0x17ff_fff4, // b . - 48
];
const SHOWN: usize = 4;

/// Control register: on, interrupt not masked; and the bit that says that it is due.
const ENABLE: u64 = 1;
const ISTATUS: u64 = 4;

/// PPIs of the virtual and the physical timer.
const INTERRUPTS: [u32; 2] = [27, 30];

/// When the timers of each vCPU are due, from the stop on.
#[derive(Clone, Copy, Debug)]
enum Due {
    Before(Duration),
    After(Duration),
}

const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

/// One each, and both of its timers.
const VCPUS: usize = 5;

/// When the timers of each vCPU are due. The last one is for never: a compare value near 2^64 that is
/// on would mean the same, but QEMU before 9 hangs on it.
fn deadlines(far: Duration) -> [Due; VCPUS] {
    [
        Due::After(Duration::from_millis(1)),
        Due::After(Duration::from_secs(1)),
        Due::After(far),
        Due::Before(Duration::from_millis(1)),
        Due::After(YEAR.saturating_mul(10)),
    ]
}

/// For how long the VM is stopped: longer than the second deadline is away.
const STOPPED: Duration = Duration::from_secs(3);

/// Guest time from the far deadline on, after which all but the last must have been seen.
const AFTERWARDS: Duration = Duration::from_secs(2);

/// From one reading of a vCPU to the next.
const REST: Duration = Duration::from_millis(20);

/// The interrupt of an emulated timer comes some time after it is due.
const LATE_MAX: Duration = Duration::from_millis(500);

/// What a vCPU read of one of its timers.
#[derive(Clone, Copy, Debug)]
struct Reading {
    vcpu: usize,
    timer: usize,
    control: u64,
    /// The counter afterwards.
    count: u64,
}

impl Reading {
    fn is_due(&self) -> bool {
        self.control & ISTATUS != 0
    }
}

/// A VM whose vCPUs show their timers, each on its thread.
struct Reader {
    time: Arc<VmTime>,
    arriving: Receiver<Reading>,
    threads: Vec<JoinHandle<()>>,
    gic: DeviceFd,
    _machine: Machine,
}

impl Reader {
    fn new(policy: Policy) -> Self {
        let machine = Machine::new(&PROGRAM);
        let policies = Policies {
            pause: policy,
            restore: policy,
            ..Policies::default()
        };
        let vcpus = VCPUS;
        let time = machine
            .time(VmTimeConfig {
                policies,
                ..Machine::config(vcpus)
            })
            .unwrap();
        let fds: Vec<_> = (0..vcpus as u64).map(|index| machine.vcpu(index)).collect();
        let gic = machine.gic();
        let (readings, arriving) = mpsc::channel();
        let mut threads = Vec::new();
        for (index, fd) in fds.into_iter().enumerate() {
            set(&fd, x(19), NOWHERE);
            set(&fd, x(32), RAM);
            let attached = time.attach(&fd, index).unwrap();
            let (bound, is_bound) = mpsc::channel();
            let readings = readings.clone();
            threads.push(spawn(move || {
                let running = attached.bind_thread().unwrap();
                bound.send(()).unwrap();
                read(index, fd, &readings, |fd| running.run(fd));
            }));
            is_bound.recv().unwrap();
        }
        Self {
            time,
            arriving,
            threads,
            gic,
            _machine: machine,
        }
    }

    /// The guest's counter at the last stop or start.
    fn guest_count(&self) -> u64 {
        let records = self.time.records().after(0, Duration::ZERO);
        records.last().unwrap().after.guest
    }

    /// Waits until every vCPU has shown itself once more.
    fn await_all(&self) {
        let mut missing: Vec<_> = (0..VCPUS).collect();
        while !missing.is_empty() {
            let reading = self.arriving.recv_timeout(Duration::from_secs(20));
            let vcpu = reading.expect("the guest does not run").vcpu;
            missing.retain(|it| *it != vcpu);
        }
    }

    fn set_timers(&self, compare: [u64; VCPUS]) {
        let write = move |vcpu: usize, fd: &mut VcpuFd| {
            for (control, value) in [(TIMER_CTL, TIMER_CVAL), (PTIMER_CTL, PTIMER_CVAL)] {
                set(fd, value, compare[vcpu]);
                set(fd, control, ENABLE);
            }
        };
        self.time.on_each_vcpu(write).unwrap();
    }

    /// What KVM says of the stopped VM's timers that contradicts the compare values: registers, and
    /// the lines to the interrupt controller.
    fn contradictions(&self, compare: [u64; VCPUS]) -> Vec<String> {
        let count = self.guest_count();
        let registers = |_, fd: &mut VcpuFd| {
            [(TIMER_CTL, TIMER_CVAL), (PTIMER_CTL, PTIMER_CVAL)]
                .map(|(control, value)| (get(fd, control) & 3, get(fd, value)))
        };
        let registers = self.time.on_each_vcpu(registers).unwrap();
        let mut found = Vec::new();
        for (vcpu, registers) in registers.into_iter().enumerate() {
            let levels = line_levels(&self.gic, vcpu);
            for (timer, (register, interrupt)) in registers.into_iter().zip(INTERRUPTS).enumerate()
            {
                let is_raised = levels & 1 << interrupt != 0;
                let is_due = count >= compare[vcpu];
                // Just before the stop it may have become due without the vCPU running since.
                let is_new = is_due && count - compare[vcpu] < ticks(LATE_MAX);
                if register != (ENABLE, compare[vcpu]) || (is_raised != is_due && !is_new) {
                    found.push(format!(
                        "vCPU {vcpu}, timer {timer}: {register:?}, line {is_raised}, at {count}"
                    ));
                }
            }
        }
        found
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.time.shut_down();
        for thread in self.threads.drain(..) {
            thread.join().unwrap();
        }
    }
}

fn read(
    vcpu: usize,
    mut fd: VcpuFd,
    readings: &Sender<Reading>,
    run: impl Fn(&mut VcpuFd) -> Option<Result<VcpuExit<'_>, kvm_ioctls::Error>>,
) {
    let mut shown = [0; SHOWN];
    loop {
        match run(&mut fd) {
            None => return,
            Some(Ok(VcpuExit::MmioWrite(address, data))) => {
                let field = usize::try_from((address - NOWHERE) / 8).unwrap();
                shown[field] = u64::from_le_bytes(data.try_into().unwrap());
                if field + 1 < SHOWN {
                    continue;
                }
                for (timer, of_timer) in shown.chunks_exact(2).enumerate() {
                    let &[control, count] = of_timer else {
                        unreachable!("chunks of two")
                    };
                    // Nobody listens any more where the VM is being shut down.
                    let _ = readings.send(Reading {
                        vcpu,
                        timer,
                        control,
                        count,
                    });
                }
                sleep(REST);
            }
            Some(Ok(VcpuExit::Intr)) => {}
            Some(Err(error)) if error.errno() == 4 => {}
            other => panic!("the guest left with {other:?}"),
        }
    }
}

fn ticks(time: Duration) -> u64 {
    let hz = u128::from(counter::frequency().unwrap().hz());
    u64::try_from(time.as_nanos() * hz / 1_000_000_000).unwrap()
}

fn compare_value(due: Due, stop: u64) -> u64 {
    match due {
        Due::Before(time) => stop - ticks(time),
        Due::After(time) => stop + ticks(time),
    }
}

/// What became of all timers of a VM.
#[derive(Debug, Default)]
struct Seen {
    readings: usize,
    early: Vec<Reading>,
    lost: Vec<Reading>,
    /// What KVM said against it.
    contradictions: Vec<String>,
    /// Timers that were seen to be due, by vCPU and timer.
    due: [[bool; 2]; VCPUS],
    /// The count of the last reading, by vCPU and timer.
    last: [[u64; 2]; VCPUS],
    /// Whether there was a reading, by vCPU and timer.
    begun: [[bool; 2]; VCPUS],
}

impl Seen {
    fn since(stop: u64) -> Self {
        Self {
            last: [[stop; 2]; VCPUS],
            ..Self::default()
        }
    }

    /// An emulated timer may tell a moment late that it is due. KVM sets it anew when the guest is
    /// entered, which it was since the last reading: what was due by then is due in this one. The first
    /// reading is left out: the guest may have begun it before the stop, with timers that were not set.
    fn judge(&mut self, reading: Reading, compare: [u64; VCPUS]) {
        let Reading {
            vcpu, timer, count, ..
        } = reading;
        if !replace(&mut self.begun[vcpu][timer], true) {
            return;
        }
        self.readings += 1;
        let last = replace(&mut self.last[vcpu][timer], count);
        if reading.is_due() {
            self.due[vcpu][timer] = true;
            if count < compare[vcpu] {
                self.early.push(reading);
            }
        } else if last >= compare[vcpu] {
            self.lost.push(reading);
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Through {
    Pause,
    Restore,
}

fn survive(policy: Policy, through: Through, far: Duration) -> Seen {
    let mut reader = Reader::new(policy);
    reader.time.start().unwrap();
    reader.await_all();
    reader.time.pause(Cause::Snapshot).unwrap();
    let stop = reader.guest_count();
    let compare = deadlines(far).map(|due| compare_value(due, stop));
    reader.set_timers(compare);
    if let Through::Restore = through {
        let saved = reader.time.save().unwrap();
        drop(reader);
        reader = Reader::new(policy);
        reader.time.restore(&saved, Cause::Snapshot).unwrap();
    }
    sleep(STOPPED);
    // What arrived before is of timers that were not set yet.
    while reader.arriving.try_recv().is_ok() {}

    let mut seen = Seen::since(stop);
    let end = stop + ticks(far + AFTERWARDS);
    let mut count = stop;
    for turn in 0.. {
        reader.time.resume().unwrap();
        // At first the VM stops after every second, so that timers are due in pauses and near them.
        let until = count + ticks(Duration::from_secs(if turn < 3 { 1 } else { 20 }));
        // KVM looks at a timer when its vCPU runs.
        let mut ran = [false; VCPUS];
        while count < until.min(end) || ran.contains(&false) {
            let reading = reader.arriving.recv_timeout(Duration::from_secs(20));
            let reading = reading.expect("the guest does not run");
            ran[reading.vcpu] = true;
            seen.judge(reading, compare);
            count = count.max(reading.count);
        }
        reader.time.pause(Cause::Operator).unwrap();
        seen.contradictions.extend(reader.contradictions(compare));
        if count >= end {
            return seen;
        }
        sleep(Duration::from_millis(200));
    }
    seen
}

/// Prints a figure for whoever runs this.
fn figure(name: &str, measured: usize, unit: &str, detail: &str) {
    println!("figure {name} {measured} {unit} {detail}");
}

#[test]
#[ignore = "takes two minutes; the lab's scenario timers-survive runs it"]
fn l4_l5_timers_survive_pause_and_restore_under_both_policies() {
    survive_everything(Duration::from_secs(100));
}

#[test]
fn l4_l5_timers_of_seconds_survive_pause_and_restore_under_both_policies() {
    survive_everything(Duration::from_secs(4));
}

fn survive_everything(far: Duration) {
    let all = Mutex::new(Vec::new());
    scope(|scope| {
        for policy in [Policy::Freeze, Policy::Advance] {
            for through in [Through::Pause, Through::Restore] {
                let all = &all;
                scope.spawn(move || {
                    let seen = survive(policy, through, far);
                    all.lock().unwrap().push((policy, through, seen));
                });
            }
        }
    });
    let all = all.into_inner().unwrap();
    for (policy, through, seen) in &all {
        let name = format!("{policy:?}, {through:?}");
        let detail = format!("{name}: {} readings", seen.readings);
        figure("early", seen.early.len(), "timers", &detail);
        figure("lost", seen.lost.len(), "timers", &detail);
        figure("contradictions", seen.contradictions.len(), "timers", &name);
        let due = seen.due.as_flattened().iter().filter(|due| **due).count();
        figure("due", due, "timers", &name);
    }
    assert_eq!(all.len(), 4, "a VM failed");
    for (_, _, seen) in all {
        assert!(seen.early.is_empty(), "{:?}", seen.early);
        assert!(seen.lost.is_empty(), "{:?}", seen.lost);
        assert!(seen.contradictions.is_empty(), "{:?}", seen.contradictions);
        assert_eq!(
            seen.due,
            [[true; 2], [true; 2], [true; 2], [true; 2], [false; 2]]
        );
    }
}
