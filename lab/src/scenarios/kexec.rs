//! Linux that gives way to another by kexec, of which no VMM is told: the new one finds stolen time, which
//! starts again, and a counter that went on (R5).

use super::three_guests::PROC_STAT_LIMIT_MS;
use super::watch::{Figures, ms, structure};
use crate::guest::{Guest, GuestImage, GuestSpec, boot_host_of, host_spec_with_next};
use crate::host::Host;
use crate::interrupt::sleep;
use crate::machine::HostSpec;
use crate::report::{Check, Limit};
use crate::scenario::{Scenario, Stage, Step, no_checks};
use crate::status::Status;
use anyhow::{Context, Result, bail};
use guest_protocol::report::{Bye, ByeReason, Sample};
use guest_protocol::{Action, Body, Workload};
use std::time::{Duration, Instant};

pub const SCENARIO: Scenario = Scenario {
    name: "kexec",
    about: "a kernel that another starts by kexec finds stolen time anew, and its counter goes on",
    must_fail: None,
    play,
};

const CPUS: usize = 2;

/// How long both vCPUs of a guest compete for one CPU.
const COMPETITION: Duration = Duration::from_secs(3);

/// What each loses of it at least.
const LOST_MS: f64 = 500.0;

/// How often user space brings the structures up to date: so late may they be.
const PERIOD_MS: f64 = 100.0;

/// A pause of the new kernel, which is hidden from it as it would be from the old one.
const PAUSE: Duration = Duration::from_secs(1);

/// What a kernel says when it begins, and when it has found stolen time.
const BEGINS: &str = "Booting Linux on physical CPU";
const FOUND: &str = "using stolen time PV";

#[derive(Default)]
struct Scene {
    host: Option<Host>,
    all: Vec<Renewed>,
}

