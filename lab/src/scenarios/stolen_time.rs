//! Stolen time as three parties see it: the host's scheduler, the structure in guest memory, and the
//! guest's kernel.

use super::watch::{Figures, Watch, structure};
use crate::guest::{Guest, GuestSpec, host_spec};
use crate::host::Host;
use crate::interrupt::sleep;
use crate::machine::HostSpec;
use crate::report::{Check, Limit};
use crate::scenario::{Scenario, Stage, Step, no_checks};
use anyhow::{Context, Result, bail};
use guest_protocol::{Action, Workload};
use std::time::Duration;

pub const SCENARIO: Scenario = Scenario {
    name: "stolen-time",
    about: "host, structure and guest agree on the time that busy guests on one CPU lose",
    must_fail: None,
    play,
};

/// How long the guests are watched; the shares are of this time.
const WATCHED: Duration = Duration::from_secs(12);

/// Most that the guest's own figure may differ: it is a multiple of 10 ms, one step behind.
const PROC_STAT_LIMIT_MS: f64 = 20.0;

/// vCPUs of the big guest.
const VCPUS: u32 = 4;

/// Pairs of its CPUs that compete for one host CPU, and for how long: each CPU loses another amount,
/// about 150, 450, 1050 and 750 ms.
const RIVALS: [([u32; 2], Duration); 3] = [
    ([0, 1], Duration::from_millis(300)),
    ([1, 2], Duration::from_millis(600)),
    ([2, 3], Duration::from_millis(1500)),
];

/// They lost other amounts before, which may make up for that once, but not every time.
const ROUNDS_MAX: usize = 5;

#[derive(Default)]
struct Scene {
    host: Option<Host>,
    /// Two busy guests and an idle one.
    guests: Vec<Guest>,
    watches: Vec<Watch>,
    /// Worst difference of a guest's figure from its structure.
    proc_stat_ms: f64,
    /// CPUs of the big guest that found their own structure.
    own_structures: u32,
    /// How far the figure of each CPU is from its structure.
    own_differences_ms: Vec<f64>,
}

fn play(stage: &mut Stage) -> Result<()> {
    stage.play(
        Scene::default(),
        &[
            Step {
                name: "boot a host",
                act: boot,
                checks: no_checks,
            },
            Step {
                name: "boot two busy guests and an idle one",
                act: start,
                checks: no_checks,
            },
            Step {
                name: "watch them for 12 s, the busy ones on one host CPU",
                act: watch,
                checks: check_watched,
            },
            Step {
                name: "let the guests rest and compare their own figures",
                act: compare,
                checks: check_compared,
            },
            Step {
                name: "boot a guest with four vCPUs and load them unevenly",
                act: four_vcpus,
                checks: check_vcpus,
            },
            Step {
                name: "power the host off",
                act: power_off,
                checks: no_checks,
            },
        ],
    )
}

fn boot(scene: &mut Scene, stage: &mut Stage) -> Result<()> {
    // One CPU for the busy guests, one for the idle one, and one for everything that measures.
    let spec = HostSpec {
        cpus: 3,
        ..host_spec("host", stage.assets, &stage.logs)?
    };
    let mut host = stage.boot(&spec)?;
    host.pin_agent(&[2])?;
    scene.host = Some(host);
    Ok(())
}

fn start(scene: &mut Scene, _: &mut Stage) -> Result<()> {
    let host = scene.host.as_mut().context("no host")?;
    let busy = |name| GuestSpec {
        workload: Workload::Busy,
        ..GuestSpec::new(name)
    };
    // Each sample wakes a guest, and an idle one is to sleep.
    let idle = GuestSpec {
        sample_period_ms: 0,
        ..GuestSpec::new("idle")
    };
    for spec in [busy("busy-1"), busy("busy-2"), idle] {
        scene.guests.push(Guest::start(&spec, host)?);
    }
    for guest in &mut scene.guests {
        guest.await_hello(host)?;
    }
    let [first, second, idle] = &scene.guests[..] else {
        bail!("three guests were started")
    };
    first.pin(host, &[0], &[2])?;
    second.pin(host, &[0], &[2])?;
    idle.pin(host, &[1], &[2])
}

fn watch(scene: &mut Scene, _: &mut Stage) -> Result<()> {
    let host = scene.host.as_mut().context("no host")?;
    scene.watches = Watch::all(&mut scene.guests, host, WATCHED)?;
    Ok(())
}

