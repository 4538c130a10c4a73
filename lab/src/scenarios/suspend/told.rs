//! Sleeps that were announced.

use super::Case;
use super::paused::{Telling, paused};
use crate::control::Adjustment;
use crate::dialogue::Dialogue;
use crate::guest::Guest;
use crate::host::Host;
use crate::report::{Check, Limit};
use crate::scenario::Stage;
use crate::scenarios::pauses::{Pause, check_agreement, check_gaps};
use crate::scenarios::view::records;
use crate::scenarios::watch::{ms, worst};
use anyhow::{Context, Result};
use guest_protocol::Workload;
use guest_protocol::report::{PausedTime, Program, Spin, SpinGap};
use lab_agent::message::Stopped;

const SECONDS: u32 = 4;

/// All announced sleeps of a guest.
pub struct Sleeps {
    guest: &'static str,
    made: Vec<Sleep>,
    /// What the guest said before the first and after the last.
    told: [Telling; 2],
    /// Whether gaps are judged.
    pub is_quiet: bool,
}

/// One, of some seconds.
struct Sleep {
    stop: Adjustment,
    resume: Adjustment,
    /// What the VMM recorded beside these two.
    others: Vec<Adjustment>,
    /// What its host's clocks had of it.
    asleep: Stopped,
    /// What the guest read before and after.
    paused: [PausedTime; 2],
    /// What the spinning vCPU saw; none where every vCPU waits for interrupts.
    pause: Option<Pause>,
}

impl Sleeps {
    /// Has a guest sleep so often.
    pub fn make(
        guest: &mut Guest,
        dialogue: &mut Dialogue,
        host: &mut Host,
        stage: &mut Stage,
        (case, count): (Case, usize),
    ) -> Result<Self> {
        let before = Telling::of(guest, dialogue, host, case)?;
        let mut made = Vec::new();
        for number in 1..=count {
            stage.step(&format!("sleep under {}: {number} of {count}", case.name));
            made.push(Sleep::make(guest, host, case.last)?);
        }
        Ok(Self {
            guest: case.name,
            made,
            told: [before, Telling::of(guest, dialogue, host, case)?],
            is_quiet: false,
        })
    }

    /// What must hold of all of them.
    pub fn checks(&self) -> Vec<Check> {
        let check = |name, measured, limit, unit| {
            Check::new(name, measured, limit, unit).with_detail(self.guest)
        };
        let none = Limit::Equals(0.0);
        let sum = |figure: fn(&Sleep) -> u64| count(self.made.iter().map(figure).sum());
        let ([before, after], sleeps) = (&self.told, self.made.len());
        let mut checks = vec![
            after.check(before, sleeps, self.is_quiet, &self.circumstances()),
            check(
                "told_beside_hidden_ns",
                sum(Sleep::told_beside_hidden_ns),
                none,
                "ns",
            ),
            check(
                "pauses_told_beside_one",
                sum(|it| (it.paused[1].events - it.paused[0].events).abs_diff(1)),
                none,
                "pauses",
            ),
            check(
                "other_records",
                sum(|it| it.others.len() as u64),
                none,
                "records",
            ),
            check("frozen_ticks", sum(Sleep::shown_ticks), none, "ticks"),
        ];
        checks.extend(self.checks_of_spinning());
        checks
    }

    /// What only a vCPU that samples its counter continuously can tell.
    fn checks_of_spinning(&self) -> Vec<Check> {
        let spun = self
            .made
            .iter()
            .filter_map(|it| Some((it, it.pause.as_ref()?)));
        let spun: Vec<_> = spun.collect();
        if spun.is_empty() {
            return Vec::new();
        }
        let backwards: u64 = spun.iter().map(|(_, pause)| pause.backwards_steps()).sum();
        let stale: u64 = spun
            .iter()
            .map(|(sleep, pause)| sleep.stale(&pause.spins))
            .sum();
        let mut checks = vec![
            Check::new(
                "stale_instructions",
                count(stale + backwards),
                Limit::Equals(0.0),
                "reads",
            )
            .with_detail(self.guest),
        ];
        if self.is_quiet {
            let gaps = spun.iter().map(|(_, pause)| pause.step_excess_us(0));
            checks.extend(check_gaps(gaps.collect(), self.guest));
        }
        let pauses: Vec<_> = spun.iter().map(|(_, pause)| *pause).collect();
        checks.extend(check_agreement(pauses, backwards, self.guest));
        checks
    }

