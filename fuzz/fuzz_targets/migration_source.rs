//! Any answers of a destination, to a VM that is to move there: whose the VM is then, by a model
//! written down a second time, and nothing of what a destination says acts on a terminal or takes
//! more memory than it may.
#![no_main]

mod allocated;
mod answers;
mod moving;
mod stream;

use std::io::Cursor;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use allocated::ALLOCATED;
use answers::{Input, Meaning, Message};
use libfuzzer_sys::fuzz_target;
use moving::{ASKED, Fate, GUEST, MEMORY, STATE, Script, Vm};
use pvtime_vmm::event::Event;
use pvtime_vmm::migration::frame::Channel;
use pvtime_vmm::migration::message::Offer;
use pvtime_vmm::migration::monitor::Monitor;
use pvtime_vmm::migration::pace::Plan;
use pvtime_vmm::migration::report::{Outcome, Report};
use pvtime_vmm::migration::send::{Failure, Reason, Sender};
use serde_json::Value;
use stream::{Forged, HELLO};

/// Three messages of 1 MiB, each in a buffer that doubled, and what the longest of them is as a list
/// of empty strings; with what is sent meanwhile.
const MOST_BYTES: usize = 32 << 20;

/// The most bytes that three messages are, and what is read ahead.
const MOST_READ: u64 = 3 * ((1 << 20) + 24) + (64 << 10) + 16;

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
