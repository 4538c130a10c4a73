//! A thousand stops of the VMM exactly between a vCPU thread's look at the gate and `KVM_RUN`.

use super::kvm_tests::{TEST, programs, run};
use crate::host::Host;
use crate::machine::HostSpec;
use crate::report::{Check, Limit};
use crate::scenario::{Scenario, Stage, Step, no_checks};
use anyhow::{Context, Result};
use std::time::Duration;

pub const SCENARIO: Scenario = Scenario {
    name: "gate-race",
    about: "a thread that is stopped between the gate and the guest does not enter, a thousand times",
    must_fail: None,
    play,
};

const PROGRAM: &str = "kvm";
const ARGUMENTS: [&str; 5] = [
    "--test-threads=1",
    "--nocapture",
    "--ignored",
    "--exact",
    "sleep::s2_a_thousand_stops_between_the_gate_and_the_guest",
];
const LIMIT: Duration = Duration::from_secs(600);

/// What the test prints before its figures.
const FIGURES: &str = "gate race: Races {";

#[derive(Default)]
struct Scene {
    host: Option<Host>,
    printed: String,
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
                name: "stop a VMM a thousand times",
                act: race,
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

fn race(scene: &mut Scene, stage: &mut Stage) -> Result<()> {
    let host = scene.host.as_mut().context("no host")?;
    let programs = programs(stage, &format!("{TEST}{PROGRAM}"))?;
    let program = programs.first().context("no test program")?;
    let (_, finished) = run(host, stage, program, &ARGUMENTS, LIMIT)?;
    let figures = finished.stdout.lines().find(|it| it.contains(FIGURES));
    figures.unwrap_or_default().clone_into(&mut scene.printed);
    Ok(())
}

fn checks(scene: &Scene) -> Vec<Check> {
    let check = |name, limit, unit| {
        let figure = figure(&scene.printed, name).unwrap_or(f64::NAN);
        Check::new(name, figure, limit, unit)
    };
    let late = figure(&scene.printed, "late_timers").unwrap_or(f64::NAN);
    let late = format!("{late} timers came late and were waited for");
    vec![
        check("refusals", Limit::AtLeast(500.0), "entries"),
        check("stale_entries", Limit::Equals(0.0), "entries").with_detail(late),
        check("backwards_steps", Limit::Equals(0.0), "steps"),
        check("largest_step_ms", Limit::AtMost(120.0), "ms"),
    ]
}

/// A figure of the line that the test prints.
fn figure(printed: &str, name: &str) -> Option<f64> {
    let (_, after) = printed.split_once(&format!("{name}: "))?;
    let digits = after.split(|it: char| !it.is_ascii_digit()).next()?;
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_found_by_their_names() {
        let line = "gate race: Races { stale_entries: 0, refusals: 913, largest_step_ms: 57 }";
        assert_eq!(figure(line, "refusals"), Some(913.0));
        assert_eq!(figure(line, "largest_step_ms"), Some(57.0));
        assert_eq!(figure(line, "stale_entries"), Some(0.0));
        assert_eq!(figure(line, "backwards_steps"), None);
    }
}
