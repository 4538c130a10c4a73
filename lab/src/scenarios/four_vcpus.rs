//! A guest with four vCPUs, each of which finds its own structure, and one of which goes off and comes back.

use super::replugged::Replugged;
use super::three_guests::PROC_STAT_LIMIT_MS;
use super::watch::{Figures, ms, structure};
use crate::guest::{Guest, GuestImage, GuestSpec};
use crate::host::Host;
use crate::interrupt::sleep;
use crate::report::{Check, Limit};
use crate::scenario::Stage;
use crate::status::Status;
use anyhow::{Context, Result, bail};
use guest_protocol::Workload;
use std::time::{Duration, Instant};

const VCPUS: u32 = 4;

/// How much more than the one before it each CPU is to have lost, in the order of what they lost in
/// their boot. Some of it goes while the figures are taken: idle CPUs lose a little at every wake-up.
const LEAD_NS: u64 = 500_000_000;

/// Longest time for it; beside one rival it takes seconds.
const LEAD_LIMIT: Duration = Duration::from_secs(60);

/// How often a CPU that loses time is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// What was seen of the guest.
#[derive(Default)]
pub struct FourVcpus {
    /// CPUs that are online and found their own structure.
    own_structures: u32,
    /// How far the figure of each CPU is from its structure.
    differences_ms: Vec<f64>,
    replugged: Option<Replugged>,
}

impl FourVcpus {
    /// Boots the guest, has its CPUs lose different amounts, and asks each for its figure.
    pub fn see(host: &mut Host, stage: &mut Stage) -> Result<Self> {
        let mut guest = Guest::start(
            &GuestSpec {
                cpus: VCPUS,
                ..GuestSpec::new("four")
            },
            host,
        )?;
        let hello = guest.await_hello(host)?;
        guest.pin(host, &[0], &[2])?;
        let figures = figures_apart(&mut guest, host)?;
        let mut seen = Self::default();
        for (cpu, figures) in figures.iter().enumerate() {
            seen.own_structures += u32::from(found_its_own(figures, cpu)?);
            seen.differences_ms.push(figures.difference_ms(cpu, cpu)?);
        }
        seen.own_structures = seen.own_structures.min(hello.cpus_online);
        seen.replugged = Some(Replugged::see(&mut guest, host)?);
        stage.keep_time(&mut guest, host)?;
        guest.power_off(host)?;
        Ok(seen)
    }

    pub fn checks(&self) -> Vec<Check> {
        let replugged = self.replugged.iter().flat_map(Replugged::checks);
        std::iter::once(self.check_own()).chain(replugged).collect()
    }

    fn check_own(&self) -> Check {
        let (measured, limit) = (self.own_structures.into(), Limit::Equals(VCPUS.into()));
        let detail = format!(
            "each from its own structure: {:.1?} ms",
            self.differences_ms
        );
        Check::new("four_vcpu_smp", measured, limit, "CPUs").with_detail(detail)
    }
}

/// Has the CPUs lose different amounts, so that one which reads another's structure shows, and takes
/// the figures of each.
fn figures_apart(guest: &mut Guest, host: &mut Host) -> Result<Vec<Figures>> {
    let mut rival = Guest::start(
        &GuestSpec {
            image: GuestImage::El1,
            memory_mib: 64,
            workload: Workload::Spin,
            ..GuestSpec::new("rival")
        },
        host,
    )?;
    rival.await_hello(host)?;
    rival.pin(host, &[0], &[2])?;
    lose_apart(guest, host)?;
    rival.power_off(host)?;
    let all = figures_of_each(guest, host)?;
    if !are_apart(&all)? {
        let last = all.last().context("no vCPUs")?;
        bail!(
            "two vCPUs were not apart any more when their figures were taken: {:?}",
            last.after
        )
    }
    Ok(all)
}

/// Has one CPU after another lose time to a rival on the first host CPU, until it leads those before it.
fn lose_apart(guest: &mut Guest, host: &mut Host) -> Result<()> {
    let at_start = guest.status(host)?;
    let mut in_order = (0..VCPUS)
        .map(|cpu| Ok((lost_ns(&at_start, cpu)?, cpu)))
        .collect::<Result<Vec<_>>>()?;
    in_order.sort_unstable();
    for pair in in_order.windows(2) {
        let (before, cpu) = (pair[0].1, pair[1].1);
        let target_ns = lost_ns(&guest.status(host)?, before)? + LEAD_NS;
        lose(guest, host, cpu, target_ns)?;
    }
    Ok(())
}

/// Keeps a CPU busy beside the rival until it has lost this much.
fn lose(guest: &mut Guest, host: &mut Host, cpu: u32, target_ns: u64) -> Result<()> {
    guest.pin_vcpus(host, |vcpu| if vcpu == cpu { &[0] } else { &[1] })?;
    guest.set_workload(host, cpu, Workload::Busy)?;
    let start = Instant::now();
    loop {
        let lost_ns = lost_ns(&guest.status(host)?, cpu)?;
        if lost_ns >= target_ns {
            return guest.set_workload(host, cpu, Workload::Idle);
        }
        if start.elapsed() >= LEAD_LIMIT {
            bail!(
                "vCPU {cpu} lost {:.0} ms to a rival in {LEAD_LIMIT:?}, of {:.0} ms",
                ms(lost_ns),
                ms(target_ns)
            );
        }
        sleep(LOOK_EVERY)?;
    }
}

