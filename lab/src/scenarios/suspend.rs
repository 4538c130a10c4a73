//! Sleeps of the host, by s2idle, with the guests told and not told; and freezes of the VMM.

mod stops;

use super::pauses::{Pause, check_agreement, median};
use super::watch::{ms, worst};
use crate::guest::{Guest, GuestSpec, host_spec};
use crate::host::Host;
use crate::machine::HostSpec;
use crate::report::{Check, Limit};
use crate::scenario::{Scenario, Stage, Step, no_checks};
use anyhow::{Context, Result};
use guest_protocol::Workload;
use guest_protocol::report::Program;
use lab_agent::message::Stopped;
use stops::Stops;

pub const ANNOUNCED: Scenario = Scenario {
    name: "suspend-announced",
    about: "a host sleep that is announced leaves no gap in a guest's counters, on 1 and 4 vCPUs",
    must_fail: None,
    play: |stage| {
        play(
            stage,
            Plan {
                announced: 10,
                is_quiet: true,
                ..Plan::default()
            },
        )
    },
};

pub const UNANNOUNCED: Scenario = Scenario {
    name: "suspend-unannounced",
    about: "host sleeps and freezes of the VMM that nobody announces are hidden but for the bound",
    must_fail: None,
    play: |stage| {
        play(
            stage,
            Plan {
                announced: 0,
                sleeps: 50,
                freezes: 50,
                is_quiet: true,
                is_short: false,
            },
        )
    },
};

/// Some of both.
pub const SOME: Scenario = Scenario {
    name: "suspends",
    about: "some host sleeps, announced and not, and some freezes of the VMM, on a busy machine",
    must_fail: None,
    play: |stage| {
        play(
            stage,
            Plan {
                announced: 1,
                sleeps: 1,
                freezes: 4,
                is_quiet: false,
                is_short: true,
            },
        )
    },
};

/// What each guest goes through.
#[derive(Clone, Copy, Default)]
struct Plan {
    /// Sleeps that it is told of, for a guest of one vCPU and for one of four.
    announced: usize,
    /// Sleeps that it is not told of.
    sleeps: usize,
    /// Freezes of its VMM.
    freezes: usize,
    /// Whether one guest of four vCPUs has to do for all.
    is_short: bool,
    /// Whether the machine has nothing else to do, so that the emulator hardly adds to a gap.
    is_quiet: bool,
}

#[derive(Default)]
struct Scene {
    plan: Plan,
    host: Option<Host>,
    /// The guest that goes through all of it, where one does.
    guest: Option<Guest>,
    one: Vec<Sleep>,
    four: Vec<Sleep>,
    stops: Stops,
}

fn play(stage: &mut Stage, plan: Plan) -> Result<()> {
    let announced = Step {
        name: "announce sleeps",
        act: announce,
        checks: |scene: &Scene| {
            let quiet = scene.plan.is_quiet;
            let mut all = checks("four", &scene.four, quiet);
            if !scene.plan.is_short {
                all.extend(checks("one", &scene.one, quiet));
            }
            all
        },
    };
    let unannounced = Step {
        name: "stop a guest unannounced",
        act: stop,
        checks: |scene: &Scene| scene.stops.checks(),
    };
    let mut steps = vec![Step {
        name: "boot a host",
        act: boot,
        checks: no_checks,
    }];
    steps.extend((plan.announced > 0).then_some(announced));
    steps.extend((plan.sleeps + plan.freezes > 0).then_some(unannounced));
    steps.push(Step {
        name: "power the host off",
        act: |scene: &mut Scene, _: &mut Stage| scene.host.take().context("no host")?.power_off(),
        checks: no_checks,
    });
    let scene = Scene {
        plan,
        ..Scene::default()
    };
    stage.play(scene, &steps)
}

/// A CPU for the vCPU that spins, and one for everything else: more CPUs than the machine has would
/// make the emulator wait for its own within every gap.
const SPINNER_ON: [usize; 1] = [0];
const OTHERS_ON: [usize; 1] = [1];
const SPINNER: u32 = 3;

fn boot(scene: &mut Scene, stage: &mut Stage) -> Result<()> {
    let spec = HostSpec {
        cpus: 2,
        ..host_spec("host", stage.assets, &stage.logs)?
    };
    let mut host = stage.boot(&spec)?;
    host.pin_agent(&OTHERS_ON)?;
    scene.host = Some(host);
    Ok(())
}

/// A sleep of four seconds that was announced.
struct Sleep {
    pause: Pause,
    stopped: Stopped,
}

const SECONDS: u32 = 4;

impl Sleep {
    fn make(guest: &mut Guest, host: &mut Host) -> Result<Self> {
        let mut stopped = None;
        let pause = Pause::over(
            guest,
            host,
            Program::Linux,
            Guest::prepare_sleep,
            |host| {
                stopped = Some(host.sleep(SECONDS)?);
                Ok(())
            },
            Guest::finish_sleep,
        )?;
        let stopped = stopped.context("the host slept")?;
        Ok(Self { pause, stopped })
    }

    /// What the VMM counts as paused, beyond what it records: both are of the same pause.
    fn paused_error_ms(&self) -> f64 {
        let recorded_ns = self.pause.resume.gap.as_ref().map_or(0, |gap| gap.ns);
        ms(u64::try_from(recorded_ns.abs_diff(self.pause.paused_ns().into())).unwrap_or(u64::MAX))
    }
}

