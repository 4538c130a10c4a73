//! What a bare-metal guest says of its pauses, beside the lab's clock.

use super::Case;
use crate::bare::{Bare, OnHost};
use crate::dialogue::Dialogue;
use crate::guest::Guest;
use crate::host::Host;
use crate::lost::{Bounds, Moment};
use crate::report::{Check, Limit};
use crate::scenarios::watch::ms;
use anyhow::{Context, Result};
use guest_protocol::Workload;
use guest_protocol::report::PausedTime;

/// Looks at its counter that bound how far that is from the lab's clock: the more, the narrower.
const LOOKS: usize = 75;

/// What the guest reads in its structure.
pub fn paused(guest: &mut Guest, host: &mut Host) -> Result<PausedTime> {
    let paused = OnHost { guest, host }.interfaces()?.paused_time;
    paused.context("the guest finds no paused time")
}

/// Its counter, and the structure that it reads, at one time.
pub struct Telling {
    counter: Vec<Moment>,
    pub paused: PausedTime,
}

impl Telling {
    /// Asks the guest, whose last vCPU rests meanwhile: it answers at once.
    pub fn of(
        guest: &mut Guest,
        dialogue: &mut Dialogue,
        host: &mut Host,
        case: Case,
    ) -> Result<Self> {
        let last = case.cpus - 1;
        guest.set_workload(host, last, Workload::Idle)?;
        let counter = dialogue.counters(host, LOOKS)?;
        let paused = paused(guest, host)?;
        guest.set_workload(host, last, case.last)?;
        Ok(Self { counter, paused })
    }

    /// How far what it was told since then, of so many stops, is from what its counter lost on the
    /// lab's clock: for each stop, with all that the lab does not know of the moments of its answers.
    /// Where the machine is busy and answers are late, what it is at the least.
    pub fn check(&self, before: &Self, stops: usize, is_quiet: bool, detail: &str) -> Check {
        let (measured, detail) = match Bounds::of(&before.counter, &self.counter) {
            Ok(lost) => {
                let told_ns = self.paused.paused_ns - before.paused.paused_ns;
                let of_each = |ms: f64| ms / u32::try_from(stops).map_or(f64::NAN, f64::from);
                let apart_ms = of_each((ms(told_ns) - lost.middle_ms()).abs());
                let known_ms = of_each(lost.error_ms());
                let detail = format!(
                    "{detail}; {apart_ms:.2} ms apart for each of {stops}, known to {known_ms:.2} ms"
                );
                let least_ms = (apart_ms - known_ms).max(0.0);
                (
                    if is_quiet {
                        apart_ms + known_ms
                    } else {
                        least_ms
                    },
                    detail,
                )
            }
            Err(error) => (f64::NAN, format!("{detail}; {error:#}")),
        };
        Check::new("paused_error_ms", measured, Limit::AtMost(10.0), "ms").with_detail(detail)
    }
}
