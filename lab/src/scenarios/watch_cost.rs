//! What it costs to watch for sleeps of the host: the CPU time of the thread that renews the lease and looks
//! at the vCPUs' threads, a hundred times a second.

use super::pauses::median;
use super::watch::ms;
use crate::guest::{Guest, GuestImage, GuestSpec, boot_host};
use crate::host::Host;
use crate::interrupt::sleep;
use crate::report::{Check, Limit};
use crate::scenario::{Scenario, Stage, Step, no_checks};
use anyhow::{Context, Result};
use guest_protocol::Workload;
use std::time::Duration;

pub const SCENARIO: Scenario = Scenario {
    name: "watch-cost",
    about: "watching for sleeps of the host costs some microseconds for each vCPU, a hundred times a second",
    must_fail: None,
    play,
};

/// Beats of the watch: every 10 ms.
const BEATS_PER_S: f64 = 100.0;

/// How often it is measured and for how long: the median is of those in which the emulator had its CPUs.
const TIMES: usize = 40;
const LENGTH: Duration = Duration::from_millis(250);

/// What a beat may take for a VM with one vCPU, and for each other one, as long as system calls would take
/// here: half a percent of a CPU, and a tenth of one.
const BEAT_LIMIT_US: f64 = 50.0;
const VCPU_LIMIT_US: f64 = 10.0;

/// The watch's thread.
const THREAD: &str = "host-sleep";

#[derive(Default)]
struct Scene {
    host: Option<Host>,
    costs: Vec<Cost>,
}

/// What a beat took, of a VM with so many vCPUs.
struct Cost {
    cpus: u32,
    workload: Workload,
    beat_us: f64,
    /// How many times as long a system call takes on the host as here.
    slowness: f64,
}

fn play(stage: &mut Stage) -> Result<()> {
    stage.play(
        Scene::default(),
        &[
            Step {
                name: "boot a host",
                act: |scene, stage| {
                    scene.host = Some(boot_host(stage)?);
                    Ok(())
                },
                checks: no_checks,
            },
            Step {
                name: "watch over guests with vCPUs that wait, and that run",
                act: measure,
                checks,
            },
            Step {
                name: "power the host off",
                act: |scene, _| scene.host.take().context("no host")?.power_off(),
                checks: no_checks,
            },
        ],
    )
}

fn measure(scene: &mut Scene, _: &mut Stage) -> Result<()> {
    let host = scene.host.as_mut().context("no host")?;
    for (name, cpus, workload) in [
        ("one-waiting", 1, Workload::Idle),
        ("five-waiting", 5, Workload::Idle),
        ("one-running", 1, Workload::Spin),
        // As many as take turns on one CPU from one beat to the next.
        ("three-running", 3, Workload::Spin),
    ] {
        scene.costs.push(Cost::of(name, cpus, workload, host)?);
    }
    Ok(())
}

impl Cost {
    fn of(name: &'static str, cpus: u32, workload: Workload, host: &mut Host) -> Result<Self> {
        let spec = GuestSpec {
            image: GuestImage::El1,
            cpus,
            memory_mib: 32,
            vmm_options: &["--watch-host", "on"],
            ..GuestSpec::new(name)
        };
        let mut guest = Guest::start(&spec, host)?;
        guest.await_hello(host)?;
        // A CPU for the vCPU that runs, and one for everything else.
        guest.pin(host, &[0], &[1])?;
        for cpu in 0..cpus {
            guest.set_workload(host, cpu, workload)?;
        }
        let slowness = host.slowness()?;
        let mut beats_us = Vec::new();
        let mut before = Sight::of(&guest, host)?;
        for _ in 0..TIMES {
            sleep(LENGTH)?;
            let after = Sight::of(&guest, host)?;
            let beats = ms(after.at_ns - before.at_ns) / 1e3 * BEATS_PER_S;
            beats_us.push(ms(after.run_ns - before.run_ns) * 1e3 / beats);
            before = after;
        }
        guest.power_off(host)?;
        Ok(Self {
            cpus,
            workload,
            beat_us: median(beats_us),
            slowness,
        })
    }
}

/// What the watch's thread ran up to a moment of the host's.
struct Sight {
    at_ns: u64,
    run_ns: u64,
}

impl Sight {
    fn of(guest: &Guest, host: &mut Host) -> Result<Self> {
        let threads = host.threads(guest.vmm().pid)?;
        let thread = threads.threads.iter().find(|it| it.name == THREAD);
        Ok(Self {
            at_ns: threads.before_ns,
            run_ns: thread.context("nobody watches for sleeps")?.run_ns,
        })
    }
}

fn checks(scene: &Scene) -> Vec<Check> {
    let [one_waits, five_wait, one_runs, three_run] = &scene.costs[..] else {
        return Vec::new();
    };
    vec![
        check("beat_us", one_runs, None),
        check("beat_of_waiting_us", one_waits, None),
        check("running_vcpu_us", three_run, Some(one_runs)),
        check("waiting_vcpu_us", five_wait, Some(one_waits)),
    ]
}

/// A beat, or what each vCPU adds beyond those of another VM.
fn check(name: &'static str, cost: &Cost, beyond: Option<&Cost>) -> Check {
    let (us, limit_us) = match beyond {
        None => (cost.beat_us, BEAT_LIMIT_US),
        Some(other) => {
            let more = f64::from(cost.cpus - other.cpus);
            ((cost.beat_us - other.beat_us) / more, VCPU_LIMIT_US)
        }
    };
    let detail = format!(
        "{us:.0} us on a host whose system calls take {:.0} times as long as this machine's; {} vCPUs, \
         {:?}: {:.0} us",
        cost.slowness, cost.cpus, cost.workload, cost.beat_us,
    );
    Check::new(name, us / cost.slowness, Limit::AtMost(limit_us), "us").with_detail(detail)
}
