//! A thousand stops of the VMM exactly between a vCPU thread's look at the gate and `KVM_RUN`.

use super::kvm_tests::{TEST, programs, run};
use crate::host::Host;
use crate::machine::HostSpec;
use crate::report::{Check, Limit};
use crate::scenario::{Scenario, Stage, Step, no_checks};
use anyhow::{Context, Result};
use lab_agent::message::Exit;
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

/// So many stops outlast the lease.
const STOPS: f64 = 1000.0;

#[derive(Default)]
struct Scene {
    host: Option<Host>,
    printed: String,
    /// How the test ended.
    exit: Option<Exit>,
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

/// Most records of no stop of the test's: an emulated host stands still at times by itself, for longer
/// than a lease.
const STRAYS: f64 = 10.0;

fn race(scene: &mut Scene, stage: &mut Stage) -> Result<()> {
    let host = scene.host.as_mut().context("no host")?;
    let programs = programs(stage, &format!("{TEST}{PROGRAM}"))?;
    let program = programs.first().context("no test program")?;
    let (_, finished) = run(host, stage, program, &ARGUMENTS, LIMIT)?;
    let figures = finished.stdout.lines().find(|it| it.contains(FIGURES));
    figures.unwrap_or_default().clone_into(&mut scene.printed);
    scene.exit = Some(finished.exit);
    Ok(())
}

fn checks(scene: &Scene) -> Vec<Check> {
    let check = |name, limit, unit| {
        let figure = figure(&scene.printed, name).unwrap_or(f64::NAN);
        Check::new(name, figure, limit, unit)
    };
    let known = |name| figure(&scene.printed, name).unwrap_or(f64::NAN);
    let stale = format!(
        "{} of the guest's entries and {} of all stops had a timer whose interrupt was late",
        known("late_entries"),
        known("late_timers"),
    );
    let exit = format!("the test ended with {:?}", scene.exit);
    let is_clean = scene.exit == Some(Exit::Status(0));
    let (none, all) = (Limit::Equals(0.0), Limit::Equals(STOPS));
    vec![
        check("landed", all, "stops"),
        check("stale_entries", none, "entries").with_detail(stale),
        check("refusals", all, "entries"),
        check("low_counts", none, "counts"),
        check("misrecorded", none, "stops"),
        check("strays", Limit::AtMost(STRAYS), "records"),
        check("backwards_steps", none, "steps"),
        check("largest_step_ms", Limit::AtMost(120.0), "ms"),
        Check::new("failures", f64::from(u8::from(!is_clean)), none, "tests").with_detail(exit),
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
