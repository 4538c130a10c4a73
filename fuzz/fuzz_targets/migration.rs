//! Any stream as a VM that arrives: refused, or exactly the memory, state and time that were sent,
//! by a model written down a second time. Frames have right headers, or are any bytes.
#![no_main]

use std::hash::Hasher;
use std::io::{self, Cursor, Read, Write};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use pvtime_vmm::migration::frame::Channel;
use pvtime_vmm::migration::message::{Answer, Offer};
use pvtime_vmm::migration::receive::{Arrival, Destination, Visit, receive};
use pvtime_vmm::migration::wire::Wire;
use serde_json::{Value, json};
use twox_hash::XxHash3_64;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const RAM: u64 = 0x4000_0000;
const MEMORY: usize = 1 << 20;
/// The most bytes that one frame is for.
const PIECE: u64 = 256 << 10;
const ROUNDS: u32 = 32;

#[derive(Arbitrary, Debug)]
enum Message {
    /// Of a VM with this many vCPUs; few are 1.
    Offer { vcpus: u8, dry_run: bool },
    NextRound,
    Round(u32),
    /// Near the memory's ends, or inside.
    Memory { near: Near, bytes: Vec<u8> },
    Zero { near: Near, length: Length },
    Machine { runs: bool },
    Time(Vec<u8>),
    Other { kind: u8, contents: Vec<u8> },
    /// Not a frame.
    Raw(Vec<u8>),
    /// A frame whose header says another length.
    Lies { kind: u8, length: u32, contents: Vec<u8> },
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Near {
    Start(i16),
    End(i16),
    Inside(u32),
    Anywhere(u64),
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Length {
    Short(u16),
    AtMost(i8),
    Any(u64),
}

impl Near {
    fn address(self) -> u64 {
        match self {
            Self::Start(offset) => RAM.wrapping_add_signed(offset.into()),
            Self::End(offset) => (RAM + MEMORY as u64).wrapping_add_signed(offset.into()),
            Self::Inside(offset) => RAM + u64::from(offset) % MEMORY as u64,
            Self::Anywhere(address) => address,
        }
    }
}

impl Length {
    fn bytes(self) -> u64 {
        match self {
            Self::Short(bytes) => bytes.into(),
            Self::AtMost(more) => PIECE.wrapping_add_signed(more.into()),
            Self::Any(bytes) => bytes,
        }
    }
}

static OFFER: LazyLock<Value> = LazyLock::new(|| {
    json!({
        "who": "fuzz", "id": "fuzz", "dry_run": false, "architecture": "aarch64",
        "counter_frequency_hz": 25_000_000, "wall_error_ns": null, "counter_offset": true,
        "live": null,
        "time": { "stolen_time": "on", "stolen_time_period": 100, "on_pause": "freeze",
                  "on_restore": "freeze", "on_migrate": "freeze", "on_suspend": "freeze",
                  "on_stall": "report", "watch_host": "off" },
        "memory": [{ "start": RAM, "bytes": MEMORY }],
        "vcpus": 1,
        "cpu": { "features": [4, 0, 0, 0, 0, 0, 0], "identity": [], "others": [] }
    })
});

static ARRIVAL: LazyLock<Value> = LazyLock::new(|| {
    let interrupts = json!({ "groups": [], "priorities": [], "configurations": [], "enabled": [],
        "lines": [], "latched": [], "active": [] });
    let port = json!({ "baud_divisor_low": 0, "baud_divisor_high": 0, "interrupt_enable": 0,
        "interrupt_identification": 1, "line_control": 3, "line_status": 96, "modem_control": 8,
        "modem_status": 176, "scratch": 0, "in_buffer": [] });
    json!({
        "runs": true,
        "machine": {
            "vcpus": [{ "features": [4, 0, 0, 0, 0, 0, 0], "mp_state": 0, "serror": null,
                        "registers": [] }],
            "gic": { "interrupts": 64, "implementation": 0, "control": 0, "routes": [],
                "shared": interrupts, "cpus": [{ "affinity": 0, "private": interrupts,
                    "interface": { "sre": 7, "ctlr": 0, "pmr": 0, "bpr0": 0, "bpr1": 0,
                        "ap0r": [], "ap1r": [], "igrpen0": 0, "igrpen1": 0 } }] },
            "devices": { "console": port, "serial": port,
                "rtc": { "lr": 0, "offset": 0, "mr": 0, "imsc": 0, "ris": 0 } }
        }
    })
});

/// What a right destination has to make of the messages so far.
enum Model {
    WaitsForOffer,
    /// Rounds that began, and memory.
    Receives(u32, Vec<u8>),
    HasMachine(bool, Vec<u8>),
    Has(bool, Vec<u8>, Vec<u8>),
    Asked,
    Refused,
}

impl Model {
    fn step(self, message: &Message) -> Self {
        match (self, message) {
            (Self::WaitsForOffer, Message::Offer { vcpus: 1, dry_run }) => match dry_run {
                true => Self::Asked,
                false => Self::Receives(0, vec![0; MEMORY]),
            },
            (Self::Receives(rounds, memory), Message::NextRound) if rounds < ROUNDS => {
                Self::Receives(rounds + 1, memory)
            }
            (Self::Receives(rounds, memory), Message::Round(round))
                if rounds < ROUNDS && rounds == *round =>
            {
                Self::Receives(rounds + 1, memory)
            }
            (Self::Receives(rounds @ 1.., mut memory), Message::Memory { near, bytes }) => {
                match place(near.address(), bytes.len() as u64) {
                    Some(place) => memory[place].copy_from_slice(bytes),
                    None => return Self::Refused,
                }
                Self::Receives(rounds, memory)
            }
            (Self::Receives(rounds @ 1.., mut memory), Message::Zero { near, length }) => {
                match place(near.address(), length.bytes()) {
                    Some(place) => memory[place].fill(0),
                    None => return Self::Refused,
                }
                Self::Receives(rounds, memory)
            }
            (Self::Receives(1.., memory), Message::Machine { runs }) => {
                Self::HasMachine(*runs, memory)
            }
            (Self::HasMachine(runs, memory), Message::Time(time)) => {
                Self::Has(runs, memory, time.clone())
            }
            // Nobody listens any more.
            (done @ (Self::Has(..) | Self::Asked), _) => done,
            _ => Self::Refused,
        }
    }
}

fn place(address: u64, bytes: u64) -> Option<core::ops::Range<usize>> {
    let start = usize::try_from(address.checked_sub(RAM)?).ok()?;
    let end = start.checked_add(usize::try_from(bytes).ok()?)?;
    (end <= MEMORY && (1..=PIECE).contains(&bytes)).then_some(start..end)
}

/// A stream with right headers.
struct Forger {
    bytes: Vec<u8>,
    number: u64,
    checksum: u64,
    rounds: u32,
}

impl Forger {
    fn message(&mut self, message: &Message) {
        match message {
            Message::Offer { vcpus, dry_run } => {
                let mut offer = OFFER.clone();
                offer["vcpus"] = (*vcpus).into();
                offer["dry_run"] = (*dry_run).into();
                self.frame(1, offer.to_string().as_bytes());
            }
            Message::NextRound => {
                let round = self.rounds;
                self.round(round);
            }
            Message::Round(round) => self.round(*round),
            Message::Memory { near, bytes } => {
                self.frame(4, &[&near.address().to_le_bytes(), &bytes[..]].concat());
            }
            Message::Zero { near, length } => {
                let words = [near.address().to_le_bytes(), length.bytes().to_le_bytes()];
                self.frame(5, &words.concat());
            }
            Message::Machine { runs } => {
                let mut arrival = ARRIVAL.clone();
                arrival["runs"] = (*runs).into();
                let packed = rmp_serde::to_vec_named(&arrival).expect("it is JSON");
                self.frame(6, &packed);
            }
            Message::Time(time) => self.frame(7, time),
            Message::Other { kind, contents } => self.frame((*kind).into(), contents),
            Message::Raw(bytes) => self.bytes.extend(bytes),
            Message::Lies {
                kind,
                length,
                contents,
            } => self.frame_with((*kind).into(), *length, contents),
        }
    }

    fn round(&mut self, round: u32) {
        self.rounds = round.wrapping_add(1);
        self.frame(3, &round.to_le_bytes());
    }

    fn frame(&mut self, kind: u32, contents: &[u8]) {
        self.frame_with(kind, contents.len() as u32, contents);
    }

    fn frame_with(&mut self, kind: u32, length: u32, contents: &[u8]) {
        let mut header = Vec::new();
        header.extend(kind.to_le_bytes());
        header.extend(length.to_le_bytes());
        header.extend(self.number.to_le_bytes());
        let mut hash = XxHash3_64::with_seed(self.checksum);
        hash.write(&header);
        hash.write(contents);
        self.checksum = hash.finish();
        self.number += 1;
        self.bytes.extend(header);
        self.bytes.extend(self.checksum.to_le_bytes());
        self.bytes.extend(contents);
    }
}

/// A source that said all it has to say.
struct Script(Cursor<Vec<u8>>);

impl Read for Script {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl Write for Script {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Wire for Script {
    fn set_deadline(&mut self, _: Instant) {}
    fn ignore_cancel(&mut self) {}
}

/// A host that takes everything.
struct Host;

impl Destination for Host {
    type Blank = GuestMemoryMmap;

    fn answer(&mut self, offer: &Offer) -> Answer {
        assert_eq!(offer.check(), Ok(()));
        Answer {
            who: "fuzz".into(),
            counter_frequency_hz: offer.counter_frequency_hz,
            wall_error_ns: None,
            // An offer that was not modelled is of no interest.
            refusals: match offer.vcpus {
                1 => Vec::new(),
                _ => vec!["too many".into()],
            },
        }
    }

    fn prepare(&mut self, offer: &Offer) -> anyhow::Result<GuestMemoryMmap> {
        let bytes = usize::try_from(offer.memory_bytes())?;
        Ok(GuestMemoryMmap::from_ranges(&[(GuestAddress(RAM), bytes)])?)
    }

    fn memory(blank: &GuestMemoryMmap) -> &GuestMemoryMmap {
        blank
    }
}

fuzz_target!(|messages: Vec<Message>| {
    let mut forger = Forger {
        bytes: b"PVTIMEMV\x01\0\0\0\0\0\0\0".to_vec(),
        number: 0,
        checksum: 0,
        rounds: 0,
    };
    let mut model = Model::WaitsForOffer;
    let mut modelled = true;
    for message in &messages {
        // The model knows what these are only where they are certainly wrong.
        modelled &= match message {
            Message::Raw(bytes) => bytes.is_empty(),
            Message::Other { .. } | Message::Lies { .. } => false,
            Message::Offer { vcpus, .. } => *vcpus <= 1,
            _ => true,
        };
        forger.message(message);
        if !matches!(message, Message::Raw(_)) {
            model = model.step(message);
        }
    }
    let mut channel =
        Channel::open(Script(Cursor::new(forger.bytes)), Duration::ZERO).expect("a right hello");
    let visit = receive(&mut channel, &mut Host);
    if !modelled {
        return;
    }
    match (visit, model) {
        (Ok(Visit::Arrived(arrived)), Model::Has(runs, memory, time)) => {
            let mut here = vec![0xa5; MEMORY];
            arrived.blank.read_slice(&mut here, GuestAddress(RAM)).unwrap();
            assert!(here == memory, "the memory is not what was sent");
            assert_eq!(arrived.time, time);
            let Arrival { runs: here, .. } = arrived.arrival;
            assert_eq!(here, runs);
        }
        (Ok(Visit::Asked { refusals, .. }), Model::Asked) => assert!(refusals.is_empty()),
        (
            Err(_),
            Model::Refused | Model::WaitsForOffer | Model::Receives(..) | Model::HasMachine(..),
        ) => {}
        (visit, _) => panic!("it made {visit:?} of {messages:?}"),
    }
});
