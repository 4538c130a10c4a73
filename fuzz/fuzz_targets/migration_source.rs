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
use libfuzzer_sys::arbitrary::{self, Arbitrary, Unstructured};
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
use stream::{ARRIVAL, Forged, HELLO, OFFER, RAM};
use vm_memory::{Bytes as _, GuestAddress, GuestMemoryMmap};

const PAGE: u64 = 4096;

/// Four pages: of what is sent, the order is what matters here.
const MEMORY: usize = 4 * PAGE as usize;

/// The longest message that is JSON.
const LONGEST: usize = 1 << 20;

/// The kind of the frame after which the VM may be somebody else's.
const COMMIT: u32 = 9;

/// Three messages of 1 MiB, each in a buffer that doubled, and what the longest of them is as a list
/// of empty strings; with what is sent meanwhile.
const MOST_BYTES: usize = 32 << 20;

/// The most bytes that three messages are, and what is read ahead.
const MOST_READ: u64 = 3 * ((1 << 20) + 24) + (64 << 10) + 16;

/// What is asked of a source, and what it hears. Bytes that are 0 or absent make a move as it should
/// be, and most others do not differ much: else hardly any input would come as far as to a commit.
#[derive(Debug)]
struct Input {
    hello: Option<[u8; 16]>,
    dry_run: bool,
    paused: bool,
    resume_fails: bool,
    /// Rounds in which the guest writes.
    writes: u8,
    messages: Vec<Message>,
}

impl<'a> Arbitrary<'a> for Input {
    fn arbitrary(from: &mut Unstructured<'a>) -> arbitrary::Result<Self> {
        let hello = rarely(from)?.then(|| from.arbitrary()).transpose()?;
        let (dry_run, paused, resume_fails) = (rarely(from)?, from.arbitrary()?, from.arbitrary()?);
        let writes = from.int_in_range(0..=7)?;
        let mut messages = Vec::new();
        for honest in [Message::accept, Message::ready, Message::started] {
            match from.arbitrary::<u8>()? {
                0..200 => messages.push(honest(from)?),
                200..210 => break,
                210.. => messages.push(from.arbitrary()?),
            }
        }
        if rarely(from)? {
            messages.push(from.arbitrary()?);
        }
        Ok(Self {
            hello,
            dry_run,
            paused,
            resume_fails,
            writes,
            messages,
        })
    }
}

/// Once in 32 times.
fn rarely(from: &mut Unstructured<'_>) -> arbitrary::Result<bool> {
    Ok(from.arbitrary::<u8>()? >= 248)
}

/// Some bytes, rarely many times.
#[derive(Debug)]
struct Bytes(Vec<u8>);

impl<'a> Arbitrary<'a> for Bytes {
    fn arbitrary(from: &mut Unstructured<'a>) -> arbitrary::Result<Self> {
        let mut bytes = vec![0; from.int_in_range(0..=31)?];
        from.fill_buffer(&mut bytes)?;
        let times = match rarely(from)? {
            true => from.int_in_range(0..=6000)?,
            false => 1,
        };
        Ok(Self(bytes.repeat(times)))
    }
}

/// The same as characters.
#[derive(Debug)]
struct Text(String);

impl<'a> Arbitrary<'a> for Text {
    fn arbitrary(from: &mut Unstructured<'a>) -> arbitrary::Result<Self> {
        let Bytes(bytes) = from.arbitrary()?;
        Ok(Self(String::from_utf8_lossy(&bytes).into_owned()))
    }
}

#[derive(Arbitrary, Debug)]
enum Message {
    Answer {
        who: Text,
        refusals: [Text; 2],
        /// How often they come, as a power of two.
        times: u8,
    },
    Ready,
    Started(Option<[Text; 5]>),
    Failed(Bytes),
    /// An answer or a word that the VM runs, with a field that neither has.
    Strange {
        is_answer: bool,
        field: Text,
    },
    Other {
        kind: u8,
        contents: Bytes,
    },
    /// Not a frame.
    Raw(Bytes),
    /// A frame whose header says another length.
    Lies {
        kind: u8,
        length: u32,
        contents: Bytes,
    },
}

/// What a message is to a source that knows the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Meaning {
    Accepts,
    Refuses,
    Ready,
    Started,
    Failed,
    /// Nothing that a destination may say.
    None,
}

impl Message {
    const ANSWER: u32 = 2;
    const READY: u32 = 8;
    const STARTED: u32 = 10;
    const FAILED: u32 = 11;

    fn accept(from: &mut Unstructured<'_>) -> arbitrary::Result<Self> {
        Ok(Self::Answer {
            who: from.arbitrary()?,
            refusals: [Text(String::new()), Text(String::new())],
            times: 0,
        })
    }

    fn ready(_: &mut Unstructured<'_>) -> arbitrary::Result<Self> {
        Ok(Self::Ready)
    }

