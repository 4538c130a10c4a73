//! Any answers of a destination, to a VM that is to move there: whose the VM is then, by a model
//! written down a second time, and nothing of what a destination says acts on a terminal or takes
//! more memory than it may.
#![no_main]

mod stream;

use std::alloc::{GlobalAlloc, Layout, System};
use std::io::{self, Cursor, Read, Write};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use pvtime_vmm::event::Event;
use pvtime_vmm::migration::WORK_PATIENCE;
use pvtime_vmm::migration::dirty::DirtyPages;
use pvtime_vmm::migration::frame::Channel;
use pvtime_vmm::migration::message::Offer;
use pvtime_vmm::migration::monitor::Monitor;
use pvtime_vmm::migration::pace::Plan;
use pvtime_vmm::migration::receive::Arrival;
use pvtime_vmm::migration::report::{Outcome, Report};
use pvtime_vmm::migration::send::{Failure, Reason, Sender, Source};
use pvtime_vmm::migration::wire::Wire;
use pvtime_vmm::state::MachineState;
use serde_json::{Value, json};
use stream::{ARRIVAL, Forged, HELLO, MEMORY, OFFER, RAM};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const PAGE: u64 = 4096;

/// The kind of the frame after which the VM may be somebody else's.
const COMMIT: u32 = 9;

/// Three messages of 1 MiB, each in a buffer that doubled, and what the longest of them is as a list
/// of empty strings; with what is sent meanwhile.
const MOST_BYTES: usize = 32 << 20;

/// The most bytes that three messages are, and what is read ahead.
const MOST_READ: u64 = 3 * ((1 << 20) + 24) + (64 << 10) + 16;

#[derive(Arbitrary, Debug)]
struct Input {
    hello: Option<[u8; 16]>,
    dry_run: bool,
    runs: bool,
    resume_fails: bool,
    /// Rounds in which the guest writes.
    writes: u8,
    messages: Vec<Message>,
}

#[derive(Arbitrary, Debug)]
enum Message {
    Answer {
        who: String,
        refusals: Vec<String>,
        /// How often each refusal comes.
        times: u32,
    },
    Ready,
    Started(Option<[String; 5]>),
    Failed(String),
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

impl Message {
    fn add_to(&self, stream: &mut Forged) {
        match self {
            Self::Answer { .. } => stream.frame(2, self.answer().to_string().as_bytes()),
            Self::Ready => stream.frame(8, &[]),
            Self::Started(words) => {
                let record = words.as_ref().map(record);
                let started = json!({ "record": record });
                stream.frame(10, started.to_string().as_bytes());
            }
            Self::Failed(why) => stream.frame(11, why.as_bytes()),
            Self::Other { kind, contents } => stream.frame((*kind).into(), contents),
            Self::Raw(bytes) => stream.bytes.extend(bytes),
            Self::Lies {
                kind,
                length,
                contents,
            } => stream.frame_with((*kind).into(), *length, contents),
        }
    }

    fn answer(&self) -> Value {
        /// More than the longest message has.
        const MOST: usize = 400_000;
        let Self::Answer {
            who,
            refusals,
            times,
        } = self
        else {
            return Value::Null;
        };
        let times = 1 + *times as usize % (MOST / refusals.len().max(1));
        let refusals: Vec<_> = refusals
            .iter()
            .cycle()
            .take(times * refusals.len())
            .collect();
        json!({ "who": who, "counter_frequency_hz": 25_000_000, "wall_error_ns": null,
                "refusals": refusals })
    }
}

fn record([event, cause, policy, source, distance]: &[String; 5]) -> Value {
    let reading = json!({ "host": 1, "guest": 1, "offset": 0, "frequency_hz": 25_000_000 });
    json!({
        "sequence": 1, "wall_ns": 1, "event": event, "cause": cause, "policy": policy,
        "gap": { "ns": 1, "ticks": 1, "error_ns": null, "source": source },
        "hidden_ns": 0, "shown_ticks": 1, "clamped": false, "before": reading, "after": reading,
        "live": { "pv_before": 1, "pv_after": 1, "distance": distance, "hold_ticks": 0 },
        "timers": null, "unanswered_ms": null, "unfinished_ms": null,
    })
}

/// What became of the VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// Nobody who moves VMs answered.
    NotAsked,
    /// It was asked for and no more.
    Asked(Outcome),
    Kept,
    Stuck,
    InDoubt,
    Moved,
}

