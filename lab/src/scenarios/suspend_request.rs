//! Sleeps of the host under a guest that suspends itself by its own request, and then is asked and does not:
//! the usual guests' kernel has no driver for the key.

use super::watch::ms;
use crate::control::Adjustment;
use crate::guest::{Guest, GuestSpec, host_spec};
use crate::host::Host;
use crate::interrupt::sleep;
use crate::report::{Check, Limit};
use crate::scenario::{Scenario, Stage, Step, no_checks};
use crate::sightings::Sighting;
use anyhow::{Context, Result, bail};
use guest_protocol::report::Sample;
use guest_protocol::{Action, Body, Workload};
use std::time::{Duration, Instant};

pub const SCENARIO: Scenario = Scenario {
    name: "suspend-request",
    about: "a Linux guest suspends itself by a request of its own; one that does not is paused",
    must_fail: None,
    play,
};

const SECONDS: u32 = 2;
const IGNORES: &[&str] = &["--suspend-guest", "on", "--suspend-limit", "1500"];
const IGNORED_MS: u64 = 1_500;

/// What a guest's kernel says.
const SUSPENDS_NOW: &str = "PM: suspend entry (deep)";
const RESUMED: &str = "PM: suspend exit";

/// Longest time for a guest to suspend itself.
const SUSPEND_LIMIT: Duration = Duration::from_secs(30);

#[derive(Default)]
struct Scene {
    host: Option<Host>,
    guest: Option<Guest>,
    told: Option<Seen>,
    silent: Option<Seen>,
}

/// What was seen over one sleep of the host.
struct Seen {
    before: Sighting,
    after: Sighting,
    /// What the host was asleep for.
    slept_ns: u64,
    stop: Adjustment,
    resume: Adjustment,
    /// Lines of the guest's kernel on suspending and resuming.
    entries: usize,
    exits: usize,
    /// Whether the records say that a sleep was hidden.
    hidden_sleeps: usize,
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
                name: "put the host to sleep under a guest that suspends itself",
                act: suspend,
                checks: |scene| scene.told.as_ref().map_or(Vec::new(), told_checks),
            },
            Step {
                name: "put it to sleep under the guest, which is asked and does not",
                act: ignore,
                checks: |scene| scene.silent.as_ref().map_or(Vec::new(), silent_checks),
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
    let spec = host_spec("host", stage.assets, &stage.logs)?;
    scene.host = Some(stage.boot(&spec)?);
    Ok(())
}

fn suspend(scene: &mut Scene, _: &mut Stage) -> Result<()> {
    let host = scene.host.as_mut().context("no host")?;
    let spec = GuestSpec {
        cpus: 2,
        workload: Workload::Spin,
        vmm_options: IGNORES,
        // Its log tells of the suspension that it makes itself.
        kernel_options: "",
        ..GuestSpec::new("guest")
    };
    let guest = scene.guest.insert(Guest::start(&spec, host)?);
    guest.await_hello(host)?;
    let request = guest.send(host, Action::Suspend)?;
    scene.told = Some(Seen::over(guest, host, await_suspended)?);
    match guest.await_answer(host, request)? {
        Body::Done => Ok(()),
        other => bail!("the guest sent {other:?} when it was resumed"),
    }
}

/// Waits for a guest that suspends itself to have done so; then a sleep is announced, too.
fn await_suspended(guest: &Guest, host: &mut Host) -> Result<Adjustment> {
    let start = Instant::now();
    while guest.status(host)?.state != "Suspended" {
        if start.elapsed() > SUSPEND_LIMIT {
            bail!("the guest did not suspend itself within {SUSPEND_LIMIT:?}");
        }
        sleep(Duration::from_millis(50))?;
    }
    guest.ctl(host, &["prepare-sleep"])?;
    let records = guest.adjustments(host)?;
    let last = records.into_iter().next_back().context("no record")?;
    let last: Adjustment = serde_json::from_value(last)?;
    if last.event != "guest suspend" {
        bail!(
            "the last record of a suspended guest is of {:?}",
            last.event
        );
    }
    Ok(last)
}

fn ignore(scene: &mut Scene, stage: &mut Stage) -> Result<()> {
    let host = scene.host.as_mut().context("no host")?;
    let mut guest = scene.guest.take().context("no guest")?;
    scene.silent = Some(Seen::over(&mut guest, host, Guest::prepare_sleep)?);
    stage.keep_time(&mut guest, host)?;
    guest.power_off(host)
}

