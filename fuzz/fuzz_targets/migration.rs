//! Any stream as a VM that arrives: refused, or exactly the memory, state and time that were sent,
//! by a model written down a second time. Frames have right headers, or are any bytes.
#![no_main]

mod stream;

use std::io::{self, Cursor, Read, Write};
use std::time::{Duration, Instant};

use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use pvtime_vmm::migration::frame::Channel;
use pvtime_vmm::migration::message::{Answer, Offer};
use pvtime_vmm::migration::receive::{Arrival, Destination, Visit, receive};
use pvtime_vmm::migration::wire::Wire;
use stream::{ARRIVAL, Forged, HELLO, MEMORY, OFFER, RAM};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// The most bytes that one frame is for.
const PIECE: u64 = 256 << 10;
const ROUNDS: u32 = 32;

#[derive(Arbitrary, Debug)]
enum Message {
    /// Of a VM with this many vCPUs; few are 1.
    Offer {
        vcpus: u8,
        dry_run: bool,
    },
    NextRound,
    Round(u32),
    /// Near the memory's ends, or inside.
    Memory {
        near: Near,
        bytes: Vec<u8>,
    },
    Zero {
        near: Near,
        length: Length,
    },
    Machine {
        runs: bool,
    },
    Time(Vec<u8>),
    Other {
        kind: u8,
        contents: Vec<u8>,
    },
    /// Not a frame.
    Raw(Vec<u8>),
    /// A frame whose header says another length.
    Lies {
        kind: u8,
        length: u32,
        contents: Vec<u8>,
    },
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
    stream: Forged,
    rounds: u32,
}

impl Forger {
    fn message(&mut self, message: &Message) {
        match message {
            Message::Offer { vcpus, dry_run } => {
                let mut offer = OFFER.clone();
                offer["vcpus"] = (*vcpus).into();
                offer["dry_run"] = (*dry_run).into();
                self.stream.frame(1, offer.to_string().as_bytes());
            }
            Message::NextRound => {
                let round = self.rounds;
                self.round(round);
            }
            Message::Round(round) => self.round(*round),
            Message::Memory { near, bytes } => {
                self.stream
                    .frame(4, &[&near.address().to_le_bytes(), &bytes[..]].concat());
            }
            Message::Zero { near, length } => {
                let words = [near.address().to_le_bytes(), length.bytes().to_le_bytes()];
                self.stream.frame(5, &words.concat());
            }
            Message::Machine { runs } => {
                let mut arrival = ARRIVAL.clone();
                arrival["runs"] = (*runs).into();
                let packed = rmp_serde::to_vec_named(&arrival).expect("it is JSON");
                self.stream.frame(6, &packed);
            }
            Message::Time(time) => self.stream.frame(7, time),
            Message::Other { kind, contents } => self.stream.frame((*kind).into(), contents),
            Message::Raw(bytes) => self.stream.bytes.extend(bytes),
            Message::Lies {
                kind,
                length,
                contents,
            } => self.stream.frame_with((*kind).into(), *length, contents),
        }
    }

    fn round(&mut self, round: u32) {
        self.rounds = round.wrapping_add(1);
        self.stream.frame(3, &round.to_le_bytes());
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
        stream: Forged::new(&HELLO),
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
    let mut channel = Channel::open(Script(Cursor::new(forger.stream.bytes)), Duration::ZERO)
        .expect("a right hello");
    let visit = receive(&mut channel, &mut Host);
    if !modelled {
        return;
    }
    match (visit, model) {
        (Ok(Visit::Arrived(arrived)), Model::Has(runs, memory, time)) => {
            let mut here = vec![0xa5; MEMORY];
            arrived
                .blank
                .read_slice(&mut here, GuestAddress(RAM))
                .unwrap();
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