/// What a right source has to make of it; `None` where the messages tell too little.
fn model(input: &Input) -> Option<Fate> {
    const LONGEST: usize = 1 << 20;
    let right = input.hello.is_none_or(|hello| hello[..12] == HELLO[..12]);
    if !right {
        return Some(Fate::NotAsked);
    }
    let kept = |ran: bool| match ran && input.resume_fails {
        true => Fate::Stuck,
        false => Fate::Kept,
    };
    let mut messages = input.messages.iter();
    match messages.next() {
        Some(answer @ Message::Answer { refusals, .. }) => {
            if answer.answer().to_string().len() > LONGEST {
                return Some(Fate::Kept);
            }
            match (refusals.is_empty(), input.dry_run) {
                (false, _) => return Some(Fate::Asked(Outcome::Refused)),
                (true, true) => return Some(Fate::Asked(Outcome::Accepted)),
                (true, false) => {}
            }
        }
        None | Some(Message::Ready | Message::Started(_) | Message::Failed(_)) => {
            return Some(Fate::Kept);
        }
        Some(_) => return None,
    }
    match messages.next() {
        Some(Message::Ready) => {}
        None | Some(Message::Answer { .. } | Message::Started(_) | Message::Failed(_)) => {
            return Some(kept(input.runs));
        }
        Some(_) => return None,
    }
    match messages.next() {
        Some(Message::Started(_)) => Some(Fate::Moved),
        // What is too long is no word of the destination.
        Some(Message::Failed(why)) if why.len() <= 4096 => Some(kept(input.runs)),
        None | Some(Message::Ready | Message::Answer { .. } | Message::Failed(_)) => {
            Some(Fate::InDoubt)
        }
        Some(_) => None,
    }
}

/// A destination that said all it has to say.
struct Script {
    says: Cursor<Vec<u8>>,
    heard: Vec<u8>,
    until: Option<Instant>,
}

impl Script {
    /// The kinds of what it heard.
    fn kinds(&self) -> Vec<u32> {
        let word = |at: usize| u32::from_le_bytes(self.heard[at..at + 4].try_into().unwrap());
        let (mut kinds, mut at) = (Vec::new(), HELLO.len());
        while at < self.heard.len() {
            kinds.push(word(at));
            at += 24 + word(at + 4) as usize;
        }
        kinds
    }
}

impl Read for &mut Script {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        assert!(self.until.is_some(), "it waits for ever");
        self.says.read(buffer)
    }
}

impl Write for &mut Script {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        assert!(self.until.is_some(), "it waits for ever");
        self.heard.extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Wire for &mut Script {
    fn set_deadline(&mut self, until: Instant) {
        assert!(until <= Instant::now() + WORK_PATIENCE, "it waits for long");
        self.until = Some(until);
    }

    fn ignore_cancel(&mut self) {}
}

/// A VM whose guest writes when it is asked what it wrote.
struct Vm<'a> {
    input: &'a Input,
    runs: AtomicBool,
    was_stopped: AtomicBool,
    is_logged: AtomicBool,
    was_logged: AtomicBool,
    rounds: AtomicUsize,
    given_away: AtomicBool,
    taken_back: AtomicBool,
    gone: AtomicBool,
}

impl<'a> Vm<'a> {
    fn new(input: &'a Input) -> Self {
        Self {
            input,
            runs: input.runs.into(),
            was_stopped: false.into(),
            is_logged: false.into(),
            was_logged: false.into(),
            rounds: 0.into(),
            given_away: false.into(),
            taken_back: false.into(),
            gone: false.into(),
        }
    }

    /// Exactly one owner, whatever the destination said.
    fn check(&self, fate: Fate, heard: &[u32]) {
        let is = |it: &AtomicBool| it.load(SeqCst);
        let commits = heard.iter().filter(|kind| **kind == COMMIT).count();
        assert_eq!(commits, usize::from(is(&self.given_away)), "{heard:?}");
        assert!(!is(&self.is_logged), "it logs still");
        let untouched = !is(&self.was_logged) && !is(&self.was_stopped);
        match fate {
            Fate::NotAsked | Fate::Asked(_) => assert!(untouched && !is(&self.given_away)),
            Fate::Kept => {
                assert_eq!(is(&self.given_away), is(&self.taken_back));
                assert_eq!(is(&self.runs), self.input.runs);
            }
            Fate::Stuck => {
                assert_eq!(is(&self.given_away), is(&self.taken_back));
                assert!(self.input.resume_fails && !is(&self.runs));
            }
            Fate::InDoubt | Fate::Moved => {
                assert!(is(&self.given_away) && !is(&self.taken_back) && !is(&self.runs));
            }
        }
        assert_eq!(is(&self.gone), fate == Fate::Moved);
    }
}

static GUEST: LazyLock<GuestMemoryMmap> = LazyLock::new(|| {
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(RAM), MEMORY)]).unwrap();
    for page in (0..MEMORY as u64 / PAGE).step_by(64) {
        memory
            .write_obj(1u8, GuestAddress(RAM + page * PAGE))
            .unwrap();
    }
    memory
});

static STATE: LazyLock<MachineState> = LazyLock::new(|| {
    let arrival: Arrival = serde_json::from_value(ARRIVAL.clone()).expect("it is one");
    arrival.machine
});

