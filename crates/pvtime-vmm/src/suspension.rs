//! How far a guest is with suspending itself (PSCI `SYSTEM_SUSPEND`), between the vCPU that asks, the
//! thread that carries it out, and whoever asked the guest for it.
//!
//! ```text
//!         ask                  carried out
//! awake ───────> asked ─────────────────────> suspended
//!   ^              │ answered: denied, or woken   │ answered: woken
//!   └──────────────┴──────────────────────────────┘
//! ```
//!
//! What it is asked for before its host sleeps:
//!
//! ```text
//!             question            unanswered               goes_on
//! settled ──────────────> asked ──────────────> unanswered ─────────> old
//!    ^                      │ └──────────── call_off ─────────────────^ │
//!    └──── suspended ───────┴───────────────────────────────────────────┘
//! ```
//!
//! A VM that was stopped for a sleep of its host waits for its end, and no longer than the host is awake
//! for a limit: whoever was to announce the end may have ended.

use std::ops::Range;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// An answer that comes within this time of the guest's resumption is one to a question from before:
/// it came too late, and the guest is woken at once.
const LATE: Duration = Duration::from_secs(60);

/// What a guest asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SuspendCall {
    /// Index of the vCPU that asked. It is off until the guest wakes.
    pub vcpu: usize,
    /// Guest physical address at which it goes on then.
    pub entry: u64,
    /// What it finds in x0.
    pub context: u64,
}

/// Where a guest is.
#[derive(Debug)]
pub struct Suspension {
    /// Where its RAM is.
    ram: Range<u64>,
    state: Mutex<State>,
    changed: Condvar,
    /// Held by whoever suspends or wakes the guest.
    turn: Mutex<()>,
}

#[derive(Debug, Default)]
struct State {
    call: Option<SuspendCall>,
    /// Nobody has taken the call up yet.
    is_new: bool,
    is_suspended: bool,
    question: Question,
    /// The VM waits for the end of an announced sleep, and for how long its host was awake since it began
    /// to, or slept last.
    awaited: Option<Duration>,
    has_ended: bool,
}

/// What became of the question whether the guest would suspend itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Question {
    /// It is answered, or was not asked.
    #[default]
    Settled,
    /// Somebody waits for the answer.
    Asked,
    /// There was no answer in time.
    Unanswered,
    /// Nor was there one later, and the VM has gone on then.
    Old(Instant),
}

/// What a guest did that was asked to suspend itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It did.
    Suspended,
    /// It did not yet, and need not any more: the sleep is over.
    CalledOff,
    /// It did not in time.
    None,
}

/// What an announced sleep of the host led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prepared {
    /// The VM is stopped.
    Stopped,
    /// The VM runs: the sleep was over before its guest had suspended itself.
    CalledOff,
}

impl Suspension {
    /// For a guest with RAM there, which had asked when it was saved or had not.
    #[must_use]
    pub fn new(ram: Range<u64>, call: Option<SuspendCall>) -> Self {
        let state = State {
            call,
            ..State::default()
        };
        Self {
            ram,
            state: Mutex::new(state),
            changed: Condvar::default(),
            turn: Mutex::default(),
        }
    }

    /// Whether a guest can go on at this address.
    #[must_use]
    pub fn admits(&self, entry: u64) -> bool {
        self.ram.contains(&entry) && entry.is_multiple_of(4)
    }

    /// The guest asks.
    pub fn ask(&self, call: SuspendCall) {
        let mut state = self.lock();
        (state.call, state.is_new) = (Some(call), true);
        self.changed.notify_all();
    }

    /// What the guest asked for and was not answered.
    #[must_use]
    pub fn call(&self) -> Option<SuspendCall> {
        self.lock().call
    }

    /// Answers the call of this vCPU, if there is one. Where it cannot be told, the call is there still.
    ///
    /// # Errors
    ///
    /// As `tell`.
    pub fn answer<E>(
        &self,
        vcpu: usize,
        tell: impl FnOnce(&SuspendCall) -> Result<(), E>,
    ) -> Result<(), E> {
        let Some(call) = self.call().filter(|call| call.vcpu == vcpu) else {
            return Ok(());
        };
        tell(&call)?;
        let mut state = self.lock();
        (state.call, state.is_suspended) = (None, false);
        Ok(())
    }

    /// Waits for the guest to ask, for as long as is said of whether the VM waits for the end of a sleep;
    /// whether it did, and for nobody yet. `None` after [`end`](Self::end).
    pub fn await_call(&self, patience: impl FnOnce(bool) -> Duration) -> Option<bool> {
        let state = self.lock();
        let waits = state.awaited.is_some();
        let idle = |state: &mut State| {
            !state.is_new && !state.has_ended && state.awaited.is_some() == waits
        };
        let waited = self
            .changed
            .wait_timeout_while(state, patience(waits), idle)
            .unwrap_or_else(PoisonError::into_inner);
        let mut state = waited.0;
        (!state.has_ended).then(|| std::mem::take(&mut state.is_new))
    }

