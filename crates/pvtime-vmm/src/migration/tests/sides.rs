//! A source and a destination without KVM.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Result, bail};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::faulty::{Cut, Faulty};
use super::pair;
use crate::cli::{PolicyArg, StallArg, StolenTimeArg, SwitchArg, TimeArgs};
use crate::event::Event;
use crate::generation::Generation;
use crate::layout::RAM;
use crate::migration::LONGEST_SILENCE;
use crate::migration::dirty::DirtyPages;
use crate::migration::frame::{Channel, StreamError};
use crate::migration::message::{Answer, Offer};
use crate::migration::monitor::Monitor;
use crate::migration::ownership::{Owner, Ownership};
use crate::migration::pace::Plan;
use crate::migration::receive::{self, Destination, Patience, Taken, Visit};
use crate::migration::report::Report;
use crate::migration::send::{Failure, Sender, Source};
use crate::migration::tls;
use crate::migration::wire::Wire;
use crate::snapshot::MemoryRange;
use crate::state::MachineState;
use crate::state::devices::DeviceStates;
use crate::state::gic::{GicCpuState, GicState, Interface, Interrupts};
use crate::state::profile::CpuProfile;
use crate::state::register::{Register, RegisterId};
use crate::state::vcpu::VcpuState;

pub const MEMORY_BYTES: u64 = 4 << 20;
const PAGE: u64 = 4096;
const PATIENCE: Duration = Duration::from_secs(1);
const TIME: &[u8] = b"its time, as its owner writes it \0\xff";
/// From one vCPU, and one that does not say.
pub const STOLEN_NS: [Option<u64>; 2] = [Some(7), None];

/// What the stream goes over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carrier {
    Clear,
    /// TLS, and the fault is in what it carries.
    Tls,
    /// TLS, and the fault is in what carries it.
    TlsOverFaults,
}

impl Carrier {
    fn of_source(self, end: Faulty) -> Result<Box<dyn Wire>, StreamError> {
        let tls = tls::tests::pair();
        Ok(match self {
            Self::Clear => Box::new(end),
            Self::Tls => {
                Box::new(end.over(|wire| Ok::<_, StreamError>(Box::new(tls.0.connect(wire)?)))?)
            }
            Self::TlsOverFaults => Box::new(tls.0.connect(end)?),
        })
    }

    fn of_destination(self, end: Faulty) -> Result<Box<dyn Wire>, StreamError> {
        let tls = tls::tests::pair();
        Ok(match self {
            Self::Clear => Box::new(end),
            Self::Tls => {
                Box::new(end.over(|wire| Ok::<_, StreamError>(Box::new(tls.1.accept(wire)?)))?)
            }
            Self::TlsOverFaults => Box::new(tls.1.accept(end)?),
        })
    }
}

/// What happens to whom.
#[derive(Clone)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fault of its own")]
pub struct World {
    pub carrier: Carrier,
    pub runs: bool,
    pub dry_run: bool,
    pub refusals: Vec<&'static str>,
    pub prepare_fails: bool,
    pub assemble_fails: bool,
    pub start_fails: bool,
    pub pause_fails: bool,
    pub state_fails: bool,
    /// Rounds in which the guest writes.
    pub dirty_rounds: u32,
    pub plan: Plan,
    /// Its memory is all zero.
    pub is_empty: bool,
    pub longest_silence: Duration,
    /// How long its vCPUs take to stop.
    pub pause_takes: Duration,
    pub patience: Patience,
    /// How long the destination takes to make a machine.
    pub assembly_takes: Duration,
    pub cancel_after: Option<Duration>,
}

impl Default for World {
    fn default() -> Self {
        Self {
            carrier: Carrier::Clear,
            runs: true,
            dry_run: false,
            refusals: Vec::new(),
            prepare_fails: false,
            assemble_fails: false,
            start_fails: false,
            pause_fails: false,
            state_fails: false,
            dirty_rounds: 2,
            plan: Plan {
                bytes_per_s: None,
                downtime: Duration::from_micros(1),
                stop_limit: Duration::from_secs(60),
            },
            is_empty: false,
            longest_silence: LONGEST_SILENCE,
            pause_takes: Duration::ZERO,
            patience: Patience::default(),
            assembly_takes: Duration::ZERO,
            cancel_after: None,
        }
    }
}

/// What a side has when all is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Nothing,
    Runs,
    /// Stopped, and its own.
    Stopped,
    InDoubt,
    Gone,
}