impl Source for Vm<'_> {
    fn memory(&self) -> &GuestMemoryMmap {
        &GUEST
    }

    fn log_dirty(&self, on: bool) -> Result<()> {
        self.is_logged.store(on, SeqCst);
        self.was_logged.fetch_or(on, SeqCst);
        Ok(())
    }

    fn dirty(&self) -> Result<DirtyPages> {
        assert!(self.is_logged.load(SeqCst));
        let round = self.rounds.fetch_add(1, SeqCst);
        let mut bits = vec![0; MEMORY / PAGE as usize / 64];
        bits[0] = u64::from(round < usize::from(self.input.writes));
        Ok(DirtyPages::new(RAM, PAGE, bits))
    }

    fn pause(&self) -> Result<bool> {
        self.was_stopped.store(true, SeqCst);
        Ok(self.runs.swap(false, SeqCst))
    }

    fn state(&self) -> Result<(MachineState, Vec<u8>)> {
        assert!(!self.runs.load(SeqCst), "it runs");
        Ok((STATE.clone(), vec![1; 8]))
    }

    fn resume(&self) -> Result<()> {
        if self.input.resume_fails {
            bail!("its time cannot be set");
        }
        let away = self.given_away.load(SeqCst) && !self.taken_back.load(SeqCst);
        assert!(!away, "it runs where it may be another's");
        assert!(!self.runs.swap(true, SeqCst), "it runs already");
        Ok(())
    }

    fn give_away(&self) {
        assert!(!self.runs.load(SeqCst), "it runs and is given away");
        assert!(!self.given_away.swap(true, SeqCst), "it was given away");
    }

    fn take_back(&self) {
        assert!(self.given_away.load(SeqCst));
        assert!(!self.taken_back.swap(true, SeqCst));
    }

    fn gone(&self) {
        self.gone.store(true, SeqCst);
    }
}

/// Bytes that are allocated, and the most of them.
struct Counted {
    now: AtomicUsize,
    most: AtomicUsize,
}

#[global_allocator]
static ALLOCATED: Counted = Counted {
    now: AtomicUsize::new(0),
    most: AtomicUsize::new(0),
};

// SAFETY: all is left to the system's allocator, with what it gave and wants.
unsafe impl GlobalAlloc for Counted {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = self.now.fetch_add(layout.size(), SeqCst) + layout.size();
        self.most.fetch_max(now, SeqCst);
        // SAFETY: the caller's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        self.now.fetch_sub(layout.size(), SeqCst);
        // SAFETY: the caller's.
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// Nothing acts on a terminal or begins a line, and nothing is long.
fn check_text(text: &str) {
    const MOST: usize = 5000;
    assert!(!text.chars().any(char::is_control), "{text:?}");
    assert!(text.chars().count() <= MOST, "{} bytes", text.len());
}

fn check_texts(value: &Value) {
    match value {
        Value::String(text) => check_text(text),
        Value::Array(values) => values.iter().for_each(check_texts),
        Value::Object(values) => values.values().for_each(check_texts),
        _ => {}
    }
}

fn fate(sent: &Result<Report, Failure>) -> Fate {
    match sent {
        Ok(report) => {
            check_texts(&serde_json::to_value(report).expect("numbers and strings"));
            match report.outcome {
                Outcome::Moved => Fate::Moved,
                asked => Fate::Asked(asked),
            }
        }
        Err(failure) => {
            check_text(&failure.to_string());
            match failure {
                Failure::Kept(Reason::Here(error)) => panic!("nothing fails here: {error:?}"),
                Failure::Kept(_) => Fate::Kept,
                Failure::Stuck { .. } => Fate::Stuck,
                Failure::InDoubt(_) => Fate::InDoubt,
            }
        }
    }
}

/// Moves the VM.
fn send(vm: &Vm<'_>, offer: &Offer, script: &mut Script) -> Fate {
    let Ok(channel) = Channel::open(script, Duration::ZERO) else {
        return Fate::NotAsked;
    };
    let plan = Plan {
        bytes_per_s: None,
        downtime: Duration::ZERO,
        stop_limit: Duration::from_secs(3600),
    };
    let (monitor, cancel) = (Monitor::default(), Event::new().expect("an event"));
    let sender = Sender {
        channel,
        source: vm,
        plan,
        monitor: &monitor,
        cancel: &cancel,
        longest_silence: Duration::from_secs(60),
    };
    fate(&sender.send("there", offer))
}

fuzz_target!(|input: Input| {
    let mut offer: Offer = serde_json::from_value(OFFER.clone()).expect("it is one");
    offer.dry_run = input.dry_run;
    let mut says = Forged::new(&input.hello.unwrap_or(HELLO));
    for message in &input.messages {
        message.add_to(&mut says);
    }
    let mut script = Script {
        says: Cursor::new(says.bytes),
        heard: Vec::with_capacity(2 * MEMORY),
        until: None,
    };
    let vm = Vm::new(&input);
    let (_guest, _state) = (&*GUEST, &*STATE);
    let before = ALLOCATED.now.load(SeqCst);
    ALLOCATED.most.store(before, SeqCst);
    let fate = send(&vm, &offer, &mut script);
    let took = ALLOCATED.most.load(SeqCst) - before;
    assert!(took <= MOST_BYTES, "{took} bytes were allocated");
    let read = script.says.position();
    assert!(read <= MOST_READ, "{read} bytes were read");
    vm.check(fate, &script.kinds());
    if let Some(expected) = model(&input) {
        assert_eq!(fate, expected, "of {input:?}");
    }
});
