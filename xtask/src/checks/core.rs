//! What the core crate is checked with beside its tests.

use super::{Count, once};
use crate::process;
use crate::setup;
use crate::workspace::Workspace;
use anyhow::Result;

const BARE_METAL: &str = "aarch64-unknown-none";

/// Compares structures and constants with the headers of a kernel.
pub fn headers(workspace: &Workspace) -> Result<Count> {
    let headers = setup::prepare_headers(workspace)?;
    let mut command = workspace.cargo(&["run", "--quiet", "--package=header-check", "--"]);
    once(process::run(command.arg("--headers").arg(headers)))
}

/// Runs the sequence protocol in every order of its accesses.
pub fn loom(workspace: &Workspace) -> Result<Count> {
    let mut command = workspace.cargo(&["test", "--quiet", "--package=pvtime", "--lib", "loom"]);
    command
        .args(["--release", "--target-dir"])
        .arg(workspace.target.join("loom"));
    once(process::run(command.env("RUSTFLAGS", "--cfg loom")))
}

/// Runs threads on the sequence protocol under Miri, with many schedules.
pub fn miri(workspace: &Workspace) -> Result<Count> {
    let nightly = setup::prepare_nightly()?;
    let mut command = workspace.cargo_of(nightly, &["miri", "test", "--quiet", "--package=pvtime"]);
    command.args(["--lib", "--", "l12_threads", "seqlock::mapped"]);
    once(process::run(
        command.env("MIRIFLAGS", "-Zmiri-many-seeds=0..64"),
    ))
}

/// Measures the guest half in a program without an operating system.
pub fn size(workspace: &Workspace) -> Result<Count> {
    let bare = [
        "--package=guest-size",
        "--profile=lab",
        "--target",
        BARE_METAL,
    ];
    process::run(workspace.cargo(&["build", "--quiet"]).args(bare))?;
    let program = workspace.target.join(BARE_METAL).join("lab/guest-size");
    let mut measure = workspace.cargo(&["run", "--quiet", "--package=guest-size", "--"]);
    once(process::run(measure.arg(program)))
}
