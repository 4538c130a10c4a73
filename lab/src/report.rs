//! What a scenario measured, and what it should have been: `report.json`.

use anyhow::{Context, Result};
use serde::{Serialize, Serializer};
use std::fmt;
use std::fs;
use std::path::Path;

/// The report of one run of one scenario.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// Name of the scenario.
    pub scenario: String,
    /// Pass if it ran to its end and every check passed.
    pub verdict: Verdict,
    /// Hosts, in the order of their start.
    pub hosts: Vec<HostFacts>,
    /// Checks, in the order of the scenario.
    pub checks: Vec<Check>,
    /// Parts that this machine cannot play: nothing is known of them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub skipped: Vec<Skipped>,
    /// Interventions in a VM's time, as the VMMs recorded them.
    pub adjustments: Vec<serde_json::Value>,
    /// Figures beside the report, by the names of their files.
    pub figures: Vec<String>,
    /// Why the scenario did not run to its end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// What an emulated host said that hung in a run before this one, which proved nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hung_host: Option<String>,
}

/// Whether a scenario passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It ran to its end and every check passed.
    Pass,
    /// A check failed, or it did not run to its end, or it checked nothing and left nothing out.
    Fail,
    /// It ran to its end, and all of it was left out: this machine cannot play it.
    Skip,
}

/// A host that a scenario used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct HostFacts {
    /// Release of its kernel.
    pub kernel: String,
    /// Frequency of its counter; none where it is no arm64 machine.
    pub counter_frequency_hz: Option<u64>,
    /// Version of the VMM on it; none where it has none.
    pub vmm: Option<String>,
}

/// A part of a scenario that was left out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Skipped {
    /// What it would have shown.
    pub part: String,
    /// Why it could not, and the way out.
    pub reason: String,
}

/// One figure and its limit.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Check {
    /// Name, with its unit last where it has one.
    pub name: &'static str,
    /// What was measured, in `unit`.
    #[serde(serialize_with = "plain_number")]
    pub measured: f64,
    /// What it may be, in `unit`.
    pub limit: Limit,
    /// Unit of both.
    pub unit: &'static str,
    /// Whether the figure keeps to the limit.
    pub pass: bool,
    /// Whose figure it is, where several have one of the same name, and what was seen.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub detail: String,
}

/// What a figure may be. The ends belong to it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Limit {
    /// This or less.
    AtMost(#[serde(serialize_with = "plain_number")] f64),
    /// This or more.
    AtLeast(#[serde(serialize_with = "plain_number")] f64),
    /// Exactly this.
    Equals(#[serde(serialize_with = "plain_number")] f64),
    /// Neither below nor above.
    #[serde(untagged)]
    Range {
        /// Smallest.
        #[serde(serialize_with = "plain_number")]
        from: f64,
        /// Largest.
        #[serde(serialize_with = "plain_number")]
        to: f64,
    },
}

impl Limit {
    /// Whether the figure keeps to it. What is not a number keeps to nothing.
    #[must_use]
    pub fn admits(self, measured: f64) -> bool {
        match self {
            Self::AtMost(most) => measured <= most,
            Self::AtLeast(least) => measured >= least,
            #[expect(
                clippy::float_cmp,
                reason = "for counts, which floating point holds exactly"
            )]
            Self::Equals(exactly) => measured == exactly,
            Self::Range { from, to } => (from..=to).contains(&measured),
        }
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtMost(most) => write!(f, "at most {most}"),
            Self::AtLeast(least) => write!(f, "at least {least}"),
            Self::Equals(exactly) => write!(f, "exactly {exactly}"),
            Self::Range { from, to } => write!(f, "{from} to {to}"),
        }
    }
}

impl Check {
    /// Holds the figure against its limit.
    #[must_use]
    pub fn new(name: &'static str, measured: f64, limit: Limit, unit: &'static str) -> Self {
        let detail = String::new();
        Self {
            name,
            measured,
            limit,
            unit,
            pass: limit.admits(measured),
            detail,
        }
    }

