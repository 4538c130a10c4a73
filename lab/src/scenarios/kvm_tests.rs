//! Test programs of the crates that need KVM, run on a host that has it.

use crate::host::Host;
use crate::machine::HostSpec;
use crate::report::{Check, Limit};
use crate::scenario::{Scenario, Stage, Step, no_checks};
use anyhow::{Context, Result, bail};
use lab_agent::message::Exit;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

pub const SCENARIO: Scenario = Scenario {
    name: "kvm-tests",
    about: "the crates' own tests against KVM: calls, ioctls, refusals",
    must_fail: None,
    play,
};

/// What the names of the test programs begin with.
const PREFIX: &str = "kvm-test-";
const LIMIT: Duration = Duration::from_secs(120);

#[derive(Default)]
struct Scene {
    host: Option<Host>,
    passed: u32,
    failed: u32,
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
                name: "run the test programs",
                act: run_all,
                checks: |scene| {
                    let count = |name, measured: u32, limit| {
                        Check::new(name, measured.into(), limit, "tests")
                    };
                    vec![
                        count("tests_failed", scene.failed, Limit::Equals(0.0)),
                        count("tests_passed", scene.passed, Limit::AtLeast(1.0)),
                    ]
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

fn boot(scene: &mut Scene, stage: &mut Stage) -> Result<()> {
    scene.host = Some(stage.boot(&HostSpec::new("host"))?);
    Ok(())
}

fn run_all(scene: &mut Scene, stage: &mut Stage) -> Result<()> {
    let host = scene.host.as_mut().context("no host")?;
    for program in programs(stage)? {
        let name = program.file_name().unwrap_or_default().to_string_lossy();
        stage.note(&name);
        let there = host.file(&name);
        let bytes =
            fs::read(&program).with_context(|| format!("cannot read {}", program.display()))?;
        host.put_file(&there, 0o755, &bytes)?;
        // One at a time: some of them measure the thread that they run on.
        let finished = host.run(&[&there, "--test-threads=1"], LIMIT)?;
        let log = stage.logs.join(format!("{name}.log"));
        fs::write(&log, [finished.stdout.as_str(), &finished.stderr].concat())?;
        let Some((passed, failed)) = counts(&finished.stdout) else {
            bail!(
                "{name} did not come to its end ({:?}); see {}",
                finished.exit,
                log.display()
            );
        };
        scene.passed += passed;
        scene.failed += failed;
        let clean = finished.exit == Exit::Status(0);
        if clean != (failed == 0) {
            bail!(
                "{name} ended with {:?} and {failed} failures",
                finished.exit
            );
        }
    }
    Ok(())
}

fn programs(stage: &Stage) -> Result<Vec<PathBuf>> {
    let folder = &stage.assets.programs;
    let mut programs = Vec::new();
    for entry in
        fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))?
    {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with(PREFIX) {
            programs.push(path);
        }
    }
    programs.sort();
    if programs.is_empty() {
        bail!(
            "no {PREFIX}* in {}: run the scenario with `cargo xtask lab run kvm-tests`, which \
             builds them",
            folder.display()
        );
    }
    Ok(programs)
}

/// How many tests passed and failed, from the last line that a test program prints.
fn counts(stdout: &str) -> Option<(u32, u32)> {
    let line = stdout
        .lines()
        .rev()
        .find(|line| line.starts_with("test result:"))?;
    let number = |word: &str| {
        let words: Vec<&str> = line.split([' ', ';']).collect();
        let at = words.iter().position(|it| *it == word)?;
        words.get(at.checked_sub(1)?)?.parse().ok()
    };
    Some((number("passed")?, number("failed")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_is_counted() {
        let line = "test result: FAILED. 7 passed; 4 failed; 0 ignored; 0 measured; 0 filtered out";
        assert_eq!(
            counts(&format!("running 11 tests\n{line}; finished in 1 s\n\n")),
            Some((7, 4))
        );
        assert_eq!(counts("running 11 tests\n"), None);
        assert_eq!(counts("test result: odd"), None);
    }
}
