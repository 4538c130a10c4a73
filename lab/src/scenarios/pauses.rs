//! Pauses of a guest, as the VMM recorded them and as its spinning vCPUs saw them.

use super::watch::{ms, structure, worst};
use crate::control::Adjustment;
use crate::dialogue::Dialogue;
use crate::guest::Guest;
use crate::host::Host;
use crate::interrupt::sleep;
use crate::lost::Bounds;
use crate::report::{Check, Limit};
use crate::sightings::Sighting;
use crate::status::Status;
use anyhow::{Context, Result, bail};
use guest_protocol::report::{Program, Sample, Spin};
use guest_protocol::{Action, Workload};
use std::borrow::Borrow;
use std::time::{Duration, Instant};

/// How long after a resumption every vCPU is where it was before the pause.
const SETTLING: Duration = Duration::from_millis(100);

/// One pause, and what was asked just before and just after it.
pub struct Pause {
    /// This long the lab kept the guest paused, and at most that long the pause can have been.
    pub(super) kept: (Duration, Duration),
    pub stop: Adjustment,
    pub resume: Adjustment,
    pub(super) before: Status,
    pub(super) after: Status,
    /// What the emulator waited for CPUs from just before the pause to just after it.
    pub held_up: Duration,
    /// From before the pause to after it.
    pub spins: Vec<Spin>,
    /// Before the pause and after it; none of a guest without Linux's clocks.
    pub(super) samples: Option<(Sample, Sample)>,
    /// By how much the structure of each vCPU grew over the same requests without a pause.
    pub(super) quiet_growths_ms: Vec<f64>,
}

impl Pause {
    /// Pauses a guest whose samples are on request only: what it prints makes gaps.
    pub fn make(
        guest: &mut Guest,
        host: &mut Host,
        program: Program,
        length: Duration,
    ) -> Result<Self> {
        let meanwhile = |_: &mut Host| sleep(length);
        Self::over(guest, host, program, Guest::pause, meanwhile, Guest::resume)
    }

    /// The same for a stop and a resumption of any kind, with whatever happens in between.
    pub fn over(
        guest: &mut Guest,
        host: &mut Host,
        program: Program,
        stop: fn(&Guest, &mut Host) -> Result<Adjustment>,
        meanwhile: impl FnOnce(&mut Host) -> Result<()>,
        resume: fn(&Guest, &mut Host) -> Result<Adjustment>,
    ) -> Result<Self> {
        let quiet_growths_ms = quiet_growths_ms(guest, host)?;
        let sample = sample(guest, host, program)?;
        // The accounts start afresh.
        guest.spins(host)?;
        let before = guest.status(host)?;
        let held_up = host.held_up()?;
        let asked = Instant::now();
        let stop = stop(guest, host)?;
        let stopped = Instant::now();
        meanwhile(host)?;
        let least = stopped.elapsed();
        let resume = resume(guest, host)?;
        let most = asked.elapsed();
        // Commands take CPUs, from vCPUs too that are just going back to rest.
        sleep(SETTLING)?;
        let held_up = host.held_up()?.saturating_sub(held_up);
        let after = guest.status(host)?;
        let spins = guest.spins(host)?;
        if spins.is_empty() {
            bail!("no vCPU of guest {} spins", guest.name());
        }
        Ok(Self {
            kept: (least, most),
            stop,
            resume,
            before,
            after,
            held_up,
            spins,
            samples: sample.zip(self::sample(guest, host, program)?),
            quiet_growths_ms,
        })
    }

    /// By how much a step over the pause is longer than what the guest was to see of it and what was
    /// stolen from the vCPU within that very step, the most of all spinning vCPUs; negative where it
    /// is shorter.
    ///
    /// Only the bare-metal guest looks at what is stolen within a step.
    pub fn step_excess_us(&self, shown_ns: i128) -> f64 {
        let excess = |spin| {
            let step_ns = self.step_ns(spin)?;
            Some(us(step_ns - shown_ns))
        };
        worst(
            self.spins
                .iter()
                .map(|spin| excess(spin).unwrap_or(f64::NAN)),
        )
    }

    /// The step of a vCPU over the pause, less what was stolen within it; none if it did not spin on
    /// either side. Where the step is not among the largest, it was no larger than the smallest of
    /// those.
    fn step_ns(&self, spin: &Spin) -> Option<i128> {
        let (stop, resume) = (self.stop.after.guest, self.resume.after.guest);
        if let Some(gap) = spin.gap_over(stop) {
            return Some(i128::from(self.ns(gap.ticks)) - i128::from(gap.stolen_ns));
        }
        let is_around = spin.reads > 0 && spin.first_counter <= stop && resume <= spin.last_counter;
        let bound = spin.largest_gaps.last().filter(|_| is_around)?;
        Some(self.ns(bound.ticks).into())
    }

