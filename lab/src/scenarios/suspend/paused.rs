//! What a bare-metal guest says of its pauses, beside the lab's clock.

use crate::bare::{Bare, OnHost};
use crate::dialogue::Dialogue;
use crate::guest::Guest;
use crate::host::Host;
use crate::lost::{Bounds, Moment};
use crate::report::{Check, Limit};
use crate::scenarios::watch::{ms, worst};
use anyhow::{Context, Result};
use guest_protocol::report::PausedTime;

/// Looks at its counter that bound how far that is from the lab's clock: the more, the narrower.
const LOOKS: usize = 12;

/// Its counter, and the structure that it reads, at one time.
pub struct Telling {
    counter: Vec<Moment>,
    pub paused: PausedTime,
}

impl Telling {
    /// Asks the guest.
    pub fn of(guest: &mut Guest, dialogue: &mut Dialogue, host: &mut Host) -> Result<Self> {
        let counter = dialogue.counters(host, LOOKS)?;
        let paused = OnHost { guest, host }.interfaces()?.paused_time;
        let paused = paused.context("the guest finds no paused time")?;
        Ok(Self { counter, paused })
    }

    /// What it was told since then that its counter did not show.
    pub fn told_ns(&self, before: &Self) -> u64 {
        self.paused
            .paused_ns
            .saturating_sub(before.paused.paused_ns)
    }

    /// How far that is from what its counter lost on the lab's clock.
    pub fn error(&self, before: &Self) -> Result<TellingError> {
        let lost = Bounds::of(&before.counter, &self.counter)?;
        Ok(TellingError {
            apart_ms: (ms(self.told_ns(before)) - lost.middle_ms()).abs(),
            known_to_ms: lost.error_ms(),
        })
    }
}

/// How far what a guest was told is from what passed.
#[derive(Clone, Copy)]
pub struct TellingError {
    apart_ms: f64,
    /// The lab knows the moments of the guest's answers no better.
    known_to_ms: f64,
}

impl TellingError {
    /// What the largest of them may be; what it is at the least where the machine is busy, and answers
    /// are late.
    pub fn check(errors: Result<Vec<Self>>, is_quiet: bool, detail: &str) -> Check {
        let largest = |errors: &[Self], of: fn(&Self) -> f64| worst(errors.iter().map(of));
        let (measured, detail) = match errors {
            Ok(errors) => {
                let most = largest(&errors, |it| it.apart_ms + it.known_to_ms);
                let least = largest(&errors, |it| (it.apart_ms - it.known_to_ms).max(0.0));
                let detail = format!(
                    "{detail}; {:.2} ms apart, known to {:.2} ms",
                    largest(&errors, |it| it.apart_ms),
                    largest(&errors, |it| it.known_to_ms),
                );
                (if is_quiet { most } else { least }, detail)
            }
            Err(error) => (f64::NAN, format!("{detail}; {error:#}")),
        };
        Check::new("paused_error_ms", measured, Limit::AtMost(10.0), "ms").with_detail(detail)
    }
}
