//! A minute of the host's sleep under Linux guests: one that is told, one that is not, and one that
//! shows what it would say of a minute in which it did not run.

use super::watch::ms;
use crate::control::Adjustment;
use crate::guest::{Guest, GuestSpec, host_spec};
use crate::host::Host;
use crate::interrupt::sleep;
use crate::report::{Check, Limit};
use crate::scenario::{Scenario, Stage, Step, no_checks};
use crate::sightings::Sighting;
use anyhow::{Context, Result};
use guest_protocol::Workload;
use guest_protocol::report::Sample;
use std::time::{Duration, Instant};

pub const SCENARIO: Scenario = Scenario {
    name: "suspend-linux",
    about: "a host sleep of 60 s wakes no watchdog of a Linux guest, told or not, and sets it right",
    must_fail: None,
    play,
};

/// Linux finds a CPU locked up that did nothing else for twice as many seconds. Debian's cloud kernel
/// has no workqueue watchdog; one that has obeys the same words.
const OPTIONS: &str = "watchdog_thresh=10 workqueue.watchdog_thresh=10 \
                       rcupdate.rcu_cpu_stall_timeout=10";
/// The guests look for pauses so often, by themselves.
const LOOKS: &str = "--wall-clock-ms 100";
const SECONDS: u32 = 60;

/// What its watchdogs say then.
const COMPLAINTS: [&str; 3] = ["soft lockup - CPU", "workqueue lockup", "rcu: INFO"];

/// They look every few seconds: here they have looked at least twice.
const AFTERWARDS: Duration = Duration::from_secs(12);

/// After the wake-up the clocks are looked at so soon, and must be right within a second.
const SOON: Duration = Duration::from_millis(250);

/// The guests: what each is told, and whether its VMM takes the sleep out of its counters.
const GUESTS: [(&str, &[&str]); 3] = [
    ("told", &["--paused-time", "on"]),
    (
        "untold",
        &[
            "--paused-time",
            "on",
            "--watch-host",
            "on",
            "--on-stall",
            "freeze",
        ],
    ),
    ("shown", &["--paused-time", "on", "--watch-host", "on"]),
];

#[derive(Default)]
struct Scene {
    host: Option<Host>,
    seen: Vec<Seen>,
}

/// What was seen of one guest.
struct Seen {
    name: &'static str,
    complaints: usize,
    /// What its monotonic clock gained beyond the time in which the host was awake.
    jump_ms: f64,
    /// As much of that as its VMM states.
    bound_ms: f64,
    /// From the wake-up to when it had answered.
    answered_ms: f64,
    /// How far what passed by the host's counter is from the lab's clock.
    disagreement_ms: f64,
    /// How far each of these gained more or less than passed.
    realtime_error_ms: f64,
    boottime_error_ms: f64,
    /// The same for its boot time and the pauses that it knows of, together.
    corrected_error_ms: f64,
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
                name: "put the host to sleep for a minute under three guests",
                act: suspend,
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

fn suspend(scene: &mut Scene, stage: &mut Stage) -> Result<()> {
    let host = scene.host.as_mut().context("no host")?;
    let mut guests = start(host)?;
    sleep(AFTERWARDS)?;
    let mut before = Vec::new();
    for guest in &mut guests {
        // What it complained of while it booted on a busy host is not of the sleep.
        let said = guest.console(host)?.len();
        before.push((look(guest, host)?, said));
    }
    guests[0].prepare_sleep(host)?;
    let slept = Duration::from_nanos(host.sleep(SECONDS)?.boottime_ns);
    let woke = Instant::now();
    guests[0].finish_sleep(host)?;
    sleep(SOON.saturating_sub(woke.elapsed()))?;
    let mut after = Vec::new();
    for guest in &mut guests {
        after.push(look(guest, host)?);
    }
    sleep(AFTERWARDS)?;
    for (mut guest, ((before, said), after)) in guests.into_iter().zip(before.iter().zip(&after)) {
        // It still runs.
        guest.sample(host)?;
        let trip = Trip {
            before,
            after,
            records: records(&guest, host)?,
            frequency_hz: host.facts().counter_frequency_hz.context("no frequency")?,
        };
        let mut seen = Seen::of(guest.name(), &trip, slept, woke)?;
        let console = guest.console(host)?;
        let console = console.get(*said..).context("the console is shorter")?;
        let of = |complaint: &&str| console.matches(*complaint).count();
        seen.complaints = COMPLAINTS.iter().map(of).sum();
        scene.seen.push(seen);
        stage.report.adjustments.extend(guest.adjustments(host)?);
        stage.keep_figures(&guest, host)?;
        guest.power_off(host)?;
    }
    Ok(())
}

fn start(host: &mut Host) -> Result<Vec<Guest>> {
    let mut guests = Vec::new();
    for (name, vmm_options) in GUESTS {
        let spec = GuestSpec {
            workload: Workload::Busy,
            vmm_options,
            kernel_options: OPTIONS,
            program_options: LOOKS,
            ..GuestSpec::new(name)
        };
        guests.push(Guest::start(&spec, host)?);
    }
    for guest in &mut guests {
        guest.await_hello(host)?;
    }
    Ok(guests)
}

fn records(guest: &Guest, host: &mut Host) -> Result<Vec<Adjustment>> {
    let records = guest.adjustments(host)?.into_iter();
    let records = records.map(|it| Ok(serde_json::from_value(it)?));
    records.collect()
}

/// From a look at a guest's clocks to one after the sleep.
struct Trip<'a> {
    before: &'a Sighting,
    after: &'a Sighting,
    /// What was done to its time, from the start on.
    records: Vec<Adjustment>,
    frequency_hz: u64,
}

