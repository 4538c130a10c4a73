//! The VMM is killed while it saves a guest and while it restores one: whatever is left behind is
//! restored whole, or refused.

use super::bare_checks::at_least;
use super::pauses::median;
use super::saved_guest::{self, SAVED};
use crate::bare::{Bare, OnHost};
use crate::guest::Guest;
use crate::host::Host;
use crate::interrupt::sleep;
use crate::report::{Check, Limit};
use crate::scenario::{Scenario, Stage, Step, no_checks};
use anyhow::{Context, Result, bail};
use fastrand::Rng;
use guest_protocol::request::Fill;
use lab_agent::message::{ChildId, Exit, Spawn, Spawned};
use rustix::process::Signal;
use std::time::{Duration, Instant};

pub const SCENARIO: Scenario = Scenario {
    name: "snapshot-killed",
    about: "a VMM killed at 50 points of snapshots and restores leaves nothing half done",
    must_fail: None,
    play,
};

/// Chooses the points; without it, chance does.
const SEED: &str = "PVTIME_LAB_SEED";

/// Kills within snapshots, and as many within restores.
const POINTS: usize = 25;
/// How often either is done undisturbed, to know how long it takes.
const MEASURED: usize = 3;
/// Of those, this many must come before what was killed was done, and so many of the snapshots' leave
/// something unfinished.
const LEAST_INTERRUPTED: usize = 10;
const LEAST_LEFT_OVER: usize = 5;
/// Memory with a pattern in it that goes on changing.
const FILL: Fill = Fill {
    seed: 1,
    mib: 4,
    changes_per_s: 200,
};
const LIMIT: Duration = Duration::from_secs(30);

/// The guest that is killed, and the one that shows what is left.
const KILLED: &str = "killed";
const SHOWN: &str = "shown";

struct Scene {
    host: Option<Host>,
    random: Rng,
    seed: u64,
    saving: Duration,
    restoring: Duration,
    saved: Tally,
    restored: Tally,
}

/// What came of the kills.
#[derive(Default)]
struct Tally {
    restored: usize,
    refused: usize,
    /// Why what was left is neither.
    half: Vec<String>,
    /// What was killed was not done.
    interrupted: usize,
    /// Unfinished directories that were left.
    left_over: usize,
    /// A reason of a refusal.
    reason: String,
}

enum Outcome {
    Restored,
    Refused(String),
    Half(String),
}

fn play(stage: &mut Stage) -> Result<()> {
    let seed = match std::env::var(SEED) {
        Ok(seed) => seed
            .parse()
            .with_context(|| format!("{SEED} is no number"))?,
        Err(_) => fastrand::u64(..),
    };
    stage.note(&format!("{SEED}={seed}"));
    let scene = Scene {
        host: None,
        random: Rng::with_seed(seed),
        seed,
        saving: Duration::ZERO,
        restoring: Duration::ZERO,
        saved: Tally::default(),
        restored: Tally::default(),
    };
    stage.play(
        scene,
        &[
            Step {
                name: "boot a host, and save and restore a guest undisturbed",
                act: prepare,
                checks: no_checks,
            },
            Step {
                name: "kill the VMM while it saves",
                act: kill_saving,
                checks: |scene| {
                    let told = scene.tell("snapshot", scene.saving);
                    let left = scene.saved.left_over;
                    let left = at_least("left_over", left, LEAST_LEFT_OVER, "points");
                    let mut checks = scene.saved.checks(&told);
                    checks.push(left.with_detail(told));
                    checks
                },
            },
            Step {
                name: "kill the VMM while it restores",
                act: kill_restoring,
                checks: |scene| {
                    let told = scene.tell("restore", scene.restoring);
                    let refused = count("refused_after_a_killed_restore", scene.restored.refused);
                    let mut checks = scene.restored.checks(&told);
                    checks.push(refused.with_detail(told));
                    checks
                },
            },
            Step {
                name: "power the host off",
                act: |scene, _| scene.host.take().context("no host")?.power_off(),
                checks: no_checks,
            },
        ],
    )
}

fn prepare(scene: &mut Scene, stage: &mut Stage) -> Result<()> {
    let mut host = saved_guest::prepare(stage, FILL)?;
    let mut saving = Vec::new();
    for number in 0..MEASURED {
        let (guest, _) = restore_undisturbed(&mut host)?;
        guest.pause(&mut host)?;
        let folder = host.file(&format!("undisturbed-{number}"));
        let ctl = begin_saving(&folder, &mut host)?;
        let begun = Instant::now();
        if host.wait(ctl.child, LIMIT)? != Exit::Status(0) {
            bail!("a snapshot that nothing disturbs fails");
        }
        saving.push(begun.elapsed().as_secs_f64());
        guest.stop(&mut host)?;
    }
    scene.saving = Duration::from_secs_f64(median(saving));
    scene.host = Some(host);
    Ok(())
}

