//! Live physical time across hosts whose counters run at different frequencies: one guest goes from
//! host to host as a snapshot.
//!
//! Every frequency divides 10^9, as the emulator has it, so a tick of each host is a whole number of
//! ns, and the ideal, for how long the VM ran in all, is an exact sum of the records' counts.

use super::bare_checks::{PATIENCE_S, arm_all, at_least, check_spins, count, late_us};
use super::pauses::median;
use crate::bare::{Bare, OnHost};
use crate::control::Adjustment;
use crate::guest::{Guest, GuestImage, GuestSpec, host_spec};
use crate::host::Host;
use crate::interrupt::sleep;
use crate::machine::HostSpec;
use crate::report::{Check, Limit};
use crate::scenario::{Scenario, Stage, Step};
use crate::vmm::Snapshot;
use anyhow::{Context, Result};
use guest_protocol::report::{Clocks, Interfaces, Memory, Spin, TimerState};
use guest_protocol::request::Fill;
use guest_protocol::{Action, Workload};
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
const NS_PER_S: u64 = 1_000_000_000;

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

/// What was seen of one guest on its way.
#[derive(Default)]
struct Journey {
    hops: Vec<Hop>,
    spins: Vec<Spin>,
    timers: Vec<TimerState>,
    /// What the guest found on each new host.
    found: Vec<Interfaces>,
    memory: Vec<Memory>,
    /// What the emulators waited for CPUs of this machine.
    held_up: Duration,
    /// For how long the VM ran between two readings on each host, by its live physical time and by
    /// the wall clocks of its hosts.
    ran_live_ns: f64,
    ran_wall_ns: f64,
}

/// One change of host.
struct Hop {
    /// By how much the PV count on the new host is from the ideal.
    error_ns: u64,
    /// By how much what the guest read there is.
    read_error_ns: u64,
    new_hz: u64,
}

/// Where the VM's live physical time is by the records: the ideal at a count of the guest.
#[derive(Clone, Copy)]
struct Ideal {
    ns: u128,
    count: u64,
    hz: u64,
}

impl Ideal {
    /// The ideal at another count on the same host, in ns. A count before is one read too early.
    fn at(self, count: u64) -> u128 {
        let tick_ns = u128::from(NS_PER_S / self.hz);
        self.ns + u128::from(count.saturating_sub(self.count)) * tick_ns
    }
}

