//! Live physical time across hosts whose counters run at different frequencies: one guest goes from
//! host to host while it runs, or as a snapshot.

mod journey;
mod timers;

use self::journey::{Anchor, Hop, Ideal, Journey};
use crate::bare::{Bare, OnHost};
use crate::control::Adjustment;
use crate::guest::{Guest, GuestImage, GuestSpec, INSECURE, Receiver, host_spec};
use crate::host::Host;
use crate::interrupt::sleep;
use crate::machine::{HostSpec, Place};
use crate::report::Skipped;
use crate::scenario::{Scenario, Stage, Step};
use crate::status::Structure;
use crate::vmm::Snapshot;
use crate::wire::wire;
use anyhow::{Context, Result};
use guest_protocol::request::Fill;
use guest_protocol::{Action, Workload};
use serde_json::Value;
use std::time::Duration;

pub const SCENARIO: Scenario = Scenario {
    name: "lpt-chain",
    about: "one guest moves to hosts of 25, 100, 31.25, 1000 and 25 MHz: live time and its timers",
    must_fail: None,
    play: |stage| play(stage, &CHAIN),
};

pub const BY_SNAPSHOT: Scenario = Scenario {
    name: "lpt-chain-snapshots",
    about: "the same as snapshots: live physical time and its timers on five hosts",
    must_fail: None,
    play: |stage| play(stage, &SNAPSHOTS),
};

pub const SHORT: Scenario = Scenario {
    name: "migrate-frequencies",
    about: "a guest with live physical time moves from a host of 25 MHz to one of 100 MHz",
    must_fail: None,
    play: |stage| {
        if stage.assets.place == Place::Local {
            stage.report.skipped.push(Skipped {
                part: "a host of another frequency".into(),
                reason: ONE_FREQUENCY.into(),
            });
            return Ok(());
        }
        stage.play(
            Journey::default(),
            &[Step {
                name: "move a guest with a PV counter of 24 MHz",
                act: |scene, stage| travel(scene, stage, &CASES[1], &SHORT_WAY),
                checks: |scene| scene.checks("24-mhz", CASES[1].pv_hz, &SHORT_WAY),
            }],
        )
    },
};

/// Why this machine cannot be both hosts.
pub const ONE_FREQUENCY: &str = "this machine has one counter frequency; use --host qemu";

/// Both timers of each have one of the six kinds that there are.
const VCPUS: u32 = 6;

/// Two that spin, put off their timers of 5 ms, and change memory: as many as the hosts have CPUs, so that
/// those who wait for a timer need not wait for each other's CPUs as well.
const SPINNERS: [u32; 2] = [2, 3];

/// The hosts in their order.
const HOSTS: [(&str, u64); 5] = [
    ("host-0-25-mhz", 25_000_000),
    ("host-1-100-mhz", 100_000_000),
    ("host-2-31-mhz", 31_250_000),
    ("host-3-1-ghz", 1_000_000_000),
    ("host-4-25-mhz", 25_000_000),
];

/// Names of the guest that was on each host before, where it started there and where it moved to.
const WARM_UPS: [[&str; 2]; HOSTS.len()] = [
    ["before-0", "moved-0"],
    ["before-1", "moved-1"],
    ["before-2", "moved-2"],
    ["before-3", "moved-3"],
    ["before-4", "moved-4"],
];

/// How a guest goes, and how far.
struct Way {
    hosts: usize,
    /// As a snapshot; else it moves while it runs.
    is_saved: bool,
    /// After a hop, until the timer of 2 s is due or lost.
    after_hop: Duration,
    /// As much more after the last.
    after_last: Duration,
    /// Timers that cross the last hop and need not fire before the end.
    pending: usize,
    /// Whether delays and rates are judged, which a machine that does other work spoils.
    is_timed: bool,
}

const CHAIN: Way = Way {
    hosts: HOSTS.len(),
    is_saved: false,
    after_hop: Duration::from_secs(5),
    // Until the timer of 60 s is due.
    after_last: Duration::from_secs(59),
    pending: 0,
    is_timed: true,
};

const SNAPSHOTS: Way = Way {
    is_saved: true,
    ..CHAIN
};

const SHORT_WAY: Way = Way {
    hosts: 2,
    after_hop: Duration::from_secs(3),
    after_last: Duration::ZERO,
    // Those of 60 s.
    pending: 2,
    is_timed: false,
    ..CHAIN
};

/// A PV frequency, and what names its guest on each host.
struct Case {
    name: &'static str,
    pv_hz: u64,
    vmm_options: &'static [&'static str],
    guests: [&'static str; HOSTS.len()],
}

