//! The headers of a kernel that knows every interface, to compare structures with.

use super::apt::{Apt, machine_sources};
use super::kernel::{codename, numbers_of, sum_of};
use super::{say, sources};
use crate::process;
use crate::workspace::Workspace;
use anyhow::{Context, Result, bail};
use std::env::var_os;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const OVERRIDE: &str = "PVTIME_HEADERS";

/// Written last, so that it stands for a complete cache.
const COMPLETE: &str = "COMPLETE";

/// A folder with an unpacked package of headers: the one that is named, or the cache's, or Debian's
/// newest.
pub fn fetch(workspace: &Workspace) -> Result<PathBuf> {
    if let Some(folder) = var_os(OVERRIDE) {
        let folder = workspace.root.join(folder);
        if !folder.is_dir() {
            bail!("{OVERRIDE} names {}, which is no folder", folder.display());
        }
        return Ok(folder);
    }
    let setup = workspace.target.join("setup");
    let cache = setup.join("headers");
    if !cache.join(COMPLETE).exists() {
        download(&setup.join("apt-headers"), &cache).with_context(|| {
            format!(
                "cannot fetch kernel headers; on a machine without apt, name a source tree of \
                 Linux 6.13 or later with {OVERRIDE}"
            )
        })?;
    }
    Ok(cache)
}

fn download(apt_folder: &Path, cache: &Path) -> Result<()> {
    let codename = codename().context("/etc/os-release names no Debian release")?;
    let sources = sources::for_headers(&machine_sources(), &codename)
        .with_context(|| format!("this machine has no package source for {codename} main"))?;
    let apt = Apt::new(apt_folder, &sources, sources::ARM64)?;
    say("reading Debian's index of kernel headers, in a private folder under target/");
    let updated = apt.update();
    let Some(name) = newest(apt.names("linux-headers-")?) else {
        updated?;
        bail!("no source has a package linux-headers-*-common");
    };
    let package = apt.show(&name)?;
    say(&format!("fetching {name} {}", package.version));
    if cache.exists() {
        fs::remove_dir_all(cache)?;
    }
    fs::create_dir_all(cache)?;
    apt.download(&package, cache)?;
    let deb = fs::read_dir(cache)?
        .flatten()
        .next()
        .context("apt downloaded nothing")?;
    let deb = deb.file_name().to_string_lossy().into_owned();
    let sum = sum_of(cache, &deb)?;
    if !sum.starts_with(&package.sha256) {
        bail!("{deb} is not what the package index promises: SHA-256 {sum}");
    }
    let mut extract = Command::new("dpkg-deb");
    process::run(extract.args(["--extract", &deb, "."]).current_dir(cache))?;
    Ok(fs::write(cache.join(COMPLETE), sum)?)
}

/// The headers of the highest version among package names.
fn newest(names: Vec<String>) -> Option<String> {
    let is_wanted = |name: &String| name.ends_with("-common") && !name.contains("-rt");
    names
        .into_iter()
        .filter(is_wanted)
        .max_by_key(|name| numbers_of(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_headers_are_chosen() {
        let names = [
            "linux-headers-7.2.11+deb13-common",
            "linux-headers-7.10.4+deb13-common",
            "linux-headers-7.10.5+deb13-common-rt",
            "linux-headers-7.11.0+deb13-arm64",
        ];
        let newest = newest(names.map(Into::into).to_vec());
        assert_eq!(newest.as_deref(), Some("linux-headers-7.10.4+deb13-common"));
        assert_eq!(super::newest(Vec::new()), None);
    }
}
