//! Rust targets.

use super::say;
use crate::process;
use crate::programs::{BARE_TARGET, TARGET};
use anyhow::{Context, Result};
use std::process::Command;

/// Targets of the programs for the lab.
pub const FOR_LAB: [&str; 2] = [TARGET, BARE_TARGET];

/// Targets of all that is checked.
pub const ALL: [&str; 2] = FOR_LAB;

/// Installs the targets that the toolchain lacks.
pub fn install(targets: &[&str]) -> Result<()> {
    let missing = missing(targets)?;
    if missing.is_empty() {
        return Ok(());
    }
    say(&format!(
        "installing the Rust targets {} with rustup",
        missing.join(", ")
    ));
    let mut command = Command::new("rustup");
    process::run(command.args(["target", "add"]).args(&missing))
        .context("cannot install Rust targets; install them as your toolchain has it")
}

fn missing<'a>(targets: &[&'a str]) -> Result<Vec<&'a str>> {
    let mut missing = Vec::new();
    for &target in targets {
        let mut command = Command::new("rustc");
        let folder =
            process::output(command.args(["--print", "target-libdir", "--target", target]))?;
        // The folder is named for every target, and exists for those that are installed.
        if !std::path::Path::new(folder.trim()).exists() {
            missing.push(target);
        }
    }
    Ok(missing)
}
