//! What the core crate is checked with beside its tests.

use super::{Tally, once};
use crate::process;
use crate::programs::BARE_TARGET;
use crate::setup;
use crate::workspace::Workspace;
use anyhow::{Context, Result};
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// Compares structures and constants with the headers of a kernel.
pub fn headers(workspace: &Workspace) -> Result<Tally> {
    let headers = setup::prepare_headers(workspace)?;
    let mut command = workspace.cargo(&["run", "--quiet", "--package=header-check", "--"]);
    once(process::run(command.arg("--headers").arg(headers)))
}

/// Runs the sequence protocol in every order of its accesses.
pub fn loom(workspace: &Workspace) -> Result<Tally> {
    let mut command = workspace.cargo(&["test", "--quiet", "--package=pvtime", "--lib", "loom"]);
    command
        .args(["--release", "--target-dir"])
        .arg(workspace.target.join("loom"));
    once(process::run(command.env("RUSTFLAGS", "--cfg loom")))
}

/// Runs threads on the sequence protocol under Miri, with several schedules; more by hand.
pub fn miri(workspace: &Workspace) -> Result<Tally> {
    let nightly = setup::prepare_nightly()?;
    let mut command = workspace.cargo_of(nightly, &["miri", "test", "--quiet", "--package=pvtime"]);
    command.args(["--lib", "--", "l12_threads", "seqlock::mapped"]);
    once(process::run(
        command.env("MIRIFLAGS", "-Zmiri-many-seeds=0..8"),
    ))
}

/// How long each fuzz target runs, in s; fuzz/README.md has what longer runs found.
const FUZZING: u32 = 5;
/// How many run at once.
const AT_ONCE: usize = 2;

/// Runs each fuzz target for a moment, on the corpus that earlier runs of this machine left.
pub fn fuzz(workspace: &Workspace) -> Result<Tally> {
    setup::prepare_fuzzing()?;
    let folder = workspace.root.join("fuzz");
    let target = workspace.target.join("fuzz");
    let platform = platform()?;
    let mut build = workspace.cargo(&["build", "--quiet", "--release", "--target", &platform]);
    // The folder has a configuration of its own, with the instrumentation.
    process::run(build.arg("--target-dir").arg(&target).current_dir(&folder))?;
    let names = targets(&folder.join("fuzz_targets"))?;
    let mut tally = Tally::default();
    // Each has one thread.
    for some in names.chunks(AT_ONCE) {
        let running = some.iter().map(|name| start(name, &target, &platform));
        for (name, fuzzer) in some.iter().zip(running.collect::<Result<Vec<_>>>()?) {
            let output = fuzzer.wait_with_output()?;
            let said = String::from_utf8_lossy(&output.stderr);
            println!("{name}: {}", said.lines().last().unwrap_or_default());
            if output.status.success() {
                tally.passed += 1;
            } else {
                println!("{said}");
                tally.failures.push(name.clone());
            }
        }
    }
    Ok(tally)
}

fn start(name: &str, target: &Path, platform: &str) -> Result<Child> {
    let (corpus, artifacts) = (target.join("corpus").join(name), target.join("artifacts"));
    fs::create_dir_all(&corpus)?;
    fs::create_dir_all(&artifacts)?;
    let mut run = Command::new(target.join(platform).join("release").join(name));
    run.arg(format!("-max_total_time={FUZZING}"));
    run.arg(format!("-artifact_prefix={}/{name}-", artifacts.display()));
    run.arg(&corpus)
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    run.spawn().with_context(|| format!("cannot start {name}"))
}

/// The names of the fuzz targets: the files there that have an entry.
fn targets(folder: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if fs::read_to_string(&path)?.contains("fuzz_target!") {
            let name = path.file_stem().context("a target without a name")?;
            names.push(name.to_string_lossy().into_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// The platform that this machine's compiler builds for.
fn platform() -> Result<String> {
    let version = process::output(Command::new("rustc").arg("-vV"))?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host
        .context("rustc does not say what it builds for")?
        .to_owned())
}

/// Measures the guest half in a program without an operating system.
pub fn size(workspace: &Workspace) -> Result<Tally> {
    let bare = [
        "--package=guest-size",
        "--profile=lab",
        "--target",
        BARE_TARGET,
    ];
    process::run(workspace.cargo(&["build", "--quiet"]).args(bare))?;
    let program = workspace.target.join(BARE_TARGET).join("lab/guest-size");
    let mut measure = workspace.cargo(&["run", "--quiet", "--package=guest-size", "--"]);
    once(process::run(measure.arg(program)))
}
