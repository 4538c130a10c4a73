//! What was done to guests' time, by their VMMs' records: into the report, and held against what
//! the guests said of their clocks and what passed on the lab's own meanwhile.

use crate::control::Adjustment;
use crate::guest::Guest;
use crate::host::Host;
use crate::report::{Check, Limit};
use crate::scenario::Stage;
use crate::sightings::{Sighting, Sightings};
use anyhow::{Context, Result};
use guest_protocol::report::Spin;
use serde::Deserialize;
use serde_json::json;
use std::time::Duration;

/// By which part clocks of two machines may differ in rate.
const RATE: i128 = 1000;

impl Stage<'_> {
    /// Takes what was done to a running guest's time into the report, with a check that the guest
    /// bears it out, and has its VMM draw where its time went. To be called once for each guest,
    /// before it is ended.
    ///
    /// # Errors
    /// When the guest or its VMM does not answer.
    pub fn keep_time(&mut self, guest: &mut Guest, host: &mut Host) -> Result<()> {
        // What was done last lies between two samples as well.
        guest.sample(host)?;
        self.keep(guest, host, 1)
    }

    /// The same for a guest that takes no samples or is paused: its records are held against one
    /// another, and against what it said before.
    ///
    /// # Errors
    /// When its VMM does not answer.
    pub fn keep_records(&mut self, guest: &Guest, host: &mut Host) -> Result<()> {
        self.keep(guest, host, 0)
    }

    fn keep(&mut self, guest: &Guest, host: &mut Host, least_stretches: usize) -> Result<()> {
        let name = guest.name();
        let mut records = Vec::new();
        for mut record in guest.adjustments(host)? {
            let parsed = Adjustment::deserialize(&record);
            records.push(parsed.with_context(|| format!("cannot understand {record}"))?);
            record["guest"] = json!(name);
            self.report.adjustments.push(record);
        }
        let check = check(name, &records, guest.sightings(), least_stretches);
        self.report.checks.push(check);
        self.keep_figures(guest, host)
    }
}

/// Fails where a figure is not borne out, or where there is too little to bear any out.
fn check(
    guest: &str,
    records: &[Adjustment],
    sightings: &Sightings,
    least_stretches: usize,
) -> Check {
    let disagreements = disagreements(records, sightings);
    let stretches = sightings.samples.len().saturating_sub(1);
    let mut measured = u32::try_from(disagreements.len()).map_or(f64::INFINITY, f64::from);
    if records.is_empty() || stretches < least_stretches {
        measured = f64::NAN;
    }
    let mut detail = format!(
        "{guest}: {} records, {stretches} stretches between samples",
        records.len()
    );
    if let Some(first) = disagreements.first() {
        detail = format!("{detail}; {first}");
    }
    let none = Limit::Equals(0.0);
    Check::new("adjustment_disagreements", measured, none, "figures").with_detail(detail)
}

fn disagreements(records: &[Adjustment], sightings: &Sightings) -> Vec<String> {
    let among_records = records.iter().filter_map(balance).chain(order(records));
    let stretches = sightings.samples.windows(2);
    let clocks = stretches.filter_map(|pair| passed(records, &pair[0], &pair[1]));
    let reads = records
        .iter()
        .flat_map(|record| skipped(record, &sightings.samples));
    let steps = sightings.spins.iter().flat_map(|spin| steps(records, spin));
    among_records
        .chain(clocks)
        .chain(reads)
        .chain(steps)
        .collect()
}

/// What a record shows of a gap and what it hides are the gap.
fn balance(record: &Adjustment) -> Option<String> {
    let gap = record.gap.as_ref()?;
    let shown = record.shown_ticks?;
    let counted = record.after.guest.wrapping_sub(record.before.guest);
    let passed_ns = ns(shown, record) + i128::from(record.hidden_ns);
    // Without a bound there is nothing to hold it against.
    let bound_ns = u128::from(gap.error_ns?) + 1;
    let holds = shown == counted && passed_ns.abs_diff(gap.ns) <= bound_ns;
    (!holds).then(|| {
        format!(
            "record {}: {shown} ticks of {counted} are shown, with what is hidden {passed_ns} ns of a \
             gap of {} ns",
            record.sequence, gap.ns
        )
    })
}

/// Records are numbered from 1 without gaps, and the guest's counter only grows from one to the next.
fn order(records: &[Adjustment]) -> impl Iterator<Item = String> {
    let numbers = (1..)
        .zip(records)
        .find(|(number, record)| record.sequence != *number);
    let numbers = numbers.map(|(number, it)| format!("record {number} has number {}", it.sequence));
    let backwards = records.windows(2).filter(|pair| {
        let (end, start) = (&pair[0].after, &pair[1].before);
        start.frequency_hz == end.frequency_hz && start.guest < end.guest
    });
    let backwards = backwards.map(|pair| {
        let number = pair[1].sequence;
        format!("record {number} begins before the one before it ends")
    });
    numbers.into_iter().chain(backwards)
}

