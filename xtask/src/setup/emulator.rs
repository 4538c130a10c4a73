//! An emulator of hosts that have `FEAT_ECV`: this machine's QEMU, or the one of Debian's backports.

use super::apt::{Apt, machine_sources};
use super::kernel::{codename, numbers_of};
use super::{say, sources};
use crate::process;
use crate::workspace::Workspace;
use anyhow::{Context, Result, bail};
use std::env::var_os;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const OVERRIDE: &str = "PVTIME_LAB_QEMU_ECV";
const PACKAGE: &str = "qemu-system-arm";
const PROGRAM: &str = "qemu-system-aarch64";

/// The first version of QEMU that emulates `FEAT_ECV`.
const FIRST: u64 = 9;

/// The one that is named, or else the machine's if it is new enough, or else the one in the cache.
pub fn fetch(workspace: &Workspace) -> Result<PathBuf> {
    if let Some(program) = var_os(OVERRIDE) {
        return Ok(program.into());
    }
    let own = var_os("PVTIME_LAB_QEMU").map_or_else(|| PROGRAM.into(), PathBuf::from);
    if version(&own).is_ok_and(|it| it >= FIRST) {
        return Ok(own);
    }
    let setup = workspace.target.join("setup");
    let cache = setup.join("qemu-ecv");
    let program = cache.join("usr/bin").join(PROGRAM);
    if !program.is_file() {
        download(&setup.join("apt-qemu-ecv"), &cache)?;
    }
    let found = version(&program)?;
    if found < FIRST {
        bail!("{} is QEMU {found}, not {FIRST}", program.display());
    }
    Ok(program)
}

/// Downloads the package with the program, and unpacks it. Its libraries are those of the QEMU that the
/// machine has; a host for which the lab asks needs none of QEMU's data.
fn download(apt_folder: &Path, cache: &Path) -> Result<()> {
    let codename = codename().context("/etc/os-release names no Debian release")?;
    let architecture = process::output(Command::new("dpkg").arg("--print-architecture"))?;
    let architecture = architecture.trim();
    let sources = sources::of_backports(&machine_sources(), &codename, architecture)
        .with_context(|| format!("this machine has no package source for {codename} main"))?;
    let apt = Apt::new(apt_folder, &sources, architecture)?;
    say("reading the index of Debian's backports, in a private folder under target/");
    apt.update()?;
    let package = apt.show(PACKAGE)?;
    say(&format!("fetching {PACKAGE} {}", package.version));
    let unfinished = cache.with_extension("unfinished");
    if unfinished.exists() {
        fs::remove_dir_all(&unfinished)?;
    }
    fs::create_dir_all(&unfinished)?;
    apt.download(&package, &unfinished)?;
    let files = fs::read_dir(&unfinished)?.flatten();
    let deb = files.map(|it| it.path()).next();
    let mut extract = Command::new("dpkg-deb");
    extract.arg("--extract");
    process::run(
        extract
            .arg(deb.context("apt downloaded nothing")?)
            .arg(&unfinished),
    )?;
    Ok(fs::rename(unfinished, cache)?)
}

/// The major version of a QEMU.
fn version(program: &Path) -> Result<u64> {
    let said = process::output(Command::new(program).arg("--version"))?;
    major(&said).with_context(|| format!("{} told no version", program.display()))
}

fn major(said: &str) -> Option<u64> {
    let version = said.split_once("version ")?.1;
    numbers_of(version).first().copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_what_the_emulator_says() {
        let old =
            "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)\nCopyright (c) 2003-2022";
        let new = "QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)\n";
        assert_eq!([old, new, "a shell"].map(major), [Some(7), Some(10), None]);
    }
}
