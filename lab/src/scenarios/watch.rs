//! Watching the stolen time of guests over a while.

use crate::guest::Guest;
use crate::host::Host;
use crate::interrupt::sleep;
use crate::status::{Status, Structure};
use anyhow::{Context, Result, bail};
use guest_protocol::report::Sample;
use guest_protocol::{Action, Workload};
use lab_agent::message::Threads;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// From one look at all guests to the next.
const PERIOD: Duration = Duration::from_millis(800);

/// Some of a guest's ticks.
const SETTLE: Duration = Duration::from_millis(100);

/// What was seen of the one vCPU of a guest.
pub struct Watch {
    pub name: &'static str,
    looks: Vec<Look>,
    /// What the guest itself said, by the numbers of its samples: an answer may be read before a
    /// sample that was taken earlier.
    steal_ns: BTreeMap<u64, u64>,
}

/// One look, its figures taken close together by the VMM.
#[expect(clippy::struct_field_names, reason = "units last in names")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Look {
    elapsed_ns: u64,
    run_delay_ns: u64,
    stolen_ns: u64,
}

impl Watch {
    /// Watches the guests together for a time; `show` gets what was seen so far after each look.
    pub fn all(
        guests: &mut [Guest],
        host: &mut Host,
        time: Duration,
        mut show: impl FnMut(&[Self]),
    ) -> Result<Vec<Self>> {
        let mut watches: Vec<_> = guests.iter().map(|guest| Self::new(guest.name())).collect();
        let start = Instant::now();
        loop {
            // The last look begins when the whole time is over.
            let is_last = start.elapsed() >= time;
            for (guest, watch) in guests.iter_mut().zip(&mut watches) {
                // To be asked wakes an idle guest, so that it may lose time.
                let ask = guest.is_busy() || is_last || watch.looks.is_empty();
                watch.look(guest, host, ask)?;
            }
            show(&watches);
            if is_last {
                return Ok(watches);
            }
            sleep(PERIOD)?;
        }
    }

    /// Nothing seen yet.
    pub fn new(name: &'static str) -> Self {
        Self {
            name,
            looks: Vec::new(),
            steal_ns: BTreeMap::new(),
        }
    }

    /// Looks once, and asks the guest itself where that is wanted.
    fn look(&mut self, guest: &mut Guest, host: &mut Host, ask: bool) -> Result<()> {
        let pid = guest.vmm().pid;
        let before = host.threads(pid)?;
        let status = guest.status(host)?;
        let after = host.threads(pid)?;
        self.add(look_of(&status, &before, &after)?);
        if ask {
            self.add_sample(&guest.sample(host)?);
        }
        Ok(())
    }

    fn add(&mut self, look: Look) {
        self.looks.push(look);
    }

    fn add_sample(&mut self, sample: &Sample) {
        if let Some(steal_ns) = sample.steal_ns.first().copied().flatten() {
            self.steal_ns.insert(sample.sequence, steal_ns);
        }
    }

    /// Figures below an earlier one: the structure's, and the guest's own.
    pub fn backwards_steps(&self) -> u32 {
        let structure = self
            .looks
            .windows(2)
            .filter(|two| two[1].stolen_ns < two[0].stolen_ns);
        let own = self.steal_ns.values().zip(self.steal_ns.values().skip(1));
        let steps = structure.count() + own.filter(|(before, after)| after < before).count();
        u32::try_from(steps).unwrap_or(u32::MAX)
    }

    /// What the guest's own figure gained between the first of its samples and the last.
    pub fn own_ms(&self) -> Option<f64> {
        let (_, first_ns) = self.steal_ns.first_key_value()?;
        let (_, last_ns) = self.steal_ns.last_key_value()?;
        Some(ms(last_ns.saturating_sub(*first_ns)))
    }

    /// What the host's scheduler counted over that time.
    pub fn run_delay_ms(&self) -> f64 {
        self.grown(|look| look.run_delay_ns)
    }

    /// Physical time from the first look to the last.
    pub fn physical_ms(&self) -> f64 {
        self.grown(|look| look.elapsed_ns)
    }

    /// What the structure gained over that time.
    pub fn stolen_ms(&self) -> f64 {
        self.grown(|look| look.stolen_ns)
    }

    /// What the structure gained, of the physical time.
    pub fn stolen_share_percent(&self) -> f64 {
        100.0 * self.stolen_ms() / self.physical_ms()
    }

