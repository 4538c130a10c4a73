//! Where guests' time went, drawn: as their VMMs measured it, and as a guest read it itself.

use crate::guest::Guest;
use crate::host::Host;
use crate::scenario::Stage;
use crate::sightings::Sighting;
use crate::vmm::Vmm;
use anyhow::{Context, Result};
use std::fs;
use std::time::Duration;
use time_figure::Sample;

impl Stage<'_> {
    /// Has a guest's VMM draw where the time of each vCPU went, and names the files in the report.
    ///
    /// # Errors
    /// When the VMM does not, or a file cannot be written.
    pub fn keep_figures(&mut self, guest: &Guest, host: &mut Host) -> Result<()> {
        let vcpus = guest.status(host)?.vcpus.len();
        for vcpu in 0..vcpus {
            let drawn = guest.figure(host, vcpu)?;
            self.keep_figure(file_name(guest.name(), vcpu, vcpus), &drawn)?;
        }
        Ok(())
    }

    /// The same of a VMM whose guest is not of the lab and has one vCPU.
    ///
    /// # Errors
    /// When the VMM does not, or the file cannot be written.
    pub fn keep_figure_of(&mut self, vmm: &Vmm, host: &mut Host) -> Result<()> {
        let drawn = vmm.figure(host)?;
        self.keep_figure(file_name(vmm.name(), 0, 1), &drawn)
    }

    /// Writes a figure into the folder of the logs and names it in the report.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn keep_figure(&mut self, name: String, drawn: &[u8]) -> Result<()> {
        let path = self.logs.join(&name);
        fs::write(&path, drawn).with_context(|| format!("cannot write {}", path.display()))?;
        self.report.figures.push(name);
        Ok(())
    }
}

fn file_name(guest: &str, vcpu: usize, vcpus: usize) -> String {
    match vcpus {
        1 => format!("figure-{guest}.svg"),
        _ => format!("figure-{guest}-vcpu{vcpu}.svg"),
    }
}

/// What a guest with one vCPU read of its counter and its stolen time, over the lab's own clock.
///
/// Its counter is live physical time as long as it freezes over each pause.
///
/// # Errors
/// When the guest knows of no stolen time.
pub fn own_samples(sightings: &[Sighting], frequency_hz: u64) -> Result<Vec<Sample>> {
    let Some(first) = sightings.first() else {
        return Ok(Vec::new());
    };
    let first_steal_ns = steal_ns(first)?;
    let sample = |it: &Sighting| {
        let ticks = it
            .sample
            .counter_after
            .saturating_sub(first.sample.counter_after);
        let live_ns = u128::from(ticks) * 1_000_000_000 / u128::from(frequency_hz.max(1));
        let live_ns = u64::try_from(live_ns)?;
        let stolen_ns = steal_ns(it)?.saturating_sub(first_steal_ns);
        Ok(Sample {
            physical_ns: u64::try_from(from_to(first, it).as_nanos())?,
            live_ns,
            virtual_ns: live_ns.saturating_sub(stolen_ns),
        })
    };
    sightings.iter().map(sample).collect()
}

fn steal_ns(sighting: &Sighting) -> Result<u64> {
    let steal_ns = sighting.sample.steal_ns.first().copied().flatten();
    steal_ns.context("the guest knows of no stolen time")
}

/// From the middle of one to the middle of the other.
fn from_to(first: &Sighting, last: &Sighting) -> Duration {
    let half = |it: &Sighting| it.answered.saturating_duration_since(it.asked) / 2;
    (last.asked + half(last)).saturating_duration_since(first.asked + half(first))
}

#[cfg(test)]
mod tests {
    use super::*;
    use guest_protocol::report::Sample as Clocks;
    use std::time::Instant;

    fn sighting(start: Instant, lab_ms: u64, counter: u64, stolen_ms: Option<u64>) -> Sighting {
        let steal_ns = stolen_ms.map(|ms| ms * 1_000_000);
        Sighting {
            asked: start + Duration::from_millis(lab_ms),
            answered: start + Duration::from_millis(lab_ms + 20),
            sample: Clocks {
                sequence: 0,
                cpu: 0,
                counter_before: counter,
                monotonic_ns: 0,
                monotonic_raw_ns: 0,
                boottime_ns: 0,
                realtime_ns: 0,
                counter_after: counter,
                steal_ns: [steal_ns].into_iter().collect(),
                paused_ns: None,
            },
        }
    }

    #[test]
    fn a_counter_is_live_time_and_what_was_stolen_leaves_virtual_time() {
        let start = Instant::now();
        let seen = [
            sighting(start, 50, 7000, Some(30)),
            sighting(start, 1050, 8000, Some(530)),
            sighting(start, 4050, 8000, Some(530)),
        ];
        let lines = own_samples(&seen, 1000).unwrap();
        let in_ms =
            |it: &Sample| [it.physical_ns, it.live_ns, it.virtual_ns].map(|ns| ns / 1_000_000);
        let lines: Vec<_> = lines.iter().map(in_ms).collect();
        assert_eq!(lines, [[0, 0, 0], [1000, 1000, 500], [4000, 1000, 500]]);
        assert!(own_samples(&[sighting(start, 0, 0, None)], 1000).is_err());
    }
}
