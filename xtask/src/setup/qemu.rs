//! The emulator.

use super::say;
use crate::process;
use anyhow::{Context, Result, bail};
use rustix::process::geteuid;
use std::env::{split_paths, var_os};
use std::process::{Command, Stdio};

const PROGRAM: &str = "qemu-system-aarch64";
const PACKAGE: &str = "qemu-system-arm";

/// Installs QEMU where it is missing.
pub fn install() -> Result<()> {
    if var_os("PVTIME_LAB_QEMU").is_some() || is_in_path(PROGRAM) {
        return Ok(());
    }
    let by_hand = format!("apt-get install --no-install-recommends {PACKAGE}");
    if !is_in_path("apt-get") {
        bail!("there is no {PROGRAM}: install it, or name one with PVTIME_LAB_QEMU");
    }
    if !geteuid().is_root() {
        bail!("there is no {PROGRAM}, and only root can install it: run `sudo {by_hand}`");
    }
    say(&format!(
        "installing the Debian package {PACKAGE} with apt-get"
    ));
    if install_package().is_err() {
        say("the package lists may be old: running apt-get update");
        if let Err(error) = process::run(&mut apt_get(&["update"])) {
            // A source that this package does not come from may well be out of reach.
            say(&format!("going on after {error:#}"));
        }
        install_package().with_context(|| format!("install QEMU by hand: `{by_hand}`"))?;
    }
    Ok(())
}

fn install_package() -> Result<()> {
    let options = [
        "install",
        "--yes",
        "--quiet",
        "--no-install-recommends",
        PACKAGE,
    ];
    process::run(&mut apt_get(&options))
}

fn apt_get(arguments: &[&str]) -> Command {
    let mut command = Command::new("apt-get");
    command
        .env("DEBIAN_FRONTEND", "noninteractive")
        .args(arguments)
        .stdin(Stdio::null());
    command
}

fn is_in_path(program: &str) -> bool {
    let folders = var_os("PATH").unwrap_or_default();
    split_paths(&folders).any(|folder| folder.join(program).is_file())
}
