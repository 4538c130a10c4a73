//! The main job, shown to a person: where the time of three guests went, by three accounts.

use super::own_figure::{self, Paused};
use super::three_guests::ThreeGuests;
use super::watch::Watch;
use crate::report::{Check, Report, Verdict};
use crate::scenario::{Scenario, Stage, Step, no_checks};
use anyhow::{Context, Result};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use std::io::{IsTerminal, stderr};
use std::path::Path;
use std::time::Duration;

/// Not in the list: it is there to be looked at.
pub const SCENARIO: Scenario = Scenario {
    name: "demo",
    about: "two busy guests share a host CPU, a third one idles, one is paused; where time went",
    must_fail: None,
    play,
};

/// How long the table is shown.
const SHOWN: Duration = Duration::from_secs(15);

/// The guest that is paused.
const PAUSED: &str = "busy-1";

/// After this long, a machine is too slow to watch twice and end in two minutes.
const RUSH: Duration = Duration::from_secs(70);

/// What is about to be seen.
pub const EXPLANATION: &str = "\
Three Debian Linux guests under KVM, each with one vCPU. busy-1 and busy-2 compute without end and
share one CPU of the host; idle has another CPU for itself. A busy guest gets half of the CPU. The
rest of its time is stolen, and pvtime tells the guest so, in a structure in guest memory.
Each row has the stolen time by three accounts, which should agree: run delay of the vCPU's thread,
from the host's scheduler; the structure; and steal in the guest's own /proc/stat (steps of 10 ms).
Then busy-1 is paused for 3 s with its counters frozen, and what it reads itself is drawn.
";

#[derive(Default)]
struct Scene {
    three: Option<ThreeGuests>,
    paused: Option<Paused>,
}

impl Scene {
    fn three(&mut self) -> Result<&mut ThreeGuests> {
        self.three.as_mut().context("the guests were not started")
    }
}

fn play(stage: &mut Stage) -> Result<()> {
    let checks = |scene: &Scene| {
        scene
            .three
            .as_ref()
            .map(ThreeGuests::check_watched)
            .unwrap_or_default()
    };
    stage.play(
        Scene::default(),
        &[
            Step {
                name: "boot two busy guests and an idle one on a host",
                act: |scene, stage| {
                    scene.three = Some(ThreeGuests::start(stage)?);
                    Ok(())
                },
                checks: no_checks,
            },
            Step {
                name: "watch the guests",
                act: watch,
                checks,
            },
            Step {
                name: "pause a busy guest for 3 s and draw what it reads",
                act: pause,
                checks: |scene| scene.paused.iter().map(Paused::check).collect(),
            },
            Step {
                name: "let the guests rest and compare their own figures",
                act: |scene, stage| scene.three()?.compare(stage),
                checks: |scene| {
                    scene
                        .three
                        .iter()
                        .map(ThreeGuests::check_compared)
                        .collect()
                },
            },
            Step {
                name: "power the host off",
                act: |scene, _| scene.three.take().context("no guests")?.host.power_off(),
                checks: no_checks,
            },
        ],
    )
}

fn pause(scene: &mut Scene, stage: &mut Stage) -> Result<()> {
    let (guest, host) = scene.three()?.first()?;
    scene.paused = Some(Paused::make(guest, host, stage)?);
    Ok(())
}

fn watch(scene: &mut Scene, stage: &mut Stage) -> Result<()> {
    let three = scene.three()?;
    stage.pause_progress();
    let mut table = Table::new();
    let attempts = if stage.elapsed() < RUSH { 2 } else { 1 };
    three.watch(SHOWN, attempts, stage, |watches| table.show(watches))
}

/// The live table: redrawn in place on a terminal, printed anew now and then elsewhere.
struct Table {
    lines: Option<Vec<ProgressBar>>,
    /// Keeps the lines together on the terminal.
    _together: MultiProgress,
    shown: usize,
}

/// Elsewhere than on a terminal, one table in so many is printed.
const PRINT_EACH: usize = 8;

const HEAD: &str = "guest   vCPU   physical s   run delay s   structure s   /proc/stat s   stolen";

impl Table {
    fn new() -> Self {
        let together = MultiProgress::new();
        let line = |_| {
            let style = ProgressStyle::with_template("{msg}");
            let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
            together.add(ProgressBar::new(0).with_style(style))
        };
        // A head and three guests.
        let lines = stderr().is_terminal().then(|| (0..4).map(line).collect());
        Self {
            lines,
            _together: together,
            shown: 0,
        }
    }

    fn show(&mut self, watches: &[Watch]) {
        let rows = std::iter::once(HEAD.to_owned()).chain(watches.iter().map(row));
        match &self.lines {
            Some(lines) => {
                for (line, row) in lines.iter().zip(rows) {
                    line.set_message(row);
                }
            }
            None if self.shown.is_multiple_of(PRINT_EACH) => {
                rows.for_each(|row| eprintln!("{row}"));
            }
            None => {}
        }
        self.shown += 1;
    }
}

impl Drop for Table {
    fn drop(&mut self) {
        for line in self.lines.iter().flatten() {
            line.abandon();
        }
    }
}

