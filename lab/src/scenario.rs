//! Scenarios: lists of actions, and the checks that follow each.

use crate::assets::Assets;
use crate::host::Host;
use crate::interrupt;
use crate::machine::HostSpec;
use crate::progress::Progress;
use crate::report::{Check, HostFacts, Report};
use anyhow::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A scenario that can be run by its name.
pub struct Scenario {
    /// Name, as on the command line.
    pub name: &'static str,
    /// What it shows, in one line.
    pub about: &'static str,
    /// Its reason to fail, for a scenario that must.
    pub must_fail: Option<&'static str>,
    /// Plays its steps on a stage.
    pub play: fn(&mut Stage) -> Result<()>,
}

/// One action, and the checks on what it left behind.
pub struct Step<S> {
    /// What it does, as a command: "start two busy guests".
    pub name: &'static str,
    /// Does it.
    pub act: fn(&mut S, &mut Stage) -> Result<()>,
    /// Judges the scene after it.
    pub checks: fn(&S) -> Vec<Check>,
}

/// For a step whose success is all there is to check.
#[must_use]
pub fn no_checks<S>(_: &S) -> Vec<Check> {
    Vec::new()
}

/// Where a scenario plays: it makes hosts, keeps the report and says what goes on.
pub struct Stage<'a> {
    /// What hosts and guests are made of.
    pub assets: &'a Assets,
    /// Folder for everything that is written.
    pub logs: PathBuf,
    /// Report so far.
    pub report: Report,
    /// What the kernels of emulated hosts print.
    consoles: Vec<PathBuf>,
    progress: Progress,
}

impl Stage<'_> {
    /// Starts a host, and enters it into the report.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn boot(&mut self, spec: &HostSpec) -> Result<Host> {
        let mut host = Host::boot(spec, self.assets, &self.logs)?;
        if host.is_emulated() {
            self.consoles.push(host.console());
        }
        let vmm = match host.path_of("pvtime") {
            Ok(pvtime) => Some(host.version_of(&pvtime)?),
            Err(_) => None,
        };
        let facts = host.facts();
        self.report.hosts.push(HostFacts {
            kernel: facts.kernel.clone(),
            counter_frequency_hz: facts.counter_frequency_hz,
            vmm,
        });
        Ok(host)
    }

    /// Time since the scenario began.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.progress.elapsed()
    }

    /// Says what is being done within a step.
    pub fn step(&self, name: &str) {
        self.progress.step(name);
    }

    /// Leaves the terminal to something else until the next step.
    pub fn pause_progress(&self) {
        self.progress.pause();
    }

    /// Leaves a line on what goes on.
    pub fn note(&self, text: &str) {
        self.progress.note(text);
    }

    /// Does each step and its checks. A failed check does not end the scenario, a failed action does.
    ///
    /// # Errors
    /// The first action's that fails.
    pub fn play<S>(&mut self, mut scene: S, steps: &[Step<S>]) -> Result<()> {
        for step in steps {
            interrupt::check()?;
            self.progress.step(step.name);
            (step.act)(&mut scene, self).with_context(|| format!("could not {}", step.name))?;
            for check in (step.checks)(&scene) {
                self.report.checks.push(check);
            }
        }
        Ok(())
    }
}

impl Scenario {
    /// Runs the scenario, with its logs and report in a folder of its name under `logs`.
    ///
    /// It is run once more where an emulated host hung, whose kernel says then that one of its CPUs
    /// takes no interrupt any more: nothing is known of the guests of such a run. Its logs stay beside
    /// those of the other, whose report says so.
    ///
    /// # Errors
    /// When the folder or the report cannot be written; all else is in the report.
    pub fn run(&self, assets: &Assets, logs: &Path) -> Result<Report> {
        let (report, hung_host) = self.run_once(assets, logs, None)?;
        let Some(said) = hung_host else {
            return Ok(report);
        };
        eprintln!("{}: an emulated host hung ({said}); once more", self.name);
        let hung = logs.join(format!("{}-hung", self.name));
        if hung.exists() {
            fs::remove_dir_all(&hung)
                .with_context(|| format!("cannot empty {}", hung.display()))?;
        }
        fs::rename(logs.join(self.name), &hung)
            .with_context(|| format!("cannot make {}", hung.display()))?;
        Ok(self.run_once(assets, logs, Some(said))?.0)
    }

    /// The report, and what a host said that hung, where that ended the run.
    fn run_once(
        &self,
        assets: &Assets,
        logs: &Path,
        hung_before: Option<String>,
    ) -> Result<(Report, Option<String>)> {
        let logs = logs.join(self.name);
        if logs.exists() {
            fs::remove_dir_all(&logs)
                .with_context(|| format!("cannot empty {}", logs.display()))?;
        }
        fs::create_dir_all(&logs).with_context(|| format!("cannot make {}", logs.display()))?;
        let mut stage = Stage {
            assets,
            logs: std::path::absolute(logs)?,
            report: Report {
                hung_host: hung_before,
                ..Report::new(self.name)
            },
            consoles: Vec::new(),
            progress: Progress::new(self.name),
        };
        let played = (self.play)(&mut stage);
        let hung_host = match &played {
            Ok(()) => None,
            Err(_) => stage.consoles.iter().find_map(|console| lockup(console)),
        };
        stage
            .report
            .finish(played.err().map(|error| format!("{error:#}")));
        stage.report.save(&stage.logs)?;
        Ok((stage.report, hung_host))
    }
}

