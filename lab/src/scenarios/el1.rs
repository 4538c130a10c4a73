//! The bare-metal guest on four vCPUs: its own tests, its counters and its timers over a frozen
//! pause, and the same file on a plain machine.

use super::bare_checks::{arm_all, at_least, check_spins, check_tests, check_timers, count};
use crate::bare::{Bare, OnHost, Tests};
use crate::control::Adjustment;
use crate::guest::{Guest, GuestImage, GuestSpec, host_spec};
use crate::host::Host;
use crate::interrupt::sleep;
use crate::plain::PlainMachine;
use crate::report::{Check, Limit};
use crate::scenario::{Scenario, Stage, Step, no_checks};
use anyhow::{Context, Result};
use guest_protocol::report::{Interfaces, Spin, TimerState};
use guest_protocol::request::Fill;
use guest_protocol::{Action, Workload};
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
    /// What it says when it is to suspend itself.
    refusal: String,
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
                checks: |scene| scene.check_tests(),
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
    arm_all(&mut asked, VCPUS, false, &DELAYS_US)?;
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
    let mut asked = bare(guest, host);
    scene.tests = asked.run_tests()?;
    scene.refusal = match asked.ask_all(Action::Suspend) {
        Ok(_) => String::new(),
        Err(refusal) => refusal.to_string(),
    };
    // The VMM lives, and knows its VM.
    guest.status(host)?;
    Ok(())
}

fn power_off(scene: &mut Scene, stage: &mut Stage) -> Result<()> {
    let mut host = scene.host.take().context("no host")?;
    let guest = scene.guest.take().context("no guest")?;
    stage.keep_records(&guest, &mut host)?;
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

impl Scene {
    fn check_tests(&self) -> Vec<Check> {
        let mut checks = check_tests(&self.tests, 16, "pvtime");
        let is_refused = self.refusal.contains("--suspend-guest on");
        let refused = at_least("suspends_refused", is_refused.into(), 1, "requests");
        checks.push(refused.with_detail(self.refusal.as_str()));
        checks
    }

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
        let mut checks = check_spins("backwards_steps", &self.spins, 2, "pvtime, over the pause");
        let shown = self.pause.as_ref().map_or(u64::MAX, |(stop, resume)| {
            resume.after.guest.wrapping_sub(stop.after.guest)
        });
        checks.push(count("frozen_ticks", shown, "ticks"));
        checks.push(count(
            "counter_reads_within_pause",
            self.reads_within(),
            "CPUs",
        ));
        // Two deadlines before or within the pause, on both timers.
        checks.extend(check_timers(&self.timers, 4, "on the counter"));
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

impl Plain {
    fn checks(&self) -> Vec<Check> {
        let mut checks = vec![cpus(self.cpus_online, "plain QEMU")];
        checks.extend(check_spins("backwards_steps", &self.spins, 3, "plain QEMU"));
        checks.extend(check_tests(&self.tests, 10, "plain QEMU"));
        checks
    }
}
