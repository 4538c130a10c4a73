//! The source's side.

use std::ops::Range;
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::dirty::DirtyPages;
use super::frame::{Channel, Kind, Limits, MEMORY_BYTES, StreamError, WORD_BYTES, cut};
use super::message::{Answer, Offer, Started};
use super::monitor::{Monitor, Phase};
use super::pace::{Enough, Plan, Rounds};
use super::receive::Arrival;
use super::report::{Outcome, Report, Transfer};
use super::wire::Wire;
use super::{PATIENCE, WORK_PATIENCE};
use crate::event::Event;
use crate::snapshot::{ranges, runs};
use crate::state::MachineState;

/// As much as is said to be zero for something to be said.
const PAGE_BYTES: usize = 4096;

/// A VM that is to move. Its state is read while its last memory is sent.
pub trait Source: Sync {
    /// Its memory.
    fn memory(&self) -> &GuestMemoryMmap;

    /// Logs from now on which pages the guest writes to, or no longer.
    ///
    /// # Errors
    ///
    /// What KVM refuses.
    fn log_dirty(&self, on: bool) -> anyhow::Result<()>;

    /// The pages that were written to since the log began, or since this was asked last.
    ///
    /// # Errors
    ///
    /// What KVM refuses.
    fn dirty(&self) -> anyhow::Result<DirtyPages>;

    /// Stops it, and says whether it ran.
    ///
    /// # Errors
    ///
    /// Where it does not stop; it runs on then.
    fn pause(&self) -> anyhow::Result<bool>;

    /// Its state and its time, once it is stopped.
    ///
    /// # Errors
    ///
    /// What KVM refuses.
    fn state(&self) -> anyhow::Result<(MachineState, Vec<u8>)>;

    /// What has been stolen from each of its vCPUs, once it is stopped.
    fn stolen_ns(&self) -> Vec<Option<u64>>;

    /// Lets it go on.
    ///
    /// # Errors
    ///
    /// Where its time cannot be set.
    fn resume(&self) -> anyhow::Result<()>;

    /// From now on it may run elsewhere, and not here.
    fn give_away(&self);

    /// Nobody else runs it.
    fn take_back(&self);

    /// The destination runs it.
    fn gone(&self);
}

/// A migration that did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The VM is here as it was before.
    #[error("the VM was not moved and is here as it was: {0}")]
    Kept(Reason),
    /// The VM is here, and cannot go on.
    #[error(
        "the VM was not moved ({reason}), and cannot go on here: {resume}; it is paused, \
         `pvtime ctl SOCKET resume` tries again"
    )]
    Stuck {
        /// Why it was not moved.
        reason: Reason,
        /// Why it does not go on.
        resume: String,
    },
    /// The destination may run it.
    #[error(
        "the VM was given away and the destination did not say that it runs it ({0}): it is \
         stopped here and in doubt; if the destination does not run it, `pvtime ctl SOCKET resume \
         --take-over` lets it go on here, else `pvtime ctl SOCKET stop` ends it here"
    )]
    InDoubt(StreamError),
}

/// Why a VM was not moved.
#[derive(Debug, thiserror::Error)]
pub enum Reason {
    /// The stream ended.
    #[error(transparent)]
    Stream(#[from] StreamError),
    /// This host cannot.
    #[error("{}", crate::failure::in_one_line(.0))]
    Here(anyhow::Error),
    /// The destination cannot.
    #[error("the destination says: {0}")]
    There(String),
    /// The guest stood still for as long as it may.
    #[error(
        "the VM was stopped for {limit_ms} ms and was not ready to run there; use a faster connection, \
         or give a longer --stop-limit"
    )]
    Stopped {
        /// How long it may be stopped.
        limit_ms: u64,
    },
}

impl From<anyhow::Error> for Reason {
    fn from(error: anyhow::Error) -> Self {
        Self::Here(error)
    }
}

