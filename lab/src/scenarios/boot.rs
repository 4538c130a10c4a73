//! A host comes up, files travel both ways, commands run and end as they are told to.

use crate::host::Host;
use crate::machine::HostSpec;
use crate::report::{Check, Limit};
use crate::scenario::{Scenario, Stage, Step, no_checks};
use anyhow::{Context, Result};
use lab_agent::message::{Exit, Spawn};
use rustix::process::Signal;
use std::time::Duration;

pub const SCENARIO: Scenario = Scenario {
    name: "boot",
    about: "a host comes up, a file makes the round trip, commands run and are killed",
    must_fail: None,
    play,
};

const COMMAND_LIMIT: Duration = Duration::from_secs(10);

/// Longer than one frame, and no multiple of its length.
const FILE_LEN: usize = (3 << 20) + 17;

#[derive(Default)]
struct Scene {
    host: Option<Host>,
    has_kvm: bool,
    wrong_bytes: usize,
    exits: Vec<Exit>,
    left_running: usize,
}

fn play(stage: &mut Stage) -> Result<()> {
    stage.play(
        Scene::default(),
        &[
            Step {
                name: "boot a host",
                act: boot,
                checks: |scene| {
                    vec![count(
                        "hosts_with_kvm",
                        usize::from(scene.has_kvm),
                        1,
                        "hosts",
                    )]
                },
            },
            Step {
                name: "send a file there and back",
                act: round_trip,
                checks: |scene| vec![count("wrong_bytes", scene.wrong_bytes, 0, "bytes")],
            },
            Step {
                name: "run one command to its end and kill another",
                act: run_commands,
                checks: |scene| {
                    let want = [Exit::Status(0), Exit::Signal(Signal::KILL.as_raw())];
                    let right = scene
                        .exits
                        .iter()
                        .zip(&want)
                        .filter(|(it, want)| it == want);
                    let wrong = want.len() - right.count();
                    vec![
                        count("wrong_exits", wrong, 0, "exits")
                            .with_detail(format!("{:?}", scene.exits)),
                        count("commands_left_running", scene.left_running, 0, "commands"),
                    ]
                },
            },
            Step {
                name: "power the host off",
                act: power_off,
                checks: no_checks,
            },
        ],
    )
}

fn boot(scene: &mut Scene, stage: &mut Stage) -> Result<()> {
    let host = stage.boot(&HostSpec {
        memory_mib: 512,
        ..HostSpec::new("host")
    })?;
    scene.has_kvm = host.facts().kvm;
    scene.host = Some(host);
    Ok(())
}

fn round_trip(scene: &mut Scene, _: &mut Stage) -> Result<()> {
    let host = scene.host.as_mut().context("no host")?;
    let sent: Vec<u8> = (0..FILE_LEN)
        .map(|at| u8::try_from(at % 251).unwrap_or(0))
        .collect();
    let path = host.file("round-trip");
    host.put_file(&path, 0o644, &sent)?;
    let back = host.read_from(&path, 0)?;
    let differing = sent
        .iter()
        .zip(&back)
        .filter(|(sent, back)| sent != back)
        .count();
    scene.wrong_bytes = differing + sent.len().abs_diff(back.len());
    host.remove_file(&path)
}

fn run_commands(scene: &mut Scene, _: &mut Stage) -> Result<()> {
    let host = scene.host.as_mut().context("no host")?;
    let agent = host.facts().agent_program.clone();
    // Without a channel on its standard input the agent ends at once: nothing to serve.
    let ended = host.run(&[&agent], COMMAND_LIMIT)?;
    scene.exits.push(ended.exit);
    let argv = vec![agent];
    let waiting = host.spawn(Spawn {
        argv,
        stdin: true,
        ..Spawn::default()
    })?;
    host.signal(waiting.child, Signal::KILL.as_raw())?;
    scene.exits.push(host.wait(waiting.child, COMMAND_LIMIT)?);
    scene.left_running = host
        .processes()?
        .iter()
        .filter(|it| it.pid == waiting.pid)
        .count();
    Ok(())
}

fn power_off(scene: &mut Scene, _: &mut Stage) -> Result<()> {
    scene.host.take().context("no host")?.power_off()
}

fn count(name: &'static str, measured: usize, exactly: u32, unit: &'static str) -> Check {
    let measured = u32::try_from(measured).map_or(f64::INFINITY, f64::from);
    Check::new(name, measured, Limit::Equals(exactly.into()), unit)
}
