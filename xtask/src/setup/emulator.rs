//! An emulator of hosts with `FEAT_ECV`: QEMU has that since version 9, and an older Debian has one in
//! its backports.

use super::apt::{Apt, machine_sources};
use super::kernel::codename;
use super::program::QEMU;
use super::{say, sources};
use crate::process;
use crate::workspace::Workspace;
use anyhow::{Context, Result, bail};
use std::env::consts::ARCH;
use std::env::var_os;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const OVERRIDE: &str = "PVTIME_LAB_QEMU_ECV";
const PACKAGE: &str = "qemu-system-arm";
const PROGRAM: &str = "qemu-system-aarch64";
/// The first version that emulates `FEAT_ECV`.
const MAJOR: u32 = 9;

/// An emulator beside the usual one; `None` if that one will do, or another is named. The package is
/// unpacked alone: it was built for this Debian, whose own QEMU brought the libraries.
pub fn fetch(workspace: &Workspace) -> Result<Option<PathBuf>> {
    if QEMU.is_named() || var_os(OVERRIDE).is_some() || version(Path::new(PROGRAM))? >= MAJOR {
        return Ok(None);
    }
    let setup = workspace.target.join("setup");
    let folder = setup.join("emulator");
    if !folder.is_dir() {
        let unfinished = folder.with_extension("unfinished");
        if unfinished.exists() {
            fs::remove_dir_all(&unfinished)?;
        }
        fs::create_dir_all(&unfinished)?;
        download(&setup.join("apt-emulator"), &unfinished)?;
        fs::rename(&unfinished, &folder)?;
    }
    Ok(Some(program_in(&folder)))
}

fn program_in(folder: &Path) -> PathBuf {
    folder.join("usr/bin").join(PROGRAM)
}

fn download(apt_folder: &Path, folder: &Path) -> Result<()> {
    let codename = codename().context("/etc/os-release names no Debian release")?;
    let architecture = debian_name(ARCH);
    let sources = sources::for_emulator(&machine_sources(), &codename, architecture)
        .with_context(|| format!("this machine has no package source for {codename} main"))?;
    let apt = Apt::for_architecture(apt_folder, &sources, architecture)?;
    say("reading the package index of Debian's backports, in a private folder under target/");
    apt.update()?;
    let package = apt.show(PACKAGE)?;
    say(&format!("fetching {PACKAGE} {}", package.version));
    apt.download(&package, folder)?;
    for entry in fs::read_dir(folder)?.flatten() {
        let path = entry.path();
        if path.extension().is_some_and(|it| it == "deb") {
            process::run(
                Command::new("dpkg-deb")
                    .arg("--extract")
                    .arg(&path)
                    .arg(folder),
            )?;
            fs::remove_file(path)?;
        }
    }
    let found = version(&program_in(folder))?;
    if found < MAJOR {
        bail!("{PACKAGE} {} is too old: QEMU {found}", package.version);
    }
    Ok(())
}

/// How Debian calls a machine that Rust calls so.
fn debian_name(architecture: &str) -> &str {
    match architecture {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// The major version of a QEMU, which shows that it starts.
fn version(program: &Path) -> Result<u32> {
    let said = process::output(Command::new(program).arg("--version"))?;
    major(&said).with_context(|| format!("{} says of its version {said:?}", program.display()))
}

fn major(said: &str) -> Option<u32> {
    let version = said.split_once("version ")?.1;
    version.split_once('.')?.0.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_major_version_is_the_first_number() {
        let said = "QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2+deb13u1~bpo12+1)\nCopyright";
        assert_eq!(major(said), Some(10));
        assert_eq!(major("QEMU emulator version 7.2.22"), Some(7));
        assert_eq!(major("QEMU emulator"), None);
        assert_eq!(major("version x.1"), None);
    }
}
