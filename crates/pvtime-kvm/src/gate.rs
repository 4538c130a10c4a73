//! The gate that every vCPU thread passes before it enters the guest.
//!
//! While the gate is open, passing costs one atomic load, and a look at the clock for the
//! [lease](crate::sleep) that keeps threads out of the guest after the host slept. Closing it takes
//! every thread out of the guest and holds it at the gate; then no guest instruction runs, and each
//! thread can be given work to do on its vCPU, because KVM wants a vCPU's ioctls from the thread
//! that runs it.
//!
//! ```text
//! closed --open--> open --close--> every member waits at the gate --open--> open
//!    \____________________________ stop _____________________________________/
//!                               |
//!                    members leave, for good
//! ```
#![expect(
    unsafe_code,
    reason = "a thread's flag is handed to the handler of its signal"
)]

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::Duration;

use kvm_ioctls::VcpuFd;
use libc::c_int;
use rustix::thread::{Pid, gettid};

use crate::kick::{self, Armed};
use crate::sleep::Lease;

/// What a member is asked to do on its vCPU while it waits.
type Job<C> = Box<dyn FnOnce(&mut C) + Send>;

/// What a member is told when it passes.
type Watch<C> = Box<dyn Fn(Passing, &C) + Send>;

/// Tells whether the thread was not stopped since somebody last knew that it ran.
type Vouch = Box<dyn Fn() -> bool + Send>;

/// A gate for threads that each drive a `C`, a vCPU.
#[derive(Debug)]
pub struct Gate<C> {
    /// Whether `State::position` is anything but `Open`, for the way past the gate.
    barred: AtomicBool,
    /// Until when threads may pass while it is open.
    lease: Lease,
    state: Mutex<State<C>>,
    changed: Condvar,
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
    Stopped,
}

/// A thread that has joined and not left.
struct MemberState<C> {
    index: usize,
    thread: Pid,
    waiting: bool,
    job: Option<Job<C>>,
}

impl<C> std::fmt::Debug for MemberState<C> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            index,
            thread,
            waiting,
            job,
        } = self;
        f.debug_struct("MemberState")
            .field("index", index)
            .field("thread", thread)
            .field("waiting", waiting)
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

/// What lies behind the gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Passage {
    /// The guest.
    Guest,
    /// Nothing more: the VM is being stopped.
    Stopped,
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
            changed: Condvar::new(),
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

    /// Renews the lease, and lets those pass who waited for it.
    pub fn renew_lease(&self) {
        self.lease.renew();
        // Whoever looked at the lease before that holds the lock until it waits.
        let state = self.lock();
        if state.members.iter().any(|member| member.waiting) {
            self.changed.notify_all();
        }
    }

    /// Closes the gate, if it is open, and returns when every member waits at it. If that takes
    /// longer than `limit` the gate is as it was.
    ///
    /// # Errors
    ///
    /// [`CloseError`].
    pub fn close(&self, limit: Duration) -> Result<(), CloseError> {
        let mut state = self.lock();
        let was_open = state.position == Position::Open;
        if was_open {
            self.set(&mut state, Position::Closed);
        }
        let (mut state, closed) = self.await_members(state, limit);
        if was_open && closed.is_err() {
            self.set(&mut state, Position::Open);
        }
        closed
    }

    fn await_members<'a>(
        &self,
        state: MutexGuard<'a, State<C>>,
        limit: Duration,
    ) -> (MutexGuard<'a, State<C>>, Result<(), CloseError>) {
        if let Err(error) = self.kick_all(&state) {
            return (state, Err(error));
        }
        let (state, _) = self
            .changed
            .wait_timeout_while(state, limit, |state| {
                state.position == Position::Closed && !state.members.iter().all(|it| it.waiting)
            })
            .unwrap_or_else(PoisonError::into_inner);
        let late = state.members.iter().find(|member| !member.waiting);
        let closed = match late.filter(|_| state.position == Position::Closed) {
            Some(late) => Err(CloseError::Stuck {
                index: late.index,
                limit,
            }),
            None => Ok(()),
        };
        (state, closed)
    }

    /// Opens a gate that was closed; nothing happens to one that is open or stopped.
    pub fn open(&self) {
        let mut state = self.lock();
        if state.position == Position::Closed {
            self.set(&mut state, Position::Open);
        }
    }

    /// Sends every thread away, wherever it is, for good.
    pub fn stop(&self) {
        let mut state = self.lock();
        self.set(&mut state, Position::Stopped);
        // A thread that cannot be kicked leaves the guest by itself at its next exit.
        let _ = self.kick_all(&state);
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
        if state.position != Position::Closed || !state.members.iter().all(|it| it.waiting) {
            return None;
        }
        for member in &mut state.members {
            let (index, job, sender) = (member.index, Arc::clone(&job), sender.clone());
            member.job = Some(Box::new(move |vcpu| {
                // Whoever asked waits for every result.
                let _ = sender.send((index, job(index, vcpu)));
            }));
        }
        drop((state, sender));
        self.changed.notify_all();
        let mut results: Vec<(usize, R)> = results.into_iter().collect();
        results.sort_by_key(|(index, _)| *index);
        Some(results.into_iter().map(|(_, result)| result).collect())
    }

    fn holds(&self, position: Position) -> bool {
        match position {
            Position::Open => self.lease.has_ended(),
            Position::Closed => true,
            Position::Stopped => false,
        }
    }

    fn set(&self, state: &mut State<C>, position: Position) {
        state.position = position;
        self.barred
            .store(position != Position::Open, Ordering::SeqCst);
        self.changed.notify_all();
    }

    fn kick_all(&self, state: &State<C>) -> Result<(), CloseError> {
        for member in state.members.iter().filter(|member| !member.waiting) {
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

/// Something that a thread does at the gate; it hears of it itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passing {
    /// It is out of the guest and waits from here on.
    Arrives,
    /// It waited, and goes into the guest now.
    Leaves,
}

/// A thread's membership. Dropping it, on any thread, leaves.
pub struct Member<C> {
    gate: Arc<Gate<C>>,
    index: usize,
    watch: Watch<C>,
    vouch: Vouch,
}

impl<C> std::fmt::Debug for Member<C> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Member")
            .field("index", &self.index)
            .finish_non_exhaustive()
    }
}

