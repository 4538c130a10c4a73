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

/// Of so many looks the one that took least is taken, where there is time for it.
const LOOKS_AT_CLOCKS: usize = 5;

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
        before.push(look_well(guest, host)?);
    }
    guests[0].prepare_sleep(host)?;
    let prepared = Instant::now();
    let slept = Duration::from_nanos(host.sleep(SECONDS)?.boottime_ns);
    let woke = Instant::now();
    guests[0].finish_sleep(host)?;
    let told = prepared.elapsed();
    sleep(SOON.saturating_sub(woke.elapsed()))?;
    for (guest, before) in guests.iter_mut().zip(&before) {
        let after = look(guest, host)?;
        scene
            .seen
            .push(Seen::of(guest.name(), before, &after, woke)?);
    }
    sleep(AFTERWARDS)?;
    for ((mut guest, before), seen) in guests.into_iter().zip(&before).zip(&mut scene.seen) {
        let after = look_well(&mut guest, host)?;
        let stopped = if seen.name == "told" { told } else { slept };
        let awake = (after.middle() - before.middle()).saturating_sub(stopped);
        seen.jump_ms = error_ms(before, &after, |it| it.monotonic_ns, awake)?;
        seen.bound_ms = bound_ms(&guest, host)?;
        let console = guest.console(host)?;
        let of = |complaint: &&str| console.matches(*complaint).count();
        seen.complaints = COMPLAINTS.iter().map(of).sum();
        stage.report.adjustments.extend(guest.adjustments(host)?);
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

/// How far what was taken out of the guest's counters may be off, as its VMM states it.
fn bound_ms(guest: &Guest, host: &mut Host) -> Result<f64> {
    let mut bound_ns = 0;
    for record in guest.adjustments(host)? {
        let record: Adjustment = serde_json::from_value(record)?;
        let gap = record.gap.filter(|_| record.event == "host sleep");
        bound_ns += gap.map_or(Ok(0), |gap| gap.error_ns.context("a bound that is none"))?;
    }
    Ok(ms(bound_ns))
}

/// By how much a clock gained more or less than it should.
fn error_ms(
    before: &Sighting,
    after: &Sighting,
    clock: fn(&Sample) -> u64,
    due: Duration,
) -> Result<f64> {
    let gained_ns = clock(&after.sample).saturating_sub(clock(&before.sample));
    Ok(ms(gained_ns.abs_diff(u64::try_from(due.as_nanos())?)))
}

/// The guest's clocks now, as well as they can be known.
fn look_well(guest: &mut Guest, host: &mut Host) -> Result<Sighting> {
    let mut looks = Vec::new();
    for _ in 0..LOOKS_AT_CLOCKS {
        looks.push(look(guest, host)?);
    }
    let tightest = looks.into_iter().min_by_key(|it| it.answered - it.asked);
    tightest.context("it was looked at")
}

/// The guest's clocks now.
fn look(guest: &mut Guest, host: &mut Host) -> Result<Sighting> {
    guest.sample(host)?;
    let seen = guest.sightings().samples.last();
    seen.cloned().context("a sample was taken")
}

impl Seen {
    fn of(name: &'static str, before: &Sighting, after: &Sighting, woke: Instant) -> Result<Self> {
        let passed = after.middle() - before.middle();
        let error_ms = |clock| error_ms(before, after, clock, passed);
        Ok(Self {
            name,
            complaints: 0,
            jump_ms: f64::NAN,
            bound_ms: f64::NAN,
            answered_ms: (after.answered - woke).as_secs_f64() * 1e3,
            realtime_error_ms: error_ms(|it| it.realtime_ns)?,
            boottime_error_ms: error_ms(|it| it.boottime_ns)?,
            corrected_error_ms: error_ms(|it| it.boottime_ns + it.paused_ns.unwrap_or(0))?,
        })
    }

    fn checks(&self) -> Vec<Check> {
        let (none, at_most) = (Limit::Equals(0.0), Limit::AtMost);
        let (slept, exact) = (Limit::AtLeast(50_000.0), at_most(50.0));
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
            check("answered_ms", self.answered_ms, at_most(1000.0)),
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
