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

/// How long each CPU of the big guest is busy longer than the next.
const STAGGER: Duration = Duration::from_millis(700);

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
                checks: |scene| {
                    let limit = Limit::AtMost(PROC_STAT_LIMIT_MS);
                    vec![Check::new(
                        "proc_stat_vs_structure_ms",
                        scene.proc_stat_ms,
                        limit,
                        "ms",
                    )]
                },
            },
            Step {
                name: "boot a guest with four vCPUs and load them unevenly",
                act: four_vcpus,
                checks: |scene| {
                    let measured = scene.own_structures.into();
                    vec![Check::new(
                        "four_vcpu_smp",
                        measured,
                        Limit::Equals(VCPUS.into()),
                        "CPUs",
                    )]
                },
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

fn four_vcpus(scene: &mut Scene, _: &mut Stage) -> Result<()> {
    let host = scene.host.as_mut().context("no host")?;
    let spec = GuestSpec {
        cpus: VCPUS,
        workload: Workload::Busy,
        ..GuestSpec::new("four")
    };
    let mut guest = Guest::start(&spec, host)?;
    let hello = guest.await_hello(host)?;
    guest.pin(host, &[0], &[2])?;
    // Each CPU loses another amount, so that one which reads another's structure shows.
    for cpu in 0..VCPUS {
        sleep(STAGGER)?;
        guest.ask(
            host,
            Action::SetWorkload {
                cpu,
                workload: Workload::Idle,
            },
        )?;
    }
    let mut own_structures = 0;
    for cpu in 0..VCPUS {
        // Alone on its host CPU, it loses no more while the figures are taken.
        guest.pin_vcpus(host, |vcpu| if vcpu == cpu { &[0] } else { &[1] })?;
        let figures = Figures::take(&mut guest, host, cpu)?;
        own_structures += u32::from(found_its_own(&figures, cpu as usize)?);
    }
    scene.own_structures = own_structures.min(hello.cpus_online);
    guest.power_off(host)
}

/// Whether the CPU's figure is that of its own structure, which no other vCPU has, and of no other.
fn found_its_own(figures: &Figures, cpu: usize) -> Result<bool> {
    let own = structure(&figures.after, cpu)?;
    for vcpu in 0..figures.after.vcpus.len() {
        let is_near = figures.difference_ms(cpu, vcpu)? <= PROC_STAT_LIMIT_MS;
        let is_same = structure(&figures.after, vcpu)?.address == own.address;
        if (is_near, is_same) != (vcpu == cpu, vcpu == cpu) {
            return Ok(false);
        }
    }
    Ok(own.claimed)
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
        let finds = |structures: &[(u64, u64)], steal: &[Option<u64>], cpu| {
            found_its_own(&figures(structures, steal), cpu).unwrap()
        };
        let apart = [(0, 100), (64, 500)];
        let own = [Some(90), Some(500)];
        assert!(finds(&apart, &own, 0) && finds(&apart, &own, 1));
        let swapped = [Some(500), Some(90)];
        assert!(!finds(&apart, &swapped, 0) && !finds(&apart, &swapped, 1));
        assert!(
            !finds(&[(64, 100), (64, 500)], &own, 0),
            "one structure for two"
        );
        assert!(
            !finds(&[(0, 100), (64, 100)], &[Some(100); 2], 0),
            "which is it?"
        );
        assert!(
            found_its_own(&figures(&apart, &[Some(100), None]), 1).is_err(),
            "offline"
        );
        assert!(
            found_its_own(&figures(&apart, &own), 2).is_err(),
            "no such vCPU"
        );
    }
}
