//! The lab's scenarios as checks.

use super::Tally;
use crate::process;
use crate::programs;
use crate::setup;
use crate::workspace::Workspace;
use anyhow::{Context, Result};
use lab_agent::tether::tether;
use serde_json::Value;
use std::fs;
use std::process::Stdio;

/// Runs every scenario and counts its checks. One that must fail is one check: that it did.
pub fn run(workspace: &Workspace) -> Result<Tally> {
    let lab = programs::build_lab(workspace)?.with_hosts(workspace)?;
    let list = process::output(lab.command().args(["list", "--json"]))?;
    let list: Value = serde_json::from_str(&list).context("cannot understand the lab's list")?;
    let mut total = Tally::default();
    for scenario in list.as_array().context("the lab's list is no list")? {
        let name = scenario["name"]
            .as_str()
            .context("a scenario without a name")?;
        if let Some(reason) = scenario["by_name_only"].as_str() {
            println!("{name} runs by its name only: {reason}");
            continue;
        }
        let report = workspace.target.join("lab").join(name).join("report.json");
        // A report of an earlier run would speak for a lab that died.
        let _ = fs::remove_file(&report);
        let mut command = lab.command();
        setup::equip(workspace, name, &mut command)?;
        command.args(["run", name]).stdin(Stdio::null());
        let status = tether(&mut command)
            .status()
            .context("cannot start the lab")?;
        let report = fs::read_to_string(&report).unwrap_or_default();
        let report = serde_json::from_str(&report).unwrap_or(Value::Null);
        let must_fail = scenario["must_fail"].is_string();
        let tally = judge(name, &report, must_fail, status.success());
        for left_out in report["skipped"].as_array().into_iter().flatten() {
            println!(
                "{name} left out {}: {}",
                left_out["part"], left_out["reason"]
            );
        }
        if must_fail {
            println!(
                "{name} must fail: {}",
                if tally.failures.is_empty() {
                    "it did"
                } else {
                    "it did NOT"
                }
            );
        }
        total.passed += tally.passed;
        total.failures.extend(tally.failures);
    }
    Ok(total)
}

/// Counts the checks of a report. The lab's exit status must say the same as the report.
fn judge(scenario: &str, report: &Value, must_fail: bool, succeeded: bool) -> Tally {
    let checks = report["checks"].as_array().map_or(&[][..], Vec::as_slice);
    let (passed, failed): (Vec<_>, Vec<_>) = checks.iter().partition(|check| check["pass"] == true);
    let complete = report["error"].is_null() && report["verdict"].is_string();
    if must_fail {
        // Failed for its reason: a check that was made, in a run that came to its end.
        let as_it_must =
            complete && !failed.is_empty() && report["verdict"] == "fail" && !succeeded;
        let failure = || format!("{scenario} must fail by a check, and did not");
        return Tally {
            passed: usize::from(as_it_must),
            failures: (!as_it_must).then(failure).into_iter().collect(),
        };
    }
    let is_skipped = report["verdict"] == "skip" && report["skipped"][0].is_object();
    let agrees = succeeded == (is_skipped || report["verdict"] == "pass");
    let broken = !complete || !agrees || checks.is_empty() != is_skipped;
    let broke = || match report["error"].as_str() {
        Some(error) => format!("{scenario} did not run to its end: {error}"),
        None => format!("{scenario} left no report that agrees with how it ended"),
    };
    Tally {
        passed: passed.len(),
        failures: (failed.into_iter().map(|check| sentence(scenario, check)))
            .chain(broken.then(broke))
            .collect(),
    }
}

/// What a check of a report says.
fn sentence(scenario: &str, check: &Value) -> String {
    let text = |key: &str| check[key].as_str().unwrap_or_default().to_owned();
    let (measured, limit) = (&check["measured"], &check["limit"]);
    let (name, unit, detail) = (text("name"), text("unit"), text("detail"));
    format!("{scenario}: {name} {measured} {unit}, limit {limit} ({detail})")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn counts(report: &Value, must_fail: bool, succeeded: bool) -> (usize, usize) {
        let tally = judge("any", report, must_fail, succeeded);
        (tally.passed, tally.failures.len())
    }

    #[test]
    fn a_scenario_counts_its_checks_and_one_more_if_it_broke() {
        let pass = json!({ "verdict": "pass", "checks": [{ "pass": true }, { "pass": true }] });
        assert_eq!(counts(&pass, false, true), (2, 0));
        assert_eq!(counts(&pass, false, false), (2, 1));
        let fail = json!({ "verdict": "fail", "checks": [{ "pass": true }, { "pass": false }] });
        assert_eq!(counts(&fail, false, false), (1, 1));
        let broken = json!({ "verdict": "fail", "checks": [{ "pass": true }], "error": "no host" });
        assert_eq!(counts(&broken, false, false), (1, 1));
        assert_eq!(counts(&Value::Null, false, false), (0, 1));
        assert_eq!(counts(&Value::Null, false, true), (0, 1));
        let skipped = json!({ "verdict": "skip", "checks": [], "skipped": [{ "part": "all" }] });
        assert_eq!(counts(&skipped, false, true), (0, 0));
        assert_eq!(counts(&skipped, false, false), (0, 1));
        assert_eq!(counts(&skipped, true, true), (0, 1));
        let nothing = json!({ "verdict": "skip", "checks": [] });
        assert_eq!(counts(&nothing, false, true), (0, 1));
    }

    #[test]
    fn a_scenario_that_must_fail_passes_only_by_a_failed_check() {
        let fail = json!({ "verdict": "fail", "checks": [{ "pass": false }] });
        assert_eq!(counts(&fail, true, false), (1, 0));
        assert_eq!(counts(&fail, true, true), (0, 1));
        let pass = json!({ "verdict": "pass", "checks": [{ "pass": true }] });
        assert_eq!(counts(&pass, true, true), (0, 1));
        let broken =
            json!({ "verdict": "fail", "checks": [{ "pass": false }], "error": "no host" });
        assert_eq!(counts(&broken, true, false), (0, 1));
        assert_eq!(counts(&Value::Null, true, false), (0, 1));
    }

    #[test]
    fn what_failed_is_said_with_its_scenario_figure_and_limit() {
        let report = json!({
            "verdict": "fail",
            "error": "no host",
            "checks": [
                { "name": "steps", "pass": true },
                { "name": "gap_ms", "measured": 21.5, "unit": "ms", "pass": false,
                  "limit": { "at_most": 20 }, "detail": "idle" },
            ],
        });
        let want = [
            r#"boot: gap_ms 21.5 ms, limit {"at_most":20} (idle)"#,
            "boot did not run to its end: no host",
        ];
        assert_eq!(judge("boot", &report, false, false).failures, want);
    }
}