fn announce(scene: &mut Scene, stage: &mut Stage) -> Result<()> {
    let host = scene.host.as_mut().context("no host")?;
    if !scene.plan.is_short {
        scene.one = announce_to_one(host, stage, scene.plan.announced)?;
    }
    let is_short = scene.plan.is_short;
    let mut guest = four(host, "four", if is_short { FREEZE } else { &[] })?;
    scene.four = sleep_through(&mut guest, host, stage, scene.plan.announced)?;
    if is_short {
        scene.guest = Some(guest);
        return Ok(());
    }
    end(guest, host, stage)
}

fn announce_to_one(host: &mut Host, stage: &mut Stage, count: usize) -> Result<Vec<Sleep>> {
    let spec = GuestSpec {
        workload: Workload::Spin,
        ..GuestSpec::new("one")
    };
    let mut guest = Guest::start(&spec, host)?;
    guest.await_hello(host)?;
    guest.pin(host, &SPINNER_ON, &OTHERS_ON)?;
    let sleeps = sleep_through(&mut guest, host, stage, count)?;
    end(guest, host, stage)?;
    Ok(sleeps)
}

/// Keeps a guest's records, and powers it off.
fn end(guest: Guest, host: &mut Host, stage: &mut Stage) -> Result<()> {
    stage.report.adjustments.extend(guest.adjustments(host)?);
    guest.power_off(host)
}

/// For a guest whose stalls are taken out of its counters.
const FREEZE: &[&str] = &["--watch-host", "on", "--on-stall", "freeze"];

/// A guest of four vCPUs: one spins, the others wait for interrupts.
fn four(
    host: &mut Host,
    name: &'static str,
    vmm_options: &'static [&'static str],
) -> Result<Guest> {
    let spec = GuestSpec {
        cpus: 4,
        vmm_options,
        ..GuestSpec::new(name)
    };
    let mut guest = Guest::start(&spec, host)?;
    guest.await_hello(host)?;
    guest.pin(host, &SPINNER_ON, &OTHERS_ON)?;
    guest.pin_vcpus(host, |vcpu| match vcpu {
        SPINNER => &SPINNER_ON,
        _ => &OTHERS_ON,
    })?;
    guest.set_workload(host, SPINNER, Workload::Spin)?;
    Ok(guest)
}

fn sleep_through(
    guest: &mut Guest,
    host: &mut Host,
    stage: &mut Stage,
    count: usize,
) -> Result<Vec<Sleep>> {
    let mut sleeps = Vec::new();
    for number in 1..=count {
        stage.step(&format!(
            "sleep under {}: {number} of {count}",
            guest.name()
        ));
        sleeps.push(Sleep::make(guest, host)?);
    }
    Ok(sleeps)
}

fn checks(guest: &'static str, sleeps: &[Sleep], is_quiet: bool) -> Vec<Check> {
    let figures = |figure: fn(&Sleep) -> f64| sleeps.iter().map(figure).collect::<Vec<_>>();
    let gaps = figures(|it| it.pause.counter_gap_us().unwrap_or(f64::NAN));
    let seen = gaps.iter().filter(|gap_us| **gap_us > 1e6).count();
    let backwards: u64 = sleeps.iter().map(|it| it.pause.backwards_steps()).sum();
    let asleep = figures(|it| ms(it.stopped.boottime_ns));
    let gained = figures(|it| {
        ms(it
            .stopped
            .boottime_ns
            .saturating_sub(it.stopped.monotonic_ns))
    });
    let shown = sleeps.iter().map(|it| it.pause.shown_ticks()).max();
    let count = |figure: u64| u32::try_from(figure).map_or(f64::INFINITY, f64::from);
    let asleep = format!(
        "{guest}, {} sleeps of {:.0} ms at the median, {:.1} ms of that by the host's clocks",
        sleeps.len(),
        median(asleep),
        median(gained),
    );
    let check =
        |name, measured, limit, unit| Check::new(name, measured, limit, unit).with_detail(guest);
    let (at_most, none) = (Limit::AtMost, Limit::Equals(0.0));
    let mut checks = vec![
        check(
            "stale_instructions",
            count(seen as u64 + backwards),
            none,
            "reads",
        )
        .with_detail(asleep),
        check(
            "frozen_ticks",
            count(shown.unwrap_or(u64::MAX)),
            none,
            "ticks",
        ),
        check(
            "paused_error_ms",
            worst(figures(Sleep::paused_error_ms).into_iter()),
            at_most(10.0),
            "ms",
        ),
    ];
    let (middle, largest) = (median(gaps.clone()), worst(gaps.into_iter()));
    let judged = [
        check("counter_gap_us_median", middle, at_most(2_000.0), "us"),
        check("counter_gap_us_worst", largest, at_most(20_000.0), "us"),
    ];
    checks.extend(judged.into_iter().filter(|_| is_quiet));
    let pauses: Vec<_> = sleeps.iter().map(|it| &it.pause).collect();
    checks.extend(check_agreement(pauses, backwards, guest));
    checks
}

fn stop(scene: &mut Scene, stage: &mut Stage) -> Result<()> {
    let host = scene.host.as_mut().context("no host")?;
    let mut guest = match scene.guest.take() {
        Some(guest) => guest,
        None => four(host, "untold", FREEZE)?,
    };
    scene.stops = Stops::make(&mut guest, host, stage, scene.plan)?;
    end(guest, host, stage)
}
