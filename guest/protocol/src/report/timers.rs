//! What became of a timer.

use serde::{Deserialize, Serialize};

/// A CPU's timer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Timer {
    /// The virtual one.
    Virtual,
    /// The physical one.
    Physical,
}

/// What became of a timer since it was armed. All counts are of the clock that it was armed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimerState {
    /// The CPU.
    pub cpu: u32,
    /// Which of its timers.
    pub timer: Timer,
    /// Whether it was armed on live physical time.
    pub live: bool,
    /// Rate of that clock.
    pub frequency_hz: u64,
    /// The clock before the timer was armed.
    pub armed_at: u64,
    /// When it is due; none is never.
    pub deadline: Option<u64>,
    /// Whether its interrupt is masked.
    pub masked: bool,
    /// Interrupts since it was armed: a timer fires once.
    pub interrupts: u32,
    /// The clock at the first of them.
    pub fired_at: Option<u64>,
    /// The clock now.
    pub now: u64,
    /// What the timer's status said just before: due or not.
    pub is_due: bool,
    /// What the timer's compare value comes to on that clock; none where no count of it does.
    pub compare: Option<u64>,
    /// What was before, of a timer that is armed anew whenever it fires: all of the above is of the
    /// deadline to come.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub periods: Option<Periods>,
}

/// What became of a timer that is armed anew whenever it fires.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Periods {
    /// Ticks from one deadline to the next. Deadlines that passed before the timer was armed anew are
    /// left out.
    pub period_ticks: u64,
    /// How often it fired.
    pub fired: u64,
    /// How often before its deadline.
    pub early: u64,
    /// The last time that it fired on a host whose counter has another frequency than where it was
    /// armed.
    pub moved: Option<Firing>,
}

/// One time that a timer fired.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Firing {
    /// The clock before the timer was armed: for all but the first, when it fired before.
    pub armed_at: u64,
    /// When it was due.
    pub deadline: u64,
    /// What its compare value came to when it fired.
    pub compare: Option<u64>,
    /// The clock at its interrupt.
    pub fired_at: u64,
    /// Nanoseconds that had been stolen from its CPU when it was armed, by that CPU's own structure; 0
    /// where there is none.
    pub stolen_before_ns: u64,
    /// As many as were stolen from it until it fired.
    pub stolen_ns: u64,
}

impl TimerState {
    /// Ticks by which the interrupt came before the deadline; none if it did not.
    #[must_use]
    pub fn early_ticks(&self) -> Option<u64> {
        let early = self
            .deadline
            .unwrap_or(u64::MAX)
            .checked_sub(self.fired_at?)?;
        (early > 0).then_some(early)
    }

    /// Ticks from the deadline to the interrupt; none if there was none, or it was early.
    #[must_use]
    pub fn late_ticks(&self) -> Option<u64> {
        self.fired_at?.checked_sub(self.deadline?)
    }

    /// Whether the deadline passed by more than `patience_ticks` without what should follow it: the
    /// interrupt, or for a masked timer the status.
    #[must_use]
    pub fn is_lost(&self, patience_ticks: u64) -> bool {
        let overdue = |deadline| self.now.saturating_sub(deadline) > patience_ticks;
        let is_overdue = self.deadline.is_some_and(overdue);
        is_overdue
            && if self.masked {
                !self.is_due
            } else {
                self.interrupts == 0
            }
    }

    /// Whether something happened that should not: an interrupt too early, more than one, one of a
    /// masked timer, or a status that says "due" too early.
    #[must_use]
    pub fn is_wrong(&self) -> bool {
        let due_too_early = self.is_due && self.deadline.is_none_or(|deadline| deadline > self.now);
        let most = u32::from(!self.masked);
        self.early_ticks().is_some() || self.interrupts > most || due_too_early
    }
}