    /// What was asked for could not be carried out now, and is for [`await_call`](Self::await_call)
    /// again, if nobody has answered it.
    pub fn put_back(&self) {
        let mut state = self.lock();
        state.is_new = state.call.is_some();
    }

    /// Whether nothing is left to be done: no call that was not answered, no end of a sleep to wait for.
    pub fn is_idle(&self) -> bool {
        let state = self.lock();
        state.call.is_none() && state.awaited.is_none()
    }

    /// The guest is suspended. Whether that answers a question that is an old one.
    #[must_use]
    pub fn suspended(&self, now: Instant) -> bool {
        let mut state = self.lock();
        state.is_suspended = true;
        self.changed.notify_all();
        match std::mem::take(&mut state.question) {
            Question::Old(since) => now.saturating_duration_since(since) < LATE,
            Question::Settled | Question::Asked | Question::Unanswered => false,
        }
    }

    /// The guest is about to be asked to suspend itself.
    pub fn question(&self) {
        self.lock().question = Question::Asked;
    }

    /// Waits for as long as that for the guest to do what it is asked for.
    #[must_use]
    pub fn await_answer(&self, limit: Duration) -> Answer {
        let waits = |state: &mut State| {
            !state.is_suspended && !state.has_ended && state.question == Question::Asked
        };
        let waited = self
            .changed
            .wait_timeout_while(self.lock(), limit, waits)
            .unwrap_or_else(PoisonError::into_inner);
        match (waited.0.is_suspended, waited.0.question) {
            (true, _) => Answer::Suspended,
            (false, Question::Old(_)) => Answer::CalledOff,
            (false, _) => Answer::None,
        }
    }

    /// The guest did not suspend itself in time. False where it need not any more.
    pub fn unanswered(&self) -> bool {
        let mut state = self.lock();
        if state.question == Question::Asked {
            state.question = Question::Unanswered;
        }
        state.question == Question::Unanswered
    }

    /// Nobody waits for the guest to suspend itself any more; an answer that comes still is too late.
    pub fn call_off(&self, now: Instant) {
        let mut state = self.lock();
        if state.question == Question::Asked {
            state.question = Question::Old(now);
            self.changed.notify_all();
        }
    }

    /// The VM was stopped for a sleep of its host, and waits for its end.
    pub fn awaits_end(&self) {
        self.lock().awaited = Some(Duration::ZERO);
        self.changed.notify_all();
    }

    /// As much time has passed. For how long the host was awake while the VM waited in vain, if that is
    /// the limit; then it is counted anew, as after a sleep.
    pub fn passed(&self, passed: Duration, slept: bool, limit: Duration) -> Option<Duration> {
        let mut state = self.lock();
        let awaited = state.awaited.as_mut()?;
        *awaited = if slept {
            Duration::ZERO
        } else {
            *awaited + passed
        };
        (*awaited >= limit).then(|| std::mem::take(awaited))
    }

    /// The VM goes on. Whether its guest may suspend itself now, or have done so in a way of its own,
    /// because it was asked to before.
    pub fn goes_on(&self, now: Instant) -> bool {
        let mut state = self.lock();
        state.awaited = None;
        self.changed.notify_all();
        let is_unanswered = state.question == Question::Unanswered;
        if is_unanswered {
            state.question = Question::Old(now);
        }
        is_unanswered
    }