/// One vCPU: everything since the table began.
fn row(watch: &Watch) -> String {
    let own = watch
        .own_ms()
        .map_or("-".to_owned(), |ms| format!("{:.2}", ms / 1e3));
    let share = watch.stolen_share_percent();
    let share = if share.is_finite() {
        format!("{share:.1} %")
    } else {
        "-".to_owned()
    };
    format!(
        "{:8}{:>4}{:13.3}{:14.3}{:14.3}{own:>15}{share:>9}",
        watch.name,
        0,
        watch.physical_ms() / 1e3,
        watch.run_delay_ms() / 1e3,
        watch.stolen_ms() / 1e3,
    )
}

/// What was seen, in one sentence.
#[must_use]
pub fn sentence(report: &Report) -> String {
    if let Some(error) = &report.error {
        return format!("The demonstration did not come to its end: {error}");
    }
    if report.verdict == Verdict::Fail {
        let failed = report.checks.iter().filter(|check| !check.pass);
        let figures: Vec<_> = failed.map(figure).collect();
        return format!("The figures disagree: {}.", figures.join("; "));
    }
    let of = |name: &str| {
        let found = report.checks.iter().filter(|check| check.name == name);
        found.map(|check| check.measured).collect::<Vec<_>>()
    };
    let shares: Vec<_> = of("stolen_share_percent")
        .iter()
        .map(|share| format!("{share:.1} %"))
        .collect();
    let one = |name| of(name).first().copied().unwrap_or(f64::NAN);
    format!(
        "The busy guests lost {} of their time and the idle one {:.0} ms of it; the structures were \
         within {:.1} ms of the host's scheduler, and the guests' own figures within {:.0} ms of the \
         structures. Over its pause the counter of {PAUSED} moved by {} ticks.",
        shares.join(" and "),
        one("idle_guest_stolen_ms"),
        one("structure_vs_run_delay_ms"),
        one("proc_stat_vs_structure_ms"),
        one("frozen_ticks"),
    )
}

/// What the figure shows, and where it is; none where there is none.
#[must_use]
pub fn on_the_figure(report: &Report, folder: &Path) -> Option<String> {
    let file = own_figure::file(PAUSED);
    let file = report.figures.iter().find(|it| **it == file)?;
    Some(format!(
        "What {PAUSED} read itself is drawn in {}, for any browser. Physical time is the thin line. \
         Live physical time, the dashes, is the guest's own counter: over the pause, which is \
         striped, it stands still. Virtual time, the thick dots, is that less what was stolen from \
         the guest by its own account: it rises half as fast wherever the ground is dotted, which is \
         wherever busy-2 had its share of the CPU. What pvtime itself measured of each guest's whole \
         life is in the other figures there.",
        folder.join(file).display()
    ))
}

fn figure(check: &Check) -> String {
    let Check {
        name,
        measured,
        unit,
        limit,
        ..
    } = check;
    format!("{name} is {measured:.1} {unit}, and should be {limit}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Limit;

    fn report(idle_ms: f64) -> Report {
        let mut report = Report::new("demo");
        let share = Limit::Range {
            from: 45.0,
            to: 55.0,
        };
        report.checks = vec![
            Check::new("stolen_share_percent", 49.96, share, "%"),
            Check::new("stolen_share_percent", 50.1, share, "%"),
            Check::new("structure_vs_run_delay_ms", 0.25, Limit::AtMost(10.0), "ms"),
            Check::new("idle_guest_stolen_ms", idle_ms, Limit::AtMost(50.0), "ms"),
            Check::new("frozen_ticks", 0.0, Limit::Equals(0.0), "ticks"),
            Check::new("proc_stat_vs_structure_ms", 7.4, Limit::AtMost(20.0), "ms"),
        ];
        report
    }

    #[test]
    fn the_sentence_says_what_was_seen() {
        let mut report = report(3.2);
        report.finish(None);
        assert_eq!(
            sentence(&report),
            "The busy guests lost 50.0 % and 50.1 % of their time and the idle one 3 ms of it; the \
             structures were within 0.2 ms of the host's scheduler, and the guests' own figures \
             within 7 ms of the structures. Over its pause the counter of busy-1 moved by 0 ticks."
        );
    }

    #[test]
    fn the_sentence_says_what_disagrees_and_what_went_wrong() {
        let mut report = report(70.0);
        report.finish(None);
        assert_eq!(
            sentence(&report),
            "The figures disagree: idle_guest_stolen_ms is 70.0 ms, and should be at most 50."
        );
        report.finish(Some("no host".into()));
        assert_eq!(
            sentence(&report),
            "The demonstration did not come to its end: no host"
        );
    }

    #[test]
    fn the_figure_is_explained_where_there_is_one() {
        let mut report = report(3.2);
        let explained = |report: &Report| on_the_figure(report, Path::new("logs"));
        assert_eq!(explained(&report), None);
        report.figures.push("figure-busy-1.svg".into());
        assert_eq!(explained(&report), None);
        report.figures.push("figure-busy-1-itself.svg".into());
        let text = explained(&report).unwrap();
        assert!(text.contains("logs/figure-busy-1-itself.svg,"), "{text}");
    }

    #[test]
    fn a_row_is_as_wide_as_its_head() {
        assert_eq!(row(&Watch::new("busy-1")).len(), HEAD.len());
    }
}
