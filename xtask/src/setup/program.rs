//! Programs from Debian's packages.

use super::say;
use crate::process;
use anyhow::{Context, Result, bail};
use rustix::process::geteuid;
use std::env::{split_paths, var_os};
use std::process::{Command, Stdio};

/// A program that a task needs.
pub struct Program {
    name: &'static str,
    package: &'static str,
    /// What names another one in its place.
    variable: Option<&'static str>,
}

/// The emulator of hosts.
pub const QEMU: Program = Program {
    name: "qemu-system-aarch64",
    package: "qemu-system-arm",
    variable: Some("PVTIME_LAB_QEMU"),
};

/// What compiles libFuzzer.
pub const CXX: Program = Program {
    name: "g++",
    package: "g++",
    variable: Some("CXX"),
};

impl Program {
    /// Installs the program where it is missing.
    pub fn install(&self) -> Result<()> {
        let Self {
            name,
            package,
            variable,
        } = self;
        if variable.is_some_and(|it| var_os(it).is_some()) || is_in_path(name) {
            return Ok(());
        }
        let by_hand = format!("apt-get install --no-install-recommends {package}");
        if !is_in_path("apt-get") {
            let or = variable
                .map(|it| format!(", or name one with {it}"))
                .unwrap_or_default();
            bail!("there is no {name}: install it{or}");
        }
        if !geteuid().is_root() {
            bail!("there is no {name}, and only root can install it: run `sudo {by_hand}`");
        }
        say(&format!(
            "installing the Debian package {package} with apt-get"
        ));
        if self.install_package().is_err() {
            say("the package lists may be old: running apt-get update");
            if let Err(error) = process::run(&mut apt_get(&["update"])) {
                // A source that this package does not come from may well be out of reach.
                say(&format!("going on after {error:#}"));
            }
            let installed = self.install_package();
            installed.with_context(|| format!("install {name} by hand: `{by_hand}`"))?;
        }
        Ok(())
    }

    fn install_package(&self) -> Result<()> {
        let options = [
            "install",
            "--yes",
            "--quiet",
            "--no-install-recommends",
            self.package,
        ];
        process::run(&mut apt_get(&options))
    }
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