const CASES: [Case; 2] = [
    Case {
        name: "1-ghz",
        pv_hz: 1_000_000_000,
        vmm_options: &["--live-physical-time", "1000000000", "--paused-time", "on"],
        guests: ["1-ghz-0", "1-ghz-1", "1-ghz-2", "1-ghz-3", "1-ghz-4"],
    },
    Case {
        name: "24-mhz",
        pv_hz: 24_000_000,
        vmm_options: &["--live-physical-time", "24000000", "--paused-time", "on"],
        guests: ["24-mhz-0", "24-mhz-1", "24-mhz-2", "24-mhz-3", "24-mhz-4"],
    },
];

/// Events a second that the guest asks its counter for: a bit of each host's counter is near.
const EVENTS_HZ: u32 = 50_000;

/// Memory that changes all the way.
const FILL: Fill = Fill {
    seed: 1,
    mib: 4,
    changes_per_s: 200,
};

fn play(stage: &mut Stage, way: &'static Way) -> Result<()> {
    for case in &CASES {
        stage.step(&format!(
            "take a guest with a PV counter of {} Hz",
            case.pv_hz
        ));
        let mut journey = Journey::default();
        travel(&mut journey, stage, case, way)?;
        stage
            .report
            .checks
            .extend(journey.checks(case.name, case.pv_hz, way));
    }
    Ok(())
}

fn boot(stage: &mut Stage, index: usize) -> Result<Host> {
    let (name, counter_frequency_hz) = HOSTS[index];
    let number = u8::try_from(index)?;
    let wires = [wire(number)[0], wire(number.wrapping_sub(1))[1]];
    let spec = HostSpec {
        counter_frequency_hz,
        memory_mib: 768,
        wires: wires.into(),
        ..host_spec(name, stage.assets, &stage.logs)?
    };
    let mut host = stage.boot(&spec)?;
    host.set_clock()?;
    Ok(host)
}

