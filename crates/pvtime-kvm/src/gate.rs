//! The gate that every vCPU thread passes before it enters the guest.
//!
//! While the gate is open, passing costs one atomic load, and a look at the clock for the
//! [lease](crate::sleep) that keeps threads out of the guest after the host slept. Closing it takes
//! every thread out of the guest and holds it at the gate; then no guest instruction runs, and each
//! thread can be given work to do on its vCPU, because KVM wants a vCPU's ioctls from the thread
//! that runs it.
//!
//! ```text
//! closed --open--> open --close--> closed --open: every member ready--> open
//!    \______________________________ stop ________________________________/
//!                                     |
//!                          members leave, for good
//! ```
//!
//! What a guest misses over a frozen pause is the time from its last instruction to the reading of
//! its counter, and from the counter's setting to its next instruction. So whatever else there is to
//! do is done outside these two: members say that they are out before they do their accounts, and do
//! them again before the counter is set; those who run leave last, when nobody else has to leave any
//! more, and do not sleep where they wait for a moment only; and members pass without the lock, since
//! each who waits for one waits for all before it to get a CPU.

mod member;
mod running;

pub use member::{Member, Passing};

use std::convert::Infallible;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use kvm_ioctls::VcpuFd;
use libc::c_int;
use rustix::thread::{Pid, futex};
use rustix::time::Timespec;

use crate::kick;
use crate::sleep::Lease;

/// How long those that ran when the gate was closed, and whoever waits for them, let others run and look
/// again before they sleep: each has a CPU, and a wake-up would be part of what the guest misses.
///
/// Nobody else looks: who wants a CPU that others have is counted as stolen from its vCPU all that time,
/// and who sleeps is not.
const LOOKING: Duration = Duration::from_millis(1);

/// What a member is asked to do on its vCPU while it waits.
type Job<C> = Box<dyn FnOnce(&mut C) + Send>;

/// A gate for threads that each drive a `C`, a vCPU.
#[derive(Debug)]
pub struct Gate<C> {
    /// Whether `State::position` is anything but `Open`, for the way past the gate.
    barred: AtomicBool,
    /// Until when threads may pass while it is open.
    lease: Lease,
    state: Mutex<State<C>>,
    /// Counts the changes of `state`: a futex, on which those sleep who wait for one.
    changes: AtomicU32,
    signal: c_int,
}

#[derive(Debug)]
struct State<C> {
    position: Position,
    members: Vec<MemberState<C>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Position {
    Open,
    Closed,
    /// Still closed, but members get ready to leave.
    Opening,
    Stopped,
}

/// Where a member is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// In the guest, or at the handling of an exit.
    Away,
    /// At the gate, and stays.
    Waiting,
    /// At the gate, with nothing to do any more but to pass it.
    Ready,
}

/// When members leave the guest, and get ready to enter it, by where they were as the gate was closed.
/// Those who did not run miss nothing by leaving first, and would hold up those who ran.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Turn {
    /// It did not run.
    First,
    /// It may have run.
    Last,
}

/// A thread that has joined and not left.
struct MemberState<C> {
    index: usize,
    thread: Pid,
    place: Place,
    /// When it leaves the guest and gets ready to enter it, among the others.
    turn: Turn,
    job: Option<Job<C>>,
}

impl<C> std::fmt::Debug for MemberState<C> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            index,
            thread,
            place,
            turn,
            job,
        } = self;
        f.debug_struct("MemberState")
            .field("index", index)
            .field("thread", thread)
            .field("place", place)
            .field("turn", turn)
            .field("job", &job.is_some())
            .finish()
    }
}

/// The gate did not close.
#[derive(Debug, thiserror::Error)]
pub enum CloseError {
    /// A thread did not come out of the guest, or of the handling of an exit.
    #[error("vCPU {index} did not come out of the guest within {limit:?}; the VM runs on")]
    Stuck {
        /// Which.
        index: usize,
        /// How long it was waited for.
        limit: Duration,
    },
    /// The signal could not be sent.
    #[error("cannot send signal {signal} to the thread of vCPU {index}: {source}")]
    Kick {
        /// Which.
        index: usize,
        /// The number.
        signal: c_int,
        /// What the kernel said.
        source: io::Error,
    },
}

/// A vCPU that can be told not to enter the guest.
pub trait ImmediateExit {
    /// `immediate_exit` of its `kvm_run`: KVM does not enter the guest while it is not 0.
    fn immediate_exit(&mut self) -> &mut u8;
}

impl ImmediateExit for VcpuFd {
    fn immediate_exit(&mut self) -> &mut u8 {
        &mut self.get_kvm_run().immediate_exit
    }
}