fn kill_saving(scene: &mut Scene, stage: &mut Stage) -> Result<()> {
    let host = scene.host.as_mut().context("no host")?;
    let good = host.file(SAVED);
    for number in 1..=POINTS {
        stage.step(&format!("kill a VMM that saves, {number} of {POINTS}"));
        let guest = restore(KILLED, &good, host)?.map_err(|why| anyhow::anyhow!(why))?;
        guest.pause(host)?;
        let folder = host.file(&format!("point-{number}"));
        let ctl = begin_saving(&folder, host)?;
        sleep(scene.saving.mul_f64(scene.random.f64()))?;
        kill(guest.vmm().child, host)?;
        let tally = &mut scene.saved;
        tally.interrupted += usize::from(host.wait(ctl.child, LIMIT)? != Exit::Status(0));
        let partial = format!("{folder}.partial");
        let mut outcome = judge(&folder, host)?;
        if has_memory(&partial, host) {
            tally.left_over += 1;
            outcome = outcome.or(judge(&partial, host)?);
        }
        tally.enter(outcome);
    }
    Ok(())
}

/// Asks for a snapshot and waits until something of it is written.
fn begin_saving(folder: &str, host: &mut Host) -> Result<Spawned> {
    let socket = host.file(&format!("{KILLED}.sock"));
    let pvtime = host.path_of("pvtime")?;
    let argv = [&pvtime, "ctl", &socket, "snapshot", folder];
    let ctl = host.spawn(Spawn {
        argv: argv.map(str::to_owned).into(),
        stderr: Some(host.file("ctl.err")),
        ..Spawn::default()
    })?;
    let partial = format!("{folder}.partial");
    while !has_memory(&partial, host) && host.poll_end(ctl.child)?.is_none() {}
    Ok(ctl)
}

/// Whether a folder has the first file that is written.
fn has_memory(folder: &str, host: &mut Host) -> bool {
    const BEHIND_IT: u64 = 1 << 40;
    let memory = format!("{folder}/memory");
    host.read_from(&memory, BEHIND_IT).is_ok()
}

fn kill_restoring(scene: &mut Scene, stage: &mut Stage) -> Result<()> {
    let host = scene.host.as_mut().context("no host")?;
    let good = host.file(SAVED);
    for number in 1..=POINTS {
        stage.step(&format!("kill a VMM that restores, {number} of {POINTS}"));
        // It takes as long as the machine is busy, which changes.
        let (undisturbed, took) = restore_undisturbed(host)?;
        undisturbed.stop(host)?;
        scene.restoring = took;
        clear(KILLED, host);
        let guest = Guest::restore(KILLED, true, &good, host)?;
        sleep(scene.restoring.mul_f64(scene.random.f64()))?;
        kill(guest.vmm().child, host)?;
        let log = host.read_from(&host.file(&format!("{KILLED}-vmm.log")), 0)?;
        scene.restored.interrupted += usize::from(!has_begun(&String::from_utf8_lossy(&log)));
        scene.restored.enter(judge(&good, host)?);
    }
    Ok(())
}

/// A guest that was saved and goes on, and how long that took.
fn restore_undisturbed(host: &mut Host) -> Result<(Guest, Duration)> {
    clear(KILLED, host);
    let good = host.file(SAVED);
    let begun = Instant::now();
    let guest = Guest::restore(KILLED, true, &good, host)?;
    let log = host.file(&format!("{KILLED}-vmm.log"));
    host.wait_for_text(&log, BEGUN, LIMIT)?;
    Ok((guest, begun.elapsed()))
}

fn kill(vmm: ChildId, host: &mut Host) -> Result<()> {
    host.signal(vmm, Signal::KILL.as_raw())?;
    host.wait(vmm, LIMIT).map(drop)
}

/// What is made of a folder.
fn judge(folder: &str, host: &mut Host) -> Result<Outcome> {
    match restore(SHOWN, folder, host)? {
        Ok(guest) => {
            guest.stop(host)?;
            Ok(Outcome::Restored)
        }
        Err(outcome) => Ok(if is_refusal(&outcome) {
            Outcome::Refused(outcome)
        } else {
            Outcome::Half(outcome)
        }),
    }
}