/// What the guest's counter showed between two samples, and what the records between them hide, is
/// what passed for the lab.
fn passed(records: &[Adjustment], from: &Sighting, to: &Sighting) -> Option<String> {
    let frequency = records.last()?;
    let (first, last) = (&from.sample, &to.sample);
    let shown_ns = |from, to| ns(u64::saturating_sub(to, from), frequency);
    let least_shown_ns = shown_ns(first.counter_after, last.counter_before);
    let most_shown_ns = shown_ns(first.counter_before, last.counter_after);
    // A count that was read just where a gap begins or ends was read before it or after it.
    let is_within = |it: &Adjustment| {
        first.counter_after < it.before.guest && it.after.guest < last.counter_before
    };
    let may_be_within = |it: &Adjustment| {
        first.counter_before <= it.before.guest && it.after.guest <= last.counter_after
    };
    let (mut least_hidden_ns, mut most_hidden_ns) = (0, 0);
    for record in records {
        let Some(gap) = &record.gap else { continue };
        let hidden_ns = i128::from(record.hidden_ns);
        let error_ns = i128::from(gap.error_ns.unwrap_or(0));
        if is_within(record) {
            least_hidden_ns += i128::max(0, hidden_ns - error_ns);
        }
        if may_be_within(record) {
            most_hidden_ns += hidden_ns + error_ns;
        }
    }
    let least_ns = nanos(to.asked.saturating_duration_since(from.answered));
    let most_ns = nanos(to.answered.saturating_duration_since(from.asked));
    let tolerance_ns = most_ns / RATE;
    let holds = least_shown_ns + least_hidden_ns <= most_ns + tolerance_ns
        && most_shown_ns + most_hidden_ns >= least_ns - tolerance_ns;
    (!holds).then(|| {
        format!(
            "between samples {} and {} the guest's counter showed {} ms, the records hide {} ms, and \
             {} to {} ms passed",
            first.sequence,
            last.sequence,
            most_shown_ns / 1_000_000,
            most_hidden_ns / 1_000_000,
            least_ns / 1_000_000,
            most_ns / 1_000_000,
        )
    })
}

/// No guest reads a count that its counter is said to have skipped.
fn skipped(record: &Adjustment, samples: &[Sighting]) -> impl Iterator<Item = String> {
    let (start, end) = (record.before.guest, record.after.guest);
    let is_gap = record.gap.is_some();
    let read = move |it: &&Sighting| {
        let counts = [it.sample.counter_before, it.sample.counter_after];
        is_gap && counts.iter().any(|count| start < *count && *count < end)
    };
    samples.iter().filter(read).map(move |it| {
        format!(
            "record {} has no counts from {start} to {end}, and sample {} does",
            record.sequence, it.sample.sequence
        )
    })
}

/// A spinning vCPU makes a step over every gap that its counter shows, at least as large as that. How
/// much larger is for [`passed`]: a step is also what the vCPU and the emulator waited.
fn steps(records: &[Adjustment], spin: &Spin) -> Vec<String> {
    let gaps = records.iter().filter(|it| it.gap.is_some());
    let mut found = Vec::new();
    let smallest = spin.largest_gaps.last().map_or(0, |step| step.ticks);
    for record in gaps {
        let (start, shown) = (record.before.guest, record.shown_ticks.unwrap_or(0));
        let was_spinning = spin.first_counter <= start && start < spin.last_counter;
        let claim = match spin.gap_over(start) {
            Some(step) if step.start.saturating_add(step.ticks) < record.after.guest => {
                format!("ran within, after a step of {} ticks", step.ticks)
            }
            None if was_spinning && shown > smallest => "saw no such step".to_owned(),
            _ => continue,
        };
        found.push(format!(
            "record {} shows {shown} ticks, and vCPU {} {claim}",
            record.sequence, spin.cpu
        ));
    }
    found
}

/// Ticks at the rate of the guest's counter after the record.
fn ns(ticks: u64, record: &Adjustment) -> i128 {
    let hz = i128::from(record.after.frequency_hz.max(1));
    i128::from(ticks) * 1_000_000_000 / hz
}