/// Has a host run another such guest to its end, which moves meanwhile from one VMM to another. An
/// emulator translates what a host does when it does it first, and takes milliseconds for that: a host
/// that waits for a guest has had one arrive before.
fn warm_up([name, moved]: [&'static str; 2], case: &Case, host: &mut Host) -> Result<()> {
    let mut guest = start(name, case, host)?;
    let receiver = Receiver::start(moved, host)?;
    guest.move_to(host, &receiver, &[])?;
    sleep(Duration::from_millis(500))?;
    guest.power_off(host)
}

fn start(name: &'static str, case: &Case, host: &mut Host) -> Result<Guest> {
    let spec = GuestSpec {
        image: GuestImage::El1,
        cpus: VCPUS,
        memory_mib: 16,
        vmm_options: case.vmm_options,
        ..GuestSpec::new(name)
    };
    let mut guest = Guest::start(&spec, host)?;
    guest.await_hello(host)?;
    let mut asked = bare(&mut guest, host);
    asked.ask_all(Action::SetEventStream { rate_hz: EVENTS_HZ })?;
    asked.fill(FILL)?;
    for cpu in SPINNERS {
        asked.give_work(cpu, Workload::SpinLive)?;
    }
    timers::arm(&mut asked)?;
    Ok(guest)
}

fn travel(journey: &mut Journey, stage: &mut Stage, case: &'static Case, way: &Way) -> Result<()> {
    let mut host = boot(stage, 0)?;
    let mut guest = start(case.guests[0], case, &mut host)?;
    let mut ideal = Ideal::start(HOSTS[0].1);
    let mut since = last(&guest, &mut host, "start")?;
    let mut paused_ns = paused(&guest, &mut host)?;
    let mut first = bare(&mut guest, &mut host).clocks()?;
    for (index, (next_host, next_hz)) in HOSTS.iter().enumerate().take(way.hosts).skip(1) {
        let name = case.guests[index];
        stage.step(&format!("take {name} to {next_host}"));
        let mut next = boot(stage, index)?;
        warm_up(WARM_UPS[index], case, &mut next)?;
        let latest = bare(&mut guest, &mut host).clocks()?;
        let end = Anchor::between(&since, &host.clocks()?);
        journey.enter_run([Anchor::of(&since), end], [&first, &latest], case.pv_hz);
        let hosts = [&mut host, &mut next];
        let stolen_ns;
        if way.is_saved {
            (guest, stolen_ns) = save(&guest, hosts, name, stage)?;
        } else {
            let error_us;
            (error_us, stolen_ns) = migrate(&mut guest, hosts, (name, index), stage)?;
            journey.blackout_errors_us.push(error_us);
        }
        journey.held_up += host.held_up()?;
        host.power_off()?;
        host = next;
        first = bare(&mut guest, &mut host).clocks()?;
        since = last(&guest, &mut host, "resume")?;
        let arrived = Ideal {
            ns: ideal.at(since.before.guest),
            count: since.after.guest,
            hz: *next_hz,
        };
        let hop = Hop::between(arrived, &first, since.live.as_ref(), case.pv_hz);
        journey.hops.push(hop);
        journey.timers.stopped(since.live.as_ref(), stolen_ns);
        ideal = arrived;
        let is_last = index + 1 == way.hosts;
        sleep(way.after_hop)?;
        let looked = bare(&mut guest, &mut host).timers()?;
        journey.timers.looked(looked);
        let before_ns = std::mem::replace(&mut paused_ns, paused(&guest, &mut host)?);
        let structures = structures(&guest, &mut host)?.into_iter();
        let surplus_ns = structures.map(|it| it.map_or(0, |it| it.surplus_ns));
        journey.timers.stopped_for(
            beyond_gap(&since, [&before_ns, &paused_ns]),
            surplus_ns.collect(),
        );
        let mut asked = bare(&mut guest, &mut host);
        if is_last {
            // The guest keeps the last firing that crossed a hop, and the one before was seen now.
            sleep(way.after_last)?;
            journey.timers.looked(asked.timers()?);
        }
        journey.found.push(asked.interfaces()?);
        journey.memory.push(asked.verify()?);
        journey.spins.extend(asked.spun()?);
    }
    let latest = bare(&mut guest, &mut host).clocks()?;
    let end = Anchor::between(&since, &host.clocks()?);
    journey.enter_run([Anchor::of(&since), end], [&first, &latest], case.pv_hz);
    stage.keep_records(&guest, &mut host)?;
    guest.power_off(&mut host)?;
    journey.held_up += host.held_up()?;
    host.power_off()
}

/// Takes the guest to the next host as a snapshot, under another name, and returns with it what had been
/// stolen from each vCPU when it stopped, in ns.
fn save(
    guest: &Guest,
    [host, next]: [&mut Host; 2],
    name: &'static str,
    stage: &mut Stage,
) -> Result<(Guest, Vec<Option<u64>>)> {
    guest.pause(host)?;
    let structures = structures(guest, host)?.into_iter();
    let stolen_ns = structures.map(|it| Some(it?.stolen_ns)).collect();
    stage.keep_records(guest, host)?;
    let folder = host.file(name);
    guest.ctl(host, &["snapshot", &folder])?;
    let folder = Snapshot::take(host, &folder)?.put(next, name)?;
    Ok((Guest::restore(name, true, &folder, next)?, stolen_ns))
}

/// Has the guest move to the next host, under another name, and returns how far the gap that was
/// recorded is from what passed, beyond all stated errors, in us, and what had been stolen from each vCPU
/// when it stopped, in ns.
fn migrate(
    guest: &mut Guest,
    [host, next]: [&mut Host; 2],
    (name, index): (&'static str, usize),
    stage: &mut Stage,
) -> Result<(f64, Vec<Option<u64>>)> {
    stage.keep_records(guest, host)?;
    let end = wire(u8::try_from(index - 1)?)[1];
    let receiver = Receiver::start_on(name, next, end, &[INSECURE])?;
    let report = guest.move_to(host, &receiver, &[INSECURE])?;
    let clocks = [host.clocks()?, next.clocks()?];
    let error_us = report.blackout_error_us(clocks.each_ref());
    let error_us = error_us.context("nothing was recorded of a gap")?;
    Ok((error_us, report.stolen_at_stop_ns))
}

/// For how long each vCPU was stopped by moves so far, in ns, by its accounts.
fn paused(guest: &Guest, host: &mut Host) -> Result<Vec<u64>> {
    let accounts = guest.ledger(host)?.into_iter();
    Ok(accounts.map(|it| it.paused_ns.migration_ns).collect())
}

/// Each vCPU's structure, if its guest has asked for it.
fn structures(guest: &Guest, host: &mut Host) -> Result<Vec<Option<Structure>>> {
    let vcpus = guest.status(host)?.vcpus.into_iter();
    let structures = vcpus.map(|it| it.stolen_time.filter(|it| it.claimed));
    Ok(structures.collect())
}

/// By how much these grew beyond the gap of a move; 0 where the way was no move.
fn beyond_gap(record: &Adjustment, [before, after]: [&Vec<u64>; 2]) -> Vec<u64> {
    let gap_ns = record.gap.as_ref().map_or(i128::MAX, |gap| gap.ns);
    let grown = before.iter().zip(after);
    let beyond = grown.map(|(before, after)| i128::from(*after) - i128::from(*before) - gap_ns);
    beyond.map(|ns| u64::try_from(ns).unwrap_or(0)).collect()
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
