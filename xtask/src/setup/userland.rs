//! A Debian system for a guest: systemd and what it needs, for arm64, unpacked and not installed.

use super::apt::{Apt, machine_sources};
use super::kernel::codename;
use super::{say, sources};
use crate::process;
use crate::workspace::Workspace;
use anyhow::{Context, Result, bail};
use std::env::var_os;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const OVERRIDE: &str = "PVTIME_LAB_USERLAND";

/// What every system has, as far as nothing else names it; the loading of modules by their devices; logind
/// and its bus.
const PACKAGES: [&str; 10] = [
    "base-files",
    "base-passwd",
    "bash",
    "coreutils",
    "dbus",
    "grep",
    "kmod",
    "systemd-sysv",
    "udev",
    // In place of one that needs Perl.
    "usr-is-merged",
];

/// In every such folder.
const PROCESS_1: &str = "systemd/systemd";

/// The folder with the files of all packages.
pub fn fetch(workspace: &Workspace) -> Result<PathBuf> {
    if let Some(folder) = var_os(OVERRIDE) {
        let folder = workspace.root.join(folder);
        let has = |lib: &str| folder.join(lib).join(PROCESS_1).is_file();
        if !has("lib") && !has("usr/lib") {
            bail!(
                "{OVERRIDE} names {}, which has no lib/{PROCESS_1}",
                folder.display()
            );
        }
        return Ok(folder);
    }
    let setup = workspace.target.join("setup");
    let folder = setup.join("userland");
    if !folder.is_dir() {
        let unfinished = folder.with_extension("unfinished");
        if unfinished.exists() {
            fs::remove_dir_all(&unfinished)?;
        }
        fs::create_dir_all(&unfinished)?;
        download(&setup.join("apt-userland"), &unfinished)?;
        fs::rename(unfinished, &folder)?;
    }
    Ok(folder)
}

/// Downloads the packages and all they depend on, and unpacks them over one another.
fn download(apt_folder: &Path, unpacked: &Path) -> Result<()> {
    let codename = codename().context("/etc/os-release names no Debian release")?;
    let sources = sources::of_release(&machine_sources(), &codename)
        .with_context(|| format!("this machine has no package source for {codename} main"))?;
    let apt = Apt::new(apt_folder, &sources, sources::ARM64)?;
    say("reading Debian's arm64 package index, in a private folder under target/");
    apt.update()?;
    say("fetching systemd for arm64 and what it needs");
    for package in apt.download_with_dependencies(&PACKAGES)? {
        let mut extract = Command::new("dpkg-deb");
        process::run(extract.arg("--extract").arg(package).arg(unpacked))?;
    }
    Ok(())
}
