//! Announced sleeps of which nobody says that they are over, or somebody says so while the guest is asked still
//! to suspend itself: the VM goes on.

use super::view::records;
use super::watch::ms;
use crate::control::Adjustment;
use crate::guest::{Guest, GuestImage, GuestSpec, host_spec};
use crate::host::Host;
use crate::interrupt::sleep;
use crate::report::{Check, Limit};
use crate::scenario::{Scenario, Stage, Step, no_checks};
use anyhow::{Context, Result, bail};
use guest_protocol::{Action, Body};
use lab_agent::message::{Exit, Spawn, Spawned};
use std::time::{Duration, Instant};

pub const SCENARIO: Scenario = Scenario {
    name: "suspend-forgotten",
    about: "an announced sleep that nobody ends, or that ends before the guest answered, leaves no VM stopped",
    must_fail: None,
    play,
};

/// A guest that is asked for a minute, and VMs that wait for the end of a sleep for two seconds.
const ASKED: &[&str] = &[
    "--suspend-guest",
    "on",
    "--suspend-limit",
    "60000",
    "--sleep-limit",
    "2000",
];
const PAUSED: &[&str] = &["--sleep-limit", "2000"];
const SLEEP_LIMIT_MS: f64 = 2000.0;
const SECONDS: u32 = 3;

/// Much longer than anything here takes, and much less than the guest is asked for.
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Default)]
struct Scene {
    host: Option<Host>,
    asked: Option<Guest>,
    paused: Option<Guest>,
    called_off: Option<CalledOff>,
    /// For each VM that was forgotten: its stop, how it went on, and what its host slept meanwhile.
    forgotten: Vec<Forgotten>,
}

/// What became of a preparation that was called off.
struct CalledOff {
    refused: bool,
    took_ms: f64,
    records: usize,
    runs: bool,
}

struct Forgotten {
    name: &'static str,
    stop: Adjustment,
    resume: Adjustment,
    slept_ns: u64,
}

fn play(stage: &mut Stage) -> Result<()> {
    let last = |scene: &Scene| {
        scene
            .forgotten
            .last()
            .map_or_else(Vec::new, Forgotten::checks)
    };
    stage.play(
        Scene::default(),
        &[
            Step {
                name: "boot a host and two guests",
                act: boot,
                checks: no_checks,
            },
            Step {
                name: "say that a sleep is over while a guest is asked to suspend itself",
                act: call_off,
                checks: |scene| {
                    scene
                        .called_off
                        .as_ref()
                        .map_or(Vec::new(), CalledOff::checks)
                },
            },
            Step {
                name: "forget a guest that suspended itself",
                act: forget_suspended,
                checks: last,
            },
            Step {
                name: "forget a VM that was paused, after a sleep",
                act: forget_paused,
                checks: last,
            },
            Step {
                name: "power them off",
                act: end,
                checks: no_checks,
            },
        ],
    )
}

fn boot(scene: &mut Scene, stage: &mut Stage) -> Result<()> {
    let mut host = stage.boot(&host_spec("host", stage.assets, &stage.logs)?)?;
    for (name, vmm_options, place) in [
        ("asked", ASKED, &mut scene.asked),
        ("paused", PAUSED, &mut scene.paused),
    ] {
        let spec = GuestSpec {
            image: GuestImage::El1,
            memory_mib: 32,
            vmm_options,
            ..GuestSpec::new(name)
        };
        let mut guest = Guest::start(&spec, &mut host)?;
        guest.await_hello(&mut host)?;
        *place = Some(guest);
    }
    scene.host = Some(host);
    Ok(())
}

/// Announces a sleep, and returns when the VM is being prepared for it: whoever resumes it then hears
/// so.
fn begin_preparation(guest: &Guest, host: &mut Host) -> Result<Spawned> {
    let prepare = host.spawn(Spawn {
        argv: guest.ctl_argv(&["prepare-sleep"]),
        stderr: Some(host.file("prepare.err")),
        ..Spawn::default()
    })?;
    let start = Instant::now();
    while guest.ctl(host, &["resume"]).is_ok() {
        if start.elapsed() > PATIENCE {
            bail!("guest {} was not asked to suspend itself", guest.name());
        }
        sleep(Duration::from_millis(20))?;
    }
    Ok(prepare)
}

fn call_off(scene: &mut Scene, _: &mut Stage) -> Result<()> {
    let host = scene.host.as_mut().context("no host")?;
    let guest = scene.asked.as_ref().context("no guest")?;
    let past = records(guest, host)?.len();
    let prepare = begin_preparation(guest, host)?;
    let start = Instant::now();
    guest.ctl(host, &["finish-sleep"])?;
    let exit = host.wait(prepare.child, PATIENCE)?;
    let took_ms = start.elapsed().as_secs_f64() * 1e3;
    let said = host.read_from(&host.file("prepare.err"), 0)?;
    let said = String::from_utf8_lossy(&said);
    scene.called_off = Some(CalledOff {
        refused: exit == Exit::Status(1) && said.contains("was said to be over"),
        took_ms,
        records: records(guest, host)?.len() - past,
        runs: guest.status(host)?.state == "Running",
    });
    Ok(())
}