    /// Adds whose figure it is, or what was seen.
    #[must_use]
    pub fn with_detail(self, detail: impl Into<String>) -> Self {
        Self {
            detail: detail.into(),
            ..self
        }
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = if self.pass { "pass" } else { "FAIL" };
        // Three decimals tell all that a person asks of ms and percent; the report has the rest.
        let measured = (self.measured * 1e3).round() / 1e3;
        write!(
            f,
            "{verdict}  {}: {measured} {}, limit {}",
            self.name, self.unit, self.limit
        )?;
        if self.detail.is_empty() {
            Ok(())
        } else {
            write!(f, " ({})", self.detail)
        }
    }
}

impl Report {
    /// A report that fails until something passes.
    #[must_use]
    pub fn new(scenario: &str) -> Self {
        Self {
            scenario: scenario.to_owned(),
            verdict: Verdict::Fail,
            hosts: Vec::new(),
            checks: Vec::new(),
            skipped: Vec::new(),
            adjustments: Vec::new(),
            figures: Vec::new(),
            error: None,
            hung_host: None,
        }
    }

    /// Judges the whole: `error` is why the scenario did not run to its end.
    pub fn finish(&mut self, error: Option<String>) {
        self.error = error;
        let good = self.error.is_none() && self.checks.iter().all(|check| check.pass);
        self.verdict = match (good, self.checks.is_empty(), self.skipped.is_empty()) {
            (true, false, _) => Verdict::Pass,
            (true, true, false) => Verdict::Skip,
            (false, ..) | (true, true, true) => Verdict::Fail,
        };
    }

    /// Writes `report.json` into the folder.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn save(&self, folder: &Path) -> Result<()> {
        let path = folder.join("report.json");
        let mut text = serde_json::to_string_pretty(self)?;
        text.push('\n');
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    }
}

