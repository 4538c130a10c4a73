//! What a peer may send that is no VM.

use super::stream::{Forged, HELLO_BYTES, MACHINE, MEMORY, OFFER, ROUND, Stream, TIME, ZERO};
use anyhow::Result;

/// Bytes that a peer sends, and what is said of it then.
pub struct Attack {
    pub name: String,
    pub bytes: Vec<u8>,
    /// Words of the line.
    pub says: &'static str,
}

/// No frame begins with it.
const GARBAGE: [u8; 64] = [0xa5; 64];

/// Bytes of a frame of memory that come one by one: for five times as long as it is waited for.
const MEMORY_DRIPS: usize = 100;

/// Messages of which every one is followed by nonsense.
const MESSAGES: [(&str, u32); 4] = [
    ("offer", OFFER),
    ("round", ROUND),
    ("memory", MEMORY),
    ("machine", MACHINE),
];

/// Kinds whose length lies, and the last message before them.
const LIES: [(&str, u32, Option<u32>); 5] = [
    ("offer", OFFER, None),
    ("round", ROUND, Some(OFFER)),
    ("memory", MEMORY, Some(ROUND)),
    ("machine", MACHINE, Some(MEMORY)),
    ("time", TIME, Some(MACHINE)),
];

/// All that is refused as soon as it is heard.
pub fn attacks(stream: &Stream) -> Result<Vec<Attack>> {
    let mut attacks = hellos(stream);
    offers(stream, &mut attacks)?;
    lengths(stream, &mut attacks)?;
    places(stream, &mut attacks)?;
    for (name, kind) in MESSAGES {
        let through = stream.through(kind)?;
        let mut add = |what: &str, forged: Forged, says| {
            attacks.push(Attack {
                name: format!("{what} {name}"),
                bytes: forged.bytes,
                says,
            });
        };
        let damaged = through.clone().damaged();
        add(
            "garbage after the",
            through.clone().raw(&GARBAGE),
            "was expected and",
        );
        add("damage in the", damaged, "the checksum of frame");
        add("the end within the", through.cut(1), "the connection ended");
    }
    Ok(attacks)
}

fn hellos(stream: &Stream) -> Vec<Attack> {
    let with = |at: usize, byte: u8| {
        let mut hello = stream.hello.clone();
        hello[at] = byte;
        hello
    };
    let attack = |name: &str, bytes: Vec<u8>, says| Attack {
        name: name.into(),
        bytes,
        says,
    };
    let request = b"GET / HTTP/1.1\r\n\r\n".to_vec();
    vec![
        attack("nothing", Vec::new(), "the connection ended"),
        attack("another protocol", request, "no pvtime that moves VMs"),
        attack("wrong magic", with(7, b'W'), "no pvtime that moves VMs"),
        attack("a newer version", with(8, 3), "speaks version 3"),
        attack("an older version", with(8, 1), "speaks version 1"),
    ]
}

/// Offers of what no command line would take, and of what a terminal or a log would.
fn offers(stream: &Stream, attacks: &mut Vec<Attack>) -> Result<()> {
    let honest = stream.offer()?;
    let mut add = |name: &str, change: fn(&mut serde_json::Value), says| {
        let mut offer = honest.clone();
        change(&mut offer);
        let contents = offer.to_string();
        attacks.push(Attack {
            name: name.into(),
            bytes: Forged::new(&stream.hello)
                .frame(OFFER, contents.as_bytes())
                .bytes,
            says,
        });
    };
    add(
        "a line in a field's name",
        |offer| offer["x\npvtime: \u{1b}[2Jy"] = 1.into(),
        "unknown field `x pvtime:  [2Jy`",
    );
    add(
        "an architecture that acts on a terminal",
        |offer| offer["architecture"] = "\u{1b}]0;x\u{7}\n".into(),
        "an architecture is a word",
    );
    add(
        "a name that is none",
        |offer| offer["id"] = "a\nb".into(),
        "letters, digits and hyphens",
    );
    add(
        "stolen time without end",
        |offer| offer["time"]["stolen_time_period"] = 0.into(),
        "is 1 to 10000 ms, not 0",
    );
    Ok(())
}

/// Lengths that lie.
fn lengths(stream: &Stream, attacks: &mut Vec<Attack>) -> Result<()> {
    for (name, kind, after) in LIES {
        let before = match after {
            Some(kind) => stream.through(kind)?,
            None => Forged::new(&stream.hello),
        };
        attacks.push(Attack {
            name: format!("4 GiB for the {name}"),
            bytes: before.lie(kind, u32::MAX, &[]).bytes,
            says: "says that it has 4294967295 bytes",
        });
    }
    // As long as it may be, and not there.
    let allowed = Forged::new(&stream.hello).lie(OFFER, 1 << 20, b"{");
    attacks.push(Attack {
        name: "an offer that is not there".into(),
        bytes: allowed.bytes,
        says: "the connection ended",
    });
    Ok(())
}

/// Memory that the VM does not have.
fn places(stream: &Stream, attacks: &mut Vec<Attack>) -> Result<()> {
    let (start, end) = stream.memory()?;
    let before = stream.through(ROUND)?;
    let page = [0x5a; 4096];
    for address in [0, start - 4096, start - 1, end - 4095, end, u64::MAX - 4095] {
        attacks.push(Attack {
            name: format!("memory at {address:#x}"),
            bytes: before.clone().at(MEMORY, address, &page).bytes,
            says: "which is no memory of the VM",
        });
    }
    for (address, length) in [(start, end - start + 1), (end - 1, 2), (start, u64::MAX)] {
        let zeros = before.clone().at(ZERO, address, &length.to_le_bytes());
        attacks.push(Attack {
            name: format!("{length} zeros at {address:#x}"),
            bytes: zeros.bytes,
            says: "which is no memory of the VM",
        });
    }
    Ok(())
}

/// The beginning of a stream that does not go on as it should.
pub struct Stall {
    pub attack: Attack,
    /// What it says of the rest, a byte now and then; of one that says nothing more, nothing.
    pub rest: Vec<u8>,
}

/// The beginnings of a stream after which nothing more comes, or next to nothing.
pub fn stalls(stream: &Stream) -> Result<Vec<Stall>> {
    let stall = |name: &str, mut bytes: Vec<u8>, drips: usize| Stall {
        rest: bytes.split_off(bytes.len().saturating_sub(drips)),
        attack: Attack {
            name: name.into(),
            bytes,
            says: "the other side did nothing for too long",
        },
    };
    let (hello, offer) = (stream.hello.clone(), stream.through(OFFER)?);
    let memory = stream.through(MEMORY)?;
    let begun = memory.clone().raw(&[4, 0, 0, 0, 1]).bytes;
    Ok(vec![
        stall("before its hello", Vec::new(), 0),
        stall("in its hello", hello[..8].to_vec(), 0),
        stall("before its offer", hello.clone(), 0),
        stall("in its offer", offer.clone().cut(1).bytes, 0),
        stall("after its offer", offer.bytes, 0),
        stall("after a round's number", stream.through(ROUND)?.bytes, 0),
        stall("in memory", memory.clone().cut(100).bytes, 0),
        stall("in a header", begun, 0),
        stall("before its time", stream.through(MACHINE)?.bytes, 0),
        stall("a drip in its hello", hello, HELLO_BYTES),
        stall("a drip in memory", memory.bytes, MEMORY_DRIPS),
    ])
}
