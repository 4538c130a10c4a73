//! A frozen pause is not seen: a guest that spins on its counter finds no gap in it.

use super::pauses::{
    Pause, backwards_steps, check_agreement, check_shared_stolen_growth, check_stolen_growth,
    median,
};
use super::watch::worst;
use crate::guest::{Guest, GuestSpec, host_spec};
use crate::host::Host;
use crate::interrupt::sleep;
use crate::report::{Check, Limit};
use crate::scenario::{Scenario, Stage, Step, no_checks};
use anyhow::{Context, Result};
use guest_protocol::Workload;
use std::time::Duration;

pub const SCENARIO: Scenario = Scenario {
    name: "pause-freeze",
    about: "a frozen pause leaves no gap in the counters of a spinning guest, on 1 and 4 vCPUs",
    must_fail: None,
    play,
};

/// How often each guest is paused, and for how long.
const PAUSES: usize = 20;
const LENGTH: Duration = Duration::from_secs(3);

/// The vCPU of four that spins.
const SPINNER: u32 = 3;

/// Pauses while all vCPUs spin, too many for their CPUs.
const CROWDED_PAUSES: usize = 5;
const CROWDED_LENGTH: Duration = Duration::from_millis(300);

#[derive(Default)]
struct Scene {
    host: Option<Host>,
    one: Seen,
    four: Seen,
}

/// What was seen of one guest.
#[derive(Default)]
struct Seen {
    name: &'static str,
    pauses: Vec<Pause>,
    /// Steps at any time.
    backwards_steps: u64,
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
                name: "pause a guest with one vCPU",
                act: |scene, stage| {
                    let host = scene.host.as_mut().context("no host")?;
                    scene.one = pause_one(host, stage)?;
                    Ok(())
                },
                checks: |scene| scene.one.checks(),
            },
            Step {
                name: "pause a guest with four vCPUs",
                act: |scene, stage| {
                    let host = scene.host.as_mut().context("no host")?;
                    scene.four = pause_four(host, stage)?;
                    Ok(())
                },
                checks: |scene| scene.four.checks(),
            },
            Step {
                name: "power the host off",
                act: |scene, _| scene.host.take().context("no host")?.power_off(),
                checks: no_checks,
            },
        ],
    )
}

/// A CPU for the vCPU that spins, and one for everything else.
///
/// More CPUs than the machine has would make the emulator wait for its own within every gap.
fn boot(scene: &mut Scene, stage: &mut Stage) -> Result<()> {
    let spec = crate::machine::HostSpec {
        cpus: 2,
        ..host_spec("host", stage.assets, &stage.logs)?
    };
    let mut host = stage.boot(&spec)?;
    host.pin_agent(&[1])?;
    scene.host = Some(host);
    Ok(())
}

fn pause_one(host: &mut Host, stage: &mut Stage) -> Result<Seen> {
    let mut guest = Guest::start(
        &GuestSpec {
            workload: Workload::Spin,
            ..GuestSpec::new("one")
        },
        host,
    )?;
    guest.await_hello(host)?;
    guest.pin(host, &[0], &[1])?;
    let seen = Seen::of(&mut guest, host, stage)?;
    guest.power_off(host)?;
    Ok(seen)
}

/// One of its vCPUs spins, on a CPU of its own; then all of them, on two.
fn pause_four(host: &mut Host, stage: &mut Stage) -> Result<Seen> {
    let mut guest = Guest::start(
        &GuestSpec {
            cpus: 4,
            ..GuestSpec::new("four")
        },
        host,
    )?;
    guest.await_hello(host)?;
    guest.pin(host, &[0], &[1])?;
    guest.pin_vcpus(host, |vcpu| if vcpu == SPINNER { &[0] } else { &[1] })?;
    guest.set_workload(host, SPINNER, Workload::Spin)?;
    let mut seen = Seen::of(&mut guest, host, stage)?;
    stage.step("pause it while all four spin");
    guest.pin_vcpus(host, |vcpu| if vcpu % 2 == 0 { &[0] } else { &[1] })?;
    for cpu in 0..SPINNER {
        guest.set_workload(host, cpu, Workload::Spin)?;
    }
    for _ in 0..CROWDED_PAUSES {
        guest.pause(host)?;
        sleep(CROWDED_LENGTH)?;
        guest.resume(host)?;
    }
    seen.backwards_steps += backwards_steps(&guest.spins(host)?);
    guest.power_off(host)?;
    Ok(seen)
}

impl Seen {
    fn of(guest: &mut Guest, host: &mut Host, stage: &mut Stage) -> Result<Self> {
        let mut seen = Self {
            name: guest.name(),
            ..Self::default()
        };
        for number in 1..=PAUSES {
            stage.step(&format!(
                "pause guest {}: {number} of {PAUSES}",
                guest.name()
            ));
            seen.pauses.push(Pause::make(guest, host, LENGTH)?);
        }
        seen.backwards_steps = seen.pauses.iter().map(Pause::backwards_steps).sum();
        stage.keep_time(guest, host)?;
        Ok(seen)
    }

    fn checks(&self) -> Vec<Check> {
        let figures = |figure: fn(&Pause) -> Result<f64>| -> Vec<f64> {
            let figures = self.pauses.iter().map(figure);
            figures.map(|it| it.unwrap_or(f64::NAN)).collect()
        };
        let gaps = figures(Pause::counter_gap_us);
        let frozen = self.pauses.iter().map(Pause::shown_ticks).max();
        #[expect(clippy::cast_precision_loss, reason = "0, or it fails")]
        let frozen = frozen.map_or(f64::NAN, |ticks| ticks as f64);
        let at_most = Limit::AtMost;
        let check = |name, measured, limit, unit| {
            Check::new(name, measured, limit, unit).with_detail(self.name)
        };
        let held_up = median(
            self.pauses
                .iter()
                .map(|it| it.held_up.as_secs_f64() * 1e3)
                .collect(),
        );
        let known = self.pauses.iter().filter(|it| it.is_gap_known()).count();
        let smallest = gaps.iter().copied().fold(f64::INFINITY, f64::min);
        let circumstances = format!(
            "{}; smallest {smallest:.0} us; {known} of {} known, others bounded; around a pause the \
             emulator waited {held_up:.0} ms for CPUs at the median",
            self.name,
            self.pauses.len(),
        );
        let mut checks = vec![
            check(
                "counter_gap_us_median",
                median(gaps.clone()),
                at_most(2000.0),
                "us",
            ),
            check(
                "counter_gap_us_worst",
                worst(gaps.into_iter()),
                at_most(20_000.0),
                "us",
            )
            .with_detail(circumstances),
            check("frozen_ticks", frozen, Limit::Equals(0.0), "ticks"),
            check(
                "monotonic_excess_ms",
                median(figures(Pause::monotonic_excess_ms)),
                at_most(5.0),
                "ms",
            ),
        ];
        let pauses: Vec<_> = self.pauses.iter().collect();
        checks.push(check_stolen_growth(&pauses, self.name));
        checks.extend(check_shared_stolen_growth(&pauses, self.name));
        checks.extend(check_agreement(
            &self.pauses,
            self.backwards_steps,
            self.name,
        ));
        checks
    }
}