fn lost_ns(status: &Status, cpu: u32) -> Result<u64> {
    Ok(structure(status, cpu as usize)?.stolen_ns)
}

fn are_apart(all: &[Figures]) -> Result<bool> {
    for (vcpu, figures) in all.iter().enumerate() {
        for other in (0..all.len()).filter(|other| *other != vcpu) {
            if figures.apart_ms(vcpu, other)? <= 2.0 * PROC_STAT_LIMIT_MS {
                return Ok(false);
            }
        }
    }
    Ok(true)
}

/// The figures of each CPU, alone on its host CPU so that it loses no more while they are taken.
fn figures_of_each(guest: &mut Guest, host: &mut Host) -> Result<Vec<Figures>> {
    let mut all = Vec::new();
    for cpu in 0..VCPUS {
        guest.pin_vcpus(host, |vcpu| if vcpu == cpu { &[0] } else { &[1] })?;
        all.push(Figures::take(guest, host, cpu)?);
    }
    Ok(all)
}

/// Whether the CPU's figure is that of its own structure, which is no other vCPU's.
fn found_its_own(figures: &Figures, cpu: usize) -> Result<bool> {
    let own = structure(&figures.after, cpu)?;
    let all = figures
        .after
        .vcpus
        .iter()
        .filter_map(|vcpu| vcpu.stolen_time);
    let at_its_address = all.filter(|it| it.address == own.address).count();
    let is_near = figures.difference_ms(cpu, cpu)? <= PROC_STAT_LIMIT_MS;
    Ok(own.claimed && at_its_address == 1 && is_near)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::{Generation, Structure, VcpuStatus};
    use guest_protocol::report::Sample;

    const MS: u64 = 1_000_000;

    fn status(structures: &[(u64, u64)]) -> Status {
        let vcpu = |&(address, stolen): &(u64, u64)| VcpuStatus {
            thread_id: 1,
            run_ns: 0,
            run_delay_ns: 0,
            stolen_time: Some(Structure {
                address,
                claimed: true,
                stolen_ns: stolen * MS,
                surplus_ns: 0,
            }),
        };
        Status {
            state: "Running".into(),
            elapsed_ns: 0,
            paused_ns: 0,
            generation: Generation::default(),
            vcpus: structures.iter().map(vcpu).collect(),
        }
    }

    /// Figures of a guest whose structures gain 5 ms while it tells its own.
    fn figures(structures: &[(u64, u64)], steal: &[Option<u64>]) -> Figures {
        let later: Vec<_> = structures
            .iter()
            .map(|(address, ms)| (*address, ms + 5))
            .collect();
        let own = Sample {
            sequence: 0,
            cpu: 0,
            counter_before: 0,
            monotonic_ns: 0,
            monotonic_raw_ns: 0,
            boottime_ns: 0,
            realtime_ns: 0,
            counter_after: 0,
            steal_ns: steal.iter().map(|steal| steal.map(|ms| ms * MS)).collect(),
            paused_ns: None,
        };
        Figures {
            before: status(structures),
            own,
            after: status(&later),
        }
    }

    fn difference_ms(own: u64) -> f64 {
        figures(&[(0, 100)], &[Some(own)])
            .difference_ms(0, 0)
            .unwrap()
    }

    #[test]
    fn the_difference_is_from_the_nearest_value_at_that_time() {
        let cases = [(90, 10.0), (100, 0.0), (103, 0.0), (105, 0.0), (107, 2.0)];
        for (own, want) in cases {
            assert!(
                (difference_ms(own) - want).abs() < 1e-9,
                "{own}: {}",
                difference_ms(own)
            );
        }
    }

    #[test]
    fn a_cpu_that_reads_anothers_structure_is_found_out() {
        let structures = [(0, 100), (64, 500)];
        let finds = |own: [u64; 2], cpu| found_its_own(&figures(&structures, &own.map(Some)), cpu);
        for cpu in [0, 1] {
            assert!(finds([90, 501], cpu).unwrap());
            assert!(!finds([501, 90], cpu).unwrap());
        }
        assert!(finds([90, 501], 2).is_err(), "no such vCPU");
        let offline = figures(&structures, &[Some(100), None]);
        assert!(found_its_own(&offline, 1).is_err());
    }

    #[test]
    fn a_structure_shared_by_two_or_not_asked_for_is_nobodys_own() {
        let own = [Some(100), Some(500)];
        let mut unclaimed = figures(&[(0, 100), (64, 500)], &own);
        assert!(found_its_own(&unclaimed, 0).unwrap());
        if let Some(structure) = &mut unclaimed.after.vcpus[0].stolen_time {
            structure.claimed = false;
        }
        assert!(!found_its_own(&unclaimed, 0).unwrap());
        assert!(!found_its_own(&figures(&[(64, 100), (64, 500)], &own), 0).unwrap());
    }

    #[test]
    fn structures_are_apart_only_if_each_pair_is() {
        let apart = |stolen: &[u64]| {
            let structures: Vec<_> = stolen.iter().map(|stolen| (0, *stolen)).collect();
            let all: Vec<_> = stolen.iter().map(|_| figures(&structures, &[])).collect();
            are_apart(&all).unwrap()
        };
        assert!(apart(&[100, 146, 200]));
        assert!(
            !apart(&[100, 145, 200]),
            "they may have met while they grew by 5"
        );
        assert!(!apart(&[100, 200, 100]));
    }
}
