//! A VM that is to move, and a destination that said all it has to say.

use std::io::{self, Cursor, Read, Write};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::Instant;

use anyhow::{Result, bail};
use pvtime_vmm::migration::WORK_PATIENCE;
use pvtime_vmm::migration::dirty::DirtyPages;
use pvtime_vmm::migration::message::Offer;
use pvtime_vmm::migration::receive::Arrival;
use pvtime_vmm::migration::report::Outcome;
use pvtime_vmm::migration::send::Source;
use pvtime_vmm::migration::wire::Wire;
use pvtime_vmm::state::MachineState;
use vm_memory::{Bytes as _, GuestAddress, GuestMemoryMmap};

use crate::answers::Input;
use crate::stream::{ARRIVAL, HELLO, OFFER, RAM};

const PAGE: u64 = 4096;

/// Four pages: of what is sent, the order is what matters here.
pub const MEMORY: usize = 4 * PAGE as usize;

/// The kind of the frame after which the VM may be somebody else's.
const COMMIT: u32 = 9;

/// What became of the VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Nobody who moves VMs answered.
    NotAsked,
    /// It was asked for and no more.
    Asked(Outcome),
    Kept,
    Stuck,
    InDoubt,
    Moved,
}

/// A destination that said all it has to say.
pub struct Script {
    pub says: Cursor<Vec<u8>>,
    pub heard: Vec<u8>,
    pub until: Option<Instant>,
}

impl Script {
    /// The kinds of what it heard.
    pub fn kinds(&self) -> Vec<u32> {
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
pub struct Vm<'a> {
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
    pub fn new(input: &'a Input) -> Self {
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
    pub fn check(&self, fate: Fate, heard: &[u32]) {
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

pub static GUEST: LazyLock<GuestMemoryMmap> = LazyLock::new(|| {
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(RAM), MEMORY)]).unwrap();
    memory.write_obj(1u8, GuestAddress(RAM)).unwrap();
    memory
});

pub static ASKED: LazyLock<Offer> = LazyLock::new(|| {
    let mut offer: Offer = serde_json::from_value(OFFER.clone()).expect("it is one");
    offer.memory[0].bytes = MEMORY as u64;
    offer
});

pub static STATE: LazyLock<MachineState> = LazyLock::new(|| {
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

    fn stolen_ns(&self) -> Vec<Option<u64>> {
        assert!(!self.runs.load(SeqCst), "it runs");
        vec![Some(1), None]
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