fn forget_suspended(scene: &mut Scene, _: &mut Stage) -> Result<()> {
    let host = scene.host.as_mut().context("no host")?;
    let guest = scene.asked.as_mut().context("no guest")?;
    let prepare = begin_preparation(guest, host)?;
    let request = guest.send(host, Action::Suspend)?;
    let exit = host.wait(prepare.child, PATIENCE)?;
    if exit != Exit::Status(0) {
        bail!("prepare-sleep ended with {exit:?}");
    }
    let seen = await_resumption(guest, host, 0)?;
    scene.forgotten.push(seen);
    match guest.await_answer(host, request)? {
        Body::Done => Ok(()),
        other => bail!("the guest sent {other:?} when it was woken"),
    }
}

fn forget_paused(scene: &mut Scene, _: &mut Stage) -> Result<()> {
    let host = scene.host.as_mut().context("no host")?;
    let guest = scene.paused.as_mut().context("no guest")?;
    guest.prepare_sleep(host)?;
    let slept_ns = host.sleep(SECONDS)?.boottime_ns;
    let seen = await_resumption(guest, host, slept_ns)?;
    scene.forgotten.push(seen);
    Ok(())
}

/// Waits for a stopped VM to go on, and tells nobody anything.
fn await_resumption(guest: &Guest, host: &mut Host, slept_ns: u64) -> Result<Forgotten> {
    let start = Instant::now();
    while guest.status(host)?.state != "Running" {
        if start.elapsed() > PATIENCE {
            bail!("the VM of guest {} is stopped still", guest.name());
        }
        sleep(Duration::from_millis(100))?;
    }
    match &records(guest, host)?[..] {
        [.., stop, resume] => Ok(Forgotten {
            name: guest.name(),
            stop: stop.clone(),
            resume: resume.clone(),
            slept_ns,
        }),
        other => bail!("a VM that was stopped has the records {other:?}"),
    }
}

fn end(scene: &mut Scene, stage: &mut Stage) -> Result<()> {
    let host = scene.host.as_mut().context("no host")?;
    for guest in [scene.asked.take(), scene.paused.take()] {
        let guest = guest.context("no guest")?;
        stage.keep_records(&guest, host)?;
        guest.power_off(host)?;
    }
    scene.host.take().context("no host")?.power_off()
}

impl CalledOff {
    fn checks(&self) -> Vec<Check> {
        let check = |name, measured, limit, unit| {
            Check::new(name, measured, limit, unit).with_detail("a sleep that was over at once")
        };
        let one = Limit::Equals(1.0);
        let records = u32::try_from(self.records).map_or(f64::INFINITY, f64::from);
        vec![
            check(
                "preparation_refused",
                f64::from(u8::from(self.refused)),
                one,
                "answers",
            ),
            check("runs", f64::from(u8::from(self.runs)), one, "VMs"),
            check("records_made", records, Limit::Equals(0.0), "records"),
            check(
                "called_off_ms",
                self.took_ms,
                Limit::AtMost(PATIENCE.as_secs_f64() * 1e3),
                "ms",
            ),
        ]
    }
}

impl Forgotten {
    fn checks(&self) -> Vec<Check> {
        let event = if self.slept_ns == 0 {
            "guest suspend"
        } else {
            "pause"
        };
        let in_vain_ms = self.resume.unfinished_ms.unwrap_or(0);
        let in_vain_ms = u32::try_from(in_vain_ms).map_or(f64::INFINITY, f64::from);
        let gap_ns = self.resume.gap.as_ref().map_or(0, |gap| gap.ns);
        let gap_ns = u64::try_from(gap_ns).unwrap_or(0);
        let detail = format!(
            "{}: {} and {}, {:.0} ms apart, {:.0} ms of them asleep",
            self.name,
            self.stop.event,
            self.resume.event,
            ms(gap_ns),
            ms(self.slept_ns)
        );
        let check = |name, measured, limit, unit| {
            Check::new(name, measured, limit, unit).with_detail(detail.clone())
        };
        let events = self.stop.event == event && self.resume.event == "resume";
        // What was hidden of it is what the policy says: all for a VM that was paused.
        let shown_ns = gap_ns.abs_diff(self.resume.hidden_ns);
        let expected_ns = if self.slept_ns == 0 { gap_ns } else { 0 };
        let at_least = Limit::AtLeast(SLEEP_LIMIT_MS);
        vec![
            check(
                "stopped_and_resumed",
                f64::from(u8::from(events)),
                Limit::Equals(1.0),
                "pairs",
            ),
            check("unfinished_ms", in_vain_ms, at_least, "ms"),
            // Counted anew after the sleep.
            check("awake_ms", ms(gap_ns) - ms(self.slept_ns), at_least, "ms"),
            check(
                "shown_error_ms",
                ms(shown_ns.abs_diff(expected_ns)),
                Limit::Equals(0.0),
                "ms",
            ),
        ]
    }
}