    /// Guest counter at resume less guest counter at stop.
    pub fn shown_ticks(&self) -> u64 {
        self.resume.after.guest.wrapping_sub(self.stop.after.guest)
    }

    /// Whether the step over the pause was among the largest of every spinning vCPU, so that the gap
    /// is known and not just bounded.
    pub fn is_gap_known(&self) -> bool {
        let stop = self.stop.after.guest;
        self.spins.iter().all(|spin| spin.gap_over(stop).is_some())
    }

    /// How much of the step over the pause was before the stop and after the resumption, the most of
    /// all spinning vCPUs; none where the step is not known.
    pub fn sides_us(&self) -> Option<(f64, f64)> {
        let (stop, resume) = (self.stop.after.guest, self.resume.after.guest);
        let sides = self.spins.iter().map(|spin| {
            let gap = spin.gap_over(stop)?;
            let before = stop.checked_sub(gap.start)?;
            let after = (gap.start + gap.ticks).checked_sub(resume)?;
            Some((ms(self.ns(before)) * 1e3, ms(self.ns(after)) * 1e3))
        });
        let sides: Vec<_> = sides.collect::<Option<_>>()?;
        let most = |side: fn(&(f64, f64)) -> f64| worst(sides.iter().map(side));
        Some((most(|it| it.0), most(|it| it.1)))
    }

    /// Reads below an earlier one, of the same vCPU or of another.
    pub fn backwards_steps(&self) -> u64 {
        backwards_steps(&self.spins)
    }

    /// How far the time that the guest's counter showed by the record is from the time that passed on
    /// the host's wall clock.
    pub fn counter_error_us(&self) -> f64 {
        let elapsed_ns = self.resume.wall_ns.wrapping_sub(self.stop.wall_ns);
        ms(elapsed_ns.abs_diff(self.ns(self.shown_ticks()))) * 1e3
    }

    /// What the records say that contradicts each other, the lab's own clock or the guest.
    pub fn contradictions(&self) -> Vec<String> {
        let mut found = Vec::new();
        let (stop, resume) = (&self.stop, &self.resume);
        let mut claim = |holds: bool, what: String| {
            if !holds {
                found.push(format!("record {}: {what}", resume.sequence));
            }
        };
        let gap_ns = resume.gap.as_ref().map_or(-1, |gap| gap.ns);
        let (least, most) = self.kept;
        let error_ns = resume.gap.as_ref().and_then(|gap| gap.error_ns);
        let error = Duration::from_nanos(error_ns.unwrap_or(0));
        let (least, most) = (least.saturating_sub(error), most + error);
        let kept_ns = least.as_nanos().cast_signed()..=most.as_nanos().cast_signed();
        claim(
            kept_ns.contains(&gap_ns),
            format!("a gap of {gap_ns} ns, not {least:?} to {most:?}"),
        );
        claim(
            resume.before.guest == stop.after.guest,
            "it does not go on from the stop".to_owned(),
        );
        let shown = self.shown_ticks();
        claim(
            resume.shown_ticks == Some(shown),
            format!("{:?} ticks shown, not {shown}", resume.shown_ticks),
        );
        let passed_ns = i128::from(resume.hidden_ns) + i128::from(self.ns(shown));
        claim(
            passed_ns.abs_diff(gap_ns) <= u128::from(error_ns.unwrap_or(0)) + 1,
            format!("hidden and shown are {passed_ns} ns, and the gap {gap_ns}"),
        );
        let is_between = self.samples.as_ref().is_none_or(|(before, after)| {
            before.counter_after <= stop.after.guest && resume.after.guest <= after.counter_before
        });
        claim(
            is_between,
            "it is not between the guest's samples".to_owned(),
        );
        for spin in &self.spins {
            let over = spin.gap_over(stop.after.guest);
            let reaches = over.is_none_or(|gap| gap.start + gap.ticks >= resume.after.guest);
            let cpu = spin.cpu;
            claim(
                reaches,
                format!("vCPU {cpu} ran within the pause, {over:?}"),
            );
            let must_be_seen = shown > spin.largest_gaps.last().map_or(0, |gap| gap.ticks);
            let is_seen = over.is_some() || !must_be_seen;
            let read = spin.first_counter..=spin.last_counter;
            claim(
                is_seen,
                format!(
                    "vCPU {cpu} saw no such step from {} to {}, in {} reads of {read:?}",
                    stop.after.guest, resume.after.guest, spin.reads,
                ),
            );
        }
        found
    }

