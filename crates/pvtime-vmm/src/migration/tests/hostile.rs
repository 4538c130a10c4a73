//! Peers that do not keep to the protocol: refused in bounded time and memory.

use std::hash::Hasher;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use twox_hash::XxHash3_64;

use super::sides::{self, MEMORY_BYTES, offer};
use crate::layout::RAM;
use crate::migration::frame::{Channel, Kind, Limits, MEMORY_BYTES as FRAME_BYTES, StreamError};
use crate::migration::receive::{Arrival, ReceiveError};
use crate::migration::wire::Connection;

const PATIENCE: Duration = Duration::from_secs(5);

/// What a destination says to a peer that sends these bytes and hangs up.
fn said_to(bytes: &[u8]) -> String {
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let bytes = bytes.to_vec();
    thread::scope(|scope| {
        scope.spawn(move || {
            let _ = ours.write_all(&bytes);
            let _ = ours.shutdown(std::net::Shutdown::Write);
            let _ = ours.read_to_end(&mut Vec::new());
        });
        let mut channel = match Channel::open(Connection::from(theirs), PATIENCE) {
            Ok(channel) => channel,
            Err(error) => return error.to_string(),
        };
        match sides::receive_quietly(&mut channel) {
            Ok(visit) => panic!("{visit:?}"),
            Err(error) => error.to_string(),
        }
    })
}

const HELLO: [u8; 16] = *b"PVTIMEMV\x02\0\0\0\0\0\0\0";

/// A stream that is right in all but what it says.
#[derive(Default)]
struct Forged {
    bytes: Vec<u8>,
    number: u64,
    checksum: u64,
}

impl Forged {
    fn new() -> Self {
        Self {
            bytes: HELLO.to_vec(),
            ..Self::default()
        }
    }

    fn accepted() -> Self {
        Self::new().json(Kind::Offer, &offer())
    }

    fn json(self, kind: Kind, value: &impl serde::Serialize) -> Self {
        self.frame(kind, &serde_json::to_vec(value).unwrap())
    }

    fn packed(self, kind: Kind, value: &impl serde::Serialize) -> Self {
        self.frame(kind, &rmp_serde::to_vec_named(value).unwrap())
    }

    fn frame(self, kind: Kind, contents: &[u8]) -> Self {
        let length = u32::try_from(contents.len()).unwrap();
        self.raw(kind as u32, length, contents)
    }

    fn raw(mut self, kind: u32, length: u32, contents: &[u8]) -> Self {
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
        self
    }

    fn round(self, round: u32) -> Self {
        self.frame(Kind::Round, &round.to_le_bytes())
    }

    fn memory(self, address: u64, bytes: &[u8]) -> Self {
        let contents = [&address.to_le_bytes(), bytes].concat();
        self.frame(Kind::Memory, &contents)
    }

    fn zero(self, address: u64, length: u64) -> Self {
        let contents = [address.to_le_bytes(), length.to_le_bytes()].concat();
        self.frame(Kind::Zero, &contents)
    }

    #[track_caller]
    fn refused(self, expected: &str) {
        let said = said_to(&self.bytes);
        assert!(said.contains(expected), "{said}");
    }
}

#[test]
fn who_is_no_pvtime_is_refused_at_once() {
    for bytes in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"PVTIMEMW", b"SSH-2.0-x"] {
        assert!(said_to(bytes).contains("check the address"));
    }
    for bytes in [&b""[..], b"PVTIME", &HELLO[..15]] {
        assert_eq!(said_to(bytes), "the connection ended");
    }
}

#[test]
fn another_version_is_refused_with_both_numbers() {
    let mut hello = HELLO;
    for version in [0u32, 1, 3, u32::MAX] {
        hello[8..12].copy_from_slice(&version.to_le_bytes());
        let said = said_to(&hello);
        let expected = format!("speaks version {version} of the stream and this one 2");
        assert!(said.contains(&expected), "{said}");
    }
}

#[test]
fn lengths_that_lie_cost_nothing() {
    for kind in [Kind::Offer as u32, Kind::Memory as u32, Kind::Time as u32] {
        let forged = Forged::new().raw(kind, u32::MAX, b"");
        forged.refused("says that it has 4294967295 bytes");
    }
    // As long as may be, and not there.
    Forged::new()
        .raw(Kind::Offer as u32, 1 << 20, b"{")
        .refused("the connection ended");
    Forged::accepted()
        .round(0)
        .frame(Kind::Memory, &vec![0; FRAME_BYTES + 9])
        .refused("has at most");
    Forged::accepted()
        .round(0)
        .frame(Kind::Memory, &[0; 7])
        .refused("it has 7 bytes");
    Forged::accepted()
        .round(0)
        .frame(Kind::Zero, &[0; 12])
        .refused("4 bytes for a length");
}

#[test]
fn memory_outside_the_map_is_refused() {
    let end = RAM + MEMORY_BYTES;
    for address in [0, RAM - 1, end, end - 4095, u64::MAX, u64::MAX - 4095] {
        Forged::accepted()
            .round(0)
            .memory(address, &[1; 4096])
            .refused("which is no memory of the VM");
    }
    Forged::accepted()
        .round(0)
        .memory(end, &[])
        .refused("it is for 0 bytes");
    for (address, length) in [
        (RAM, 0),
        (RAM - 1, 1),
        (end, 1),
        (RAM, MEMORY_BYTES + 1),
        (RAM, u64::MAX),
        (u64::MAX, u64::MAX),
        // Within, and more than a frame is for.
        (RAM, MEMORY_BYTES),
    ] {
        Forged::accepted()
            .round(0)
            .zero(address, length)
            .refused("which is no memory of the VM");
    }
}

