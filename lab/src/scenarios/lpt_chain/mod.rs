//! Live physical time across hosts whose counters run at different frequencies: one guest goes from
//! host to host as a snapshot.

mod journey;

use self::journey::{Hop, Ideal, Journey};
use super::bare_checks::arm_all;
use crate::bare::{Bare, OnHost};
use crate::control::Adjustment;
use crate::guest::{Guest, GuestImage, GuestSpec, host_spec};
use crate::host::Host;
use crate::interrupt::sleep;
use crate::machine::HostSpec;
use crate::scenario::{Scenario, Stage, Step};
use crate::vmm::Snapshot;
use anyhow::{Context, Result};
use guest_protocol::request::Fill;
use guest_protocol::{Action, Workload};
use serde_json::Value;
use std::time::Duration;

pub const SCENARIO: Scenario = Scenario {
    name: "lpt-chain",
    about: "one guest on hosts of 25, 100, 31.25, 1000 and 25 MHz: live physical time and its timers",
    must_fail: None,
    play,
};

const VCPUS: u32 = 4;

/// The hosts in their order, and the names of the guest on each.
const HOSTS: [(&str, u64); 5] = [
    ("host-0-25-mhz", 25_000_000),
    ("host-1-100-mhz", 100_000_000),
    ("host-2-31-mhz", 31_250_000),
    ("host-3-1-ghz", 1_000_000_000),
    ("host-4-25-mhz", 25_000_000),
];

/// A PV frequency, and what names its guest on each host.
struct Case {
    pv_hz: u64,
    vmm_options: &'static [&'static str],
    guests: [&'static str; HOSTS.len()],
}

const CASES: [Case; 2] = [
    Case {
        pv_hz: 1_000_000_000,
        vmm_options: &["--live-physical-time", "1000000000", "--paused-time", "on"],
        guests: ["1-ghz-0", "1-ghz-1", "1-ghz-2", "1-ghz-3", "1-ghz-4"],
    },
    Case {
        pv_hz: 24_000_000,
        vmm_options: &["--live-physical-time", "24000000", "--paused-time", "on"],
        guests: ["24-mhz-0", "24-mhz-1", "24-mhz-2", "24-mhz-3", "24-mhz-4"],
    },
];

/// Timers that are armed before each hop. The expired one and never take turns, so that a timer of
/// each kind is on both timers of some CPU.
const DELAYS_US: [[Option<i64>; 4]; 2] = [
    [
        Some(60_000_000),
        Some(-100_000),
        Some(2_000_000),
        Some(5_000),
    ],
    [Some(60_000_000), None, Some(2_000_000), Some(5_000)],
];

/// Events a second that the guest asks its counter for: a bit of each host's counter is near.
const EVENTS_HZ: u32 = 50_000;

/// Memory that changes all the way.
const FILL: Fill = Fill {
    seed: 1,
    mib: 4,
    changes_per_s: 200,
};

/// After a hop, until the timer of 2 s is due or lost.
const AFTER_HOP: Duration = Duration::from_secs(5);
/// After the last, until that of 60 s is.
const AFTER_LAST: Duration = Duration::from_secs(64);

fn play(stage: &mut Stage) -> Result<()> {
    stage.play(
        [Journey::default(), Journey::default()],
        &[
            Step {
                name: "take a guest with a PV counter of 1 GHz from host to host",
                act: |scene, stage| travel(&mut scene[0], stage, &CASES[0]),
                checks: |scene| scene[0].checks("1-ghz", CASES[0].pv_hz),
            },
            Step {
                name: "take a guest with a PV counter of 24 MHz from host to host",
                act: |scene, stage| travel(&mut scene[1], stage, &CASES[1]),
                checks: |scene| scene[1].checks("24-mhz", CASES[1].pv_hz),
            },
        ],
    )
}

