//! A frozen pause is not seen: a guest that spins on its counter finds no gap in it.

use super::pauses::{
    Pause, backwards_steps, check_agreement, check_gaps, check_lost, check_shared_stolen_growth,
    check_stolen_growth, median, sights,
};
use crate::guest::{Guest, GuestImage, GuestSpec, boot_host_of, host_spec};
use crate::host::Host;
use crate::interrupt::sleep;
use crate::lost::Bounds;
use crate::report::{Check, Limit};
use crate::scenario::{Scenario, Stage, Step, no_checks};
use crate::sightings::Sighting;
use anyhow::{Context, Result};
use guest_protocol::Workload;
use guest_protocol::report::Program;
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

/// Pauses while all vCPUs spin, too many for their CPUs.
const CROWDED_PAUSES: usize = 5;
const CROWDED_LENGTH: Duration = Duration::from_millis(300);

#[derive(Default)]
struct Scene {
    host: Option<Host>,
    seen: Vec<Seen>,
}

/// A guest that is paused; its last vCPU spins.
#[derive(Clone, Copy)]
struct Case {
    name: &'static str,
    program: Program,
    cpus: u32,
}

/// Linux has a clock that must not notice, and the bare-metal guest sees what is stolen from it
/// within a step.
const CASES: [Case; 4] = [
    Case {
        name: "one",
        program: Program::Linux,
        cpus: 1,
    },
    Case {
        name: "four",
        program: Program::Linux,
        cpus: 4,
    },
    Case {
        name: "bare-one",
        program: Program::El1,
        cpus: 1,
    },
    Case {
        name: "bare-four",
        program: Program::El1,
        cpus: 4,
    },
];

/// What was seen of one guest.
struct Seen {
    case: Case,
    pauses: Vec<Pause>,
    /// Steps at any time.
    backwards_steps: u64,
    /// Linux's clocks before all pauses and after them.
    sights: [Vec<Sighting>; 2],
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
                name: "pause Linux with one vCPU",
                act: |scene, stage| see(scene, stage, CASES[0]),
                checks: last_checks,
            },
            Step {
                name: "pause Linux with four vCPUs",
                act: |scene, stage| see(scene, stage, CASES[1]),
                checks: last_checks,
            },
            Step {
                name: "pause the bare-metal guest with one vCPU",
                act: |scene, stage| see(scene, stage, CASES[2]),
                checks: last_checks,
            },
            Step {
                name: "pause the bare-metal guest with four vCPUs",
                act: |scene, stage| see(scene, stage, CASES[3]),
                checks: last_checks,
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
    scene.host = Some(boot_host_of(&spec, stage)?);
    Ok(())
}

/// Pauses a guest one vCPU of which spins, on a CPU of its own; then, if it has four, while all of
/// them spin, on two.
fn see(scene: &mut Scene, stage: &mut Stage, case: Case) -> Result<()> {
    let host = scene.host.as_mut().context("no host")?;
    let image = match case.program {
        Program::Linux => GuestImage::Linux,
        Program::El1 => GuestImage::El1,
    };
    let spec = GuestSpec {
        image,
        cpus: case.cpus,
        ..GuestSpec::new(case.name)
    };
    let mut guest = Guest::start(&spec, host)?;
    guest.await_hello(host)?;
    guest.pin(host, &[0], &[1])?;
    let spinner = case.spinner();
    guest.pin_vcpus(host, |vcpu| if vcpu == spinner { &[0] } else { &[1] })?;
    guest.set_workload(host, spinner, Workload::Spin)?;
    let mut seen = Seen::of(case, &mut guest, host, stage)?;
    if case.cpus > 1 {
        stage.step("pause it while all four spin");
        seen.backwards_steps += pause_crowded(&mut guest, host, spinner)?;
    }
    guest.power_off(host)?;
    scene.seen.push(seen);
    Ok(())
}