fn check_watched(scene: &Scene) -> Vec<Check> {
    let [first, second, idle] = &scene.watches[..] else {
        return Vec::new();
    };
    let share = |watch: &Watch| {
        let limit = Limit::Range {
            from: 45.0,
            to: 55.0,
        };
        let measured = watch.stolen_share_percent();
        Check::new("stolen_share_percent", measured, limit, "%").with_detail(watch.name)
    };
    let worst = scene
        .watches
        .iter()
        .map(Watch::structure_vs_run_delay_ms)
        .fold(0.0, f64::max);
    let backwards: u32 = scene
        .watches
        .iter()
        .map(|watch| watch.backwards_steps)
        .sum();
    vec![
        share(first),
        share(second),
        Check::new(
            "structure_vs_run_delay_ms",
            worst,
            Limit::AtMost(10.0),
            "ms",
        ),
        Check::new(
            "idle_guest_stolen_ms",
            idle.stolen_ms(),
            Limit::AtMost(50.0),
            "ms",
        ),
        Check::new(
            "stolen_monotonic",
            backwards.into(),
            Limit::Equals(0.0),
            "steps",
        ),
    ]
}

fn compare(scene: &mut Scene, _: &mut Stage) -> Result<()> {
    let host = scene.host.as_mut().context("no host")?;
    let rest = Action::SetWorkload {
        cpu: 0,
        workload: Workload::Idle,
    };
    for guest in &mut scene.guests {
        guest.ask(host, rest)?;
    }
    for mut guest in scene.guests.drain(..) {
        let difference_ms = Figures::take(&mut guest, host, 0)?.difference_ms(0, 0)?;
        scene.proc_stat_ms = scene.proc_stat_ms.max(difference_ms);
        guest.power_off(host)?;
    }
    Ok(())
}

fn check_compared(scene: &Scene) -> Vec<Check> {
    let (measured, limit) = (scene.proc_stat_ms, Limit::AtMost(PROC_STAT_LIMIT_MS));
    vec![Check::new(
        "proc_stat_vs_structure_ms",
        measured,
        limit,
        "ms",
    )]
}

fn four_vcpus(scene: &mut Scene, _: &mut Stage) -> Result<()> {
    let host = scene.host.as_mut().context("no host")?;
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
    let mut own_structures = 0;
    for (cpu, figures) in figures.iter().enumerate() {
        own_structures += u32::from(found_its_own(figures, cpu)?);
        scene
            .own_differences_ms
            .push(figures.difference_ms(cpu, cpu)?);
    }
    scene.own_structures = own_structures.min(hello.cpus_online);
    guest.power_off(host)
}

/// Loads the CPUs unevenly until no two structures are alike, so that a CPU which reads another's
/// shows, and takes the figures of each.
fn figures_apart(guest: &mut Guest, host: &mut Host) -> Result<Vec<Figures>> {
    for _ in 0..ROUNDS_MAX {
        load_unevenly(guest, host)?;
        let all = figures_of_each(guest, host)?;
        if are_apart(&all)? {
            return Ok(all);
        }
    }
    bail!("two vCPUs had lost the same amount after each of {ROUNDS_MAX} rounds")
}

fn load_unevenly(guest: &mut Guest, host: &mut Host) -> Result<()> {
    guest.pin_vcpus(host, |_| &[0])?;
    for (rivals, time) in RIVALS {
        for cpu in rivals {
            guest.ask(
                host,
                Action::SetWorkload {
                    cpu,
                    workload: Workload::Busy,
                },
            )?;
        }
        sleep(time)?;
        for cpu in rivals {
            guest.ask(
                host,
                Action::SetWorkload {
                    cpu,
                    workload: Workload::Idle,
                },
            )?;
        }
    }
    Ok(())
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

fn check_vcpus(scene: &Scene) -> Vec<Check> {
    let (measured, limit) = (scene.own_structures.into(), Limit::Equals(VCPUS.into()));
    let differences = &scene.own_differences_ms;
    let detail = format!("each from its own structure: {differences:.1?} ms");
    vec![Check::new("four_vcpu_smp", measured, limit, "CPUs").with_detail(detail)]
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

fn power_off(scene: &mut Scene, _: &mut Stage) -> Result<()> {
    scene.host.take().context("no host")?.power_off()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::{Status, Structure, VcpuStatus};
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
            }),
        };
        Status {
            elapsed_ns: 0,
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