/// A source's end of a stream, and what it goes by.
#[derive(Debug)]
pub struct Sender<'a, W, S> {
    /// The stream.
    pub channel: Channel<W>,
    /// The VM.
    pub source: &'a S,
    /// What the operator asked for.
    pub plan: Plan,
    /// Where progress is shown.
    pub monitor: &'a Monitor,
    /// Raised when the migration is called off.
    pub cancel: &'a Event,
    /// The destination hears something after this time, even where memory is zero.
    pub longest_silence: Duration,
}

/// What was sent to a destination that has yet to say that it is ready.
struct Sent {
    rounds: u32,
    stopped_at: Instant,
    /// Bytes that were sent before.
    before_bytes: u64,
    ran: bool,
    enough: Enough,
}

impl<W: Wire, S: Source> Sender<'_, W, S> {
    /// Offers the VM, and moves it if it is accepted and this is no dry run.
    ///
    /// # Errors
    ///
    /// [`Failure`]; where a VM that ran is kept, it runs again.
    pub fn send(mut self, destination: &str, offer: &Offer) -> Result<Report, Failure> {
        let begin = Instant::now();
        let answer = self.ask(offer).map_err(Failure::Kept)?;
        let mut report = Report::of_answer(destination, offer, answer);
        if offer.dry_run || report.outcome == Outcome::Refused {
            return Ok(report);
        }
        let sent = self.copy_logged()?;
        let started = self.commit(&sent)?;
        report.outcome = Outcome::Moved;
        report.record = started.record;
        // It stays stopped here, whatever becomes of it there.
        report.stolen_at_stop_ns = self.source.stolen_ns();
        report.transfer = Some(Transfer {
            rounds: sent.rounds,
            memory_bytes: offer.memory_bytes(),
            sent_bytes: self.channel.sent_bytes(),
            stopped_bytes: self.channel.sent_bytes() - sent.before_bytes,
            total_ms: milliseconds(begin.elapsed()),
            downtime_ms: milliseconds(sent.stopped_at.elapsed()),
            converged: sent.enough == Enough::Fits,
        });
        Ok(report)
    }

    fn ask(&mut self, offer: &Offer) -> Result<Answer, Reason> {
        self.channel.send_json(Kind::Offer, offer, PATIENCE)?;
        let frame = self.channel.receive(Limits::new(0), WORK_PATIENCE)?;
        match frame.kind {
            Kind::Answer => Ok(frame.json::<Answer>()?.printable()),
            Kind::Failed => Err(Reason::There(frame.text())),
            _ => Err(frame.out_of_order().into()),
        }
    }

    /// Copies everything, in rounds, and stops the VM for the last. Dirty pages are logged
    /// meanwhile.
    fn copy_logged(&mut self) -> Result<Sent, Failure> {
        let logged = self.source.log_dirty(true).map_err(Reason::Here);
        let copied = logged.and_then(|()| self.copy());
        if let Err(reason) = copied {
            self.abort(&reason);
            // It costs the guest speed, and no more, where it stays on.
            let _ = self.source.log_dirty(false);
            return Err(Failure::Kept(reason));
        }
        let (rounds, left, enough) = copied.expect("an error has returned");
        let before_bytes = self.channel.sent_bytes();
        let stopped_at = Instant::now();
        self.monitor.update(|it| it.phase = Phase::Stopped);
        let ran = self.source.pause();
        let logged = match &ran {
            Ok(_) => self.source.dirty(),
            Err(_) => Ok(left.clone()),
        };
        let _ = self.source.log_dirty(false);
        let ran = match ran {
            Ok(ran) => ran,
            Err(error) => return Err(self.keep(error.into(), false)),
        };
        let limit = ran.then(|| stopped_at + self.plan.stop_limit);
        self.channel.set_limit(limit);
        let sent = logged
            .map_err(Reason::Here)
            .and_then(|written| self.finish(rounds, left, &written, ran))
            .map_err(|reason| match limit {
                Some(limit) if Instant::now() >= limit => Reason::Stopped {
                    limit_ms: milliseconds(self.plan.stop_limit),
                },
                _ => reason,
            });
        self.channel.set_limit(None);
        match sent {
            Ok(()) => Ok(Sent {
                rounds: rounds + 1,
                stopped_at,
                before_bytes,
                ran,
                enough,
            }),
            Err(reason) => Err(self.keep(reason, ran)),
        }
    }

    /// Copies memory while the guest runs: rounds that were sent, what is left, and why that is
    /// enough.
    fn copy(&mut self) -> Result<(u32, DirtyPages, Enough), Reason> {
        let memory = ranges(self.source.memory());
        let mut todo: Vec<_> = memory
            .iter()
            .map(|it| it.start..it.start + it.bytes)
            .collect();
        let mut pace = Rounds::default();
        for round in 0.. {
            let (begin, before) = (Instant::now(), self.channel.sent_bytes());
            self.begin_round(round)?;
            self.pieces(round, &todo, Some(begin))?;
            let bytes = self.channel.sent_bytes() - before;
            let left = self.source.dirty()?;
            let next = pace.next(&self.plan, bytes, begin.elapsed(), left.bytes());
            if let Some(enough) = next {
                // The destination has patience with its first frame, since the VM is stopped before.
                self.begin_round(round + 1)?;
                return Ok((round + 1, left, enough));
            }
            todo = left.runs().collect();
        }
        unreachable!("the number of rounds is bounded")
    }

    /// Sends what is left of the memory of a stopped VM, and its state.
    fn finish(
        &mut self,
        round: u32,
        mut left: DirtyPages,
        written: &DirtyPages,
        runs: bool,
    ) -> Result<(), Reason> {
        left.add(written);
        let todo: Vec<_> = left.runs().collect();
        let source = self.source;
        let (state, sent) = thread::scope(|scope| {
            let state = scope.spawn(|| source.state());
            let sent = self.pieces(round, &todo, None);
            (state.join().expect("reading a state does not panic"), sent)
        });
        sent?;
        let (machine, time) = state?;
        let arrival = Arrival { runs, machine };
        self.channel
            .send_packed(Kind::Machine, &arrival, WORK_PATIENCE)?;
        self.channel.send(Kind::Time, &time, PATIENCE)?;
        let frame = self.channel.receive(Limits::new(0), WORK_PATIENCE)?;
        match frame.kind {
            Kind::Ready => Ok(()),
            Kind::Failed => Err(Reason::There(frame.text())),
            _ => Err(frame.out_of_order().into()),
        }
    }

    /// Gives the VM away to a destination that is ready.
    fn commit(&mut self, sent: &Sent) -> Result<Started, Failure> {
        self.source.give_away();
        self.monitor.update(|it| it.phase = Phase::Committing);
        self.channel.ignore_cancel();
        let told = self.channel.send(Kind::Commit, &[], PATIENCE);
        let answer = told.and_then(|()| {
            let frame = self.channel.receive(Limits::new(0), WORK_PATIENCE)?;
            match frame.kind {
                Kind::Started => Ok(Ok(frame.json::<Started>()?.printable())),
                Kind::Failed => Ok(Err(frame.text())),
                _ => Err(frame.out_of_order()),
            }
        });
        match answer {
            Ok(Ok(started)) => {
                self.source.gone();
                Ok(started)
            }
            Ok(Err(reason)) => {
                self.source.take_back();
                Err(self.keep(Reason::There(reason), sent.ran))
            }
            Err(error) => Err(Failure::InDoubt(error)),
        }
    }

    /// Lets a VM that was stopped go on here.
    fn keep(&mut self, reason: Reason, ran: bool) -> Failure {
        self.abort(&reason);
        match if ran { self.source.resume() } else { Ok(()) } {
            Ok(()) => Failure::Kept(reason),
            Err(error) => Failure::Stuck {
                reason,
                resume: crate::failure::in_one_line(&error),
            },
        }
    }

    /// Tells the destination, which learns it from the connection's end where this fails.
    fn abort(&mut self, reason: &Reason) {
        const PATIENCE: Duration = Duration::from_millis(200);
        self.channel.ignore_cancel();
        let reason = reason.to_string();
        let _ = self.channel.send(Kind::Abort, cut(&reason), PATIENCE);
    }

    fn begin_round(&mut self, round: u32) -> Result<(), StreamError> {
        self.channel
            .send(Kind::Round, &round.to_le_bytes(), PATIENCE)
    }

    /// Sends memory, not faster than asked for if it has a beginning to count from.
    fn pieces(
        &mut self,
        round: u32,
        todo: &[Range<u64>],
        begin: Option<Instant>,
    ) -> Result<(), Reason> {
        let total = todo.iter().map(|it| it.end - it.start).sum();
        self.monitor.update(|it| {
            if begin.is_some() {
                it.phase = Phase::Copying;
            }
            it.round = round + 1;
            it.left_bytes = total;
        });
        let before = self.channel.sent_bytes();
        // One for all: the kernel clears what each of its own would be in.
        let mut bytes = Vec::new();
        for range in todo {
            for start in range.clone().step_by(MEMORY_BYTES) {
                let end = range.end.min(start + MEMORY_BYTES as u64);
                bytes.resize(usize::try_from(end - start).expect("a piece is short"), 0);
                self.piece(start, &mut bytes, round == 0)?;
                let sent = self.channel.sent_bytes();
                self.monitor.update(|it| {
                    it.left_bytes -= end - start;
                    it.sent_bytes = sent;
                });
                if let Some(begin) = begin {
                    self.rest(self.plan.wait(sent - before, begin.elapsed()))?;
                }
            }
        }
        Ok(self.channel.flush(PATIENCE)?)
    }

    /// Sends a piece of memory, which is read into `bytes`; of one that the destination has not got
    /// before, only what is not zero.
    fn piece(&mut self, start: u64, bytes: &mut [u8], is_new: bool) -> Result<(), StreamError> {
        self.source
            .memory()
            .read_slice(bytes, GuestAddress(start))
            .expect("a range of this memory");
        let (mut zeros_from, mut is_silent) = (0, is_new);
        let length = bytes.len();
        let whole = length..length;
        for run in runs(bytes).chain(std::iter::once(whole)) {
            if !is_new && zeros_from < run.start {
                self.zeros(start, zeros_from..run.start)?;
            }
            zeros_from = run.end;
            if run.is_empty() {
                break;
            }
            is_silent = false;
            let address = start + run.start as u64;
            let contents = &bytes[run];
            let fill = |buffer: &mut [u8]| {
                buffer[..WORD_BYTES].copy_from_slice(&address.to_le_bytes());
                buffer[WORD_BYTES..].copy_from_slice(contents);
            };
            let bytes = WORD_BYTES + contents.len();
            self.channel
                .send_with(Kind::Memory, bytes, fill, PATIENCE)?;
        }
        if self.channel.silent_for() >= self.longest_silence {
            if is_silent {
                self.zeros(start, 0..length.min(PAGE_BYTES))?;
            }
            self.channel.flush(PATIENCE)?;
        }
        Ok(())
    }

    fn zeros(&mut self, start: u64, range: Range<usize>) -> Result<(), StreamError> {
        let mut contents = [0; 2 * WORD_BYTES];
        contents[..WORD_BYTES].copy_from_slice(&(start + range.start as u64).to_le_bytes());
        contents[WORD_BYTES..].copy_from_slice(&(range.len() as u64).to_le_bytes());
        self.channel.send(Kind::Zero, &contents, PATIENCE)
    }

    /// Waits, unless it is called off.
    fn rest(&self, duration: Duration) -> Result<(), StreamError> {
        let timeout = Timespec::try_from(duration)
            .map_err(|error| StreamError::Broken(std::io::Error::other(error)))?;
        let mut fds = [PollFd::new(self.cancel, PollFlags::IN)];
        match poll(&mut fds, Some(&timeout)) {
            Ok(ready) if ready > 0 => Err(StreamError::Cancelled),
            // A signal shortens the wait, and the next one makes up for it.
            _ => Ok(()),
        }
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