fn play(stage: &mut Stage) -> Result<()> {
    stage.play(
        [Journey::default(), Journey::default()],
        &[
            Step {
                name: "take a guest with a PV counter of 1 GHz from host to host",
                act: |scene, stage| travel(&mut scene[0], stage, &CASES[0]),
                checks: |scene| scene[0].checks(&CASES[0]),
            },
            Step {
                name: "take a guest with a PV counter of 24 MHz from host to host",
                act: |scene, stage| travel(&mut scene[1], stage, &CASES[1]),
                checks: |scene| scene[1].checks(&CASES[1]),
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
    // A guest's counter begins at 0, and so does its live physical time.
    let mut ideal = Ideal {
        ns: 0,
        count: 0,
        hz: HOSTS[0].1,
    };
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
        stage
            .report
            .adjustments
            .extend(guest.adjustments(&mut host)?);
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
    stage
        .report
        .adjustments
        .extend(guest.adjustments(&mut host)?);
    guest.resume(&mut host)?;
    guest.power_off(&mut host)?;
    journey.held_up += host.held_up()?;
    host.power_off()
}

fn bare<'a>(guest: &'a mut Guest, host: &'a mut Host) -> OnHost<'a> {
    OnHost { guest, host }
}

/// The counter at a reading, as near as it is known.
fn middle(clocks: &Clocks) -> u64 {
    clocks.virtual_before.midpoint(clocks.virtual_after)
}

/// The last record of an event.
fn last(guest: &Guest, host: &mut Host, event: &str) -> Result<Adjustment> {
    let mut records = guest.records(host)?.into_iter();
    let found = records.rfind(|record| record.event == event);
    found.with_context(|| format!("no {event} was recorded of guest {}", guest.name()))
}

impl Hop {
    fn between(ideal: Ideal, clocks: &Clocks, pv_hz: u64) -> Self {
        let tick_ns = u128::from(NS_PER_S / ideal.hz);
        let error_ns = (u128::from(ideal.count) * tick_ns).abs_diff(ideal.ns);
        let least = ideal.at(clocks.virtual_before);
        let most = ideal.at(clocks.virtual_after);
        let read = clocks.live.map_or(u128::MAX, |live| {
            u128::from(live) * u128::from(NS_PER_S) / u128::from(pv_hz)
        });
        let read_error_ns = least.saturating_sub(read).max(read.saturating_sub(most));
        let clip = |ns| u64::try_from(ns).unwrap_or(u64::MAX);
        Self {
            error_ns: clip(error_ns),
            read_error_ns: clip(read_error_ns),
            new_hz: ideal.hz,
        }
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "counts of minutes, and small errors"
)]
impl Journey {
    /// Enters a stretch on one host: what the guest read first and last, and the records around it.
    /// The wall clock is that of the records, less what lies between each and its reading.
    fn enter_run(&mut self, [from, to]: [&Adjustment; 2], [first, last]: [&Clocks; 2], pv_hz: u64) {
        let (Some(live), Some(live_at_end)) = (first.live, last.live) else {
            self.ran_live_ns = f64::NAN;
            return;
        };
        let gained = live_at_end.saturating_sub(live) as f64;
        let wall_ns = to.wall_ns.saturating_sub(from.wall_ns) as f64;
        let before = middle(first).saturating_sub(from.after.guest);
        let after = to.after.guest.saturating_sub(middle(last));
        let tick_ns = 1e9 / from.after.frequency_hz as f64;
        self.ran_live_ns += gained * 1e9 / pv_hz as f64;
        self.ran_wall_ns += wall_ns - (before + after) as f64 * tick_ns;
    }

    fn checks(&self, case: &Case) -> Vec<Check> {
        let name = case.guests[0].trim_end_matches("-0");
        let mut checks = vec![at_least("hops", self.hops.len(), HOSTS.len() - 1, "hops")];
        checks.extend(self.hops.iter().map(|hop| hop.check(case.pv_hz, name)));
        checks.extend(check_spins("lpt_backwards_steps", &self.spins, 2, name));
        checks.push(self.check_rate(name));
        checks.extend(self.check_events(name));
        checks.push(self.check_memory(name));
        checks.extend(self.check_timers(name));
        checks
    }

    fn check_rate(&self, name: &str) -> Check {
        let ppm = (self.ran_live_ns - self.ran_wall_ns).abs() / self.ran_wall_ns * 1e6;
        let detail = format!("{name}, over {:.1} s", self.ran_wall_ns / 1e9);
        Check::new("rate_error_ppm", ppm, Limit::AtMost(50.0), "ppm").with_detail(detail)
    }

    /// Every host's frequency was noticed, and the event stream is as near to what was asked for as
    /// a bit of the counter can be: within the square root of 2.
    fn check_events(&self, name: &str) -> [Check; 2] {
        let noticed = self.found.last().and_then(|found| found.live_time);
        let changes = noticed.map_or(0, |live| live.changes as usize);
        let rates: Vec<_> = self
            .found
            .iter()
            .map(|found| {
                let stream = found.event_stream.as_ref();
                stream.map_or(f64::NAN, |stream| f64::from(stream.rate_hz))
            })
            .collect();
        let apart = |rate: &f64| (rate / f64::from(EVENTS_HZ)).max(f64::from(EVENTS_HZ) / rate);
        // What is not a number is worse than all.
        let worst = rates
            .iter()
            .map(apart)
            .max_by(f64::total_cmp)
            .unwrap_or(f64::NAN);
        let factor = Limit::AtMost(std::f64::consts::SQRT_2 + 1e-3);
        [
            at_least(
                "frequency_changes_noticed",
                changes,
                HOSTS.len() - 1,
                "changes",
            )
            .with_detail(name),
            Check::new("event_rate_factor", worst, factor, "")
                .with_detail(format!("{name}: {rates:.0?} of {EVENTS_HZ} Hz")),
        ]
    }

    fn check_memory(&self, name: &str) -> Check {
        let damaged = self.memory.iter().map(|memory| memory.damaged).sum();
        let changes = self.memory.last().map_or(0, |memory| memory.changes);
        let looks = self.memory.len();
        count("damaged_pages", damaged, "pages")
            .with_detail(format!("{name}: {looks} looks, {changes} changes"))
    }

    fn check_timers(&self, name: &str) -> Vec<Check> {
        let is_lost = |timer: &&TimerState| timer.is_lost(PATIENCE_S * timer.frequency_hz);
        let lost: Vec<_> = self.timers.iter().filter(is_lost).collect();
        let wrong: Vec<_> = self
            .timers
            .iter()
            .filter(|timer| timer.is_wrong())
            .collect();
        let late = late_us(&self.timers);
        let worst = late.iter().copied().fold(0.0, f64::max);
        // Two after each hop on both timers, and the last ones of 60 s.
        let least = 4 * (HOSTS.len() - 1) + 2;
        let detail = format!(
            "{name}, of {} that fired; at most {worst:.0} us; the emulators waited {:.1} s for CPUs",
            late.len(),
            self.held_up.as_secs_f64()
        );
        vec![
            count("early", wrong.len() as u64, "timers").with_detail(format!("{name}: {wrong:?}")),
            count("lost", lost.len() as u64, "timers").with_detail(format!("{name}: {lost:?}")),
            at_least("fired", late.len(), least, "timers").with_detail(name),
            Check::new("late_us_median", median(late), Limit::AtMost(5000.0), "us")
                .with_detail(detail),
        ]
    }
}

impl Hop {
    /// The larger of both errors, at most one tick of the host and one of the PV counter.
    #[expect(clippy::cast_precision_loss, reason = "small, or it fails")]
    fn check(&self, pv_hz: u64, name: &str) -> Check {
        let pv_per_ns = pv_hz as f64 / 1e9;
        let worst = self.error_ns.max(self.read_error_ns) as f64 * pv_per_ns;
        let limit = pv_hz as f64 / self.new_hz as f64 + 1.0;
        let detail = format!(
            "{name}, to {} Hz: {} ns by the records, {} ns by what the guest read",
            self.new_hz, self.error_ns, self.read_error_ns
        );
        Check::new("lpt_error_ticks", worst, Limit::AtMost(limit), "PV ticks").with_detail(detail)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_the_distance_from_the_sum_of_all_hosts() {
        let first = Ideal {
            ns: 0,
            count: 0,
            hz: 25_000_000,
        };
        // 29 ticks of 40 ns are 1160 ns: 36.25 ticks of 32 ns.
        let arrived = |count| Ideal {
            ns: first.at(29),
            count,
            hz: 31_250_000,
        };
        let clocks = |live| Clocks {
            cpu: 0,
            virtual_before: 46,
            physical: 47,
            live: Some(live),
            virtual_after: 56,
            stolen_ns: None,
        };
        let hop = |count, live| {
            let hop = Hop::between(arrived(count), &clocks(live), 1_000_000_000);
            (hop.error_ns, hop.read_error_ns)
        };
        // From 10 to 20 ticks after the arrival: 1480 to 1800 ns.
        assert_eq!(hop(36, 1480), (8, 0));
        assert_eq!(hop(36, 1479), (8, 1));
        assert_eq!(hop(37, 1800), (24, 32));
        assert_eq!(hop(36, 1801), (8, 1));
        let check = |error_ns| {
            let hop = Hop {
                error_ns,
                read_error_ns: 0,
                new_hz: 25_000_000,
            };
            hop.check(24_000_000, "").pass
        };
        assert!(
            check(80) && !check(90),
            "a tick of 40 ns and one of 41.7 ns"
        );
    }
}
