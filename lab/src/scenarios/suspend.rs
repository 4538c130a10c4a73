//! Sleeps of the host, by s2idle, with the guests told and not told; and freezes of the VMM.

mod paused;
mod stops;
mod told;

use crate::dialogue::Dialogue;
use crate::guest::{Guest, GuestImage, GuestSpec, host_spec};
use crate::host::Host;
use crate::machine::HostSpec;
use crate::report::Check;
use crate::scenario::{Scenario, Stage, Step, no_checks};
use anyhow::{Context, Result};
use guest_protocol::Workload;
use stops::Stops;
use told::Sleeps;

pub const ANNOUNCED: Scenario = Scenario {
    name: "suspend-announced",
    about: "a host sleep that is announced leaves no gap in a guest's counters, and is told",
    must_fail: None,
    play: |stage| {
        let told = [
            (ONE_BUSY, 10),
            (ONE_WAITING, 10),
            (FOUR_BUSY, 10),
            (FOUR_WAITING, 10),
        ];
        play(stage, Plan::of_told(&told, TOLD))
    },
};

pub const BOTH_WAYS: Scenario = Scenario {
    name: "suspend-both-ways",
    about: "a host sleep that is announced to a VMM which watches for sleeps as well counts once",
    must_fail: None,
    play: |stage| {
        let told = [(ONE_BUSY, 5), (FOUR_WAITING, 5)];
        play(stage, Plan::of_told(&told, BOTH))
    },
};

pub const UNANNOUNCED: Scenario = Scenario {
    name: "suspend-unannounced",
    about: "host sleeps and freezes of the VMM that nobody announces are hidden but for the bound",
    must_fail: None,
    play: |stage| {
        let plan = Plan {
            untold: vec![(ONE_BUSY, 25, 25), (FOUR_WAITING, 25, 25)],
            ..Plan::of_told(&[], BOTH)
        };
        play(stage, plan)
    },
};

/// Some of both.
pub const SOME: Scenario = Scenario {
    name: "suspends",
    about: "some host sleeps, announced and not, and some freezes of the VMM, on a busy machine",
    must_fail: None,
    play: |stage| {
        let plan = Plan {
            untold: vec![(FOUR_WAITING, 1, 4)],
            is_quiet: false,
            ..Plan::of_told(&[(FOUR_WAITING, 1)], BOTH)
        };
        play(stage, plan)
    },
};

/// A bare-metal guest, which sees what is stolen within a step of its counter and follows its pauses.
#[derive(Clone, Copy)]
struct Case {
    name: &'static str,
    cpus: u32,
    /// What the last vCPU does.
    last: Workload,
    /// What the others do.
    others: Workload,
}

const ONE_BUSY: Case = Case {
    name: "one-busy",
    cpus: 1,
    last: Workload::Spin,
    others: Workload::Spin,
};

const ONE_WAITING: Case = Case {
    name: "one-waiting",
    cpus: 1,
    last: Workload::Idle,
    others: Workload::Idle,
};

/// Three that compute share a CPU of the host.
const FOUR_BUSY: Case = Case {
    name: "four-busy",
    cpus: 4,
    last: Workload::Spin,
    others: Workload::Busy,
};

/// Three wait for interrupts.
const FOUR_WAITING: Case = Case {
    name: "four-waiting",
    cpus: 4,
    last: Workload::Spin,
    others: Workload::Idle,
};

/// For a guest that is told of its pauses.
const TOLD: &[&str] = &["--paused-time", "on"];

/// And whose stalls are taken out of its counters.
const BOTH: &[&str] = &[
    "--paused-time",
    "on",
    "--watch-host",
    "on",
    "--on-stall",
    "freeze",
];

/// What the guests go through.
struct Plan {
    /// Sleeps that they are told of.
    told: Vec<(Case, usize)>,
    /// Sleeps that they are not told of, and freezes of their VMMs.
    untold: Vec<(Case, usize, usize)>,
    vmm_options: &'static [&'static str],
    /// Whether the machine has nothing else to do, so that the emulator hardly adds to a gap.
    is_quiet: bool,
}