/// A guest that answers and whose memory is as it left it, or what the VMM and the guest said.
fn restore(
    name: &'static str,
    folder: &str,
    host: &mut Host,
) -> Result<std::result::Result<Guest, String>> {
    clear(name, host);
    let mut guest = Guest::restore(name, true, folder, host)?;
    let child = guest.vmm().child;
    let mut asked = OnHost {
        guest: &mut guest,
        host,
    };
    let said = match asked.verify() {
        Ok(memory) if memory.damaged == 0 => return Ok(Ok(guest)),
        Ok(memory) => format!("a guest with damaged memory, {memory:?}"),
        Err(error) => format!("{error:#}"),
    };
    let log = host.read_from(&host.file(&format!("{name}-vmm.log")), 0)?;
    let log = String::from_utf8_lossy(&log);
    if host.poll_end(child)? == Some(Exit::Status(1)) && log.lines().count() == 1 {
        return Ok(Err(log.trim().to_owned()));
    }
    if host.poll_end(child)?.is_none() {
        kill(child, host)?;
    }
    Ok(Err(format!("{said}\n{log}")))
}

/// One line that names a reason, and no machine before it.
fn is_refusal(said: &str) -> bool {
    said.lines().count() == 1 && said.starts_with("pvtime: ") && !has_begun(said)
}

/// The VMM says so when its vCPUs may run.
const BEGUN: &str = "restored the time of ";

fn has_begun(log: &str) -> bool {
    log.contains(BEGUN)
}

/// Removes what a VMM that was killed has left in its place.
fn clear(name: &str, host: &mut Host) {
    for file in [".sock", "-reports.log", "-vmm.log"] {
        let _was_not_there = host.remove_file(&host.file(&format!("{name}{file}")));
    }
}

fn count(name: &'static str, measured: usize) -> Check {
    Check::new(name, number(measured), Limit::Equals(0.0), "points")
}

fn number(count: usize) -> f64 {
    u32::try_from(count).map_or(f64::INFINITY, f64::from)
}

impl Scene {
    fn tell(&self, what: &str, length: Duration) -> String {
        let ms = length.as_secs_f64() * 1e3;
        let seed = self.seed;
        format!("killed within the {ms:.0} ms of a {what}, {SEED}={seed}")
    }
}

impl Outcome {
    /// Of two directories of one point: the worse, and what restores before what does not.
    fn or(self, other: Self) -> Self {
        match (&self, &other) {
            (Self::Half(_), _) | (Self::Restored, Self::Refused(_)) => self,
            (_, Self::Half(_)) | (Self::Refused(_), Self::Restored) => other,
            _ => self,
        }
    }
}

impl Tally {
    fn enter(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Restored => self.restored += 1,
            Outcome::Refused(reason) => {
                self.refused += 1;
                self.reason = reason;
            }
            Outcome::Half(why) => self.half.push(why),
        }
    }

    fn checks(&self, told: &str) -> Vec<Check> {
        let detail = format!(
            "{told}: {} restored, {} refused; {} left_over_files, in unfinished directories; {}",
            self.restored, self.refused, self.left_over, self.reason
        );
        let half = self.half.first().map_or("", String::as_str);
        let known = number(self.restored + self.refused);
        let all = Limit::Equals(number(POINTS));
        vec![
            count("half_restored", self.half.len()).with_detail(format!("{told}: {half}")),
            Check::new("refused_or_restored", known, all, "points").with_detail(detail),
            at_least("interrupted", self.interrupted, LEAST_INTERRUPTED, "points")
                .with_detail(told),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_of_anything_is_the_worse() {
        let half = || Outcome::Half(String::new());
        let refused = || Outcome::Refused("pvtime: it is cut".into());
        let is_half = |outcome| matches!(outcome, Outcome::Half(_));
        assert!(is_half(half().or(Outcome::Restored)));
        assert!(is_half(refused().or(half())));
        let restored = |outcome| matches!(outcome, Outcome::Restored);
        assert!(restored(refused().or(Outcome::Restored)));
        assert!(restored(Outcome::Restored.or(refused())));
        assert!(matches!(refused().or(refused()), Outcome::Refused(_)));
    }

    #[test]
    fn a_refusal_is_one_line_of_a_vmm_that_ran_nothing() {
        assert!(is_refusal("pvtime: x is no snapshot"));
        assert!(!is_refusal("pvtime: x\npvtime: y"));
        assert!(!is_refusal("pvtime: restored the time of 1 vCPUs in 5 us"));
        assert!(!is_refusal("a guest with damaged memory"));
        assert!(!is_refusal(""));
    }
}