impl<C> Gate<C> {
    /// A closed gate, with a lease for when it is open. `signal` becomes the process's signal for
    /// taking threads out of `KVM_RUN`.
    ///
    /// # Errors
    ///
    /// What the kernel says of a signal that cannot be handled.
    pub fn new(signal: c_int, lease: Lease) -> io::Result<Self> {
        kick::install(signal)?;
        Ok(Self {
            barred: AtomicBool::new(true),
            lease,
            state: Mutex::new(State {
                position: Position::Closed,
                members: Vec::new(),
            }),
            changes: AtomicU32::new(0),
            signal,
        })
    }

    /// Whether a thread may go on into the guest; to be asked after its flag was armed.
    fn is_open(&self) -> bool {
        !self.barred.load(Ordering::SeqCst) && !self.lease.has_ended()
    }

    /// Until when threads may pass.
    pub fn lease(&self) -> &Lease {
        &self.lease
    }

    /// Renews the lease, because the VMM ran at `ran_ns`, and lets those pass who waited for it.
    pub fn renew_lease(&self, ran_ns: u64) {
        self.lease.renew(ran_ns);
        // Whoever looked at the lease before that holds the lock until it waits.
        let state = self.lock();
        if state.is_any(Place::Waiting) {
            self.notify();
        }
    }

    /// Closes the gate, if it is open, does `at_stop` the moment that every member is out of the
    /// guest, and returns its result when all have settled. If they are not out within `limit` the
    /// gate is as it was.
    ///
    /// # Errors
    ///
    /// [`CloseError`].
    pub fn close<R>(&self, limit: Duration, at_stop: impl FnOnce() -> R) -> Result<R, CloseError> {
        let mut state = self.lock();
        let was_open = state.position == Position::Open;
        if was_open {
            state.set_turns();
            self.set(&mut state, Position::Closed);
        }
        let (mut state, closed) = self.await_members(state, limit);
        if closed.is_err() && was_open {
            self.set(&mut state, Position::Open);
        }
        drop(state);
        closed?;
        let result = at_stop();
        // A member takes a job when it has nothing else to do.
        let _ = self.on_each(|_, _| ());
        Ok(result)
    }