    fn circumstances(&self) -> String {
        let slept = worst(self.made.iter().map(|it| ms(it.asleep.boottime_ns)));
        let by_clocks = |it: &Sleep| it.asleep.boottime_ns.saturating_sub(it.asleep.monotonic_ns);
        let shown = worst(self.made.iter().map(|it| ms(by_clocks(it))));
        format!(
            "{}: {} sleeps of up to {slept:.0} ms, of which the host's own clocks show {shown:.1} ms",
            self.guest,
            self.made.len(),
        )
    }
}

impl Sleep {
    fn make(guest: &mut Guest, host: &mut Host, last: Workload) -> Result<Self> {
        let before = paused(guest, host)?;
        let past = records(guest, host)?.len();
        let mut asleep = None;
        let mut sleep = |host: &mut Host| {
            asleep = Some(host.sleep(SECONDS)?);
            Ok(())
        };
        let (stop, resume, pause) = if last == Workload::Spin {
            let (stop, resume) = (Guest::prepare_sleep, Guest::finish_sleep);
            let pause = Pause::over(guest, host, Program::El1, stop, sleep, resume)?;
            (pause.stop.clone(), pause.resume.clone(), Some(pause))
        } else {
            let stop = guest.prepare_sleep(host)?;
            sleep(host)?;
            (stop, guest.finish_sleep(host)?, None)
        };
        let after = paused(guest, host)?;
        let mut others = records(guest, host)?.split_off(past);
        others.retain(|it| *it != stop && *it != resume);
        Ok(Self {
            stop,
            resume,
            others,
            asleep: asleep.context("the host slept")?,
            paused: [before, after],
            pause,
        })
    }

    fn told_beside_hidden_ns(&self) -> u64 {
        let [before, after] = &self.paused;
        let told_ns = after.paused_ns - before.paused_ns;
        told_ns.abs_diff(self.resume.hidden_ns)
    }

    fn shown_ticks(&self) -> u64 {
        self.resume.after.guest.wrapping_sub(self.stop.after.guest)
    }

    fn stale(&self, spins: &[Spin]) -> u64 {
        let set_to = self.resume.after.guest;
        let passed = self.resume.after.host.wrapping_sub(self.stop.after.host);
        let steps = spins.iter();
        let steps = steps.filter_map(|spin| spin.gap_over(self.stop.after.guest));
        steps.filter(|step| is_stale(step, set_to, passed)).count() as u64
    }
}

/// Whether a step over a stop ends at a count that lies nearer to where the counter would be after all
/// the ticks that passed, had nothing been done, than to what it was set to. Whoever reads between the
/// wake-up and the correction reads the former, to within what this takes, and after it the latter.
fn is_stale(step: &SpinGap, set_to: u64, passed: u64) -> bool {
    step.start + step.ticks >= set_to + passed / 2
}

fn count(figure: u64) -> f64 {
    u32::try_from(figure).map_or(f64::INFINITY, f64::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_that_nobody_corrected_is_stale() {
        let step_to = |count: u64| SpinGap {
            start: 1_000,
            ticks: count - 1_000,
            stolen_ns: 0,
        };
        // The counter stopped at 1,010 for 100,000 ticks, and was set to go on from there.
        for (count, stale) in [
            (1_011, false),
            (3_000, false),
            (99_500, true),
            (101_010, true),
        ] {
            assert_eq!(is_stale(&step_to(count), 1_010, 100_000), stale, "{count}");
        }
    }
}