    fn started(from: &mut Unstructured<'_>) -> arbitrary::Result<Self> {
        Ok(Self::Started(from.arbitrary()?))
    }

    fn add_to(&self, stream: &mut Forged) {
        match self {
            Self::Answer { .. } => stream.frame(Self::ANSWER, self.json().as_bytes()),
            Self::Ready => stream.frame(Self::READY, &[]),
            Self::Started(_) => stream.frame(Self::STARTED, self.json().as_bytes()),
            Self::Failed(why) => stream.frame(Self::FAILED, &why.0),
            Self::Strange { is_answer, .. } => {
                let kind = [Self::STARTED, Self::ANSWER][usize::from(*is_answer)];
                stream.frame(kind, self.json().as_bytes());
            }
            Self::Other { kind, contents } => stream.frame((*kind).into(), &contents.0),
            Self::Raw(bytes) => stream.bytes.extend(&bytes.0),
            Self::Lies {
                kind,
                length,
                contents,
            } => stream.frame_with((*kind).into(), *length, &contents.0),
        }
    }

    /// How often the refusals of an answer come: at most more often than the longest message
    /// has room for.
    fn times(times: u8) -> usize {
        match times % 20 {
            0 => 0,
            power => 1 << (power - 1),
        }
    }

    /// The contents of what is JSON.
    fn json(&self) -> String {
        match self {
            Self::Answer {
                who,
                refusals,
                times,
            } => {
                let refusals = refusals.each_ref().map(|it| &it.0);
                let most = LONGEST / refusals.map(|it| it.len() + 3).iter().sum::<usize>() + 1;
                let refusals = refusals.repeat(Self::times(*times).min(most));
                json!({ "who": who.0, "counter_frequency_hz": 25_000_000, "wall_error_ns": null,
                        "refusals": refusals })
            }
            Self::Started(words) => json!({ "record": words.as_ref().map(record) }),
            // No field's name begins so.
            Self::Strange { field, .. } => json!({ format!("X{}", field.0): null }),
            _ => Value::Null,
        }
        .to_string()
    }

    /// `None` where it depends on what comes after.
    fn meaning(&self) -> Option<Meaning> {
        Some(match self {
            Self::Answer { .. } | Self::Started(_) if self.json().len() > LONGEST => Meaning::None,
            Self::Answer { times, .. } if Self::times(*times) > 0 => Meaning::Refuses,
            Self::Answer { .. } => Meaning::Accepts,
            Self::Ready => Meaning::Ready,
            Self::Started(_) => Meaning::Started,
            // What is too long is no word of the destination.
            Self::Failed(why) if why.0.len() > 4096 => Meaning::None,
            Self::Failed(_) => Meaning::Failed,
            Self::Strange { .. } => Meaning::None,
            Self::Other { kind, .. } => match u32::from(*kind) {
                Self::ANSWER | Self::READY | Self::STARTED | Self::FAILED => return None,
                _ => Meaning::None,
            },
            Self::Raw(_) | Self::Lies { .. } => return None,
        })
    }
}

fn record(words: &[Text; 5]) -> Value {
    let [event, cause, policy, source, distance] = words.each_ref().map(|it| &it.0);
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
    let right = input.hello.is_none_or(|hello| hello[..12] == HELLO[..12]);
    if !right {
        return Some(Fate::NotAsked);
    }
    let kept = match !input.paused && input.resume_fails {
        true => Fate::Stuck,
        false => Fate::Kept,
    };
    let mut messages = input.messages.iter();
    let mut next = || {
        messages
            .next()
            .map_or(Some(Meaning::None), Message::meaning)
    };
    match next()? {
        Meaning::Refuses => return Some(Fate::Asked(Outcome::Refused)),
        Meaning::Accepts if input.dry_run => return Some(Fate::Asked(Outcome::Accepted)),
        Meaning::Accepts => {}
        _ => return Some(Fate::Kept),
    }
    if next()? != Meaning::Ready {
        return Some(kept);
    }
    Some(match next()? {
        Meaning::Started => Fate::Moved,
        Meaning::Failed => kept,
        _ => Fate::InDoubt,
    })
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
            runs: (!input.paused).into(),
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
                assert_eq!(is(&self.runs), !self.input.paused);
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
    memory.write_obj(1u8, GuestAddress(RAM)).unwrap();
    memory
});

static ASKED: LazyLock<Offer> = LazyLock::new(|| {
    let mut offer: Offer = serde_json::from_value(OFFER.clone()).expect("it is one");
    offer.memory[0].bytes = MEMORY as u64;
    offer
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
        let writes = round < usize::from(self.input.writes);
        // A page with something in it, and one without.
        Ok(DirtyPages::new(RAM, PAGE, vec![u64::from(writes) * 3]))
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
    let mut offer = ASKED.clone();
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