/// Whole numbers without a point, so that a count reads as one; null for what is not a number.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn plain_number<S: Serializer>(number: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    if number.fract() == 0.0 && number.abs() < EXACT {
        #[expect(clippy::cast_possible_truncation, reason = "whole and below 2^53")]
        serializer.serialize_i64(*number as i64)
    } else {
        serializer.serialize_f64(*number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{json, to_value};

    #[test]
    fn limits_hold_at_their_ends_and_nowhere_beyond() {
        let cases = [
            (Limit::AtMost(10.0), 10.0, 10.001),
            (Limit::AtLeast(10.0), 10.0, 9.999),
            (Limit::Equals(4.0), 4.0, 3.0),
            (
                Limit::Range {
                    from: 45.0,
                    to: 55.0,
                },
                45.0,
                44.999,
            ),
            (
                Limit::Range {
                    from: 45.0,
                    to: 55.0,
                },
                55.0,
                55.001,
            ),
        ];
        for (limit, good, bad) in cases {
            assert!(limit.admits(good), "{limit} admits {good}");
            assert!(!limit.admits(bad), "{limit} admits {bad}");
            assert!(!limit.admits(f64::NAN), "{limit} admits what is no number");
        }
    }

    #[test]
    fn only_a_scenario_of_which_nothing_was_played_is_skipped() {
        let judge = |checks: &[f64], skipped: usize, error: Option<&str>| {
            let mut report = Report::new("any");
            let limit = Limit::Equals(0.0);
            let checks = checks.iter().map(|it| Check::new("it", *it, limit, ""));
            report.checks = checks.collect();
            let part = || Skipped {
                part: "a host".into(),
                reason: "there is none".into(),
            };
            report.skipped = std::iter::repeat_with(part).take(skipped).collect();
            report.finish(error.map(str::to_owned));
            report.verdict
        };
        assert_eq!(judge(&[], 1, None), Verdict::Skip);
        assert_eq!(judge(&[], 1, Some("no host")), Verdict::Fail);
        assert_eq!(judge(&[], 0, None), Verdict::Fail);
        assert_eq!(judge(&[0.0], 1, None), Verdict::Pass);
        assert_eq!(judge(&[1.0], 1, None), Verdict::Fail);
    }

    #[test]
    fn the_json_is_as_documented() {
        let mut report = Report::new("stolen-time");
        report.hosts.push(HostFacts {
            kernel: "6.12.1".into(),
            counter_frequency_hz: Some(25_000_000),
            vmm: Some("pvtime 0.1.0".into()),
        });
        let range = Limit::Range {
            from: 45.0,
            to: 55.0,
        };
        report
            .checks
            .push(Check::new("stolen_share_percent", 49.5, range, "%").with_detail("a"));
        report.checks.push(Check::new(
            "stolen_monotonic",
            0.0,
            Limit::Equals(0.0),
            "steps",
        ));
        report
            .checks
            .push(Check::new("broken_ms", f64::NAN, Limit::AtMost(10.0), "ms"));
        report.finish(None);
        let want = json!({
            "scenario": "stolen-time", "verdict": "fail", "adjustments": [], "figures": [],
            "hosts": [
                { "kernel": "6.12.1", "counter_frequency_hz": 25_000_000, "vmm": "pvtime 0.1.0" }
            ],
            "checks": [
                { "name": "stolen_share_percent", "measured": 49.5, "unit": "%", "pass": true,
                  "limit": { "from": 45, "to": 55 }, "detail": "a" },
                { "name": "stolen_monotonic", "measured": 0, "unit": "steps", "pass": true,
                  "limit": { "equals": 0 } },
                { "name": "broken_ms", "measured": null, "unit": "ms", "pass": false,
                  "limit": { "at_most": 10 } },
            ],
        });
        assert_eq!(to_value(&report).unwrap(), want);
    }

    #[test]
    fn a_report_passes_only_with_checks_that_all_pass_and_an_end() {
        let good = Check::new("x", 1.0, Limit::AtMost(1.0), "ms");
        let bad = Check::new("x", 2.0, Limit::AtMost(1.0), "ms");
        let verdict = |checks: &[&Check], error: Option<&str>| {
            let mut report = Report::new("x");
            report.checks = checks.iter().copied().cloned().collect();
            report.finish(error.map(str::to_owned));
            report.verdict
        };
        assert_eq!(verdict(&[&good], None), Verdict::Pass);
        assert_eq!(verdict(&[&good, &bad], None), Verdict::Fail);
        assert_eq!(verdict(&[&good], Some("interrupted")), Verdict::Fail);
        assert_eq!(verdict(&[], None), Verdict::Fail);
    }

    #[test]
    fn a_part_that_was_left_out_is_in_the_report_with_its_reason() {
        let mut report = Report::new("x");
        assert!(to_value(&report).unwrap().get("skipped").is_none());
        report.skipped.push(Skipped {
            part: "a host with a tail".into(),
            reason: "there is none".into(),
        });
        let want = json!([{ "part": "a host with a tail", "reason": "there is none" }]);
        assert_eq!(to_value(&report).unwrap()["skipped"], want);
        report.finish(None);
        assert_eq!(to_value(&report).unwrap()["verdict"], "skip");
    }

    #[test]
    fn a_check_reads_as_a_sentence() {
        let check = Check::new("idle_guest_stolen_ms", 51.23456, Limit::AtMost(50.0), "ms");
        assert_eq!(
            check.to_string(),
            "FAIL  idle_guest_stolen_ms: 51.235 ms, limit at most 50"
        );
        let check = Check::new("four_vcpu_smp", 4.0, Limit::Equals(4.0), "CPUs").with_detail("smp");
        assert_eq!(
            check.to_string(),
            "pass  four_vcpu_smp: 4 CPUs, limit exactly 4 (smp)"
        );
    }
}
