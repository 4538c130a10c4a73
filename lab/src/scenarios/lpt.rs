//! Live physical time on one host: what the guest reads is what the host keeps, it stands still over a
//! pause, and timers on it come when they are due.

mod neighbour;

use self::neighbour::Neighbour;
use super::bare_checks::{arm_all, at_least, check_spins, check_tests, check_timers, count};
use crate::bare::{Bare, OnHost, Tests};
use crate::control::Adjustment;
use crate::guest::{Guest, GuestImage, GuestSpec, host_spec};
use crate::host::Host;
use crate::interrupt::sleep;
use crate::report::{Check, Limit};
use crate::scenario::{Scenario, Stage, Step, no_checks};
use anyhow::{Context, Result};
use guest_protocol::Workload;
use guest_protocol::report::{Clocks, Interfaces, Spin, TimerState};
use lab_agent::message::Exit;
use std::time::Duration;

pub const SCENARIO: Scenario = Scenario {
    name: "lpt",
    about: "live physical time at 1 GHz and 24 MHz: exact, frozen over a pause, timers on it",
    must_fail: None,
    play,
};

const VCPUS: u32 = 4;
const PAUSE: Duration = Duration::from_secs(2);

/// What it says of whom live physical time does not help.
const LIMITS: &str = "firmware and a guest without a driver for it count native ticks";

/// What a guest is started with, and the PV frequency that it asks for.
struct Case {
    name: &'static str,
    /// Who keeps its stolen time: that is found without live physical time, and the reverse.
    stolen_time: &'static str,
    neighbour: &'static str,
    /// Whether that has stolen time.
    neighbour_stolen_time: &'static str,
    pv_frequency_hz: u32,
    vmm_options: &'static [&'static str],
}

/// Faster than the host's counter, by a whole factor, and slower, by none.
const CASES: [Case; 2] = [
    Case {
        name: "1-ghz",
        stolen_time: "on",
        neighbour: "beside-1-ghz",
        neighbour_stolen_time: "on",
        pv_frequency_hz: 1_000_000_000,
        vmm_options: &["--live-physical-time", "1000000000", "--paused-time", "on"],
    },
    Case {
        name: "24-mhz",
        stolen_time: "user",
        neighbour: "beside-24-mhz",
        neighbour_stolen_time: "off",
        pv_frequency_hz: 24_000_000,
        vmm_options: &["--live-physical-time", "24000000", "--paused-time", "on"],
    },
];

#[derive(Default)]
struct Scene {
    host: Option<Host>,
    seen: Vec<Seen>,
}

/// What was seen of one guest.
struct Seen {
    case: &'static Case,
    before: Interfaces,
    after: Interfaces,
    tests: Tests,
    /// What the tests did to a guest beside it.
    harm: Vec<String>,
    /// Structures of stolen time that it found, of one for each vCPU.
    neighbour_stolen_times: usize,
    /// Whether the VMM said at its start, and `pvtime probe`, what is not covered.
    limits_told: [bool; 2],
    clocks: Vec<Clocks>,
    stop: Adjustment,
    resume: Adjustment,
    spins: Vec<Spin>,
    timers: Vec<TimerState>,
}