impl<C> Member<C> {
    /// Makes the calling thread the one for vCPU `index`; it calls `watch` when it passes. When it
    /// finds the lease ended it renews it by itself if `vouch` says that it ran all the time: then
    /// it was not the host that stopped.
    ///
    /// # Errors
    ///
    /// Where the kernel has no timer for the thread.
    ///
    /// # Panics
    ///
    /// If that vCPU has a thread.
    pub fn join(
        gate: &Arc<Gate<C>>,
        index: usize,
        watch: impl Fn(Passing, &C) + Send + 'static,
        vouch: impl Fn() -> bool + Send + 'static,
    ) -> io::Result<Self> {
        gate.lease.join(index, gate.signal)?;
        let mut state = gate.lock();
        assert!(
            state.members.iter().all(|member| member.index != index),
            "vCPU {index} has a thread already"
        );
        let member = MemberState {
            index,
            thread: gettid(),
            waiting: false,
            job: None,
        };
        state.members.push(member);
        drop(state);
        Ok(Self {
            gate: Arc::clone(gate),
            index,
            watch: Box::new(watch),
            vouch: Box::new(vouch),
        })
    }

    /// Passes the gate, waiting while it is closed or the lease has ended, and calls `run`, which
    /// is to enter the guest once. Neither can happen in between without `run` finding
    /// `immediate_exit` set. `None` where the VM is being stopped.
    pub fn enter<'a, R>(&self, vcpu: &'a mut C, run: impl FnOnce(&'a mut C) -> R) -> Option<R>
    where
        C: ImmediateExit,
    {
        loop {
            let flag: *mut u8 = vcpu.immediate_exit();
            // SAFETY: the flag is part of `vcpu`, which is borrowed for longer than the guard
            // lives.
            let armed = unsafe { Armed::arm(flag) };
            if self.gate.is_open() {
                let result = run(vcpu);
                drop(armed);
                return Some(result);
            }
            drop(armed);
            if self.gate.lease.has_ended() && (self.vouch)() {
                self.gate.renew_lease();
            } else if self.wait(vcpu) == Passage::Stopped {
                return None;
            }
        }
    }

    /// Waits while nobody may pass, doing what is asked meanwhile.
    fn wait(&self, vcpu: &mut C) -> Passage {
        (self.watch)(Passing::Arrives, vcpu);
        let passage = self.wait_for_opening(vcpu);
        if passage == Passage::Guest {
            (self.watch)(Passing::Leaves, vcpu);
        }
        passage
    }

    fn wait_for_opening(&self, vcpu: &mut C) -> Passage {
        let mut state = self.gate.lock();
        while self.gate.holds(state.position) {
            let member = self.own(&mut state);
            if let Some(job) = member.job.take() {
                drop(state);
                job(vcpu);
                state = self.gate.lock();
                continue;
            }
            if !std::mem::replace(&mut member.waiting, true) {
                self.gate.changed.notify_all();
            }
            state = self
                .gate
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        self.own(&mut state).waiting = false;
        match state.position {
            Position::Stopped => Passage::Stopped,
            Position::Open | Position::Closed => Passage::Guest,
        }
    }

    fn own<'a>(&self, state: &'a mut State<C>) -> &'a mut MemberState<C> {
        let own = state
            .members
            .iter_mut()
            .find(|member| member.index == self.index);
        own.expect("a member is in the list until it is dropped")
    }
}

impl<C> Drop for Member<C> {
    fn drop(&mut self) {
        self.gate.lease.leave(self.index);
        self.gate
            .lock()
            .members
            .retain(|member| member.index != self.index);
        self.gate.changed.notify_all();
    }
}

#[cfg(test)]
mod tests;