impl Trip<'_> {
    /// What passed by the host's counter, which runs through the sleep: a guest's counter is that less
    /// the offset, which the first record and the last one have.
    fn passed_ns(&self) -> Result<u64> {
        let host_count = |record: Option<&Adjustment>, at: &Sighting| -> Result<u64> {
            let reading = record.context("nothing was recorded")?.after;
            let since = at.sample.counter_after.wrapping_sub(reading.guest);
            Ok(reading.host.wrapping_add(since))
        };
        let before = host_count(self.records.first(), self.before)?;
        let after = host_count(self.records.last(), self.after)?;
        let ticks = u128::from(after.wrapping_sub(before));
        let ns = ticks * 1_000_000_000 / u128::from(self.frequency_hz);
        Ok(u64::try_from(ns)?)
    }

    /// How far that is from what passed by the lab's clock, beyond the time of the answers.
    fn disagreement_ms(&self) -> Result<f64> {
        let passed_ns = u128::from(self.passed_ns()?);
        let least = (self.after.asked - self.before.answered).as_nanos();
        let most = (self.after.answered - self.before.asked).as_nanos();
        let beyond_ns = least.saturating_sub(passed_ns) + passed_ns.saturating_sub(most);
        Ok(ms(u64::try_from(beyond_ns)?))
    }

    fn gained_ns(&self, clock: fn(&Sample) -> u64) -> u64 {
        clock(&self.after.sample).saturating_sub(clock(&self.before.sample))
    }

    /// By how much a clock gained more or less than passed.
    fn error_ms(&self, clock: fn(&Sample) -> u64) -> Result<f64> {
        Ok(ms(self.gained_ns(clock).abs_diff(self.passed_ns()?)))
    }

    /// How far what was taken out of the guest's counters may be off, as its VMM states it.
    fn bound_ms(&self) -> f64 {
        let sleeps = self.records.iter().filter(|it| it.event == "host sleep");
        let gaps = sleeps.filter_map(|it| it.gap.as_ref());
        gaps.map(|gap| gap.error_ns.map_or(f64::NAN, ms)).sum()
    }
}

/// The guest's clocks now.
fn look(guest: &mut Guest, host: &mut Host) -> Result<Sighting> {
    guest.sample(host)?;
    let seen = guest.sightings().samples.last();
    seen.cloned().context("a sample was taken")
}

impl Seen {
    fn of(name: &'static str, trip: &Trip<'_>, slept: Duration, woke: Instant) -> Result<Self> {
        let awake_ns = trip
            .passed_ns()?
            .saturating_sub(u64::try_from(slept.as_nanos())?);
        let gained_ns = trip.gained_ns(|it| it.monotonic_ns);
        Ok(Self {
            name,
            complaints: 0,
            jump_ms: ms(gained_ns.saturating_sub(awake_ns)),
            bound_ms: trip.bound_ms(),
            answered_ms: (trip.after.answered - woke).as_secs_f64() * 1e3,
            disagreement_ms: trip.disagreement_ms()?,
            realtime_error_ms: trip.error_ms(|it| it.realtime_ns)?,
            boottime_error_ms: trip.error_ms(|it| it.boottime_ns)?,
            corrected_error_ms: trip.error_ms(|it| it.boottime_ns + it.paused_ns.unwrap_or(0))?,
        })
    }

    fn checks(&self) -> Vec<Check> {
        let (none, at_most) = (Limit::Equals(0.0), Limit::AtMost);
        let (slept, exact) = (Limit::AtLeast(50_000.0), at_most(50.0));
        let answered = match self.name {
            // Its clocks ran on, and it is asked last.
            "shown" => at_most(3000.0),
            _ => at_most(1000.0),
        };
        let (complaints, jump, behind) = match self.name {
            "told" => (none, exact, slept),
            // What stays in the counters, besides.
            "untold" => (none, at_most(50.0 + self.bound_ms), slept),
            _ => (Limit::AtLeast(1.0), slept, exact),
        };
        let count = u32::try_from(self.complaints).map_or(f64::INFINITY, f64::from);
        let check =
            |name, measured, limit| Check::new(name, measured, limit, "ms").with_detail(self.name);
        vec![
            Check::new("watchdog_lines", count, complaints, "lines").with_detail(self.name),
            check("monotonic_jump_ms", self.jump_ms, jump),
            check("answered_ms", self.answered_ms, answered),
            check("clock_disagreement_ms", self.disagreement_ms, at_most(1.0)),
            check("realtime_error_ms", self.realtime_error_ms, exact),
            // What no program of a guest can set right, and what it can know.
            check("boottime_error_ms", self.boottime_error_ms, behind),
            check(
                "boottime_with_paused_error_ms",
                self.corrected_error_ms,
                exact,
            ),
        ]
    }
}

fn checks(scene: &Scene) -> Vec<Check> {
    scene.seen.iter().flat_map(Seen::checks).collect()
}
