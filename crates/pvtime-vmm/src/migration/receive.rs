//! The destination's side.

use std::ops::Range;
use std::time::{Duration, Instant};

use pvtime_kvm::record::Record;
use serde::{Deserialize, Serialize};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use super::budget::Budget;
use super::frame::{Channel, Frame, Kind, Limits, StreamError, cut};
use super::message::{Answer, Offer, Started};
use super::wire::Wire;
use super::{HELLO_PATIENCE, MAX_ROUNDS, PATIENCE, WORK_PATIENCE};
use crate::failure;
use crate::state::MachineState;

/// The state of a machine that is on its way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Arrival {
    /// Whether it ran, and is to go on at once.
    pub runs: bool,
    /// All but its memory and its time.
    pub machine: MachineState,
}

/// How long a destination waits for memory.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// For each frame.
    pub frame: Duration,
    /// For the first of a round but the first: the source may stop its VM before.
    pub stop: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            frame: PATIENCE,
            stop: WORK_PATIENCE,
        }
    }
}

/// A host that takes VMs.
pub trait Destination {
    /// A machine without a state, and what goes with it.
    type Blank;

    /// Whether it takes such a VM; the offer describes one that there can be.
    fn answer(&mut self, offer: &Offer) -> Answer;

    /// Makes a machine for it, with memory that is all zero; for a dry run too, which learns so what
    /// the host refuses.
    ///
    /// # Errors
    ///
    /// What the host refuses.
    fn prepare(&mut self, offer: &Offer) -> anyhow::Result<Self::Blank>;

    /// The machine's memory.
    fn memory(blank: &Self::Blank) -> &GuestMemoryMmap;

    /// How long it waits.
    fn patience(&self) -> Patience {
        Patience::default()
    }
}

/// What became of a connection.
#[derive(Debug)]
pub enum Visit<B> {
    /// Somebody asked, and no more.
    Asked {
        /// Who.
        who: String,
        /// What was said against it; nothing where the VM would have been taken.
        refusals: Vec<String>,
    },
    /// A whole VM arrived. It is the source's still.
    Arrived(Box<Arrived<B>>),
}

/// A VM that arrived whole, and verified.
#[derive(Debug)]
pub struct Arrived<B> {
    /// What it needs.
    pub offer: Offer,
    /// A machine with its memory.
    pub blank: B,
    /// The rest of it.
    pub arrival: Arrival,
    /// Its time, in its owner's format.
    pub time: Vec<u8>,
}