    /// Takes every member out of the guest, in its turn.
    fn await_members<'a>(
        &'a self,
        mut state: MutexGuard<'a, State<C>>,
        limit: Duration,
    ) -> (MutexGuard<'a, State<C>>, Result<(), CloseError>) {
        let deadline = Instant::now() + limit;
        while let Some(turn) = state.next_turn(Place::Away) {
            if let Err(error) = self.kick(&state, turn) {
                return (state, Err(error));
            }
            while let Some(late) = state.away(turn) {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    let index = late.index;
                    return (state, Err(CloseError::Stuck { index, limit }));
                }
                state = self.wait(state, left, turn.looking());
            }
        }
        (state, Ok(()))
    }

    /// Opens a gate that was closed, once every member is ready; nothing happens to one that is open
    /// or stopped.
    pub fn open(&self) {
        let Ok(()) = self.open_after(|| Ok::<_, Infallible>(()));
    }

    /// Has every member of a closed gate get ready, does `last`, and opens the gate: nothing is
    /// between `last` and the guest. The gate stays as it was where `last` fails.
    ///
    /// # Errors
    ///
    /// What `last` returns.
    pub fn open_after<R, E>(&self, last: impl FnOnce() -> Result<R, E>) -> Result<R, E> {
        let mut state = self.lock();
        let was_closed = state.position == Position::Closed;
        if was_closed {
            self.set(&mut state, Position::Opening);
        }
        while state.position == Position::Opening && state.is_any(Place::Waiting) {
            state = self.wait(state, Duration::MAX, Duration::ZERO);
        }
        drop(state);
        let result = last();
        if was_closed {
            match result {
                Ok(_) => {
                    self.let_pass();
                    // What the caller does next has time, and members that share its CPU have none.
                    thread::yield_now();
                }
                Err(_) => self.call_off(),
            }
        }
        result
    }

    /// Takes back a close, because the lease has ended: members wait on, for that.
    pub fn leave_to_lease(&self) {
        let mut state = self.lock();
        if state.position == Position::Closed {
            self.set(&mut state, Position::Open);
        }
    }

    fn let_pass(&self) {
        let mut state = self.lock();
        if state.position == Position::Opening {
            self.set(&mut state, Position::Open);
        }
    }

    /// Closes a gate that was about to open.
    fn call_off(&self) {
        let mut state = self.lock();
        if state.position == Position::Opening {
            self.set(&mut state, Position::Closed);
        }
        while state.position == Position::Closed && state.is_any(Place::Ready) {
            state = self.wait(state, Duration::MAX, Duration::ZERO);
        }
    }

    /// Sends every thread away, wherever it is, for good.
    pub fn stop(&self) {
        let mut state = self.lock();
        self.set(&mut state, Position::Stopped);
        // A thread that cannot be kicked leaves the guest by itself at its next exit.
        let _ = self.kick(&state, Turn::Last);
    }

    /// Does `job` on the vCPU of each member, on the member's own thread, and returns the results
    /// in the order of their indexes. Members wait at the closed gate; `None` where they do not.
    pub fn on_each<R: Send + 'static>(
        &self,
        job: impl Fn(usize, &mut C) -> R + Send + Sync + 'static,
    ) -> Option<Vec<R>> {
        let job = Arc::new(job);
        let (sender, results) = mpsc::channel();
        let mut state = self.lock();
        if !state.position.is_closed() || state.is_any(Place::Away) {
            return None;
        }
        for member in &mut state.members {
            let (index, job, sender) = (member.index, Arc::clone(&job), sender.clone());
            member.job = Some(Box::new(move |vcpu| {
                // Whoever asked waits for every result.
                let _ = sender.send((index, job(index, vcpu)));
            }));
        }
        self.notify();
        drop((state, sender));
        let mut results: Vec<(usize, R)> = results.into_iter().collect();
        results.sort_by_key(|(index, _)| *index);
        Some(results.into_iter().map(|(_, result)| result).collect())
    }

    /// Whoever is ready passes a gate that opens, and need not say so.
    fn set(&self, state: &mut State<C>, position: Position) {
        state.position = position;
        if position == Position::Open {
            let ready = |it: &&mut MemberState<C>| it.place == Place::Ready;
            for member in state.members.iter_mut().filter(ready) {
                member.place = Place::Away;
            }
        }
        self.barred
            .store(position != Position::Open, Ordering::SeqCst);
        self.notify();
    }

    /// Tells everybody that the state has changed; to be called under its lock.
    fn notify(&self) {
        self.changes.fetch_add(1, Ordering::Release);
        // It fails for no address of this process.
        let _ = futex::wake(
            &self.changes,
            futex::Flags::PRIVATE,
            i32::MAX.cast_unsigned(),
        );
    }

    /// Waits for a change of the state, for not much longer than `limit`; sleeps after `looking`.
    fn wait<'a>(
        &'a self,
        state: MutexGuard<'a, State<C>>,
        limit: Duration,
        looking: Duration,
    ) -> MutexGuard<'a, State<C>> {
        let seen = self.changes.load(Ordering::Acquire);
        drop(state);
        self.await_change(seen, limit, looking);
        self.lock()
    }

    /// The same without the lock, where so many changes were seen.
    fn await_change(&self, seen: u32, limit: Duration, looking: Duration) {
        let began = Instant::now();
        let has_changed = || self.changes.load(Ordering::Acquire) != seen;
        while began.elapsed() < looking {
            if has_changed() {
                return;
            }
            thread::yield_now();
        }
        // A limit that no clock reaches is none.
        let limit = Timespec::try_from(limit).ok();
        while !has_changed() {
            let flags = futex::Flags::PRIVATE;
            match futex::wait(&self.changes, flags, seen, limit.as_ref()) {
                Err(rustix::io::Errno::INTR) => {}
                _ => return,
            }
        }
    }

    /// Kicks the members whose turn it is, or was.
    fn kick(&self, state: &State<C>, turn: Turn) -> Result<(), CloseError> {
        for member in state.members_at(Place::Away).filter(|it| it.turn <= turn) {
            kick::kick(member.thread, self.signal).map_err(|source| CloseError::Kick {
                index: member.index,
                signal: self.signal,
                source,
            })?;
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, State<C>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<C> State<C> {
    /// A member that is not at the gate although it was its turn, if there is one.
    fn away(&self, turn: Turn) -> Option<&MemberState<C>> {
        self.next_turn(Place::Away)?;
        self.members_at(Place::Away).find(|it| it.turn <= turn)
    }

    /// Whose turn it is to leave a place; nobody's at a stopped gate.
    fn next_turn(&self, place: Place) -> Option<Turn> {
        let next = self.members_at(place).map(|it| it.turn).min();
        next.filter(|_| self.position != Position::Stopped)
    }

    fn members_at(&self, place: Place) -> impl Iterator<Item = &MemberState<C>> {
        self.members.iter().filter(move |it| it.place == place)
    }

    fn set_turns(&mut self) {
        for member in &mut self.members {
            member.turn = if running::may_run(member.thread) {
                Turn::Last
            } else {
                Turn::First
            };
        }
    }

    fn is_any(&self, place: Place) -> bool {
        self.members_at(place).next().is_some()
    }
}

impl Turn {
    /// How long to look before sleeping, for a member or whoever waits for it.
    fn looking(self) -> Duration {
        match self {
            Self::First => Duration::ZERO,
            Self::Last => LOOKING,
        }
    }
}

impl Position {
    fn is_closed(self) -> bool {
        matches!(self, Self::Closed | Self::Opening)
    }
}

#[cfg(test)]
mod tests;