    pub(super) fn ns(&self, ticks: u64) -> u64 {
        let hz = u128::from(self.resume.after.frequency_hz);
        u64::try_from(u128::from(ticks) * 1_000_000_000 / hz).unwrap_or(u64::MAX)
    }
}

/// A sample, of a guest that takes any.
pub(super) fn sample(
    guest: &mut Guest,
    host: &mut Host,
    program: Program,
) -> Result<Option<Sample>> {
    match program {
        Program::Linux => guest.sample(host).map(Some),
        Program::El1 => Ok(None),
    }
}

/// Samples that bound how far a guest's clocks are from the lab's: the more, the narrower.
const SIGHTS: usize = 150;

/// Looks at the clocks of a Linux guest, whose spinning vCPU rests meanwhile: it answers at once.
pub fn sights(dialogue: &mut Dialogue, host: &mut Host, spinner: u32) -> Result<Vec<Sighting>> {
    let set = |workload| Action::SetWorkload {
        cpu: spinner,
        workload,
    };
    dialogue.ask(host, set(Workload::Idle))?;
    let sights = dialogue.sights(host, SIGHTS)?;
    dialogue.ask(host, set(Workload::Spin))?;
    Ok(sights)
}

/// The gaps that a spinning vCPU saw.
pub fn check_gaps(gaps_us: Vec<f64>, circumstances: &str) -> Vec<Check> {
    let (middle, largest) = (median(gaps_us.clone()), worst(gaps_us.into_iter()));
    let check = |name, measured, most| Check::new(name, measured, Limit::AtMost(most), "us");
    vec![
        check("counter_gap_us_median", middle, 2000.0),
        check("counter_gap_us_worst", largest, 20_000.0).with_detail(circumstances),
    ]
}

/// How far what a guest's clock lost on the lab's, from before several pauses to after them, is from
/// what it was to lose: at most so much for each of them, with all that either is not known by.
pub fn check_lost(
    name: &'static str,
    lost: Result<Bounds>,
    due: &[(i128, Duration)],
    guest: &str,
) -> Check {
    let due_ms: f64 = due.iter().map(|(ns, _)| us(*ns) / 1e3).sum();
    let due_error: Duration = due.iter().map(|(_, error)| *error).sum();
    let of_each = |ms: f64| ms / count(due.len());
    let (measured, detail) = match lost {
        Ok(lost) => {
            let error_ms = lost.error_ms() + due_error.as_secs_f64() * 1e3;
            let apart_ms = lost.middle_ms() - due_ms;
            let detail = format!(
                "{:.2} ms less than due for each of {}, known to {:.2} ms",
                of_each(apart_ms),
                due.len(),
                of_each(error_ms)
            );
            (of_each(apart_ms.abs() + error_ms), detail)
        }
        Err(error) => (f64::NAN, format!("{error:#}")),
    };
    Check::new(name, measured, Limit::AtMost(5.0), "ms").with_detail(format!("{guest}: {detail}"))
}

#[expect(clippy::cast_precision_loss, reason = "exact up to a hundred days")]
fn us(ns: i128) -> f64 {
    ns as f64 / 1e3
}

/// What is stolen from a guest while the lab asks for as much as around a pause: the commands on its
/// host take CPUs that its vCPUs wait for.
pub(super) fn quiet_growths_ms(guest: &Guest, host: &mut Host) -> Result<Vec<f64>> {
    let before = guest.status(host)?;
    // In the place of a pause and a resumption.
    guest.status(host)?;
    guest.status(host)?;
    growths_ms(&before, &guest.status(host)?)
}

/// By how much the structure of each vCPU grew.
fn growths_ms(before: &Status, after: &Status) -> Result<Vec<f64>> {
    let grown = |vcpu| {
        let ns = structure(after, vcpu)?
            .stolen_ns
            .checked_sub(structure(before, vcpu)?.stolen_ns);
        ns.context("a structure stepped back").map(ms)
    };
    (0..after.vcpus.len()).map(grown).collect()
}

/// What pauses add to the stolen time of vCPUs that spin, each on a CPU of its own.
pub fn check_stolen_growth(pauses: &[&Pause], guest: &str) -> Check {
    let (own, _) = vcpus_that_spin(pauses);
    check_growth("stolen_growth_ms", 5.0, &own, pauses, guest)
}