/// How often a counter went backwards.
fn pause_crowded(guest: &mut Guest, host: &mut Host, spinner: u32) -> Result<u64> {
    guest.pin_vcpus(host, |vcpu| if vcpu % 2 == 0 { &[0] } else { &[1] })?;
    for cpu in 0..spinner {
        guest.set_workload(host, cpu, Workload::Spin)?;
    }
    for _ in 0..CROWDED_PAUSES {
        guest.pause(host)?;
        sleep(CROWDED_LENGTH)?;
        guest.resume(host)?;
    }
    Ok(backwards_steps(&guest.spins(host)?))
}

fn last_checks(scene: &Scene) -> Vec<Check> {
    scene.seen.last().map(Seen::checks).unwrap_or_default()
}

impl Case {
    fn spinner(self) -> u32 {
        self.cpus - 1
    }
}

impl Seen {
    fn of(case: Case, guest: &mut Guest, host: &mut Host, stage: &mut Stage) -> Result<Self> {
        let mut dialogue = guest.dialogue();
        let mut look = |host: &mut Host| match case.program {
            Program::Linux => sights(&mut dialogue, host, case.spinner()),
            Program::El1 => Ok(Vec::new()),
        };
        let before = look(host)?;
        let mut pauses = Vec::new();
        for number in 1..=PAUSES {
            stage.step(&format!("pause guest {}: {number} of {PAUSES}", case.name));
            pauses.push(Pause::make(guest, host, case.program, LENGTH)?);
        }
        let after = look(host)?;
        match case.program {
            Program::Linux => stage.keep_time(guest, host)?,
            Program::El1 => stage.keep_records(guest, host)?,
        }
        Ok(Self {
            case,
            backwards_steps: pauses.iter().map(Pause::backwards_steps).sum(),
            pauses,
            sights: [before, after],
        })
    }

    fn checks(&self) -> Vec<Check> {
        let name = self.case.name;
        let frozen = self.pauses.iter().map(Pause::shown_ticks).max();
        #[expect(clippy::cast_precision_loss, reason = "0, or it fails")]
        let frozen = frozen.map_or(f64::NAN, |ticks| ticks as f64);
        let none = Limit::Equals(0.0);
        let mut checks = match self.case.program {
            Program::Linux => vec![self.check_monotonic()],
            Program::El1 => self.check_gaps(),
        };
        checks.push(Check::new("frozen_ticks", frozen, none, "ticks").with_detail(name));
        let pauses: Vec<_> = self.pauses.iter().collect();
        checks.push(check_stolen_growth(&pauses, name));
        checks.extend(check_shared_stolen_growth(&pauses, name));
        checks.extend(check_agreement(&self.pauses, self.backwards_steps, name));
        checks
    }

    /// Linux's clock lost what the records hide.
    fn check_monotonic(&self) -> Check {
        let [before, after] = &self.sights;
        let lost = Bounds::lost(before, after, |sample| sample.monotonic_ns);
        let due = self.pauses.iter().map(|it| {
            let gap = it.resume.gap.as_ref();
            let error_ns = gap.and_then(|gap| gap.error_ns).unwrap_or(0);
            let ns = gap.map_or(0, |gap| gap.ns);
            (ns, Duration::from_nanos(error_ns))
        });
        let due: Vec<_> = due.collect();
        check_lost("monotonic_excess_ms", lost, &due, self.case.name)
    }

    fn check_gaps(&self) -> Vec<Check> {
        let gaps: Vec<_> = self.pauses.iter().map(|it| it.step_excess_us(0)).collect();
        let held_up = self.pauses.iter().map(|it| it.held_up.as_secs_f64() * 1e3);
        let held_up = median(held_up.collect());
        let known = self.pauses.iter().filter(|it| it.is_gap_known()).count();
        let sides: Vec<_> = self.pauses.iter().filter_map(Pause::sides_us).collect();
        let of = |side: fn(&(f64, f64)) -> f64| median(sides.iter().map(side).collect());
        let (before, after) = (of(|it| it.0), of(|it| it.1));
        let circumstances = format!(
            "{}; {gaps:.0?}; {before:.0} before and {after:.0} after at the median, with what was \
             stolen; {known} of {} known, others bounded; around a pause the emulator waited \
             {held_up:.0} ms for CPUs at the median",
            self.case.name,
            self.pauses.len(),
        );
        check_gaps(gaps, &circumstances)
    }
}
