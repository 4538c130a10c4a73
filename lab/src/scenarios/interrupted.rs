//! A lab that is stopped leaves no process behind, however it is stopped.

use crate::assets::Assets;
use crate::interrupt::sleep;
use crate::machine::Place;
use crate::report::{Check, Limit};
use crate::scenario::{Scenario, Stage, Step};
use anyhow::{Context, Result, bail};
use lab_agent::tether::tether;
use rustix::process::{Pid, Signal, kill_process};
use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

pub const SCENARIO: Scenario = Scenario {
    name: "interrupted",
    about: "a lab that gets a signal in the middle ends, and its hosts with it",
    must_fail: None,
    play,
};

/// Longest time until the other lab has started a host, and until all of it has ended.
const LIMIT: Duration = Duration::from_secs(20);

#[derive(Default)]
struct Scene {
    checks: Vec<Check>,
}

fn play(stage: &mut Stage) -> Result<()> {
    let checks = |scene: &Scene| scene.checks.clone();
    stage.play(
        Scene::default(),
        &[
            Step {
                name: "interrupt another lab as Ctrl-C does",
                act: |scene, stage| stop(scene, stage, Signal::INT, "left_after_sigint"),
                checks,
            },
            Step {
                name: "terminate another lab",
                act: |scene, stage| stop(scene, stage, Signal::TERM, "left_after_sigterm"),
                checks,
            },
            Step {
                name: "kill another lab, which can do nothing about it",
                act: |scene, stage| stop(scene, stage, Signal::KILL, "left_after_sigkill"),
                checks,
            },
        ],
    )
}

/// Starts a lab, stops it while its host boots, and counts what is left of it.
fn stop(scene: &mut Scene, stage: &Stage, signal: Signal, check: &'static str) -> Result<()> {
    let folder = stage.logs.join(check);
    fs::create_dir_all(&folder)?;
    let mut lab = start(stage.assets, &folder)?;
    let console = folder.join("boot/host-console.log");
    let is_booting = || match stage.assets.place {
        Place::Emulated => fs::metadata(&console).is_ok_and(|log| log.len() > 0),
        Place::Local => true,
    };
    let hosts = await_hosts(&mut lab, is_booting)?;
    kill_process(pid(lab.id())?, signal)?;
    let status = await_end(&mut lab)?;
    let left = await_ends(&hosts)?;
    let measured = u32::try_from(left.len()).map_or(f64::INFINITY, f64::from);
    let detail = format!("{status}; {} host processes had been started", hosts.len());
    if status.success() {
        bail!("the other lab claims success, though it was stopped");
    }
    let count = Check::new(check, measured, Limit::Equals(0.0), "processes");
    scene.checks = vec![count.with_detail(detail)];
    Ok(())
}

fn start(assets: &Assets, folder: &Path) -> Result<Child> {
    let log = File::create(folder.join("lab.log"))?;
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["run", "boot", "--logs"]).arg(folder);
    command.arg("--kernel").arg(&assets.host_kernel);
    command.arg("--programs").arg(&assets.programs);
    command.arg("--qemu").arg(&assets.qemu);
    command.args([
        "--host",
        if assets.place == Place::Local {
            "local"
        } else {
            "qemu"
        },
    ]);
    command.stdout(log.try_clone()?).stderr(log);
    tether(&mut command)
        .spawn()
        .context("cannot start another lab")
}

/// Waits until the lab has started a host that boots, and returns its processes.
fn await_hosts(lab: &mut Child, is_booting: impl Fn() -> bool) -> Result<Vec<u32>> {
    let begun = Instant::now();
    while begun.elapsed() < LIMIT {
        if let Some(status) = lab.try_wait()? {
            bail!("the other lab ended by itself: {status}");
        }
        let children = children_of(lab.id())?;
        if !children.is_empty() && is_booting() {
            return Ok(children);
        }
        sleep(Duration::from_millis(5))?;
    }
    bail!(
        "the other lab has not started a host within {} s",
        LIMIT.as_secs()
    );
}

fn children_of(pid: u32) -> Result<Vec<u32>> {
    let mut children = Vec::new();
    for thread in fs::read_dir(format!("/proc/{pid}/task"))?.flatten() {
        let listed = fs::read_to_string(thread.path().join("children")).unwrap_or_default();
        children.extend(
            listed
                .split_ascii_whitespace()
                .filter_map(|it| it.parse::<u32>().ok()),
        );
    }
    Ok(children)
}

fn await_end(lab: &mut Child) -> Result<ExitStatus> {
    let begun = Instant::now();
    while begun.elapsed() < LIMIT {
        if let Some(status) = lab.try_wait()? {
            return Ok(status);
        }
        sleep(Duration::from_millis(5))?;
    }
    lab.kill()?;
    bail!("the other lab did not end within {} s", LIMIT.as_secs());
}

/// Gives the processes a while to end, and returns those that have not.
fn await_ends(processes: &[u32]) -> Result<Vec<u32>> {
    let begun = Instant::now();
    loop {
        let left: Vec<_> = processes
            .iter()
            .copied()
            .filter(|pid| is_running(*pid))
            .collect();
        if left.is_empty() || begun.elapsed() > LIMIT {
            return Ok(left);
        }
        sleep(Duration::from_millis(5))?;
    }
}

fn is_running(pid: u32) -> bool {
    let state = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    !state.is_empty() && !state.contains(") Z ")
}

fn pid(id: u32) -> Result<Pid> {
    i32::try_from(id)
        .ok()
        .and_then(Pid::from_raw)
        .context("a process id beyond 2^31")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_runs_until_it_is_killed_and_is_not_counted_as_dead() {
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        assert!(
            children_of(std::process::id())
                .unwrap()
                .contains(&child.id())
        );
        assert!(is_running(child.id()));
        child.kill().unwrap();
        assert!(await_ends(&[child.id()]).unwrap().is_empty());
        child.wait().unwrap();
        assert!(!is_running(child.id()));
    }
}