impl Plan {
    fn of_told(told: &[(Case, usize)], vmm_options: &'static [&'static str]) -> Self {
        Self {
            told: told.to_vec(),
            untold: Vec::new(),
            vmm_options,
            is_quiet: true,
        }
    }
}

struct Scene {
    plan: Plan,
    host: Option<Host>,
    sleeps: Vec<Sleeps>,
    stops: Vec<Stops>,
}

fn play(stage: &mut Stage, plan: Plan) -> Result<()> {
    let announced = Step {
        name: "announce sleeps",
        act: announce,
        checks: |scene: &Scene| -> Vec<Check> {
            scene.sleeps.iter().flat_map(Sleeps::checks).collect()
        },
    };
    let unannounced = Step {
        name: "stop guests unannounced",
        act: stop,
        checks: |scene: &Scene| -> Vec<Check> {
            scene.stops.iter().flat_map(Stops::checks).collect()
        },
    };
    let mut steps = vec![Step {
        name: "boot a host",
        act: boot,
        checks: no_checks,
    }];
    steps.extend((!plan.told.is_empty()).then_some(announced));
    steps.extend((!plan.untold.is_empty()).then_some(unannounced));
    steps.push(Step {
        name: "power the host off",
        act: |scene: &mut Scene, _: &mut Stage| scene.host.take().context("no host")?.power_off(),
        checks: no_checks,
    });
    let scene = Scene {
        plan,
        host: None,
        sleeps: Vec::new(),
        stops: Vec::new(),
    };
    stage.play(scene, &steps)
}

/// A CPU for the last vCPU, and one for everything else: more CPUs than the machine has would make the
/// emulator wait for its own within every gap.
const LAST_ON: [usize; 1] = [0];
const OTHERS_ON: [usize; 1] = [1];

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

fn announce(scene: &mut Scene, stage: &mut Stage) -> Result<()> {
    let Scene { plan, host, .. } = scene;
    let host = host.as_mut().context("no host")?;
    for &(case, count) in &plan.told {
        let (mut guest, mut dialogue) = start(case, plan, host)?;
        let mut sleeps = Sleeps::make(&mut guest, &mut dialogue, host, stage, (case, count))?;
        sleeps.is_quiet = plan.is_quiet;
        scene.sleeps.push(sleeps);
        end(guest, host, stage)?;
    }
    Ok(())
}

fn stop(scene: &mut Scene, stage: &mut Stage) -> Result<()> {
    let Scene { plan, host, .. } = scene;
    let host = host.as_mut().context("no host")?;
    for &(case, sleeps, freezes) in &plan.untold {
        let (mut guest, mut dialogue) = start(case, plan, host)?;
        let turns = stops::Turns { sleeps, freezes };
        let mut stops = Stops::make(&mut guest, &mut dialogue, host, stage, (case, turns))?;
        stops.is_quiet = plan.is_quiet;
        scene.stops.push(stops);
        end(guest, host, stage)?;
    }
    Ok(())
}

/// Starts a guest whose last vCPU has a CPU of the host to itself.
fn start(case: Case, plan: &Plan, host: &mut Host) -> Result<(Guest, Dialogue)> {
    let spec = GuestSpec {
        image: GuestImage::El1,
        cpus: case.cpus,
        memory_mib: 32,
        vmm_options: plan.vmm_options,
        ..GuestSpec::new(case.name)
    };
    let mut guest = Guest::start(&spec, host)?;
    guest.await_hello(host)?;
    let last = case.cpus - 1;
    guest.pin(host, &OTHERS_ON, &OTHERS_ON)?;
    guest.pin_vcpus(
        host,
        |vcpu| {
            if vcpu == last { &LAST_ON } else { &OTHERS_ON }
        },
    )?;
    for vcpu in 0..last {
        guest.set_workload(host, vcpu, case.others)?;
    }
    guest.set_workload(host, last, case.last)?;
    let dialogue = guest.dialogue();
    Ok((guest, dialogue))
}

/// Keeps a guest's records and figures, and powers it off.
fn end(guest: Guest, host: &mut Host, stage: &mut Stage) -> Result<()> {
    stage.report.adjustments.extend(guest.adjustments(host)?);
    stage.keep_figures(&guest, host)?;
    guest.power_off(host)
}