impl Seen {
    /// Has the host sleep after the guest stopped.
    fn over(
        guest: &mut Guest,
        host: &mut Host,
        stop: impl FnOnce(&Guest, &mut Host) -> Result<Adjustment>,
    ) -> Result<Self> {
        let before = guest.sightings().samples.last();
        let before = before.context("a guest was heard before")?.clone();
        let stop = stop(guest, host)?;
        let slept_ns = host.sleep(SECONDS)?.boottime_ns;
        let resume = guest.finish_sleep(host)?;
        if stop.event == "guest suspend" {
            // A port that is suspended still loses what is sent to it.
            let console = host.file(&format!("{}-console.log", guest.name()));
            host.wait_for_text(&console, RESUMED, SUSPEND_LIMIT)?;
        }
        guest.sample(host)?;
        let after = guest.sightings().samples.last();
        let after = after.context("a guest was heard just now")?.clone();
        let console = guest.console(host)?;
        let records = guest.adjustments(host)?;
        let hidden = |record: &&serde_json::Value| {
            record["hidden_ns"] != 0 || record["event"] == "host sleep"
        };
        Ok(Self {
            before,
            after,
            slept_ns,
            stop,
            resume,
            entries: console.matches(SUSPENDS_NOW).count(),
            exits: console.matches(RESUMED).count(),
            hidden_sleeps: records.iter().filter(hidden).count(),
        })
    }

    /// For how long the guest did not run, by the record.
    fn gap_ns(&self) -> u64 {
        let gap = self.resume.gap.as_ref().map_or(0, |gap| gap.ns);
        u64::try_from(gap).unwrap_or(0)
    }

    /// What a clock of the guest's gained from one sample to the other.
    fn gained_ns(&self, clock: fn(&Sample) -> u64) -> u64 {
        clock(&self.after.sample).saturating_sub(clock(&self.before.sample))
    }

    /// What the guest took itself to be asleep for.
    fn asleep_ns(&self) -> u64 {
        let boottime_ns = self.gained_ns(|it| it.boottime_ns);
        boottime_ns.saturating_sub(self.gained_ns(|it| it.monotonic_ns))
    }

    /// How far what a clock gained, and what it is known to have missed, are from what passed by the
    /// lab's clock, which was read before and after each sample.
    fn off_ms(&self, clock: fn(&Sample) -> u64, missed_ns: u64) -> f64 {
        let passed = [
            self.after
                .asked
                .saturating_duration_since(self.before.answered),
            self.after
                .answered
                .saturating_duration_since(self.before.asked),
        ];
        let [least, most] = passed.map(|it| u64::try_from(it.as_nanos()).unwrap_or(u64::MAX));
        let all_ns = self.gained_ns(clock).saturating_add(missed_ns);
        ms(least
            .saturating_sub(all_ns)
            .max(all_ns.saturating_sub(most)))
    }
}

fn count(figure: usize) -> f64 {
    u32::try_from(figure).map_or(f64::INFINITY, f64::from)
}

/// The guest knows that it slept, and for how long.
fn told_checks(seen: &Seen) -> Vec<Check> {
    let (asleep_ns, gap_ns) = (seen.asleep_ns(), seen.gap_ns());
    let detail = format!(
        "the host slept for {:.0} ms, the guest was suspended for {:.0} ms and took it for {:.0} ms",
        ms(seen.slept_ns),
        ms(gap_ns),
        ms(asleep_ns)
    );
    let check = |name, measured, limit, unit| {
        Check::new(name, measured, limit, unit).with_detail(detail.clone())
    };
    let one = Limit::Equals(1.0);
    vec![
        check("suspend_entries", count(seen.entries), one, "lines"),
        check("suspend_exits", count(seen.exits), one, "lines"),
        check(
            "asleep_error_ms",
            ms(asleep_ns.abs_diff(gap_ns)),
            // What the guest needs from the stop of its clock to the call, and back.
            Limit::AtMost(1_000.0),
            "ms",
        ),
        check("asleep_ms", ms(asleep_ns), Limit::AtLeast(ms(gap_ns)), "ms"),
        check(
            "monotonic_jump_ms",
            seen.off_ms(|it| it.monotonic_ns, asleep_ns),
            Limit::AtMost(50.0),
            "ms",
        ),
        check(
            "realtime_error_ms",
            seen.off_ms(|it| it.realtime_ns, 0),
            Limit::AtMost(50.0),
            "ms",
        ),
        check(
            "hidden_sleeps",
            count(seen.hidden_sleeps),
            Limit::Equals(0.0),
            "records",
        ),
    ]
}

/// The guest was paused, and knows nothing.
fn silent_checks(seen: &Seen) -> Vec<Check> {
    let gap_ns = seen.gap_ns();
    let waited_ms = seen.stop.unanswered_ms.unwrap_or(0);
    let check = |name, measured, limit, unit| {
        Check::new(name, measured, limit, unit).with_detail("a guest that does not answer")
    };
    let waited = u32::try_from(waited_ms).map_or(f64::INFINITY, f64::from);
    vec![
        check(
            "unanswered_ms",
            waited,
            Limit::AtLeast(ms(IGNORED_MS * 1_000_000)),
            "ms",
        ),
        check("asleep_ms", ms(seen.asleep_ns()), Limit::AtMost(1.0), "ms"),
        check(
            "monotonic_jump_ms",
            seen.off_ms(|it| it.monotonic_ns, gap_ns),
            Limit::AtMost(50.0),
            "ms",
        ),
        check(
            "hidden_sleeps",
            count(seen.hidden_sleeps),
            Limit::Equals(1.0),
            "records",
        ),
        check(
            "paused_ms",
            ms(gap_ns),
            Limit::AtLeast(ms(seen.slept_ns)),
            "ms",
        ),
    ]
}