#[test]
fn what_does_not_belong_there_is_refused() {
    let order = "out of its order";
    Forged::new().frame(Kind::Commit, b"").refused(order);
    Forged::accepted().frame(Kind::Commit, b"").refused(order);
    Forged::accepted().memory(RAM, &[1]).refused(order);
    Forged::accepted().round(1).refused(order);
    Forged::accepted().round(0).round(0).refused(order);
    let arrival = Arrival {
        runs: true,
        machine: sides::machine(),
    };
    Forged::accepted()
        .packed(Kind::Machine, &arrival)
        .refused(order);
    Forged::accepted()
        .round(0)
        .packed(Kind::Machine, &arrival)
        .packed(Kind::Machine, &arrival)
        .refused(order);
    let mut rounds = Forged::accepted();
    for round in 0..=crate::migration::MAX_ROUNDS {
        rounds = rounds.round(round);
    }
    rounds.refused(order);
    Forged::new().raw(0, 0, b"").refused("unknown kind 0");
    Forged::new().raw(13, 0, b"").refused("unknown kind 13");
}

#[test]
fn a_frame_that_came_twice_or_not_is_noticed() {
    let mut twice = Forged::accepted();
    twice.number = 0;
    twice.round(0).refused("frame 1 was expected and 0 came");
    let mut missing = Forged::accepted();
    missing.number = 2;
    missing.round(0).refused("frame 1 was expected and 2 came");
    let mut other = Forged::accepted();
    other.checksum ^= 1;
    other.round(0).refused("checksum of frame 1");
}

#[test]
fn what_makes_no_sense_is_refused() {
    Forged::new()
        .frame(Kind::Offer, b"{}")
        .refused("missing field");
    let mut more = serde_json::to_value(offer()).unwrap();
    more["more"] = 1.into();
    Forged::new()
        .json(Kind::Offer, &more)
        .refused("unknown field");
    let mut none = offer();
    none.vcpus = 0;
    Forged::new()
        .json(Kind::Offer, &none)
        .refused("1 to 512 vCPUs, not 0");
    for (field, value, expected) in [
        ("id", "a b\n", "letters, digits and hyphens"),
        ("id", "", "letters, digits and hyphens"),
        (
            "architecture",
            "\u{1b}]0;x\u{7}",
            "an architecture is a word",
        ),
        ("architecture", &"a".repeat(33), "an architecture is a word"),
        ("who", &"a".repeat(1001), "at most 1000 bytes"),
    ] {
        let mut odd = serde_json::to_value(offer()).unwrap();
        odd[field] = value.into();
        Forged::new().json(Kind::Offer, &odd).refused(expected);
    }
    for (field, ms, expected) in [
        ("stolen_time_period", 0, "is 1 to 10000 ms, not 0"),
        ("stolen_time_period", 10_001, "is 1 to 10000 ms, not 10001"),
        ("suspend_limit", 99, "is 100 to 600000 ms, not 99"),
        ("sleep_limit", 999, "is 1000 to 86400000 ms, not 999"),
    ] {
        let mut odd = serde_json::to_value(offer()).unwrap();
        odd["time"][field] = ms.into();
        Forged::new().json(Kind::Offer, &odd).refused(expected);
    }
    let mut arrival = Arrival {
        runs: true,
        machine: sides::machine(),
    };
    arrival.machine.vcpus.clear();
    Forged::accepted()
        .round(0)
        .packed(Kind::Machine, &arrival)
        .frame(Kind::Time, b"")
        .refused("it has 0 vCPUs");
}

#[test]
fn the_name_of_a_field_forges_no_line() {
    let mut more = serde_json::to_value(offer()).unwrap();
    more[format!("x\npvtime: \u{9b}31m{}", "y".repeat(100_000))] = 1.into();
    let said = said_to(&Forged::new().json(Kind::Offer, &more).bytes);
    assert!(said.contains("unknown field `x pvtime:  31my"), "{said}");
    assert!(!said.contains(char::is_control), "{said:?}");
    assert!(said.len() < 2000, "{} bytes", said.len());
}

#[test]
fn a_source_that_calls_it_off_is_heard() {
    Forged::accepted()
        .round(0)
        .frame(Kind::Abort, b"called\x1boff")
        .refused("the source keeps the VM: called off");
}

#[test]
fn a_peer_that_stalls_is_left() {
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    ours.write_all(&HELLO).unwrap();
    // A byte now and then does not make a frame.
    let drip = thread::spawn(move || {
        for _ in 0..100 {
            thread::sleep(Duration::from_millis(20));
            if ours.write_all(b"\x01").is_err() {
                break;
            }
        }
    });
    let start = Instant::now();
    let mut channel = Channel::open(Connection::from(theirs), PATIENCE).unwrap();
    let limit = Duration::from_millis(200);
    let error = channel.receive(Limits::new(0), limit).unwrap_err();
    assert!(matches!(error, StreamError::TimedOut), "{error}");
    assert!(start.elapsed() < Duration::from_secs(2));
    drop(channel);
    drip.join().unwrap();
}

#[test]
fn errors_say_who_has_the_vm() {
    let error = ReceiveError::from(StreamError::Ended);
    assert_eq!(error.to_string(), "the connection ended");
    for kind in super::HANDOVER {
        let error = StreamError::OutOfOrder { kind }.to_string();
        assert!(error.starts_with(&format!("a {kind:?} came")), "{error}");
    }
}
