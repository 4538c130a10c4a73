//! The bare-metal guest on four vCPUs: its own tests, its counters and its timers over a frozen
//! pause, and the same file on a plain machine.

use super::pauses::backwards_steps;
use crate::bare::{Bare, OnHost, TIMERS, Tests};
use crate::control::Adjustment;
use crate::guest::{Guest, GuestImage, GuestSpec, host_spec};
use crate::host::Host;
use crate::interrupt::sleep;
use crate::plain::PlainMachine;
use crate::report::{Check, Limit};
use crate::scenario::{Scenario, Stage, Step, no_checks};
use anyhow::{Context, Result};
use guest_protocol::Workload;
use guest_protocol::report::{Interfaces, Outcome, Spin, TimerState};
use guest_protocol::request::{ArmTimer, Fill};
use std::collections::BTreeSet;
use std::time::Duration;

pub const SCENARIO: Scenario = Scenario {
    name: "el1",
    about: "the bare-metal guest: interfaces, counters, timers and its own tests, and on plain QEMU",
    must_fail: None,
    play,
};

const VCPUS: u32 = 4;
const PAUSE: Duration = Duration::from_secs(1);

/// A timer that is this late by its own clock is lost: the emulator may not run for so long.
const PATIENCE_S: u64 = 2;

#[derive(Default)]
struct Scene {
    host: Option<Host>,
    guest: Option<Guest>,
    cpus_online: u32,
    interfaces: Option<Interfaces>,
    spins: Vec<Spin>,
    pause: Option<(Adjustment, Adjustment)>,
    timers: Vec<TimerState>,
    tests: Tests,
    damaged: u64,
    changes: u64,
    plain: Plain,
}

/// What was seen on the plain machine.
#[derive(Default)]
struct Plain {
    cpus_online: u32,
    spins: Vec<Spin>,
    tests: Tests,
}

fn play(stage: &mut Stage) -> Result<()> {
    stage.play(
        Scene::default(),
        &[
            Step {
                name: "boot a host and the guest",
                act: boot,
                checks: |scene| vec![cpus(scene.cpus_online, "pvtime"), scene.check_stolen_time()],
            },
            Step {
                name: "have the guest test itself",
                act: test,
                checks: |scene| check_tests(&scene.tests, 12, "pvtime"),
            },
            Step {
                name: "pause the guest while its timers run",
                act: pause,
                checks: Scene::check_pause,
            },
            Step {
                name: "power the guest off",
                act: power_off,
                checks: no_checks,
            },
            Step {
                name: "boot the guest on a plain machine",
                act: on_plain_machine,
                checks: |scene| scene.plain.checks(),
            },
        ],
    )
}

fn boot(scene: &mut Scene, stage: &mut Stage) -> Result<()> {
    let mut host = stage.boot(&host_spec("host", stage.assets, &stage.logs)?)?;
    let spec = GuestSpec {
        image: GuestImage::El1,
        cpus: VCPUS,
        memory_mib: 64,
        ..GuestSpec::new("el1")
    };
    let mut guest = Guest::start(&spec, &mut host)?;
    scene.cpus_online = guest.await_hello(&mut host)?.cpus_online;
    scene.interfaces = Some(bare(&mut guest, &mut host).interfaces()?);
    (scene.host, scene.guest) = (Some(host), Some(guest));
    Ok(())
}

fn bare<'a>(guest: &'a mut Guest, host: &'a mut Host) -> OnHost<'a> {
    OnHost { guest, host }
}

/// Timers of every kind over the pause: due before it, within it, after it, long ago and never.
const DELAYS_US: [Option<i64>; 4] = [Some(5_000), Some(1_200_000), Some(-1_000_000), None];

fn pause(scene: &mut Scene, _: &mut Stage) -> Result<()> {
    let host = scene.host.as_mut().context("no host")?;
    let guest = scene.guest.as_mut().context("no guest")?;
    let mut asked = bare(guest, host);
    asked.fill(Fill {
        seed: 1,
        mib: 8,
        changes_per_s: 1000,
    })?;
    asked.give_work(1, Workload::Change)?;
    asked.give_work(2, Workload::Spin)?;
    asked.give_work(3, Workload::Spin)?;
    asked.spun()?;
    for (number, delay_us) in (0_u32..).zip(DELAYS_US) {
        for (which, timer) in (0_u32..).zip(TIMERS) {
            asked.arm(ArmTimer {
                cpu: (number + which) % VCPUS,
                timer,
                live: false,
                delay_us,
                masked: delay_us.is_some_and(i64::is_negative),
            })?;
        }
    }
    let stop = guest.pause(host)?;
    sleep(PAUSE)?;
    let resume = guest.resume(host)?;
    scene.pause = Some((stop, resume));
    sleep(Duration::from_millis(2500))?;
    let mut asked = bare(guest, host);
    scene.timers = asked.timers()?;
    scene.spins = asked.spun()?;
    for cpu in 1..VCPUS {
        asked.give_work(cpu, Workload::Idle)?;
    }
    let memory = asked.verify()?;
    (scene.damaged, scene.changes) = (memory.damaged, memory.changes);
    Ok(())
}

fn test(scene: &mut Scene, _: &mut Stage) -> Result<()> {
    let host = scene.host.as_mut().context("no host")?;
    let guest = scene.guest.as_mut().context("no guest")?;
    scene.tests = bare(guest, host).run_tests()?;
    // The VMM lives, and knows its VM.
    guest.status(host)?;
    Ok(())
}

fn power_off(scene: &mut Scene, _: &mut Stage) -> Result<()> {
    let mut host = scene.host.take().context("no host")?;
    let guest = scene.guest.take().context("no guest")?;
    guest.power_off(&mut host)?;
    host.power_off()
}