#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is seen by itself")]
pub struct Outcome {
    pub source: Side,
    pub destination: Side,
    /// Whoever has the VM or may have it has its memory.
    pub memory_is_right: bool,
    pub was_paused: bool,
    pub was_logged: bool,
    pub is_logged: bool,
}

impl Outcome {
    pub fn moved(runs: bool) -> Self {
        Self {
            source: Side::Gone,
            destination: if runs { Side::Runs } else { Side::Stopped },
            memory_is_right: true,
            was_paused: runs,
            was_logged: true,
            is_logged: false,
        }
    }
}

/// Of each direction.
#[derive(Debug)]
pub struct Counts {
    pub to_destination: u64,
    pub to_source: u64,
}

pub fn offer() -> Offer {
    let range = MemoryRange {
        start: RAM,
        bytes: MEMORY_BYTES,
    };
    Offer {
        who: "the source".into(),
        id: "web".into(),
        dry_run: false,
        architecture: "aarch64".into(),
        counter_frequency_hz: 25_000_000,
        wall_error_ns: Some(1_000_000),
        counter_offset: true,
        live: None,
        time: TimeArgs {
            stolen_time: StolenTimeArg::On,
            stolen_time_period: 100,
            live_physical_time: None,
            paused_time: Some(SwitchArg::On),
            on_pause: PolicyArg::Freeze,
            on_restore: PolicyArg::Freeze,
            on_migrate: PolicyArg::Advance,
            on_suspend: PolicyArg::Freeze,
            on_stall: StallArg::Report,
            suspend_guest: None,
            suspend_limit: 4_000,
            sleep_limit: 60_000,
            watch_host: SwitchArg::Off,
        },
        memory: vec![range],
        vcpus: 1,
        cpu: CpuProfile {
            features: [4, 0, 0, 0, 0, 0, 0],
            identity: vec![Register {
                id: RegisterId(0x6030_0000_0013_c000),
                value: vec![1; 8],
            }],
            others: vec![0x6030_0000_0010_0000],
        },
        gic_implementation: 0x3_043b,
        system_suspend: false,
    }
}

pub fn machine() -> MachineState {
    let interrupts = Interrupts {
        groups: vec![u32::MAX],
        priorities: vec![0; 8],
        configurations: vec![0, 2],
        enabled: vec![1],
        lines: vec![0],
        latched: vec![2],
        active: vec![0],
    };
    MachineState {
        vcpus: vec![VcpuState {
            features: [4, 0, 0, 0, 0, 0, 0],
            mp_state: 0,
            serror: None,
            registers: Vec::new(),
        }],
        gic: GicState {
            interrupts: 64,
            implementation: 0,
            control: 0x52,
            routes: vec![0; 32],
            shared: interrupts.clone(),
            cpus: vec![GicCpuState {
                affinity: 0,
                private: interrupts,
                interface: Interface {
                    sre: 7,
                    ctlr: 0,
                    pmr: 0,
                    bpr0: 0,
                    bpr1: 0,
                    ap0r: vec![],
                    ap1r: vec![],
                    igrpen0: 0,
                    igrpen1: 0,
                },
            }],
        },
        devices: DeviceStates::default(),
        generation: Generation::default(),
        suspend_call: None,
    }
}

fn memory() -> GuestMemoryMmap {
    let bytes = usize::try_from(MEMORY_BYTES).unwrap();
    GuestMemoryMmap::from_ranges(&[(GuestAddress(RAM), bytes)]).unwrap()
}

fn contents(memory: &GuestMemoryMmap) -> Vec<u8> {
    let mut bytes = vec![0xa5; usize::try_from(MEMORY_BYTES).unwrap()];
    memory.read_slice(&mut bytes, GuestAddress(RAM)).unwrap();
    bytes
}

/// A VM whose guest writes when it is asked what it wrote.
struct FakeSource<'a> {
    world: &'a World,
    memory: GuestMemoryMmap,
    runs: AtomicBool,
    was_paused: AtomicBool,
    was_logged: AtomicBool,
    is_logged: AtomicBool,
    rounds: AtomicU32,
    ownership: Ownership,
}

