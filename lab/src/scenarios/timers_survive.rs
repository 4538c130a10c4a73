//! Timers that are pending while a VM is paused, or saved and restored: a test of `pvtime-kvm` on a
//! host, because its guest reads its timers' status, and Linux programs cannot.

use super::kvm_tests::TEST;
use crate::host::Host;
use crate::machine::HostSpec;
use crate::report::{Check, Limit};
use crate::scenario::{Scenario, Stage, Step, no_checks};
use anyhow::{Context, Result, bail};
use lab_agent::message::Exit;
use std::fs;
use std::time::Duration;

pub const SCENARIO: Scenario = Scenario {
    name: "timers-survive",
    about: "timers due in 1 ms, 1 s, 100 s, before and never outlive pause and restore",
    must_fail: None,
    play,
};

/// The test program, and the test in it.
const PROGRAM: &str = "kvm";
const TEST_NAME: &str = "timers::l4_l5_timers_survive_pause_and_restore_under_both_policies";

/// A timer is due 100 s after the start.
const LIMIT: Duration = Duration::from_secs(300);

/// Cases: both policies, over a pause and over a restoration.
const CASES: usize = 4;

#[derive(Default)]
struct Scene {
    host: Option<Host>,
    figures: Vec<Figure>,
}

/// A line that the test prints: `figure NAME MEASURED UNIT DETAIL`.
#[derive(Debug, PartialEq)]
struct Figure {
    name: String,
    measured: f64,
    detail: String,
}

fn play(stage: &mut Stage) -> Result<()> {
    stage.play(
        Scene::default(),
        &[
            Step {
                name: "boot a host",
                act: |scene, stage| {
                    scene.host = Some(stage.boot(&HostSpec::new("host"))?);
                    Ok(())
                },
                checks: no_checks,
            },
            Step {
                name: "pause and restore VMs with timers, which takes two minutes",
                act: run,
                checks: |scene| checks(&scene.figures),
            },
            Step {
                name: "power the host off",
                act: |scene, _| scene.host.take().context("no host")?.power_off(),
                checks: no_checks,
            },
        ],
    )
}

fn run(scene: &mut Scene, stage: &mut Stage) -> Result<()> {
    let host = scene.host.as_mut().context("no host")?;
    let program = stage.assets.program(&format!("{TEST}{PROGRAM}"))?;
    let there = host.file(PROGRAM);
    let bytes = fs::read(&program).with_context(|| format!("cannot read {}", program.display()))?;
    host.put_file(&there, 0o755, &bytes)?;
    let argv = [&there, "--ignored", "--nocapture", "--exact", TEST_NAME];
    let finished = host.run(&argv, LIMIT)?;
    let log = stage.logs.join("timers.log");
    fs::write(&log, [finished.stdout.as_str(), &finished.stderr].concat())?;
    scene.figures = figures(&finished.stdout);
    let failed = scene.figures.iter().any(|figure| !expected(figure));
    if (finished.exit == Exit::Status(0)) == failed || scene.figures.is_empty() {
        bail!(
            "the test ended with {:?} and {} figures; see {}",
            finished.exit,
            scene.figures.len(),
            log.display()
        );
    }
    Ok(())
}

/// The figures in what a test printed. The first may stand behind the name of the test.
fn figures(stdout: &str) -> Vec<Figure> {
    let parse = |line: &str| {
        let (_, line) = line.split_once("figure ")?;
        let mut words = line.splitn(4, ' ');
        Some(Figure {
            name: words.next()?.to_owned(),
            measured: words.next()?.parse().ok()?,
            detail: words.nth(1)?.to_owned(),
        })
    };
    stdout.lines().filter_map(parse).collect()
}

/// Both timers of four vCPUs become due, those of the fifth do not, and nothing else happens.
fn limit(name: &str) -> Limit {
    Limit::Equals(if name == "due" { 8.0 } else { 0.0 })
}

fn expected(figure: &Figure) -> bool {
    limit(&figure.name).admits(figure.measured)
}

fn checks(figures: &[Figure]) -> Vec<Check> {
    let mut checks = Vec::new();
    for name in ["early", "lost", "contradictions", "due"] {
        let of_name: Vec<_> = figures.iter().filter(|it| it.name == name).collect();
        checks.extend(of_name.iter().map(|figure| {
            Check::new(name, figure.measured, limit(name), "timers").with_detail(&*figure.detail)
        }));
        // A case without its figure fails.
        for _ in of_name.len()..CASES {
            checks.push(Check::new(name, f64::NAN, limit(name), "timers"));
        }
    }
    checks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_found_and_missing_ones_fail() {
        let stdout = "running 1 test\ntest a ... figure early 0 timers Freeze, Pause: 9 readings\n\
                      figure lost 2 timers Freeze, Pause\nok\n";
        let figures = figures(stdout);
        assert_eq!(figures.len(), 2);
        assert_eq!(figures[1].measured.to_bits(), 2_f64.to_bits());
        let checks = checks(&figures);
        let passes = |name| {
            let of_name = checks.iter().filter(|check| check.name == name);
            of_name.map(|check| check.pass).collect::<Vec<_>>()
        };
        assert_eq!(passes("early"), [true, false, false, false]);
        assert_eq!(passes("lost"), [false; 4]);
        assert_eq!(passes("due"), [false; 4]);
    }
}
