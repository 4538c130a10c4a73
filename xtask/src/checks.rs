//! Every check there is, in one list. What a person runs by name is what CI runs in full.

mod core;
mod lab;

use crate::process;
use crate::programs::{self, BARE_TARGET, TARGET};
use crate::setup::{self, Needs};
use crate::workspace::Workspace;
use anyhow::{Context, Result};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// How many single checks of a step passed, and what those say that did not.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tally {
    pub passed: usize,
    pub failures: Vec<String>,
}

/// One step of the list.
struct Check {
    name: &'static str,
    about: &'static str,
    run: fn(&Workspace) -> Result<Tally>,
}

/// Bare-metal libraries: they build without the standard library.
const BARE: [&str; 2] = ["--package=pvtime", "--package=guest-protocol"];

const CHECKS: &[Check] = &[
    Check {
        name: "set-up",
        about: "targets, emulator, kernel",
        run: |workspace| once(setup::prepare(workspace, Needs::Everything).map(drop)),
    },
    Check {
        name: "format",
        about: "cargo fmt",
        run: |workspace| cargo(workspace, &["fmt", "--all", "--check"]),
    },
    Check {
        name: "clippy",
        about: "lints, warnings denied",
        run: |workspace| clippy(workspace, &["--workspace", "--all-targets"]),
    },
    Check {
        name: "clippy-musl",
        about: "the same for the static arm64 programs",
        run: |workspace| clippy(workspace, &["--workspace", "--target", TARGET]),
    },
    Check {
        name: "clippy-bare",
        about: "the same for bare metal",
        run: |workspace| {
            let target = ["--target", BARE_TARGET];
            let libraries = [&BARE[..], &["--lib"], &target].concat();
            let images = [
                &["--package=guest-el1", "--package=lab-firmware"][..],
                &target,
            ]
            .concat();
            clippy(workspace, &libraries)?;
            clippy(workspace, &images)
        },
    },
    Check {
        name: "tests",
        about: "unit, property and documentation tests",
        run: |workspace| cargo(workspace, &["test", "--workspace", "--quiet"]),
    },
    Check {
        name: "documentation",
        about: "rustdoc, warnings denied",
        run: documentation,
    },
    Check {
        name: "headers",
        about: "structures and constants against the kernel's headers",
        run: core::headers,
    },
    Check {
        name: "loom",
        about: "the sequence protocol in every order of its accesses",
        run: core::loom,
    },
    Check {
        name: "miri",
        about: "the same on weak memory, and the unsafe code under it",
        run: core::miri,
    },
    Check {
        name: "size",
        about: "the guest half without an operating system",
        run: core::size,
    },
    Check {
        name: "fuzz",
        about: "some seconds of each fuzz target",
        run: core::fuzz,
    },
    Check {
        name: "programs",
        about: "the lab and the programs for its hosts",
        run: |workspace| {
            programs::build_lab(workspace)?;
            once(programs::build_for_hosts(workspace))
        },
    },
    Check {
        name: "lab",
        about: "every scenario; those that must fail do",
        run: lab::run,
    },
];

/// Runs the checks of these names, or all, and tells at the end how each went.
pub fn run(workspace: &Workspace, names: &[String]) -> Result<ExitCode> {
    let chosen = choose(names)?;
    let (mut rows, mut failures) = (Vec::new(), Vec::new());
    for (index, check) in chosen.iter().enumerate() {
        println!(
            "==> {}/{} {}: {}",
            index + 1,
            chosen.len(),
            check.name,
            check.about
        );
        let start = Instant::now();
        let tally = (check.run)(workspace).unwrap_or_else(|error| Tally {
            passed: 0,
            failures: vec![format!("{error:#}")],
        });
        // Here, among what its program printed, and once more at the end.
        for failure in &tally.failures {
            let line = format!("{} failed: {failure}", check.name);
            println!("{line}");
            failures.push(line);
        }
        rows.push((check.name, tally, start.elapsed()));
    }
    println!();
    for (name, tally, time) in &rows {
        println!("{}", row(name, tally, *time));
    }
    if !failures.is_empty() {
        println!("\n{}", failures.join("\n"));
    }
    let passed: usize = rows.iter().map(|(_, tally, _)| tally.passed).sum();
    println!("\n{passed} passed, {} failed", failures.len());
    Ok(if failures.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn choose(names: &[String]) -> Result<Vec<&'static Check>> {
    if names.is_empty() {
        return Ok(CHECKS.iter().collect());
    }
    let find = |name: &String| {
        let found = CHECKS.iter().find(|check| check.name == name);
        let known: Vec<_> = CHECKS.iter().map(|check| check.name).collect();
        found.with_context(|| {
            format!(
                "no check is called {name:?}; there are {}",
                known.join(", ")
            )
        })
    };
    names.iter().map(find).collect()
}

fn row(name: &str, tally: &Tally, time: Duration) -> String {
    let (passed, failed) = (tally.passed, tally.failures.len());
    let verdict = if failed == 0 { "ok" } else { "FAILED" };
    let seconds = time.as_secs_f64();
    format!(
        "{verdict:7}{name:16}{seconds:7.1} s   {passed} of {} passed",
        passed + failed
    )
}

/// A step that is one check.
fn once(result: Result<()>) -> Result<Tally> {
    result.map(|()| Tally {
        passed: 1,
        failures: Vec::new(),
    })
}

fn cargo(workspace: &Workspace, arguments: &[&str]) -> Result<Tally> {
    once(process::run(&mut workspace.cargo(arguments)))
}

fn clippy(workspace: &Workspace, what: &[&str]) -> Result<Tally> {
    let arguments = [&["clippy", "--quiet"], what, &["--", "-Dwarnings"]].concat();
    cargo(workspace, &arguments)
}

fn documentation(workspace: &Workspace) -> Result<Tally> {
    // For the target that has everything: what issues ioctls is there for arm64 only.
    let mut command = workspace.cargo(&["doc", "--workspace", "--no-deps", "--quiet"]);
    command.args(["--target", TARGET]);
    once(process::run(command.env("RUSTDOCFLAGS", "-Dwarnings")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_choose_in_their_order_and_an_unknown_one_lists_the_known() {
        let chosen = choose(&["lab".into(), "format".into()]).unwrap();
        assert_eq!(
            chosen.iter().map(|check| check.name).collect::<Vec<_>>(),
            ["lab", "format"]
        );
        assert_eq!(choose(&[]).unwrap().len(), CHECKS.len());
        let error = choose(&["formatting".into()]).err().unwrap().to_string();
        assert!(
            error.contains("formatting") && error.contains("clippy-musl"),
            "{error}"
        );
    }

    #[test]
    fn a_row_shows_verdict_time_and_counts() {
        let row = row(
            "lab",
            &Tally {
                passed: 11,
                failures: vec!["gap_ms: 21".into()],
            },
            Duration::from_millis(93_400),
        );
        assert_eq!(row, "FAILED lab                93.4 s   11 of 12 passed");
    }
}