/// A guest in which a second kernel began.
struct Renewed {
    name: &'static str,
    /// Most by which a structure and Linux's own figure are apart.
    own_limit_ms: f64,
    /// Of both kernels, after they have lost time.
    old: Status,
    new: Status,
    /// Read later than the structures, so that it has all that these may have.
    later: Status,
    /// The last of the old kernel's, and the first of the new one's.
    samples: [Sample; 2],
    /// From before the old one was asked to go until the new one had answered.
    took: Duration,
    /// How far the new kernel's own figure is from each vCPU's structure.
    own_apart_ms: Vec<f64>,
    /// Lines of the console.
    begun: usize,
    found: usize,
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
                name: "have a kernel give way to another, with stolen time of KVM's",
                act: |scene, stage| renew(scene, stage, "kernel", "on", PROC_STAT_LIMIT_MS),
                checks: last_checks,
            },
            Step {
                name: "have a kernel give way to another, with stolen time of user space's",
                act: |scene, stage| {
                    renew(scene, stage, "user", "user", PROC_STAT_LIMIT_MS + PERIOD_MS)
                },
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

fn boot(scene: &mut Scene, stage: &mut Stage) -> Result<()> {
    let spec = HostSpec {
        memory_mib: 3072,
        ..host_spec_with_next("host", stage.assets, &stage.logs)?
    };
    scene.host = Some(boot_host_of(&spec, stage)?);
    Ok(())
}

fn renew(
    scene: &mut Scene,
    stage: &mut Stage,
    name: &'static str,
    stolen_time: &'static str,
    own_limit_ms: f64,
) -> Result<()> {
    let host = scene.host.as_mut().context("no host")?;
    let spec = GuestSpec {
        image: GuestImage::LinuxWithNext,
        cpus: u32::try_from(CPUS)?,
        memory_mib: 384,
        stolen_time,
        // Its log tells what it found; the initramfs stays for the next.
        kernel_options: "retain_initrd",
        ..GuestSpec::new(name)
    };
    let mut guest = Guest::start(&spec, host)?;
    guest.await_hello(host)?;
    guest.pin(host, &[0], &[1])?;
    let old = lose(&mut guest, host)?;
    let last = guest.sample(host)?;
    let asked = Instant::now();
    kexec(&mut guest, host)?;
    guest.await_hello(host)?;
    let took = asked.elapsed();
    let sightings = guest.sightings().samples.iter();
    let first = sightings.last().context("no sample")?.sample.clone();
    let new = lose(&mut guest, host)?;
    let later = guest.status(host)?;
    let own_apart_ms = own_apart_ms(&mut guest, host)?;
    guest.pause(host)?;
    sleep(PAUSE)?;
    guest.resume(host)?;
    let console = guest.console(host)?;
    scene.all.push(Renewed {
        name,
        own_limit_ms,
        old,
        new,
        later,
        samples: [last, first],
        took,
        own_apart_ms,
        begun: console.matches(BEGINS).count(),
        found: console.matches(FOUND).count(),
    });
    stage.keep_time(&mut guest, host)?;
    guest.power_off(host)
}

/// Has the guest's vCPUs compete for a while, and says what the VMM then tells of them.
fn lose(guest: &mut Guest, host: &mut Host) -> Result<Status> {
    for workload in [Workload::Busy, Workload::Idle] {
        for cpu in 0..u32::try_from(CPUS)? {
            guest.set_workload(host, cpu, workload)?;
        }
        if workload == Workload::Busy {
            sleep(COMPETITION)?;
        }
    }
    guest.status(host)
}

fn kexec(guest: &mut Guest, host: &mut Host) -> Result<()> {
    match guest.ask(host, Action::Kexec)? {
        Body::Bye(Bye {
            reason: ByeReason::Kexec,
        }) => Ok(()),
        other => bail!("guest {} sent {other:?} for kexec", guest.name()),
    }
}

fn own_apart_ms(guest: &mut Guest, host: &mut Host) -> Result<Vec<f64>> {
    let mut apart_ms = Vec::new();
    for cpu in 0..CPUS {
        let figures = Figures::take(guest, host, u32::try_from(cpu)?)?;
        apart_ms.push(figures.difference_ms(cpu, cpu)?);
    }
    Ok(apart_ms)
}

fn last_checks(scene: &Scene) -> Vec<Check> {
    let checks = scene.all.last().map(Renewed::checks);
    checks.unwrap_or_default()
}

impl Renewed {
    fn checks(&self) -> Vec<Check> {
        let mut checks = vec![
            self.check(
                "kernels_begun",
                count(self.begun),
                Limit::Equals(2.0),
                "kernels",
            ),
            self.check(
                "stolen_time_found",
                count(self.found),
                Limit::Equals(2.0),
                "kernels",
            ),
            self.check_monotonic(),
            self.check_counter(),
        ];
        for vcpu in 0..CPUS {
            let stolen_ms =
                |status| structure(status, vcpu).map_or(f64::NAN, |it| ms(it.stolen_ns));
            let (old, new) = (stolen_ms(&self.old), stolen_ms(&self.new));
            let beyond = (new - self.waited_ms(vcpu)).max(0.0);
            let detail = format!(
                "{}, vCPU {vcpu}: {old:.0} ms of the old kernel, {new:.0} ms of the new",
                self.name
            );
            let check = |name, measured, limit| {
                Check::new(name, measured, limit, "ms").with_detail(detail.clone())
            };
            let own_apart = self.own_apart_ms.get(vcpu).copied().unwrap_or(f64::NAN);
            checks.extend([
                check("old_stolen_ms", old, Limit::AtLeast(LOST_MS)),
                check("new_stolen_ms", new, Limit::AtLeast(LOST_MS)),
                check("stolen_beyond_run_delay_ms", beyond, Limit::Equals(0.0)),
                check(
                    "own_vs_structure_ms",
                    own_apart,
                    Limit::AtMost(self.own_limit_ms),
                ),
            ]);
        }
        checks
    }

    fn check(&self, name: &'static str, measured: f64, limit: Limit, unit: &'static str) -> Check {
        Check::new(name, measured, limit, unit).with_detail(self.name)
    }

    /// What the vCPU's thread has waited since the old kernel's structure was read: a value that did not
    /// start again is beyond that by what it was then.
    fn waited_ms(&self, vcpu: usize) -> f64 {
        let run_delay_ns = |status: &Status| status.vcpus.get(vcpu).map(|it| it.run_delay_ns);
        let waited_ns = run_delay_ns(&self.later).zip(run_delay_ns(&self.old));
        waited_ns.map_or(f64::NAN, |(later, old)| ms(later - old))
    }

    /// The new kernel's clock began after the old one was asked to go.
    fn check_monotonic(&self) -> Check {
        let [_, new] = &self.samples;
        let most_ms = self.took.as_secs_f64() * 1e3;
        self.check(
            "new_monotonic_ms",
            ms(new.monotonic_ns),
            Limit::AtMost(most_ms),
            "ms",
        )
    }

    /// Its counter did not, which `adjustment_disagreements` holds against the lab's clock.
    fn check_counter(&self) -> Check {
        let [old, new] = &self.samples;
        let back = old.counter_after.saturating_sub(new.counter_before);
        #[expect(clippy::cast_precision_loss, reason = "0, or it fails")]
        let back = back as f64;
        self.check("counter_went_back_ticks", back, Limit::Equals(0.0), "ticks")
    }
}

fn count(number: usize) -> f64 {
    u32::try_from(number).map_or(f64::INFINITY, f64::from)
}