fn boot(stage: &mut Stage, index: usize) -> Result<Host> {
    let (name, counter_frequency_hz) = HOSTS[index];
    let spec = HostSpec {
        counter_frequency_hz,
        memory_mib: 768,
        ..host_spec(name, stage.assets, &stage.logs)?
    };
    stage.boot(&spec)
}

fn travel(journey: &mut Journey, stage: &mut Stage, case: &'static Case) -> Result<()> {
    let mut host = boot(stage, 0)?;
    let spec = GuestSpec {
        image: GuestImage::El1,
        cpus: VCPUS,
        memory_mib: 16,
        vmm_options: case.vmm_options,
        ..GuestSpec::new(case.guests[0])
    };
    let mut guest = Guest::start(&spec, &mut host)?;
    guest.await_hello(&mut host)?;
    let mut asked = bare(&mut guest, &mut host);
    asked.ask_all(Action::SetEventStream { rate_hz: EVENTS_HZ })?;
    asked.fill(FILL)?;
    asked.give_work(1, Workload::Change)?;
    asked.give_work(2, Workload::SpinLive)?;
    asked.give_work(3, Workload::SpinLive)?;
    let mut ideal = Ideal::start(HOSTS[0].1);
    let mut since = last(&guest, &mut host, "start")?;
    let mut first = bare(&mut guest, &mut host).clocks()?;
    for (index, name) in case.guests.into_iter().enumerate().skip(1) {
        stage.step(&format!("take {name} to {}", HOSTS[index].0));
        let mut next = boot(stage, index)?;
        arm_all(
            &mut bare(&mut guest, &mut host),
            VCPUS,
            true,
            &DELAYS_US[index % 2],
        )?;
        let latest = bare(&mut guest, &mut host).clocks()?;
        let stop = guest.pause(&mut host)?;
        journey.enter_run([&since, &stop], [&first, &latest], case.pv_hz);
        stage.keep_records(&guest, &mut host)?;
        let folder = host.file(name);
        guest.ctl(&mut host, &["snapshot", &folder])?;
        let folder = Snapshot::take(&mut host, &folder)?.put(&mut next, name)?;
        journey.held_up += host.held_up()?;
        host.power_off()?;
        host = next;
        guest = Guest::restore(name, true, &folder, &mut host)?;
        first = bare(&mut guest, &mut host).clocks()?;
        since = last(&guest, &mut host, "resume")?;
        let arrived = Ideal {
            ns: ideal.at(stop.after.guest),
            count: since.after.guest,
            hz: HOSTS[index].1,
        };
        journey.hops.push(Hop::between(arrived, &first, case.pv_hz));
        ideal = arrived;
        let is_last = index + 1 == HOSTS.len();
        sleep(if is_last { AFTER_LAST } else { AFTER_HOP })?;
        let mut asked = bare(&mut guest, &mut host);
        journey.timers.extend(asked.timers()?);
        journey.found.push(asked.interfaces()?);
        journey.memory.push(asked.verify()?);
        journey.spins.extend(asked.spun()?);
    }
    let latest = bare(&mut guest, &mut host).clocks()?;
    let stop = guest.pause(&mut host)?;
    journey.enter_run([&since, &stop], [&first, &latest], case.pv_hz);
    stage.keep_records(&guest, &mut host)?;
    guest.resume(&mut host)?;
    guest.power_off(&mut host)?;
    journey.held_up += host.held_up()?;
    host.power_off()
}

fn bare<'a>(guest: &'a mut Guest, host: &'a mut Host) -> OnHost<'a> {
    OnHost { guest, host }
}

/// The last record of an event.
fn last(guest: &Guest, host: &mut Host, event: &str) -> Result<Adjustment> {
    let is_it = |record: &Value| record["event"] == event;
    let found = guest.adjustments(host)?.into_iter().rfind(is_it);
    let found =
        found.with_context(|| format!("no {event} was recorded of guest {}", guest.name()))?;
    Ok(serde_json::from_value(found)?)
}