fn play(stage: &mut Stage) -> Result<()> {
    stage.play(
        Scene::default(),
        &[
            Step {
                name: "boot a host",
                act: |scene, stage| {
                    let spec = host_spec("host", stage.assets, &stage.logs)?;
                    scene.host = Some(stage.boot(&spec)?);
                    Ok(())
                },
                checks: no_checks,
            },
            Step {
                name: "pause a guest with a PV counter of 1 GHz",
                act: |scene, stage| see(scene, stage, &CASES[0]),
                checks: last_checks,
            },
            Step {
                name: "pause a guest with a PV counter of 24 MHz",
                act: |scene, stage| see(scene, stage, &CASES[1]),
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

/// Due before the pause, after it, long ago, never.
const DELAYS_US: [Option<i64>; 4] = [Some(5_000), Some(5_000_000), Some(-100_000), None];

fn see(scene: &mut Scene, stage: &mut Stage, case: &'static Case) -> Result<()> {
    let host = scene.host.as_mut().context("no host")?;
    let spec = GuestSpec {
        image: GuestImage::El1,
        cpus: VCPUS,
        memory_mib: 64,
        stolen_time: case.stolen_time,
        vmm_options: case.vmm_options,
        ..GuestSpec::new(case.name)
    };
    let mut guest = Guest::start(&spec, host)?;
    guest.await_hello(host)?;
    let limits_told = [say_limits(case, host)?, probe_limits(host)?];
    let neighbour = Neighbour::start(case, host)?;
    let neighbour_stolen_times = neighbour.stolen_times();
    let tests = bare(&mut guest, host).run_tests()?;
    let harm = neighbour.end(host)?;
    let mut asked = bare(&mut guest, host);
    let before = asked.interfaces()?;
    asked.give_work(2, Workload::SpinLive)?;
    asked.give_work(3, Workload::SpinLive)?;
    let mut clocks = vec![asked.clocks()?];
    arm_all(&mut asked, VCPUS, true, &DELAYS_US)?;
    asked.spun()?;
    let stop = guest.pause(host)?;
    sleep(PAUSE)?;
    let resume = guest.resume(host)?;
    let mut asked = bare(&mut guest, host);
    clocks.push(asked.clocks()?);
    let spins = asked.spun()?;
    sleep(Duration::from_secs(4))?;
    let timers = asked.timers()?;
    clocks.push(asked.clocks()?);
    let after = asked.interfaces()?;
    // The VMM lives, whatever the guest wrote where.
    guest.status(host)?;
    stage.keep_records(&guest, host)?;
    guest.power_off(host)?;
    scene.seen.push(Seen {
        case,
        before,
        after,
        tests,
        harm,
        neighbour_stolen_times,
        limits_told,
        clocks,
        stop,
        resume,
        spins,
        timers,
    });
    Ok(())
}

fn say_limits(case: &Case, host: &mut Host) -> Result<bool> {
    let said = host.read_from(&host.file(&format!("{}-vmm.log", case.name)), 0)?;
    Ok(String::from_utf8_lossy(&said).contains(LIMITS))
}

fn probe_limits(host: &mut Host) -> Result<bool> {
    let pvtime = host.path_of("pvtime")?;
    let probed = host.run(&[&pvtime, "probe"], Duration::from_secs(30))?;
    Ok(probed.exit == Exit::Status(0) && probed.stdout.contains(LIMITS))
}

fn bare<'a>(guest: &'a mut Guest, host: &'a mut Host) -> OnHost<'a> {
    OnHost { guest, host }
}

fn last_checks(scene: &Scene) -> Vec<Check> {
    scene.seen.last().map(Seen::checks).unwrap_or_default()
}

impl Seen {
    fn checks(&self) -> Vec<Check> {
        let name = self.case.name;
        let mut checks = vec![self.check_frequencies(), self.check_error()];
        checks.extend(check_spins("lpt_backwards_steps", &self.spins, 2, name));
        checks.push(self.check_gap());
        checks.extend(check_timers(&self.timers, 4, name));
        checks.extend(self.check_paused_time());
        checks.extend(check_tests(&self.tests, 19, name));
        checks.extend(self.check_stolen_times());
        // L16.
        let told = self.limits_told.into_iter().filter(|told| *told).count();
        checks.push(at_least("limits_told", told, 2, "places").with_detail(name));
        let harm = count("neighbour_differences", self.harm.len() as u64, "figures");
        checks.push(harm.with_detail(self.harm.join("; ")));
        checks
    }

    /// L11.
    fn check_stolen_times(&self) -> [Check; 2] {
        let found = self.before.stolen_time.iter().flatten().count();
        let of_neighbour = f64::from(u8::from(self.case.neighbour_stolen_time != "off"));
        let check = |found, expected, name, keeper| {
            let found = u32::try_from(found).map_or(f64::NAN, f64::from);
            let limit = Limit::Equals(expected);
            Check::new("stolen_times_found", found, limit, "vCPUs")
                .with_detail(format!("{name}, --stolen-time {keeper}"))
        };
        let case = self.case;
        [
            check(found, VCPUS.into(), case.name, case.stolen_time),
            check(
                self.neighbour_stolen_times,
                of_neighbour,
                case.neighbour,
                case.neighbour_stolen_time,
            ),
        ]
    }

    fn check_frequencies(&self) -> Check {
        let live = self.before.live_time;
        let pv_hz = live.map_or(0, |live| live.pv_frequency_hz);
        let missing = self.before.live_time_missing.as_deref().unwrap_or_default();
        let expected = self.case.pv_frequency_hz.into();
        Check::new(
            "pv_frequency_hz",
            pv_hz.into(),
            Limit::Equals(expected),
            "Hz",
        )
        .with_detail(missing)
    }

    /// How far what the guest read is from the exact mapping of the counts around it: `error_ticks`.
    fn check_error(&self) -> Check {
        let pv_hz = self.case.pv_frequency_hz.into();
        let native_hz = self.resume.after.frequency_hz;
        let errors = self
            .clocks
            .iter()
            .map(|clocks| error_ticks(clocks, pv_hz, native_hz));
        #[expect(clippy::cast_precision_loss, reason = "a few, or it fails")]
        let worst = errors.map(|error| error as f64).fold(0.0, f64::max);
        let detail = format!("{}, {} readings", self.case.name, self.clocks.len());
        Check::new("lpt_error_ticks", worst, Limit::AtMost(1.0), "PV ticks").with_detail(detail)
    }

    /// The step of live physical time over the pause, less what was stolen within it, against the
    /// pause: it stands still.
    fn check_gap(&self) -> Check {
        let pv_hz = f64::from(self.case.pv_frequency_hz);
        let at_stop = exact(
            self.stop.after.guest,
            self.case.pv_frequency_hz.into(),
            self.hz(),
        );
        let gaps = self.spins.iter().map(|spin| {
            let over = spin.gap_over(at_stop).or(spin.largest_gaps.last().copied());
            #[expect(clippy::cast_precision_loss, reason = "for people")]
            over.map_or(f64::NAN, |gap| {
                gap.ticks as f64 / pv_hz * 1e3 - gap.stolen_ns as f64 / 1e6
            })
        });
        let largest = gaps.fold(0.0, f64::max);
        Check::new("lpt_gap_ms", largest, Limit::AtMost(1000.0), "ms")
            .with_detail(format!("{}, over a pause of {PAUSE:?}", self.case.name))
    }

    fn hz(&self) -> u64 {
        self.resume.after.frequency_hz
    }

    /// The structure says what the record says, and an interrupt came with it.
    fn check_paused_time(&self) -> Vec<Check> {
        let found = self.before.paused_time.zip(self.after.paused_time);
        let Some((before, after)) = found else {
            return vec![at_least("paused_time", 0, 1, "structures")];
        };
        let gap_ns = self.resume.gap.as_ref().map_or(0, |gap| gap.ns);
        let told_ns = i128::from(after.paused_ns) - i128::from(before.paused_ns);
        let apart_us = told_ns.abs_diff(gap_ns) / 1000;
        let elsewhere = after.last_counter.abs_diff(self.resume.after.guest);
        let events = after.events.wrapping_sub(before.events);
        let interrupts = after.interrupts.wrapping_sub(before.interrupts) as usize;
        let name = self.case.name;
        vec![
            Check::new(
                "paused_error_us",
                u32::try_from(apart_us).map_or(f64::INFINITY, f64::from),
                Limit::AtMost(1.0),
                "us",
            )
            .with_detail(format!("{name}: {told_ns} ns told, {gap_ns} ns recorded")),
            count("paused_counter_apart", elsewhere, "ticks").with_detail(name),
            at_least("paused_interrupts", interrupts, 1, "interrupts")
                .with_detail(format!("{name}: for {events} pauses")),
        ]
    }
}

/// The PV count of a native one, exactly, rounded down.
fn exact(count: u64, pv_hz: u64, native_hz: u64) -> u64 {
    let pv = u128::from(count) * u128::from(pv_hz) / u128::from(native_hz.max(1));
    u64::try_from(pv).unwrap_or(u64::MAX)
}

/// By how much a reading of live physical time lies outside of what the two reads of the counter
/// around it come to.
fn error_ticks(clocks: &Clocks, pv_hz: u64, native_hz: u64) -> u64 {
    let Some(live) = clocks.live else {
        return u64::MAX;
    };
    let least = exact(clocks.virtual_before, pv_hz, native_hz);
    let most = exact(clocks.virtual_after, pv_hz, native_hz);
    least.saturating_sub(live).max(live.saturating_sub(most))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reading_outside_of_its_counts_has_an_error() {
        let clocks = |live| Clocks {
            cpu: 0,
            virtual_before: 100,
            physical: 101,
            live,
            virtual_after: 110,
            stolen_ns: None,
        };
        let error = |live| error_ticks(&clocks(live), 24, 25);
        assert_eq!([Some(96), Some(105), Some(100)].map(error), [0, 0, 0]);
        assert_eq!([Some(95), Some(90), Some(107)].map(error), [1, 6, 2]);
        assert_eq!(error(None), u64::MAX);
        assert_eq!(exact(u64::MAX, 1_000_000_000, 25_000_000), u64::MAX);
    }
}
