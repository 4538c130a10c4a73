//! The VMM to measure beside, for an arm64 host: Debian's QEMU and the libraries that it loads.

use super::apt::{Apt, machine_sources};
use super::kernel::codename;
use super::{PEER, say, sources};
use crate::process;
use crate::workspace::Workspace;
use anyhow::{Context, Result, bail};
use std::collections::{BTreeMap, BTreeSet};
use std::env::var_os;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const PACKAGE: &str = "qemu-system-arm";
const PROGRAM: &str = "qemu-system-aarch64";

/// The folder with QEMU, its loader and its libraries side by side.
pub fn fetch(workspace: &Workspace) -> Result<PathBuf> {
    if let Some(folder) = var_os(PEER) {
        let folder = workspace.root.join(folder);
        if !folder.join(PROGRAM).is_file() {
            bail!("{PEER} names {}, which has no {PROGRAM}", folder.display());
        }
        return Ok(folder);
    }
    let setup = workspace.target.join("setup");
    let folder = setup.join("peer");
    if !folder.is_dir() {
        let unpacked = setup.join("peer-packages");
        download(&setup.join("apt-peer"), &unpacked)?;
        gather(&unpacked, &folder)?;
        fs::remove_dir_all(&unpacked)?;
    }
    Ok(folder)
}

/// Downloads QEMU and all it depends on, and unpacks them over one another.
fn download(apt_folder: &Path, unpacked: &Path) -> Result<()> {
    let codename = codename().context("/etc/os-release names no Debian release")?;
    let sources = sources::of_release(&machine_sources(), &codename)
        .with_context(|| format!("this machine has no package source for {codename} main"))?;
    let apt = Apt::new(apt_folder, &sources, sources::ARM64)?;
    say("reading Debian's arm64 package index, in a private folder under target/");
    apt.update()?;
    say(&format!("fetching {PACKAGE} for arm64 and what it needs"));
    let packages = apt.download_with_dependencies(&[PACKAGE])?;
    fs::create_dir_all(unpacked)?;
    for package in packages {
        let mut extract = Command::new("dpkg-deb");
        process::run(extract.arg("--extract").arg(package).arg(unpacked))?;
    }
    Ok(())
}

/// Copies the program and the libraries that it needs, and they need in turn, into a new folder.
fn gather(unpacked: &Path, folder: &Path) -> Result<()> {
    let mut files = BTreeMap::new();
    let root = fs::canonicalize(unpacked)?;
    index(&root, &root, &mut files)?;
    let unfinished = folder.with_extension("unfinished");
    if unfinished.exists() {
        fs::remove_dir_all(&unfinished)?;
    }
    fs::create_dir_all(&unfinished)?;
    let mut wanted = vec![PROGRAM.to_owned()];
    let mut seen = BTreeSet::new();
    while let Some(name) = wanted.pop() {
        if !seen.insert(name.clone()) {
            continue;
        }
        let from = files
            .get(&name)
            .with_context(|| format!("no package of {PACKAGE} has {name}"))?;
        fs::copy(from, unfinished.join(&name))
            .with_context(|| format!("cannot copy {}", from.display()))?;
        wanted.extend(needed(&process::output(
            Command::new("readelf").arg("-d").arg(from),
        )?));
    }
    Ok(fs::rename(unfinished, folder)?)
}

/// Every file by its name. A link counts as the file that it ends at, if that is below the root too.
fn index(root: &Path, folder: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder)?.flatten() {
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            index(root, &path, files)?;
        } else if fs::canonicalize(&path).is_ok_and(|end| end.starts_with(root) && end.is_file()) {
            files.insert(entry.file_name().to_string_lossy().into_owned(), path);
        }
    }
    Ok(())
}

/// The libraries that `readelf -d` lists as needed.
fn needed(dynamic: &str) -> Vec<String> {
    let lines = dynamic.lines().filter(|line| line.contains("(NEEDED)"));
    let names = lines.filter_map(|line| line.split_once('[')?.1.split_once(']'));
    names.map(|(name, _)| name.to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn needed_libraries_are_read_from_the_dynamic_section() {
        let dynamic = "\
Dynamic section at offset 0x1 contains 3 entries:
 0x0000000000000001 (NEEDED)             Shared library: [libfdt.so.1]
 0x0000000000000001 (NEEDED)             Shared library: [libc.so.6]
 0x000000000000000e (SONAME)             Library soname: [libx.so.1]
";
        assert_eq!(needed(dynamic), ["libfdt.so.1", "libc.so.6"]);
    }
}
