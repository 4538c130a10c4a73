//! Tests and examples of the crates that need KVM, run on a host that has it.

use crate::host::Host;
use crate::machine::HostSpec;
use crate::report::{Check, Limit};
use crate::requests::Finished;
use crate::scenario::{Scenario, Stage, Step, no_checks};
use anyhow::{Context, Result, bail};
use lab_agent::message::Exit;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub const SCENARIO: Scenario = Scenario {
    name: "kvm-tests",
    about: "the crates' own tests and examples against KVM: calls, ioctls, refusals",
    must_fail: None,
    play,
};

/// What the names of the programs begin with.
pub const TEST: &str = "kvm-test-";
const EXAMPLE: &str = "kvm-example-";
const LIMIT: Duration = Duration::from_secs(120);

#[derive(Default)]
struct Scene {
    host: Option<Host>,
    passed: u32,
    /// Names of tests.
    failed: Vec<String>,
    examples_failed: u32,
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
                        count("tests_failed", number(&scene.failed), Limit::Equals(0.0))
                            .with_detail(scene.failed.join(", ")),
                        count("tests_passed", scene.passed, Limit::AtLeast(1.0)),
                    ]
                },
            },
            Step {
                name: "run the examples",
                act: run_examples,
                checks: |scene| {
                    let (failed, none) = (scene.examples_failed, Limit::Equals(0.0));
                    vec![Check::new(
                        "examples_failed",
                        failed.into(),
                        none,
                        "examples",
                    )]
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
    for program in programs(stage, TEST)? {
        // One at a time: some of them measure the thread that they run on.
        let host = scene.host.as_mut().context("no host")?;
        let (name, finished) = run(host, stage, &program, &["--test-threads=1"], LIMIT)?;
        let Some((passed, failed)) = counts(&finished.stdout) else {
            bail!(
                "{name} did not come to its end ({:?}); see its log",
                finished.exit
            );
        };
        scene.passed += passed;
        let names = failures(&finished.stdout);
        if number(&names) != failed {
            bail!("{name} names {names:?} as its {failed} failures");
        }
        scene.failed.extend(names);
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

fn run_examples(scene: &mut Scene, stage: &mut Stage) -> Result<()> {
    for program in programs(stage, EXAMPLE)? {
        let host = scene.host.as_mut().context("no host")?;
        let (_, finished) = run(host, stage, &program, &[], LIMIT)?;
        scene.examples_failed += u32::from(finished.exit != Exit::Status(0));
    }
    Ok(())
}

/// Puts a program on the host, runs it and keeps what it printed.
pub(super) fn run(
    host: &mut Host,
    stage: &Stage,
    program: &Path,
    arguments: &[&str],
    limit: Duration,
) -> Result<(String, Finished)> {
    let name = program
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    stage.note(&name);
    let there = host.file(&name);
    let bytes = fs::read(program).with_context(|| format!("cannot read {}", program.display()))?;
    host.put_file(&there, 0o755, &bytes)?;
    let argv = [&[there.as_str()], arguments].concat();
    let finished = host.run(&argv, limit)?;
    let log = stage.logs.join(format!("{name}.log"));
    fs::write(&log, [finished.stdout.as_str(), &finished.stderr].concat())?;
    Ok((name, finished))
}

pub(super) fn programs(stage: &Stage, prefix: &str) -> Result<Vec<PathBuf>> {
    let folder = &stage.assets.programs;
    let mut programs = Vec::new();
    for entry in
        fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))?
    {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with(prefix) {
            programs.push(path);
        }
    }
    programs.sort();
    if programs.is_empty() {
        bail!(
            "no {prefix}* in {}: run the scenario with `cargo xtask lab run kvm-tests`, which \
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

/// Names of the tests that failed, from the line that a test program prints for each test.
fn failures(stdout: &str) -> Vec<String> {
    let failed = |line: &str| {
        let name = line.strip_prefix("test ")?.strip_suffix(" ... FAILED")?;
        Some(name.to_owned())
    };
    stdout.lines().filter_map(failed).collect()
}

fn number(names: &[String]) -> u32 {
    u32::try_from(names.len()).unwrap_or(u32::MAX)
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

    #[test]
    fn failures_are_named() {
        let lines =
            "test a::b ... ok\ntest c ... FAILED\ntest d ... ignored, long\ntest e ... FAILED";
        assert_eq!(failures(lines), ["c", "e"]);
        assert!(failures("test result: FAILED. 0 passed").is_empty());
    }
}