/// The source gave the VM up for this side, or for its own.
#[derive(Debug, thiserror::Error)]
pub enum ReceiveError {
    /// The stream ended.
    #[error(transparent)]
    Stream(#[from] StreamError),
    /// The source keeps the VM.
    #[error("the source keeps the VM: {0}")]
    Aborted(String),
}

/// Answers an offer, and receives a VM if it was accepted.
///
/// # Errors
///
/// [`ReceiveError`]; the source keeps the VM then, and nothing is left here.
///
/// # Panics
///
/// Never: the offer is checked.
pub fn receive<W: Wire, D: Destination>(
    channel: &mut Channel<W>,
    destination: &mut D,
) -> Result<Visit<D::Blank>, ReceiveError> {
    let offer: Offer = match channel.receive(Limits::new(0), HELLO_PATIENCE)? {
        frame if frame.kind == Kind::Offer => frame.json()?,
        frame => return Err(frame.out_of_order().into()),
    };
    let mut answer = match offer.check() {
        Ok(()) => destination.answer(&offer),
        Err(reason) => {
            let _ = channel.send(Kind::Failed, cut(&reason), PATIENCE);
            let kind = Kind::Offer;
            return Err(StreamError::Content { kind, reason }.into());
        }
    };
    let mut blank = None;
    if answer.refusals.is_empty() {
        match destination.prepare(&offer) {
            Ok(prepared) => blank = Some(prepared),
            Err(error) => answer.refusals.push(failure::in_one_line(&error)),
        }
    }
    channel.send_json(Kind::Answer, &answer, PATIENCE)?;
    let Some(blank) = blank.filter(|_| !offer.dry_run) else {
        return Ok(Visit::Asked {
            who: offer.who,
            refusals: answer.refusals,
        });
    };
    let limits = Limits::new(usize::try_from(offer.vcpus).expect("it was checked"));
    let budget = Budget::new(offer.memory[0]);
    let patience = destination.patience();
    let arrival = receive_memory(channel, limits, D::memory(&blank), budget, patience)?;
    let time = match channel.receive(limits, PATIENCE)? {
        frame if frame.kind == Kind::Time => frame.contents.to_vec(),
        frame => return Err(unexpected(&frame)),
    };
    if let Err(reason) = arrival.check(&offer) {
        let _ = channel.send(Kind::Failed, cut(&reason), PATIENCE);
        let kind = Kind::Machine;
        return Err(StreamError::Content { kind, reason }.into());
    }
    Ok(Visit::Arrived(Box::new(Arrived {
        offer,
        blank,
        arrival,
        time,
    })))
}

impl Arrival {
    /// Whether it is the state of the machine that was offered.
    fn check(&self, offer: &Offer) -> Result<(), String> {
        let (vcpus, gics) = (self.machine.vcpus.len(), self.machine.gic.cpus.len());
        if [vcpus, gics].iter().all(|it| *it as u64 == offer.vcpus) {
            return Ok(());
        }
        Err(format!(
            "it has {vcpus} vCPUs and interrupt controllers for {gics}, of a machine of {}",
            offer.vcpus
        ))
    }
}

/// Receives rounds of memory, up to the state that follows the last.
fn receive_memory<W: Wire>(
    channel: &mut Channel<W>,
    limits: Limits,
    memory: &GuestMemoryMmap,
    mut budget: Budget,
    patience: Patience,
) -> Result<Arrival, ReceiveError> {
    let begin = Instant::now();
    let mut wait = patience.frame;
    loop {
        let frame = channel.receive(limits, wait)?;
        wait = patience.frame;
        let round = budget.rounds();
        match frame.kind {
            Kind::Round if round < MAX_ROUNDS && frame.contents == round.to_le_bytes() => {
                if round > 0 {
                    wait = patience.stop;
                }
                budget.begin_round();
            }
            Kind::Memory if round > 0 => budget.contents(&write(&frame, memory)?),
            Kind::Zero if round > 0 => budget.zeros(&clear(&frame, memory)?),
            Kind::Machine if round > 0 => return Ok(frame.unpack()?),
            _ => return Err(unexpected(&frame)),
        }
        let allowed = budget.allowed();
        if begin.elapsed() > allowed {
            return Err(StreamError::TooSlow {
                limit_s: allowed.as_secs(),
            }
            .into());
        }
    }
}

/// The source may call it off at any time.
fn unexpected(frame: &Frame<'_>) -> ReceiveError {
    match frame.kind {
        Kind::Abort => ReceiveError::Aborted(frame.text()),
        _ => frame.out_of_order().into(),
    }
}

/// Returns where it was written.
fn write(frame: &Frame<'_>, memory: &GuestMemoryMmap) -> Result<Range<u64>, StreamError> {
    let (address, bytes) = frame.word()?;
    check(frame, memory, address, bytes.len() as u64)?;
    memory
        .write_slice(bytes, GuestAddress(address))
        .map_err(|error| frame.nonsense(&error.to_string()))?;
    Ok(address..address + bytes.len() as u64)
}

/// Clears memory that a round before filled, and returns where.
fn clear(frame: &Frame<'_>, memory: &GuestMemoryMmap) -> Result<Range<u64>, StreamError> {
    const ZEROS: [u8; 4096] = [0; 4096];
    let (address, rest) = frame.word()?;
    let bytes = match rest.try_into() {
        Ok(bytes) => u64::from_le_bytes(bytes),
        Err(_) => return Err(frame.nonsense(&format!("{} bytes for a length", rest.len()))),
    };
    check(frame, memory, address, bytes)?;
    for offset in (0..bytes).step_by(ZEROS.len()) {
        let length = usize::try_from(bytes - offset).map_or(ZEROS.len(), |it| it.min(ZEROS.len()));
        memory
            .write_slice(&ZEROS[..length], GuestAddress(address + offset))
            .map_err(|error| frame.nonsense(&error.to_string()))?;
    }
    Ok(address..address + bytes)
}

/// Refuses what is not memory of this VM, what is more of it than one frame is for, and nothing,
/// which has no place to check.
fn check(
    frame: &Frame<'_>,
    memory: &GuestMemoryMmap,
    address: u64,
    bytes: u64,
) -> Result<(), StreamError> {
    let length = usize::try_from(bytes).ok();
    let fits = length.is_some_and(|it| {
        (1..=super::frame::MEMORY_BYTES).contains(&it)
            && memory.check_range(GuestAddress(address), it)
    });
    if fits {
        return Ok(());
    }
    Err(frame.nonsense(&format!(
        "it is for {bytes} bytes at {address:#x}, which is no memory of the VM"
    )))
}

/// What became of a VM that arrived.
#[derive(Debug)]
pub enum Taken {
    /// It is ours and was started, or stays paused as it was.
    Ours,
    /// The source keeps it.
    Kept(String),
    /// Nobody has it here: starting it failed, and the source was told.
    Failed(anyhow::Error),
    /// The source may have kept it, or have given it to us.
    InDoubt(StreamError),
}

/// Says that the VM is ready, and starts it when the source has given it away.
pub fn take<W: Wire>(
    channel: &mut Channel<W>,
    start: impl FnOnce() -> anyhow::Result<Option<Record>>,
) -> Taken {
    if let Err(error) = channel.send(Kind::Ready, &[], PATIENCE) {
        // What the source has of it is no whole frame, so it gives nothing away.
        return Taken::Kept(error.to_string());
    }
    match channel.receive(Limits::new(0), WORK_PATIENCE) {
        Ok(frame) if frame.kind == Kind::Commit => {}
        Ok(frame) if frame.kind == Kind::Abort => return Taken::Kept(frame.text()),
        Ok(frame) => return Taken::InDoubt(frame.out_of_order()),
        Err(error) => return Taken::InDoubt(error),
    }
    // It is ours from here on, whatever the source learns of it.
    match start() {
        Ok(record) => {
            let _ = channel.send_json(Kind::Started, &Started { record }, PATIENCE);
            Taken::Ours
        }
        Err(error) => {
            fail(channel, &error);
            Taken::Failed(error)
        }
    }
}

/// Tells the source that nothing runs here and nothing will.
pub fn fail<W: Wire>(channel: &mut Channel<W>, error: &anyhow::Error) {
    let reason = failure::in_one_line(error);
    let _ = channel.send(Kind::Failed, cut(&reason), PATIENCE);
}