fn on_plain_machine(scene: &mut Scene, stage: &mut Stage) -> Result<()> {
    let mut machine = PlainMachine::start(stage.assets, VCPUS, &stage.logs)?;
    let plain = &mut scene.plain;
    plain.cpus_online = machine.await_hello()?.cpus_online;
    for cpu in 1..VCPUS {
        machine.give_work(cpu, Workload::Spin)?;
    }
    sleep(Duration::from_secs(1))?;
    plain.spins = machine.spun()?;
    for cpu in 1..VCPUS {
        machine.give_work(cpu, Workload::Idle)?;
    }
    plain.tests = machine.run_tests()?;
    machine.power_off()
}

fn cpus(online: u32, machine: &str) -> Check {
    let limit = Limit::Equals(VCPUS.into());
    Check::new("smp", online.into(), limit, "CPUs").with_detail(machine)
}

fn check_spins(spins: &[Spin], least_cpus: usize, machine: &str) -> Vec<Check> {
    let reads = spins.iter().map(|spin| spin.reads).sum::<u64>();
    let spinning = spins.iter().filter(|spin| spin.reads > 0).count();
    vec![
        count("backwards_steps", backwards_steps(spins), "steps")
            .with_detail(format!("{machine}, {reads} reads")),
        at_least("spinning_cpus", spinning, least_cpus, "CPUs").with_detail(machine),
    ]
}

fn check_tests(tests: &Tests, least: usize, machine: &str) -> Vec<Check> {
    let failed = tests.count(Outcome::Failed) as u64;
    let absent = tests.list(Outcome::Absent);
    vec![
        count("tests_failed", failed, "tests").with_detail(tests.list(Outcome::Failed)),
        at_least("tests_passed", tests.count(Outcome::Passed), least, "tests")
            .with_detail(format!("{machine}; not there: {absent}")),
    ]
}

/// A count that has to be 0.
#[expect(clippy::cast_precision_loss, reason = "0, or it fails")]
fn count(name: &'static str, measured: u64, unit: &'static str) -> Check {
    Check::new(name, measured as f64, Limit::Equals(0.0), unit)
}

#[expect(clippy::cast_precision_loss, reason = "counts of a few")]
fn at_least(name: &'static str, measured: usize, least: usize, unit: &'static str) -> Check {
    Check::new(name, measured as f64, Limit::AtLeast(least as f64), unit)
}

impl Scene {
    fn check_stolen_time(&self) -> Check {
        let found = self.interfaces.iter().flat_map(|it| it.stolen_time.iter());
        let addresses: BTreeSet<_> = found.flatten().map(|found| found.address).collect();
        let missing = self
            .interfaces
            .as_ref()
            .and_then(|it| it.stolen_time_missing.clone());
        let check = at_least(
            "stolen_time_structures",
            addresses.len(),
            VCPUS as usize,
            "structures",
        );
        check.with_detail(missing.map_or_else(String::new, |it| it.as_str().to_owned()))
    }

    fn check_pause(&self) -> Vec<Check> {
        let mut checks = check_spins(&self.spins, 2, "pvtime, over the pause");
        let shown = self.pause.as_ref().map_or(u64::MAX, |(stop, resume)| {
            resume.after.guest.wrapping_sub(stop.after.guest)
        });
        checks.push(count("frozen_ticks", shown, "ticks"));
        checks.push(count(
            "counter_reads_within_pause",
            self.reads_within(),
            "CPUs",
        ));
        checks.extend(check_timers(&self.timers));
        checks.push(
            count("damaged_pages", self.damaged, "pages")
                .with_detail(format!("of 2048, after {} changes", self.changes)),
        );
        checks.push(at_least(
            "changed_pages",
            usize::try_from(self.changes).unwrap_or(0),
            100,
            "pages",
        ));
        checks
    }

    /// vCPUs whose step over the pause, where it is among their largest, ends before the count at
    /// the resumption.
    fn reads_within(&self) -> u64 {
        let Some((stop, resume)) = &self.pause else {
            return u64::MAX;
        };
        let within = self.spins.iter().filter(|spin| {
            let over = spin.gap_over(stop.after.guest);
            over.is_some_and(|gap| gap.start + gap.ticks < resume.after.guest)
        });
        within.count() as u64
    }
}

fn check_timers(timers: &[TimerState]) -> Vec<Check> {
    let lost = timers
        .iter()
        .filter(|it| it.is_lost(PATIENCE_S * it.frequency_hz));
    let wrong: Vec<_> = timers.iter().filter(|timer| timer.is_wrong()).collect();
    let fired = timers.iter().filter(|timer| timer.interrupts > 0).count();
    let late_us = timers.iter().filter_map(|timer| {
        let late = u128::from(timer.late_ticks()?) * 1_000_000;
        Some(late / u128::from(timer.frequency_hz.max(1)))
    });
    let latest = late_us.max().unwrap_or(0);
    vec![
        count("early", wrong.len() as u64, "timers").with_detail(format!("{wrong:?}")),
        count("lost", lost.count() as u64, "timers"),
        // Two deadlines before or within the pause, on both timers.
        at_least("fired", fired, 4, "timers")
            .with_detail(format!("of {}; at most {latest} us late", timers.len())),
    ]
}

impl Plain {
    fn checks(&self) -> Vec<Check> {
        let mut checks = vec![cpus(self.cpus_online, "plain QEMU")];
        checks.extend(check_spins(&self.spins, 3, "plain QEMU"));
        checks.extend(check_tests(&self.tests, 8, "plain QEMU"));
        checks
    }
}