    /// The largest difference, at any look, between what the structure has gained since the first
    /// one and what the run delay has. Before the guest asks for it, a structure counts nothing.
    pub fn structure_vs_run_delay_ms(&self) -> f64 {
        let Some(first) = self.looks.first() else {
            return f64::NAN;
        };
        let difference = |look: &Look| {
            let structure = look.stolen_ns.wrapping_sub(first.stolen_ns);
            let run_delay = look.run_delay_ns.wrapping_sub(first.run_delay_ns);
            ms(structure.cast_signed().abs_diff(run_delay.cast_signed()))
        };
        worst(self.looks.iter().map(difference))
    }

    fn grown(&self, figure: fn(&Look) -> u64) -> f64 {
        match (self.looks.first(), self.looks.last()) {
            (Some(first), Some(last)) => ms(figure(last).saturating_sub(figure(first))),
            _ => f64::NAN,
        }
    }
}

/// The VMM's figures of its one vCPU, once the agent's own readings of the scheduler, just before and
/// just after, bear its run delay out.
fn look_of(status: &Status, before: &Threads, after: &Threads) -> Result<Look> {
    let [vcpu] = &status.vcpus[..] else {
        bail!("{} vCPUs, not one", status.vcpus.len())
    };
    let structure = vcpu.stolen_time.context("the VMM tells of no structure")?;
    if !structure.claimed {
        bail!("the guest has not asked for its structure");
    }
    let run_delay_ns = |threads: &Threads| {
        let thread = threads
            .threads
            .iter()
            .find(|thread| thread.tid == vcpu.thread_id);
        thread
            .map(|thread| thread.run_delay_ns)
            .context("the vCPU's thread is not there")
    };
    let (earliest, latest) = (run_delay_ns(before)?, run_delay_ns(after)?);
    if !(earliest..=latest).contains(&vcpu.run_delay_ns) {
        bail!(
            "the VMM gives a run delay of {} ns while the scheduler has {earliest} to {latest}",
            vcpu.run_delay_ns
        );
    }
    Ok(Look {
        elapsed_ns: status.elapsed_ns,
        run_delay_ns: vcpu.run_delay_ns,
        stolen_ns: structure.stolen_ns,
    })
}

/// What a guest says of itself, between two readings of its structures.
pub struct Figures {
    pub before: Status,
    pub own: Sample,
    pub after: Status,
}

impl Figures {
    /// Takes them while one CPU of a guest that is idle otherwise runs for a moment: Linux accounts
    /// for stolen time at its ticks, which an idle CPU does without.
    pub fn take(guest: &mut Guest, host: &mut Host, cpu: u32) -> Result<Self> {
        guest.ask(
            host,
            Action::SetWorkload {
                cpu,
                workload: Workload::Busy,
            },
        )?;
        sleep(SETTLE)?;
        let before = guest.status(host)?;
        let own = guest.sample(host)?;
        let after = guest.status(host)?;
        guest.ask(
            host,
            Action::SetWorkload {
                cpu,
                workload: Workload::Idle,
            },
        )?;
        Ok(Self { before, own, after })
    }

    /// How far the guest's own figure of a CPU is from what a vCPU's structure said at that moment:
    /// at least what it said before and at most what it said after.
    pub fn difference_ms(&self, cpu: usize, vcpu: usize) -> Result<f64> {
        let own_ns = self.own.steal_ns.get(cpu).copied().flatten();
        let own_ns = own_ns.with_context(|| format!("the guest tells of no CPU {cpu}"))?;
        let from_ns = structure(&self.before, vcpu)?.stolen_ns;
        let to_ns = structure(&self.after, vcpu)?.stolen_ns;
        Ok(ms(
            from_ns.saturating_sub(own_ns) + own_ns.saturating_sub(to_ns)
        ))
    }

    /// How far the structures of two vCPUs were from one another all that time.
    pub fn apart_ms(&self, vcpu: usize, other: usize) -> Result<f64> {
        let ends = |vcpu| -> Result<_> {
            let before = structure(&self.before, vcpu)?;
            Ok((before.stolen_ns, structure(&self.after, vcpu)?.stolen_ns))
        };
        let ((from_ns, to_ns), (other_from_ns, other_to_ns)) = (ends(vcpu)?, ends(other)?);
        Ok(ms(
            from_ns.saturating_sub(other_to_ns) + other_from_ns.saturating_sub(to_ns)
        ))
    }
}

/// The structure of a vCPU.
pub fn structure(status: &Status, vcpu: usize) -> Result<Structure> {
    let structure = status.vcpus.get(vcpu).and_then(|vcpu| vcpu.stolen_time);
    structure.with_context(|| format!("the VMM tells of no structure of vCPU {vcpu}"))
}

/// The largest; not a number if one of them is none, or if there are none.
pub fn worst(figures: impl Iterator<Item = f64>) -> f64 {
    let larger = |worst: f64, it: f64| {
        if worst.is_nan() || it <= worst {
            worst
        } else {
            it
        }
    };
    figures.reduce(larger).unwrap_or(f64::NAN)
}

