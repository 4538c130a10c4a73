//! A vCPU thread at the gate.
#![expect(
    unsafe_code,
    reason = "a thread's flag is handed to the handler of its signal"
)]

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rustix::thread::gettid;

use super::{Gate, ImmediateExit, Job, MemberState, Place, Position, State, Turn};
use crate::kick::Armed;

/// What a member is told when it passes.
type Watch<C> = Box<dyn Fn(Passing, &C) + Send>;

/// Tells up to when the thread was not stopped since somebody last knew that it ran: on
/// `CLOCK_BOOTTIME`, in ns; `None` where it may have been.
type Vouch = Box<dyn Fn() -> Option<u64> + Send>;

/// Something that a thread does at the gate; it hears of it itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passing {
    /// It is out of the guest and waits from here on.
    Arrives,
    /// It waited, and goes into the guest as soon as the gate opens. Where that is called off it
    /// arrives again.
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
    /// finds the lease ended it renews it by itself if `vouch` says that it ran all the time, up to a
    /// moment ago: then it was not the host that stopped.
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
        vouch: impl Fn() -> Option<u64> + Send + 'static,
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
            place: Place::Away,
            turn: Turn::Last,
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
            let ran_ns = self.gate.lease.has_ended().then(|| (self.vouch)());
            if let Some(ran_ns) = ran_ns.flatten() {
                self.gate.renew_lease(ran_ns);
            } else if self.wait(vcpu) == Passage::Stopped {
                return None;
            }
        }
    }

    /// Waits while nobody may pass, doing what is asked meanwhile.
    pub(super) fn wait(&self, vcpu: &mut C) -> Passage {
        self.take_place(Place::Waiting);
        (self.watch)(Passing::Arrives, vcpu);
        loop {
            match self.next() {
                Task::Job(job) => job(vcpu),
                Task::GetReady => {
                    (self.watch)(Passing::Leaves, vcpu);
                    self.take_place(Place::Ready);
                }
                Task::Stay => {
                    (self.watch)(Passing::Arrives, vcpu);
                    self.take_place(Place::Waiting);
                }
                Task::Pass(passage) => return passage,
            }
        }
    }

    fn take_place(&self, place: Place) {
        let mut state = self.gate.lock();
        state.member(self.index).place = place;
        self.gate.notify();
    }

    /// Waits for something to do.
    fn next(&self) -> Task<C> {
        let mut state = self.gate.lock();
        loop {
            let position = state.position;
            let next = state.next_turn(Place::Waiting);
            let member = state.member(self.index);
            // It was about to pass: it has arrived again before it does anything else, so that
            // whoever closed the gate finds its accounts done.
            if (position, member.place) == (Position::Closed, Place::Ready) {
                return Task::Stay;
            }
            if let Some(job) = member.job.take() {
                return Task::Job(job);
            }
            let passage = match (position, member.place) {
                (Position::Stopped, _) => Passage::Stopped,
                // Whoever opened the gate let it pass. If somebody has closed it since, it comes again.
                (_, Place::Away) | (Position::Open, Place::Ready) => Passage::Guest,
                (Position::Open, Place::Waiting) if !self.gate.lease.has_ended() => {
                    return Task::GetReady;
                }
                (Position::Opening, Place::Waiting) if Some(member.turn) == next => {
                    return Task::GetReady;
                }
                (_, Place::Ready) => {
                    let looking = member.turn.looking();
                    let seen = self.gate.changes.load(Ordering::Acquire);
                    drop(state);
                    self.gate.await_change(seen, Duration::MAX, looking);
                    if !self.gate.barred.load(Ordering::SeqCst) {
                        return Task::Pass(Passage::Guest);
                    }
                    state = self.gate.lock();
                    continue;
                }
                (_, Place::Waiting) => {
                    // It leaves the CPU to the others.
                    state = self.gate.wait(state, Duration::MAX, Duration::ZERO);
                    continue;
                }
            };
            member.place = Place::Away;
            return Task::Pass(passage);
        }
    }
}

/// What lies behind the gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Passage {
    /// The guest.
    Guest,
    /// Nothing more: the VM is being stopped.
    Stopped,
}

/// What a member at the gate does next.
enum Task<C> {
    Job(Job<C>),
    GetReady,
    Stay,
    Pass(Passage),
}

impl<C> State<C> {
    fn member(&mut self, index: usize) -> &mut MemberState<C> {
        let member = self.members.iter_mut().find(|it| it.index == index);
        member.expect("a member is in the list until it is dropped")
    }
}

impl<C> Drop for Member<C> {
    fn drop(&mut self) {
        self.gate.lease.leave(self.index);
        let mut state = self.gate.lock();
        state.members.retain(|member| member.index != self.index);
        self.gate.notify();
    }
}