/// The line in which a kernel says that one of its CPUs takes no interrupt any more.
fn lockup(console: &Path) -> Option<String> {
    let text = fs::read(console).ok()?;
    let text = String::from_utf8_lossy(&text);
    let line = text.lines().find(|line| line.contains("hard LOCKUP"))?;
    Some(line.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::Place;
    use crate::report::{Limit, Verdict};
    use anyhow::bail;

    fn assets() -> Assets {
        Assets {
            host_kernel: "absent".into(),
            guest_kernel: "absent".into(),
            key_kernel: None,
            userland: None,
            programs: "absent".into(),
            qemu: "absent".into(),
            qemu_ecv: None,
            peer: None,
            place: Place::Emulated,
        }
    }

    fn folder(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("lab-{name}-{}", std::process::id()))
    }

    fn count(name: &'static str, measured: f64) -> Vec<Check> {
        vec![Check::new(name, measured, Limit::AtMost(1.0), "steps")]
    }

    #[test]
    fn checks_follow_their_action_and_a_failed_one_does_not_end_the_scenario() {
        let scenario = Scenario {
            name: "steps",
            about: "",
            must_fail: None,
            play: |stage| {
                let act = |count: &mut f64, _: &mut Stage| {
                    *count += 1.0;
                    Ok(())
                };
                stage.play(
                    0.0,
                    &[
                        Step {
                            name: "count",
                            act,
                            checks: |n| count("first", *n),
                        },
                        Step {
                            name: "count on",
                            act,
                            checks: |n| count("second", *n),
                        },
                        Step {
                            name: "count further",
                            act,
                            checks: no_checks,
                        },
                    ],
                )
            },
        };
        let logs = folder("steps");
        let report = scenario.run(&assets(), &logs).unwrap();
        let passes: Vec<_> = report
            .checks
            .iter()
            .map(|check| (check.name, check.pass))
            .collect();
        assert_eq!(passes, [("first", true), ("second", false)]);
        assert_eq!((report.verdict, report.error), (Verdict::Fail, None));
        let saved = fs::read_to_string(logs.join("steps/report.json")).unwrap();
        assert!(saved.contains("\"verdict\": \"fail\""), "{saved}");
        fs::remove_dir_all(logs).unwrap();
    }

    /// Writes a host's console that says so, and fails the first time.
    fn hang(stage: &mut Stage, said: &str) -> Result<()> {
        let console = stage.logs.join("host-console.log");
        fs::write(&console, format!("[ 1.0] boots\n[ 9.0] {said}\n"))?;
        stage.consoles.push(console);
        stage.report.checks.extend(count("a", 0.0));
        match stage.report.hung_host {
            None => bail!("no answer"),
            Some(_) => Ok(()),
        }
    }

    #[test]
    fn a_scenario_whose_emulated_host_hung_is_run_once_more() {
        let scenario = |play| Scenario {
            name: "hangs",
            about: "",
            must_fail: None,
            play,
        };
        let logs = folder("hangs");
        let hung = scenario(|stage| hang(stage, "watchdog: hard LOCKUP on cpu 0"));
        let report = hung.run(&assets(), &logs).unwrap();
        assert_eq!(report.verdict, Verdict::Pass);
        let said = report.hung_host.as_deref();
        assert_eq!(said, Some("[ 9.0] watchdog: hard LOCKUP on cpu 0"));
        let before = fs::read_to_string(logs.join("hangs-hung/report.json")).unwrap();
        assert!(before.contains("no answer"), "{before}");

        let other = scenario(|stage| hang(stage, "soft lockup"));
        let report = other.run(&assets(), &logs).unwrap();
        assert_eq!(report.error.as_deref(), Some("no answer"));
        assert_eq!((report.verdict, report.hung_host), (Verdict::Fail, None));
        fs::remove_dir_all(logs).unwrap();
    }

    #[test]
    fn a_failed_action_ends_the_scenario_and_is_named() {
        let scenario = Scenario {
            name: "stops",
            about: "",
            must_fail: None,
            play: |stage| {
                stage.play(
                    (),
                    &[
                        Step {
                            name: "begin",
                            act: |(), _| Ok(()),
                            checks: |()| count("a", 0.0),
                        },
                        Step {
                            name: "go on",
                            act: |(), _| bail!("no road"),
                            checks: no_checks,
                        },
                        Step {
                            name: "end",
                            act: |(), _| Ok(()),
                            checks: |()| count("b", 0.0),
                        },
                    ],
                )
            },
        };
        let logs = folder("stops");
        let report = scenario.run(&assets(), &logs).unwrap();
        assert_eq!(report.checks.len(), 1);
        assert_eq!(report.verdict, Verdict::Fail);
        assert_eq!(report.error.as_deref(), Some("could not go on: no road"));
        fs::remove_dir_all(logs).unwrap();
    }
}