/// Nanoseconds as milliseconds.
#[expect(clippy::cast_precision_loss, reason = "exact up to a hundred days")]
pub fn ms(ns: u64) -> f64 {
    ns as f64 / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::{Generation, VcpuStatus};
    use lab_agent::message::Thread;

    const MS: u64 = 1_000_000;

    fn watch(looks: &[(u64, u64, u64)]) -> Watch {
        let mut watch = Watch::new("guest");
        for &(elapsed, run_delay, stolen) in looks {
            watch.add(Look {
                elapsed_ns: elapsed * MS,
                run_delay_ns: run_delay * MS,
                stolen_ns: stolen * MS,
            });
        }
        watch
    }

    fn near(measured: f64, want: f64) -> bool {
        (measured - want).abs() < 1e-9
    }

    #[test]
    fn figures_are_of_the_time_between_the_first_look_and_the_last() {
        let watch = watch(&[(1000, 70, 50), (3000, 1070, 1049), (11_000, 5070, 5052)]);
        assert!(near(watch.physical_ms(), 10_000.0));
        assert!(near(watch.run_delay_ms(), 5000.0));
        assert!(near(watch.stolen_ms(), 5002.0));
        assert!(near(watch.stolen_share_percent(), 50.02));
        assert!(near(watch.structure_vs_run_delay_ms(), 2.0));
        assert_eq!(watch.backwards_steps(), 0);
    }

    #[test]
    fn a_difference_in_the_middle_counts_and_so_does_a_step_back() {
        let watch = watch(&[(0, 0, 20), (10, 10, 8), (20, 20, 40)]);
        assert!(near(watch.structure_vs_run_delay_ms(), 22.0));
        assert_eq!(watch.backwards_steps(), 1);
    }

    #[test]
    fn the_guests_own_figure_counts_from_its_first_sample_and_may_not_step_back() {
        let mut watch = watch(&[]);
        assert_eq!(watch.own_ms(), None);
        // The last of these was taken before the one read before it.
        for (sequence, steal_ms) in [(0, 30), (1, 50), (3, 40), (2, 45)] {
            watch.add_sample(&Sample {
                sequence,
                cpu: 0,
                counter_before: 0,
                monotonic_ns: 0,
                monotonic_raw_ns: 0,
                boottime_ns: 0,
                realtime_ns: 0,
                counter_after: 0,
                steal_ns: [Some(steal_ms * MS)].into_iter().collect(),
                paused_ns: None,
            });
        }
        assert_eq!(watch.own_ms(), Some(10.0));
        assert_eq!(watch.backwards_steps(), 2);
    }

    #[test]
    fn the_worst_of_nothing_or_with_a_hole_is_no_number() {
        assert!(near(worst([1.0, 3.0, 2.0].into_iter()), 3.0));
        assert!(worst([].into_iter()).is_nan());
        for hole in 0..3 {
            let mut figures = [1.0, 3.0, 2.0];
            figures[hole] = f64::NAN;
            assert!(worst(figures.into_iter()).is_nan());
        }
    }

    #[test]
    fn no_look_gives_no_figure() {
        let watch = watch(&[]);
        assert!(watch.stolen_share_percent().is_nan());
        assert!(watch.structure_vs_run_delay_ms().is_nan());
    }

    #[test]
    fn a_run_delay_that_the_scheduler_does_not_have_is_refused() {
        let threads = |run_delay_ns| Threads {
            before_ns: 0,
            after_ns: 0,
            threads: vec![Thread {
                tid: 7,
                name: "vcpu".into(),
                run_ns: 0,
                run_delay_ns,
            }],
        };
        let status = |run_delay_ns, claimed| Status {
            state: "Running".into(),
            elapsed_ns: 5,
            paused_ns: 0,
            generation: Generation::default(),
            vcpus: vec![VcpuStatus {
                thread_id: 7,
                run_ns: 0,
                run_delay_ns,
                stolen_time: Some(Structure {
                    address: 0,
                    claimed,
                    stolen_ns: 3,
                    surplus_ns: 0,
                }),
            }],
        };
        let look = |delay, claimed| look_of(&status(delay, claimed), &threads(10), &threads(20));
        let want = Look {
            elapsed_ns: 5,
            run_delay_ns: 15,
            stolen_ns: 3,
        };
        assert_eq!(look(15, true).unwrap(), want);
        for outside in [9, 21] {
            let error = look(outside, true).unwrap_err().to_string();
            assert!(error.contains("10 to 20"), "{error}");
        }
        assert!(look(15, false).is_err());
    }
}