impl<'a> FakeSource<'a> {
    fn new(world: &'a World) -> Self {
        let memory = memory();
        // One page in 16 is not zero.
        let pages = if world.is_empty {
            0
        } else {
            MEMORY_BYTES / PAGE
        };
        for page in (0..pages).step_by(16) {
            let byte = u8::try_from(page % 251).unwrap() + 1;
            let address = GuestAddress(RAM + page * PAGE + page % PAGE);
            memory.write_obj(byte, address).unwrap();
        }
        Self {
            world,
            memory,
            runs: world.runs.into(),
            was_paused: false.into(),
            was_logged: false.into(),
            is_logged: false.into(),
            rounds: 0.into(),
            ownership: Ownership::default(),
        }
    }

    fn side(&self) -> Side {
        match (self.ownership.owner(), self.runs.load(Ordering::SeqCst)) {
            (Owner::Ours, true) => Side::Runs,
            (Owner::Ours | Owner::Leaving, false) => Side::Stopped,
            (Owner::InDoubt, false) => Side::InDoubt,
            (Owner::Gone { .. }, false) => Side::Gone,
            (owner, true) => panic!("it runs, and is {owner:?}"),
        }
    }
}

impl Source for FakeSource<'_> {
    fn memory(&self) -> &GuestMemoryMmap {
        &self.memory
    }

    fn log_dirty(&self, on: bool) -> Result<()> {
        self.is_logged.store(on, Ordering::SeqCst);
        self.was_logged.fetch_or(on, Ordering::SeqCst);
        Ok(())
    }

    fn dirty(&self) -> Result<DirtyPages> {
        assert!(self.is_logged.load(Ordering::SeqCst));
        let round = self.rounds.fetch_add(1, Ordering::SeqCst);
        let words = usize::try_from(MEMORY_BYTES / PAGE / 64).unwrap();
        let mut bits = vec![0; words];
        if round < self.world.dirty_rounds && self.world.runs {
            // A page that is new, one that becomes zero, one that changes.
            for (page, byte) in [
                (1 + u64::from(round % 8), 7),
                (16, 0),
                (32, u8::try_from(round % 256).unwrap()),
            ] {
                bits[0] |= 1 << page;
                let address = GuestAddress(RAM + page * PAGE);
                let fill = [byte; 4096];
                self.memory.write_slice(&fill, address).unwrap();
            }
        }
        Ok(DirtyPages::new(RAM, PAGE, bits))
    }

    fn pause(&self) -> Result<bool> {
        if self.world.pause_fails {
            bail!("a vCPU does not stop");
        }
        thread::sleep(self.world.pause_takes);
        let ran = self.runs.swap(false, Ordering::SeqCst);
        self.was_paused.fetch_or(ran, Ordering::SeqCst);
        Ok(ran)
    }

    fn state(&self) -> Result<(MachineState, Vec<u8>)> {
        assert!(!self.runs.load(Ordering::SeqCst), "it runs");
        if self.world.state_fails {
            bail!("no such register");
        }
        Ok((machine(), TIME.to_vec()))
    }

    fn stolen_ns(&self) -> Vec<Option<u64>> {
        assert!(!self.runs.load(Ordering::SeqCst), "it runs");
        STOLEN_NS.to_vec()
    }

    fn resume(&self) -> Result<()> {
        let _ours = self.ownership.ours()?;
        assert!(!self.runs.swap(true, Ordering::SeqCst));
        Ok(())
    }

    fn give_away(&self) {
        assert!(!self.runs.load(Ordering::SeqCst), "it runs");
        self.ownership.give_away();
    }

    fn take_back(&self) {
        self.ownership.take_back();
    }

    fn gone(&self) {
        self.ownership.gone("there".into());
    }
}

struct FakeDestination<'a>(&'a World);

impl Destination for FakeDestination<'_> {
    type Blank = GuestMemoryMmap;

    fn answer(&mut self, offer: &Offer) -> Answer {
        Answer {
            who: "the destination".into(),
            counter_frequency_hz: offer.counter_frequency_hz,
            wall_error_ns: None,
            refusals: self.0.refusals.iter().map(ToString::to_string).collect(),
        }
    }

    fn prepare(&mut self, offer: &Offer) -> Result<GuestMemoryMmap> {
        if self.0.prepare_fails {
            bail!("no memory");
        }
        assert_eq!(offer.memory_bytes(), MEMORY_BYTES);
        Ok(memory())
    }

    fn memory(blank: &GuestMemoryMmap) -> &GuestMemoryMmap {
        blank
    }

    fn patience(&self) -> Patience {
        self.0.patience
    }
}