    /// The right to suspend or wake the guest, for as long as it is held.
    pub fn turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has everybody stop waiting.
    pub fn end(&self) {
        self.lock().has_ended = true;
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CALL: SuspendCall = SuspendCall {
        vcpu: 2,
        entry: 0x4000_1000,
        context: 7,
    };
    const SOON: Duration = Duration::from_millis(5);

    fn suspension() -> Suspension {
        Suspension::new(0x4000_0000..0x5000_0000, None)
    }

    fn tell(guest: &Suspension, vcpu: usize) -> Option<SuspendCall> {
        let mut told = None;
        let answered = guest.answer(vcpu, |call| {
            told = Some(*call);
            Ok::<_, ()>(())
        });
        answered.map_or(None, |()| told)
    }

    #[test]
    fn a_call_is_taken_up_once_and_answered_by_its_vcpu() {
        let guest = suspension();
        assert_eq!(guest.await_call(|_| SOON), Some(false));
        guest.ask(CALL);
        guest.question();
        assert_eq!(guest.await_call(|_| Duration::MAX), Some(true));
        assert_eq!(guest.await_call(|_| SOON), Some(false));
        assert_eq!(guest.await_answer(SOON), Answer::None);
        assert!(!guest.suspended(Instant::now()));
        assert_eq!(guest.await_answer(Duration::MAX), Answer::Suspended);
        assert_eq!((tell(&guest, 1), guest.call()), (None, Some(CALL)));
        assert_eq!((tell(&guest, 2), guest.call()), (Some(CALL), None));
        guest.question();
        assert_eq!(guest.await_answer(SOON), Answer::None, "it is awake");
    }

    #[test]
    fn a_call_is_there_until_it_was_answered() {
        let guest = suspension();
        assert!(guest.is_idle());
        guest.ask(CALL);
        assert!(!guest.is_idle());
        assert_eq!(guest.await_call(|_| Duration::MAX), Some(true));
        assert!(!guest.suspended(Instant::now()));
        assert_eq!(guest.answer(2, |_| Err("no register")), Err("no register"));
        assert_eq!(guest.call(), Some(CALL));
        guest.question();
        assert_eq!(
            guest.await_answer(SOON),
            Answer::Suspended,
            "and it sleeps on"
        );
        guest.put_back();
        assert_eq!(guest.await_call(|_| Duration::MAX), Some(true));
        assert_eq!(tell(&guest, 2), Some(CALL));
        guest.put_back();
        assert_eq!(guest.await_call(|_| SOON), Some(false), "nothing is left");
        assert!(guest.is_idle());
    }

    #[test]
    fn an_answer_to_an_old_question_is_known() {
        let guest = suspension();
        let (asked, goes_on) = (Instant::now(), Instant::now() + LATE);
        guest.question();
        assert!(guest.unanswered());
        assert!(guest.goes_on(goes_on));
        assert!(!guest.goes_on(goes_on), "it went on already");
        assert!(guest.suspended(goes_on + LATE.saturating_sub(SOON)));
        assert!(!guest.suspended(asked), "that was the answer");
        guest.question();
        assert!(guest.unanswered());
        assert!(guest.goes_on(goes_on));
        assert!(!guest.suspended(goes_on + LATE), "it is the guest's own");
    }

    #[test]
    fn a_question_that_was_called_off_is_an_old_one() {
        let guest = suspension();
        let now = Instant::now();
        guest.call_off(now);
        guest.question();
        assert_eq!(guest.await_answer(SOON), Answer::None, "that was before it");
        guest.call_off(now);
        assert_eq!(guest.await_answer(Duration::MAX), Answer::CalledOff);
        assert!(!guest.unanswered(), "nobody pauses it for that");
        assert!(guest.suspended(now), "it is woken at once");

        guest.question();
        assert!(!guest.suspended(now));
        guest.call_off(now);
        assert_eq!(guest.await_answer(SOON), Answer::Suspended, "it was first");
        assert!(!guest.unanswered());
    }

    #[test]
    fn the_end_of_a_sleep_is_awaited_for_as_long_as_the_host_is_awake() {
        let guest = suspension();
        let limit = Duration::from_secs(3);
        let second = |slept| guest.passed(Duration::from_secs(1), slept, limit);
        assert_eq!([second(false); 4], [None; 4], "nobody waits");
        guest.awaits_end();
        assert!(!guest.is_idle());
        let seen = [false, false, true, false, false, false].map(second);
        assert_eq!(seen, [None, None, None, None, None, Some(limit)]);
        let seen = [false; 3].map(second);
        assert_eq!(seen, [None, None, Some(limit)], "tried again");
        assert!(!guest.goes_on(Instant::now()));
        assert!(guest.is_idle());
        assert_eq!([false; 4].map(second), [None; 4]);
    }

    #[test]
    fn whoever_counts_is_told_that_a_vm_waits() {
        let guest = suspension();
        guest.awaits_end();
        let mut waits = false;
        let patience = |is_awaited| {
            waits = is_awaited;
            SOON
        };
        assert_eq!(guest.await_call(patience), Some(false));
        assert!(waits);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(SOON);
                guest.goes_on(Instant::now());
            });
            assert_eq!(guest.await_call(|_| Duration::MAX), Some(false));
        });
    }

    #[test]
    fn a_guest_goes_on_in_its_ram_alone() {
        let guest = suspension();
        assert!(guest.admits(0x4000_0000) && guest.admits(0x4fff_fffc));
        for entry in [0, 0x3fff_fffc, 0x4000_0002, 0x5000_0000, u64::MAX] {
            assert!(!guest.admits(entry), "{entry:#x}");
        }
    }

    #[test]
    fn at_the_end_nobody_waits() {
        let guest = suspension();
        guest.ask(CALL);
        guest.end();
        assert_eq!(guest.await_call(|_| Duration::MAX), None);
        guest.question();
        assert_eq!(guest.await_answer(Duration::MAX), Answer::None);
    }

    #[test]
    fn what_was_asked_before_a_snapshot_is_answered_after_it() {
        let guest = Suspension::new(0..1, Some(CALL));
        assert_eq!(
            guest.await_call(|_| SOON),
            Some(false),
            "whoever resumes it does"
        );
        assert_eq!(tell(&guest, 2), Some(CALL));
    }
}
