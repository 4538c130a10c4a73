//! A pause in a busy guest's life, drawn from what the guest read itself.

use crate::control::Adjustment;
use crate::figures::own_samples;
use crate::guest::Guest;
use crate::host::Host;
use crate::interrupt::sleep;
use crate::report::{Check, Limit};
use crate::scenario::Stage;
use anyhow::Result;
use std::time::{Duration, Instant};
use time_figure::Figure;

/// How long the guest is asked before the pause, and after it.
const STRETCH: Duration = Duration::from_secs(4);

/// How long it is paused.
const LENGTH: Duration = Duration::from_secs(3);

/// How often it is asked.
const PERIOD: Duration = Duration::from_millis(400);

/// What was done to the guest.
pub struct Paused {
    stop: Adjustment,
    resume: Adjustment,
}

impl Paused {
    /// Pauses the guest in the middle of a while in which it is asked for its clocks, and draws that.
    pub fn make(guest: &mut Guest, host: &mut Host, stage: &mut Stage) -> Result<Self> {
        let first = guest.sightings().samples.len();
        ask(guest, host)?;
        let stop = guest.pause(host)?;
        sleep(LENGTH)?;
        let (_, resume) = guest.sample_over(host, Guest::resume)?;
        ask(guest, host)?;
        let sightings = &guest.sightings().samples[first..];
        let figure = Figure {
            title: &format!("What guest {} read of its own time", guest.name()),
            about: &format!(
                "{} samples of its counter and of steal in its /proc/stat, over the lab's clock",
                sightings.len()
            ),
            samples: &own_samples(sightings, resume.after.frequency_hz)?,
        };
        stage.keep_figure(file(guest.name()), figure.draw()?.as_bytes())?;
        Ok(Self { stop, resume })
    }

    /// Its counter has not moved.
    pub fn check(&self) -> Check {
        let ticks = self.resume.after.guest.wrapping_sub(self.stop.after.guest);
        #[expect(clippy::cast_precision_loss, reason = "0, or it fails")]
        let ticks = ticks as f64;
        Check::new("frozen_ticks", ticks, Limit::Equals(0.0), "ticks")
    }
}

/// Name of the figure.
pub fn file(guest: &str) -> String {
    format!("figure-{guest}-itself.svg")
}

/// From a first sample to a last one.
fn ask(guest: &mut Guest, host: &mut Host) -> Result<()> {
    let start = Instant::now();
    guest.sample(host)?;
    while start.elapsed() < STRETCH {
        sleep(PERIOD)?;
        guest.sample(host)?;
    }
    Ok(())
}
