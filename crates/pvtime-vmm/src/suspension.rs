//! How far a guest is with suspending itself (PSCI `SYSTEM_SUSPEND`), between the vCPU that asks, the
//! thread that carries it out, and whoever asked the guest for it.
//!
//! ```text
//!         ask                  carried out
//! awake ───────> asked ─────────────────────> suspended
//!   ^              │ answered: denied, or woken   │ answered: woken
//!   └──────────────┴──────────────────────────────┘
//! ```

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
    has_ended: bool,
}

/// What became of the question whether the guest would suspend itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Question {
    /// It is answered, or was not asked.
    #[default]
    Settled,
    /// There was no answer in time.
    Unanswered,
    /// Nor was there one later, and the VM has gone on then.
    Old(Instant),
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

    /// Takes the call of this vCPU, to answer it.
    pub fn take(&self, vcpu: usize) -> Option<SuspendCall> {
        let mut state = self.lock();
        let call = state.call.take_if(|call| call.vcpu == vcpu)?;
        state.is_suspended = false;
        Some(call)
    }

    /// Waits for as long as that for the guest to ask; whether it did, and for nobody yet. `None` after
    /// [`end`](Self::end).
    pub fn await_call(&self, patience: Duration) -> Option<bool> {
        let idle = |state: &mut State| !state.is_new && !state.has_ended;
        let waited = self
            .changed
            .wait_timeout_while(self.lock(), patience, idle)
            .unwrap_or_else(PoisonError::into_inner);
        let mut state = waited.0;
        (!state.has_ended).then(|| std::mem::take(&mut state.is_new))
    }

    /// The guest is suspended. Whether that answers a question that is an old one.
    #[must_use]
    pub fn suspended(&self, now: Instant) -> bool {
        let mut state = self.lock();
        state.is_suspended = true;
        self.changed.notify_all();
        match std::mem::take(&mut state.question) {
            Question::Old(since) => now.saturating_duration_since(since) < LATE,
            Question::Settled | Question::Unanswered => false,
        }
    }

    /// Waits for as long as that for the guest to be suspended; whether it is.
    #[must_use]
    pub fn await_suspended(&self, limit: Duration) -> bool {
        let awake = |state: &mut State| !state.is_suspended && !state.has_ended;
        let waited = self
            .changed
            .wait_timeout_while(self.lock(), limit, awake)
            .unwrap_or_else(PoisonError::into_inner);
        waited.0.is_suspended
    }

    /// The guest was asked to suspend itself and did not, and is paused instead.
    pub fn unanswered(&self) {
        self.lock().question = Question::Unanswered;
    }

    /// The VM goes on. Whether its guest may suspend itself now, or have done so in a way of its own,
    /// because it was asked to before.
    pub fn goes_on(&self, now: Instant) -> bool {
        let mut state = self.lock();
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

    #[test]
    fn a_call_is_taken_up_once_and_answered_by_its_vcpu() {
        let guest = suspension();
        assert_eq!(guest.await_call(SOON), Some(false));
        guest.ask(CALL);
        assert_eq!(guest.await_call(Duration::MAX), Some(true));
        assert_eq!(guest.await_call(SOON), Some(false));
        assert!(!guest.await_suspended(SOON));
        assert!(!guest.suspended(Instant::now()));
        assert!(guest.await_suspended(Duration::MAX));
        assert_eq!((guest.take(1), guest.call()), (None, Some(CALL)));
        assert_eq!((guest.take(2), guest.call()), (Some(CALL), None));
        assert!(!guest.await_suspended(SOON), "it is awake");
    }

    #[test]
    fn an_answer_to_an_old_question_is_known() {
        let guest = suspension();
        let (asked, goes_on) = (Instant::now(), Instant::now() + LATE);
        guest.unanswered();
        assert!(guest.goes_on(goes_on));
        assert!(!guest.goes_on(goes_on), "it went on already");
        assert!(guest.suspended(goes_on + LATE.saturating_sub(SOON)));
        assert!(!guest.suspended(asked), "that was the answer");
        guest.unanswered();
        assert!(guest.goes_on(goes_on));
        assert!(!guest.suspended(goes_on + LATE), "it is the guest's own");
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
        assert_eq!(guest.await_call(Duration::MAX), None);
        assert!(!guest.await_suspended(Duration::MAX));
    }

    #[test]
    fn what_was_asked_before_a_snapshot_is_answered_after_it() {
        let guest = Suspension::new(0..1, Some(CALL));
        assert_eq!(
            guest.await_call(SOON),
            Some(false),
            "whoever resumes it does"
        );
        assert_eq!(guest.take(2), Some(CALL));
    }
}