/// What pauses add to the stolen time of vCPUs that do not spin: they share a CPU with each other
/// and the VMM, and wait for each other when all are woken at once. None where there are none.
pub fn check_shared_stolen_growth(pauses: &[&Pause], guest: &str) -> Option<Check> {
    let (_, shared) = vcpus_that_spin(pauses);
    let check = || check_growth("shared_stolen_growth_ms", 5.0, &shared, pauses, guest);
    (!shared.is_empty()).then(check)
}

/// The vCPUs that do, and those that do not.
fn vcpus_that_spin(pauses: &[&Pause]) -> (Vec<usize>, Vec<usize>) {
    let spins = |vcpu: &usize| {
        let mut spins = pauses.iter().flat_map(|it| &it.spins);
        spins.any(|spin| spin.cpu as usize == *vcpu)
    };
    let vcpus = pauses.iter().map(|it| it.after.vcpus.len()).max();
    (0..vcpus.unwrap_or(0)).partition(spins)
}

/// What a pause adds to the stolen time of a vCPU at the median, beyond what the same requests add
/// without one; that of the vCPU to which it adds most.
fn check_growth(
    name: &'static str,
    most: f64,
    vcpus: &[usize],
    pauses: &[&Pause],
    guest: &str,
) -> Check {
    let figures = vcpus.iter().map(|vcpu| {
        let at = |growths: &[f64]| growths.get(*vcpu).copied().unwrap_or(f64::NAN);
        let over = |it: &&Pause| at(&growths_ms(&it.before, &it.after).unwrap_or_default());
        let over = median(pauses.iter().map(over).collect());
        let quiet = median(pauses.iter().map(|it| at(&it.quiet_growths_ms)).collect());
        (over, quiet)
    });
    let said = figures
        .clone()
        .map(|(over, quiet)| format!("{over:.1} ms over a pause, {quiet:.1} over none"));
    let detail = format!("{guest}; {}", said.collect::<Vec<_>>().join("; "));
    let growth = worst(figures.map(|(over, quiet)| over - quiet));
    Check::new(name, growth, Limit::AtMost(most), "ms").with_detail(detail)
}

/// Reads below an earlier one, of the same vCPU or of another.
pub fn backwards_steps(spins: &[Spin]) -> u64 {
    let steps = spins
        .iter()
        .map(|spin| spin.backwards_steps + spin.cross_backwards_steps);
    steps.sum()
}

/// The middle one, or the mean of the two in the middle; not a number if one of them is none, or if
/// there are none.
pub fn median(mut figures: Vec<f64>) -> f64 {
    if figures.iter().any(|figure| figure.is_nan()) {
        return f64::NAN;
    }
    figures.sort_by(f64::total_cmp);
    let middle = figures.len() / 2;
    match (figures.get(middle), figures.len() % 2) {
        (Some(middle), 1) => *middle,
        (Some(above), _) => f64::midpoint(figures[middle - 1], *above),
        (None, _) => f64::NAN,
    }
}

fn count(figure: usize) -> f64 {
    u32::try_from(figure).map_or(f64::INFINITY, f64::from)
}

/// No counter went backwards, and every record agrees with the others and the guest.
pub fn check_agreement(
    pauses: impl IntoIterator<Item: Borrow<Pause>>,
    backwards: u64,
    guest: &str,
) -> Vec<Check> {
    let of_each: Vec<_> = pauses
        .into_iter()
        .map(|pause| pause.borrow().contradictions())
        .collect();
    let contradictions: Vec<_> = of_each.iter().flatten().collect();
    let none = Limit::Equals(0.0);
    let backwards = count(usize::try_from(backwards).unwrap_or(usize::MAX));
    let mut detail = format!("{guest}, {} pauses", of_each.len());
    if let Some(first) = contradictions.first() {
        detail = format!("{detail}; {first}");
    }
    vec![
        Check::new("backwards_steps", backwards, none, "steps").with_detail(guest),
        Check::new(
            "record_contradictions",
            count(contradictions.len()),
            none,
            "records",
        )
        .with_detail(detail),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_that_failed_is_no_smaller_than_the_others() {
        let is = |figures: &[f64], want: f64| (median(figures.to_vec()) - want).abs() < 1e-9;
        assert!(is(&[3.0, 1.0, 2.0], 2.0));
        assert!(is(&[4.0, 1.0, 3.0, 2.0], 2.5));
        assert!(median(Vec::new()).is_nan());
        assert!(median(vec![1.0, 2.0, f64::NAN]).is_nan());
        assert!(median(vec![-f64::NAN, 1.0, 2.0]).is_nan());
    }
}
