//! A guest that shows a structure, its counters and its timers, again and again.

use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::{JoinHandle, panicking, spawn};
use std::time::Duration;

use crate::machine::{Machine, NOWHERE, RAM, set, x};
use kvm_ioctls::{DeviceFd, VcpuExit, VcpuFd};
use pvtime_kvm::{RunningVcpu, VmTime, VmTimeConfig};

const ISB: u32 = 0xd503_3fdf;

/// Reads the word with the sequence count, all eight words, the timers between their counters, and
/// the count's word again; x20 is the structure's address.
const READ: [u32; 24] = [
    ldr(0, 8),
    ldr(1, 0),
    ldr(2, 8),
    ldr(3, 16),
    ldr(4, 24),
    ldr(5, 32),
    ldr(6, 40),
    ldr(7, 48),
    ldr(8, 56),
    ISB,
    0xd53b_e049, // mrs x9, cntvct_el0
    ISB,
    0xd53b_e32a, // mrs x10, cntv_ctl_el0
    ISB,
    0xd53b_e04b, // mrs x11, cntvct_el0
    ISB,
    0xd53b_e02c, // mrs x12, cntpct_el0
    ISB,
    0xd53b_e22d, // mrs x13, cntp_ctl_el0
    ISB,
    0xd53b_e02e, // mrs x14, cntpct_el0
    ISB,
    ldr(15, 8),
    ISB,
];
/// x0 to x15 are shown.
const SHOWN: usize = 16;

/// `ldr xN, [x20, #offset]`
const fn ldr(register: u32, offset: u32) -> u32 {
    0xf940_0000 | (offset / 8) << 10 | 20 << 5 | register
}

/// `str xN, [x19, #8 * N]`
const fn show(register: u32) -> u32 {
    0xf900_0000 | register << 10 | 19 << 5 | register
}

/// Control register of a timer: on, its interrupt masked, due.
pub const ENABLE: u64 = 1;
pub const IMASK: u64 = 2;
const ISTATUS: u64 = 4;

/// One timer's control register between two reads of its counter.
#[derive(Clone, Copy, Debug)]
pub struct TimerReading {
    pub before: u64,
    pub is_due: bool,
    pub after: u64,
}

/// What the guest read.
#[derive(Clone, Copy, Debug)]
pub struct Report {
    first: u64,
    pub words: [u64; 8],
    pub timers: [TimerReading; 2],
    last: u64,
}

impl Report {
    fn new(shown: [u64; SHOWN]) -> Self {
        let timer = |at: usize| TimerReading {
            before: shown[at],
            is_due: shown[at + 1] & ISTATUS != 0,
            after: shown[at + 2],
        };
        Self {
            first: shown[0],
            words: shown[1..9].try_into().unwrap(),
            timers: [timer(9), timer(12)],
            last: shown[15],
        }
    }

    /// Whether the structure stayed as it was, by its count.
    pub fn is_whole(&self) -> bool {
        [self.first, self.last] == [self.words[1]; 2]
    }

    /// The structure's bytes.
    pub fn bytes(&self) -> Vec<u8> {
        let bytes = self.words.iter().flat_map(|word| word.to_le_bytes());
        bytes.collect()
    }
}

/// A VM of one vCPU, on its thread.
pub struct Reporter {
    pub time: Arc<VmTime>,
    pub gic: DeviceFd,
    pub machine: Machine,
    arriving: Receiver<Report>,
    stores: Receiver<u64>,
    thread: Option<JoinHandle<()>>,
}

impl Reporter {
    /// Ready to be started or restored. Each round begins with `prologue`; the structure that
    /// `address` names is shown.
    pub fn new(config: VmTimeConfig, prologue: &[u32], address: fn(&VmTime) -> u64) -> Self {
        let shows = (0..16).map(show);
        let mut program: Vec<u32> = prologue.iter().copied().chain(READ).chain(shows).collect();
        let back = u32::try_from(program.len()).unwrap().wrapping_neg();
        program.push(0x1400_0000 | back & 0x03ff_ffff);
        let machine = Machine::new(&program);
        let time = machine.time(config).unwrap();
        let fd = machine.vcpu(0);
        let gic = machine.gic();
        for (register, value) in [
            (19, NOWHERE),
            (20, address(&time)),
            (21, u64::MAX),
            (32, RAM),
        ] {
            set(&fd, x(register), value);
        }
        let attached = time.attach(&fd, 0).unwrap();
        let (reports, arriving) = mpsc::channel();
        let (storing, stores) = mpsc::channel();
        let (bound, is_bound) = mpsc::channel();
        let thread = spawn(move || {
            let running = attached.bind_thread().unwrap();
            bound.send(()).unwrap();
            run(fd, &running, &reports, &storing);
        });
        is_bound.recv().unwrap();
        Self {
            time,
            gic,
            machine,
            arriving,
            stores,
            thread: Some(thread),
        }
    }

    pub fn started(config: VmTimeConfig, prologue: &[u32], address: fn(&VmTime) -> u64) -> Self {
        let reporter = Self::new(config, prologue, address);
        reporter.time.start().unwrap();
        reporter
    }

    /// The next reports, in order.
    pub fn take(&self, count: usize) -> Vec<Report> {
        let next = |_| self.arriving.recv_timeout(Duration::from_secs(10)).unwrap();
        (0..count).map(next).collect()
    }

    /// Everything that has arrived.
    pub fn rest(&self) -> Vec<Report> {
        self.arriving.try_iter().collect()
    }

    /// Where the guest stored to, other than to be seen, so far.
    pub fn stores(&self) -> Vec<u64> {
        self.stores.try_iter().collect()
    }
}

impl Drop for Reporter {
    fn drop(&mut self) {
        self.time.shut_down();
        let thread = self.thread.take().expect("it is joined here alone");
        let joined = thread.join();
        assert!(joined.is_ok() || panicking(), "the guest's thread failed");
    }
}

fn run(mut fd: VcpuFd, running: &RunningVcpu, reports: &Sender<Report>, stores: &Sender<u64>) {
    let mut shown = [0; SHOWN];
    while let Some(exit) = running.run(&mut fd) {
        match exit {
            Ok(VcpuExit::MmioWrite(address, data)) => {
                let at = usize::try_from(address.wrapping_sub(NOWHERE) / 8).unwrap();
                let Some(place) = shown.get_mut(at) else {
                    // Nobody listens any more where the VM is being shut down.
                    let _ = stores.send(address);
                    continue;
                };
                *place = u64::from_le_bytes(data.try_into().unwrap());
                if at == SHOWN - 1 {
                    let _ = reports.send(Report::new(shown));
                }
            }
            Ok(VcpuExit::Hypercall(_)) => running.hypercall(&fd).unwrap(),
            Ok(VcpuExit::Intr) => {}
            Err(error) if error.errno() == 4 => {}
            other => panic!("the guest left with {other:?}"),
        }
    }
}
