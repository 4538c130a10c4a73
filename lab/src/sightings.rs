//! What a guest said of its clocks and counters, and when it did.

use crate::guest::Guest;
use crate::host::Host;
use anyhow::{Result, bail};
use guest_protocol::report::{Sample, Spin};
use guest_protocol::{Action, Body};
use std::time::Instant;

/// A sample that a guest was asked for: its clocks were read between two moments of the lab's.
#[derive(Debug, Clone)]
pub struct Sighting {
    /// Before they were read.
    pub asked: Instant,
    /// After that.
    pub answered: Instant,
    /// What they said.
    pub sample: Sample,
}

/// Everything that one guest said when it was asked, in order.
#[derive(Debug, Clone, Default)]
pub struct Sightings {
    /// Its samples.
    pub samples: Vec<Sighting>,
    /// What its spinning vCPUs saw.
    pub spins: Vec<Spin>,
}

impl Guest {
    /// What it said of its clocks so far.
    #[must_use]
    pub fn sightings(&self) -> &Sightings {
        &self.sightings
    }

    /// One sample, taken now.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub fn sample(&mut self, host: &mut Host) -> Result<Sample> {
        let (sample, ()) = self.sample_over(host, |_, _| Ok(()))?;
        Ok(sample)
    }

    /// One sample, asked for before something is done: a paused guest takes it as soon as it is
    /// resumed.
    ///
    /// # Errors
    /// As [`Self::ask`], and what is done fails with.
    pub fn sample_over<T>(
        &mut self,
        host: &mut Host,
        act: impl FnOnce(&Self, &mut Host) -> Result<T>,
    ) -> Result<(Sample, T)> {
        let asked = Instant::now();
        let id = self.send(host, Action::Sample)?;
        let done = act(self, host)?;
        let sample = match self.await_answer(host, id)? {
            Body::Sample(sample) => sample,
            other => bail!("guest {} sent {other:?} for a sample", self.name()),
        };
        self.sightings.samples.push(Sighting {
            asked,
            answered: Instant::now(),
            sample: sample.clone(),
        });
        Ok((sample, done))
    }

    /// What each spinning vCPU saw since it was asked last.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub fn spins(&mut self, host: &mut Host) -> Result<Vec<Spin>> {
        let id = self.send(host, Action::Spin)?;
        let mut spins = Vec::new();
        loop {
            match self.await_answer(host, id)? {
                Body::Spin(spin) => spins.push(spin),
                Body::Done => {
                    self.sightings.spins.extend(&spins);
                    return Ok(spins);
                }
                other => bail!("guest {} sent {other:?} for spins", self.name()),
            }
        }
    }
}

/// Samples for tests.
#[cfg(test)]
pub(crate) mod made {
    use super::*;
    use std::time::Duration;

    /// One that was asked for so long after a moment, took so long, and shows this on every clock.
    pub(crate) fn sight(origin: Instant, asked_ms: u64, took_ms: u64, shows_ms: u64) -> Sighting {
        let clock_ns = shows_ms * 1_000_000;
        let asked = origin + Duration::from_millis(asked_ms);
        Sighting {
            asked,
            answered: asked + Duration::from_millis(took_ms),
            sample: Sample {
                sequence: 0,
                cpu: 0,
                counter_before: 0,
                monotonic_ns: clock_ns,
                monotonic_raw_ns: clock_ns,
                boottime_ns: clock_ns,
                realtime_ns: clock_ns,
                counter_after: 0,
                paused_ns: None,
                steal_ns: [None].into_iter().collect(),
            },
        }
    }
}