impl World {
    /// Moves the VM over a connection that fails as told.
    pub fn migrate(&self, cut: Cut) -> (Outcome, Result<Report, Failure>) {
        self.run(cut).0
    }

    pub fn count_bytes(&self) -> Counts {
        self.run(Cut::default()).1
    }

    /// Frames, without the hello.
    pub fn count_frames(&self) -> Counts {
        self.run(Cut::default()).2
    }

    fn run(&self, cut: Cut) -> ((Outcome, Result<Report, Failure>), Counts, Counts) {
        let (ours, theirs) = pair(cut);
        let count = |of: fn(&Faulty) -> &std::sync::Arc<std::sync::atomic::AtomicU64>| {
            [of(&ours).clone(), of(&theirs).clone()]
        };
        let (bytes, writes) = (count(|it| &it.bytes), count(|it| &it.writes));
        let source = FakeSource::new(self);
        let arrived = Mutex::new((Side::Nothing, None));
        let (monitor, cancel) = (Monitor::default(), Event::new().unwrap());
        let offer = Offer {
            dry_run: self.dry_run,
            ..offer()
        };
        let report = thread::scope(|scope| {
            scope.spawn(|| *arrived.lock().unwrap() = self.arrive(theirs));
            if let Some(after) = self.cancel_after {
                let cancel = cancel.clone();
                scope.spawn(move || {
                    thread::sleep(after);
                    cancel.raise();
                });
            }
            let wire = self.carrier.of_source(ours);
            let channel = wire.and_then(|wire| Channel::open(wire, PATIENCE));
            let channel = channel.map_err(|error| Failure::Kept(error.into()))?;
            let sender = Sender {
                channel,
                source: &source,
                plan: self.plan,
                monitor: &monitor,
                cancel: &cancel,
                longest_silence: self.longest_silence,
            };
            sender.send("there", &offer)
        });
        let (destination, memory) = arrived.into_inner().unwrap();
        let memory_is_right = memory.is_none_or(|it| it == contents(&source.memory));
        let outcome = Outcome {
            source: source.side(),
            destination,
            memory_is_right,
            was_paused: source.was_paused.load(Ordering::SeqCst),
            was_logged: source.was_logged.load(Ordering::SeqCst),
            is_logged: source.is_logged.load(Ordering::SeqCst),
        };
        // A side whose connection is cut at once may have written nothing.
        let load = |[to_destination, to_source]: &[std::sync::Arc<_>; 2], less| {
            let of = |count| std::sync::atomic::AtomicU64::load(count, Ordering::SeqCst);
            Counts {
                to_destination: of(to_destination).saturating_sub(less),
                to_source: of(to_source).saturating_sub(less),
            }
        };
        ((outcome, report), load(&bytes, 0), load(&writes, 1))
    }

    /// The destination: what it has in the end, and its memory.
    fn arrive(&self, wire: Faulty) -> (Side, Option<Vec<u8>>) {
        let wire = self.carrier.of_destination(wire);
        let Ok(mut channel) = wire.and_then(|wire| Channel::open(wire, PATIENCE)) else {
            return (Side::Nothing, None);
        };
        let visit = receive::receive(&mut channel, &mut FakeDestination(self));
        let Ok(Visit::Arrived(arrived)) = visit else {
            return (Side::Nothing, None);
        };
        assert_eq!(arrived.arrival.machine, machine());
        assert_eq!(arrived.time, TIME);
        let memory = Some(contents(&arrived.blank));
        thread::sleep(self.assembly_takes);
        if self.assemble_fails {
            receive::fail(&mut channel, &anyhow::anyhow!("no such register"));
            return (Side::Nothing, None);
        }
        let runs = arrived.arrival.runs;
        let taken = receive::take(&mut channel, || {
            if self.start_fails {
                bail!("no such clock");
            }
            Ok(runs.then(|| crate::api::fake::record("resume")))
        });
        match taken {
            Taken::Ours if runs => (Side::Runs, memory),
            Taken::Ours => (Side::Stopped, memory),
            Taken::InDoubt(_) => (Side::InDoubt, memory),
            Taken::Kept(_) | Taken::Failed(_) => (Side::Nothing, None),
        }
    }
}

/// What a destination that takes everything makes of a stream.
pub fn receive_quietly<W: Wire>(
    channel: &mut Channel<W>,
) -> Result<Visit<GuestMemoryMmap>, receive::ReceiveError> {
    receive::receive(channel, &mut FakeDestination(&World::default()))
}