fn nanos(duration: Duration) -> i128 {
    duration.as_nanos().cast_signed()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::{Counters, Gap};
    use guest_protocol::report::{Sample, SpinGap};
    use std::time::Instant;

    const MS: u64 = 1_000_000;

    /// A resumption, at a counter of 1 GHz: what the guest's counter stood at, and by how much it
    /// moved over a gap.
    fn resume(sequence: u64, at_ms: u64, shown_ms: u64, gap_ms: u64) -> Adjustment {
        let counters = |guest_ms| Counters {
            host: 0,
            guest: guest_ms * MS,
            frequency_hz: 1_000_000_000,
        };
        Adjustment {
            sequence,
            wall_ns: 0,
            event: "resume".into(),
            policy: None,
            gap: Some(Gap {
                ns: i128::from(gap_ms * MS),
                error_ns: Some(0),
            }),
            hidden_ns: (gap_ms - shown_ms) * MS,
            shown_ticks: Some(shown_ms * MS),
            before: counters(at_ms),
            after: counters(at_ms + shown_ms),
            live: None,
            unanswered_ms: None,
            unfinished_ms: None,
        }
    }

    /// Samples of a guest, each within 10 ms of the lab's clock: its counter then.
    fn samples(moments: &[(u64, u64)]) -> Sightings {
        let start = Instant::now();
        let sighting = |&(lab_ms, counter_ms): &(u64, u64)| Sighting {
            asked: start + Duration::from_millis(lab_ms),
            answered: start + Duration::from_millis(lab_ms + 10),
            sample: Sample {
                sequence: 0,
                cpu: 0,
                counter_before: counter_ms * MS,
                monotonic_ns: 0,
                monotonic_raw_ns: 0,
                boottime_ns: 0,
                realtime_ns: 0,
                counter_after: counter_ms * MS,
                steal_ns: [].into_iter().collect(),
                paused_ns: None,
            },
        };
        Sightings {
            samples: moments.iter().map(sighting).collect(),
            spins: Vec::new(),
        }
    }

    fn spin(steps_ms: &[(u64, u64)]) -> Sightings {
        let mut spin = Spin {
            reads: 1000,
            last_counter: 20_000 * MS,
            ..Spin::default()
        };
        for (gap, &(start_ms, ms)) in spin.largest_gaps.iter_mut().zip(steps_ms) {
            *gap = SpinGap {
                start: start_ms * MS,
                ticks: ms * MS,
                ..SpinGap::default()
            };
        }
        Sightings {
            samples: Vec::new(),
            spins: vec![spin],
        }
    }

    fn count(records: &[Adjustment], sightings: &Sightings) -> usize {
        disagreements(records, sightings).len()
    }

    #[test]
    fn what_is_shown_and_hidden_is_what_passed_for_the_lab() {
        let frozen = [resume(1, 1000, 0, 3000)];
        assert_eq!(count(&frozen, &samples(&[(0, 500), (4000, 1500)])), 0);
        assert_eq!(count(&frozen, &samples(&[(0, 500), (4030, 1500)])), 1);
        assert_eq!(count(&frozen, &samples(&[(0, 500), (3970, 1500)])), 1);
        let advanced = [resume(1, 1000, 3000, 3000)];
        assert_eq!(count(&advanced, &samples(&[(0, 500), (4000, 4500)])), 0);
        assert_eq!(count(&advanced, &samples(&[(0, 500), (1000, 4500)])), 1);
        // Before and after it there is nothing to hide.
        let around = samples(&[(0, 500), (400, 900), (3510, 1010), (4000, 1500)]);
        assert_eq!(count(&frozen, &around), 0);
        let wrong = samples(&[(0, 500), (400, 900), (3510, 1010), (7000, 1500)]);
        assert_eq!(count(&frozen, &wrong), 1);
    }

    #[test]
    fn a_guest_reads_nothing_of_what_its_counter_skipped() {
        let advanced = [resume(1, 1000, 3000, 3000)];
        let within = samples(&[(0, 500), (500, 1000), (1500, 2000), (3500, 4000)]);
        let found = disagreements(&advanced, &within);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].contains("sample 0 does"), "{found:?}");
    }

    #[test]
    fn records_balance_and_follow_one_another() {
        let nothing = Sightings::default();
        let good = [resume(1, 1000, 0, 3000), resume(2, 1500, 200, 3000)];
        assert_eq!(count(&good, &nothing), 0);
        let backwards = [resume(1, 1000, 600, 3000), resume(2, 1500, 0, 3000)];
        assert_eq!(count(&backwards, &nothing), 1);
        let missing = [resume(1, 1000, 0, 3000), resume(3, 1500, 0, 3000)];
        assert_eq!(count(&missing, &nothing), 1);
        let mut unbalanced = resume(1, 1000, 200, 3000);
        unbalanced.hidden_ns += 2;
        assert_eq!(count(&[unbalanced], &nothing), 1);
        let mut miscounted = resume(1, 1000, 200, 3000);
        miscounted.after.guest += 1;
        assert_eq!(count(&[miscounted], &nothing), 1);
    }

    #[test]
    fn a_spinning_vcpu_steps_over_what_is_shown() {
        let frozen = [resume(1, 1000, 0, 3000)];
        assert_eq!(count(&frozen, &spin(&[(999, 900)])), 0);
        let advanced = [resume(1, 1000, 3000, 3000)];
        assert_eq!(count(&advanced, &spin(&[(999, 3010)])), 0);
        assert_eq!(count(&advanced, &spin(&[(999, 2990)])), 1, "it ran within");
        assert_eq!(count(&advanced, &spin(&[(7000, 10)])), 1, "it saw none");
    }

    #[test]
    fn a_check_passes_where_something_was_borne_out_and_nothing_was_not() {
        let records = [resume(1, 1000, 0, 3000)];
        let passes = |records: &[_], sightings| check("one", records, &sightings, 1).pass;
        assert!(passes(&records, samples(&[(0, 500), (4000, 1500)])));
        assert!(!passes(&records, samples(&[(0, 500), (5000, 1500)])));
        assert!(!passes(&records, samples(&[(0, 500)])));
        assert!(!passes(&[], samples(&[(0, 500), (1000, 1500)])));
    }
}
