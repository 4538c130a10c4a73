//! What a guest's clock lost on the lab's, between two bounds.

use crate::sightings::Sighting;
use anyhow::{Context, Result, bail};
use guest_protocol::report::Sample;
use std::time::Instant;

/// A guest's clock, read between two moments of the lab's.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    /// Before it was read.
    pub asked: Instant,
    /// After that.
    pub answered: Instant,
    /// What it said.
    pub clock_ns: u64,
}

/// A length of time between two bounds, in ns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    least: i128,
    most: i128,
}

impl Bounds {
    /// What a guest's clock, read in ns, lost on the lab's between samples before something and
    /// samples after it.
    ///
    /// Every sample was taken between two moments of the lab's, which bounds how far the clock is
    /// behind; the more there are, the narrower, since both clocks run at one rate while the guest runs.
    ///
    /// # Errors
    /// When there are no samples on one side, or the clock runs at another rate.
    pub fn lost(
        before: &[Sighting],
        after: &[Sighting],
        clock_ns: impl Fn(&Sample) -> u64,
    ) -> Result<Self> {
        let moments = |sights: &[Sighting]| -> Vec<Moment> {
            let of = |sight: &Sighting| Moment {
                asked: sight.asked,
                answered: sight.answered,
                clock_ns: clock_ns(&sight.sample),
            };
            sights.iter().map(of).collect()
        };
        Self::of(&moments(before), &moments(after))
    }

    /// The same for any clock.
    ///
    /// # Errors
    /// As [`Self::lost`].
    pub fn of(before: &[Moment], after: &[Moment]) -> Result<Self> {
        let origin = before.first().context("no sample was taken")?.asked;
        let before = Self::behind(before, origin)?;
        let after = Self::behind(after, origin)?;
        Ok(Self {
            least: after.least - before.most,
            most: after.most - before.least,
        })
    }

    fn behind(moments: &[Moment], origin: Instant) -> Result<Self> {
        let since = |at: Instant| {
            at.saturating_duration_since(origin)
                .as_nanos()
                .cast_signed()
        };
        let of = |moment: &Moment| i128::from(moment.clock_ns);
        let least = moments.iter().map(|it| since(it.asked) - of(it)).max();
        let most = moments.iter().map(|it| since(it.answered) - of(it)).min();
        let (least, most) = least.zip(most).context("no sample was taken")?;
        if least > most {
            bail!(
                "the guest's clock does not keep the lab's rate, by {} ns",
                least - most
            );
        }
        Ok(Self { least, most })
    }

    /// The middle, in ms.
    #[must_use]
    pub fn middle_ms(self) -> f64 {
        ms(self.least + self.most) / 2.0
    }

    /// From the middle to either end, in ms.
    #[must_use]
    pub fn error_ms(self) -> f64 {
        ms(self.most - self.least) / 2.0
    }
}

#[expect(clippy::cast_precision_loss, reason = "exact up to 100 days")]
fn ms(ns: i128) -> f64 {
    ns as f64 / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sightings::made::sight;

    #[test]
    fn what_a_clock_lost_is_between_what_every_sample_admits() {
        let origin = Instant::now();
        // The guest's clock is 5000 ms ahead of the lab's, and then 4900.
        let before = [sight(origin, 0, 30, 5010), sight(origin, 100, 4, 5102)];
        let after = [sight(origin, 1000, 20, 5901), sight(origin, 1100, 10, 6009)];
        let lost = Bounds::lost(&before, &after, |sample| sample.monotonic_ns).unwrap();
        let expected = Bounds {
            least: 97_000_000,
            most: 103_000_000,
        };
        assert_eq!(lost, expected);
        assert!((lost.middle_ms() - 100.0).abs() < 1e-9);
        assert!((lost.error_ms() - 3.0).abs() < 1e-9);
    }

    #[test]
    fn a_clock_of_another_rate_or_without_samples_is_not_judged() {
        let origin = Instant::now();
        let other_rate = [sight(origin, 0, 1, 5000), sight(origin, 1000, 1, 5500)];
        let one = [sight(origin, 2000, 1, 7000)];
        let lost = |before: &[_], after: &[_]| {
            let lost = Bounds::lost(before, after, |it| it.monotonic_ns);
            lost.map_or_else(|error| error.to_string(), |_| String::new())
        };
        assert!(lost(&other_rate, &one).contains("does not keep"));
        assert!(lost(&one, &other_rate).contains("does not keep"));
        assert!(lost(&one, &[]).contains("no sample"));
        assert!(lost(&[], &one).contains("no sample"));
        assert_eq!(lost(&one, &one), "");
    }
}
