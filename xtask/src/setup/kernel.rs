//! The kernels of hosts and guests: Debian's for arm64.

use super::apt::{Apt, Package, machine_sources};
use super::{say, sources};
use crate::process;
use crate::workspace::Workspace;
use anyhow::{Context, Result, bail};
use std::env::var_os;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Which of them.
pub struct Flavour {
    /// The variable that names another.
    variable: &'static str,
    /// Its folder below `target/setup`.
    folder: &'static str,
    /// What its package's name ends with, and its Image's, after the version.
    suffix: &'static str,
}

/// The kernel of hosts and guests, small.
pub const CLOUD: Flavour = Flavour {
    variable: "PVTIME_LAB_KERNEL",
    folder: "kernel",
    suffix: "-cloud-arm64",
};

/// The kernel for every machine, with `gpio_keys`.
pub const GENERIC: Flavour = Flavour {
    variable: "PVTIME_LAB_KEY_KERNEL",
    folder: "key-kernel",
    suffix: "-arm64",
};

/// The series that the project is tested with; 6.4 brought what it needs of KVM.
const SERIES: &str = "linux-image-6.12";

/// Names and hashes of the package and of the kernel in it; written last, so that it stands for a
/// complete cache.
const SUMS: &str = "SHA256SUMS";

/// The kernel's Image: the one that is named, or else the one in the cache, or else Debian's newest.
pub fn fetch(workspace: &Workspace, flavour: &Flavour) -> Result<PathBuf> {
    let variable = flavour.variable;
    if let Some(image) = var_os(variable) {
        let image = workspace.root.join(image);
        if !image.is_file() {
            bail!("{variable} names {}, which is no file", image.display());
        }
        return Ok(image);
    }
    let cache = workspace.target.join("setup").join(flavour.folder);
    if let Some(image) = cached(&cache) {
        return Ok(image);
    }
    download(&workspace.target.join("setup/apt"), &cache, flavour).with_context(|| {
        format!(
            "cannot fetch a kernel; on a machine without apt, name an arm64 Image with {variable}"
        )
    })?;
    cached(&cache).with_context(|| format!("{} does not hold what it should", cache.display()))
}

/// The Image in the cache, if everything there still has its hash.
fn cached(cache: &Path) -> Option<PathBuf> {
    let sums = fs::read_to_string(cache.join(SUMS)).ok()?;
    let mut check = Command::new("sha256sum");
    check
        .args(["--check", "--strict", "--quiet", SUMS])
        .current_dir(cache);
    if let Err(error) = process::output(&mut check) {
        say(&format!(
            "the cached kernel is damaged and will be fetched anew: {error:#}"
        ));
        return None;
    }
    let mut names = sums
        .lines()
        .filter_map(|line| Some(line.split_once("  ")?.1));
    names
        .find(|name| name.starts_with("boot/"))
        .map(|name| cache.join(name))
}

fn download(apt_folder: &Path, cache: &Path, flavour: &Flavour) -> Result<()> {
    let codename = codename().context("/etc/os-release names no Debian release")?;
    let sources = sources::for_kernel(&machine_sources(), &codename)
        .with_context(|| format!("this machine has no package source for {codename} main"))?;
    let apt = Apt::new(apt_folder, &sources, sources::ARM64)?;
    say("reading Debian's arm64 package index, in a private folder under target/");
    let updated = apt.update();
    let Some(name) = newest(apt.names(SERIES)?, flavour) else {
        updated?;
        bail!("no source has a package {SERIES}*{}", flavour.suffix);
    };
    let package = apt.show(&name)?;
    say(&format!("fetching {name} {}", package.version));
    if cache.exists() {
        fs::remove_dir_all(cache)?;
    }
    fs::create_dir_all(cache)?;
    apt.download(&package, cache)?;
    unpack(&package, cache, flavour)
}

/// Checks the package's hash, unpacks it and notes the hash of the kernel in it.
fn unpack(package: &Package, cache: &Path, flavour: &Flavour) -> Result<()> {
    let deb = only_file(cache, ".deb")?;
    let sum = sum_of(cache, &deb)?;
    if !sum.starts_with(&package.sha256) {
        bail!("{deb} is not what the package index promises: SHA-256 {sum}");
    }
    let mut extract = Command::new("dpkg-deb");
    process::run(extract.args(["--extract", &deb, "."]).current_dir(cache))?;
    let image = format!("boot/{}", only_file(&cache.join("boot"), flavour.suffix)?);
    let sums = format!("{sum}{}", sum_of(cache, &image)?);
    Ok(fs::write(cache.join(SUMS), sums)?)
}

/// The line of `sha256sum` for a file.
pub(super) fn sum_of(folder: &Path, file: &str) -> Result<String> {
    process::output(Command::new("sha256sum").arg(file).current_dir(folder))
}

/// The name of the one kernel or package in a folder.
fn only_file(folder: &Path, suffix: &str) -> Result<String> {
    let names = fs::read_dir(folder)?
        .flatten()
        .filter_map(|it| it.file_name().into_string().ok());
    let is_wanted = |name: &String| {
        name.ends_with(suffix) && (name.starts_with("vmlinuz-") || name.starts_with(SERIES))
    };
    let names: Vec<_> = names.filter(is_wanted).collect();
    let [name] = &names[..] else {
        bail!(
            "{} holds {names:?}, not one file *{suffix}",
            folder.display()
        );
    };
    Ok(name.clone())
}

/// The signed kernel of the highest version among package names.
fn newest(names: Vec<String>, flavour: &Flavour) -> Option<String> {
    let is_kernel = |name: &String| {
        let version = name
            .strip_prefix(&format!("{SERIES}."))
            .and_then(|rest| rest.strip_suffix(flavour.suffix));
        // Another flavour has another word between the two.
        version.is_some_and(|it| !it.contains('-'))
    };
    names
        .into_iter()
        .filter(is_kernel)
        .max_by_key(|name| numbers_of(name))
}

/// The numbers in a name: `linux-image-6.12.95+deb12-cloud-arm64` gives 6, 12, 95, 12, 64.
pub(super) fn numbers_of(name: &str) -> Vec<u64> {
    name.split(|letter: char| !letter.is_ascii_digit())
        .filter_map(|it| it.parse().ok())
        .collect()
}

/// The codename of this machine's Debian.
pub fn codename() -> Option<String> {
    let text = fs::read_to_string("/etc/os-release").ok()?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="))?;
    Some(line.trim_matches('"').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_signed_kernel_of_a_flavour_is_chosen() {
        let names = [
            "linux-image-6.12.9+deb12-cloud-arm64",
            "linux-image-6.12.95+deb12-cloud-arm64",
            "linux-image-6.12.95+deb12-cloud-arm64-dbg",
            "linux-image-6.12.96+deb12-cloud-arm64-unsigned",
            "linux-image-6.12.96+deb12-arm64",
            "linux-image-6.12.97+deb12-rt-arm64",
            "linux-image-6.120.1-cloud-arm64",
        ];
        for (flavour, wanted) in [
            (CLOUD, "linux-image-6.12.95+deb12-cloud-arm64"),
            (GENERIC, "linux-image-6.12.96+deb12-arm64"),
        ] {
            let newest = newest(names.map(str::to_owned).into(), &flavour);
            assert_eq!(newest.as_deref(), Some(wanted));
        }
    }

    #[test]
    fn a_changed_file_is_no_cache() {
        let cache = std::env::temp_dir().join(format!("xtask-cache-{}", std::process::id()));
        fs::create_dir_all(cache.join("boot")).unwrap();
        fs::write(cache.join("linux-image-6.12.1.deb"), "package").unwrap();
        fs::write(cache.join("boot/vmlinuz-6.12.1-cloud-arm64"), "kernel").unwrap();
        assert_eq!(cached(&cache), None);
        let image = "boot/vmlinuz-6.12.1-cloud-arm64";
        let sums = ["linux-image-6.12.1.deb", image].map(|file| sum_of(&cache, file).unwrap());
        fs::write(cache.join(SUMS), sums.concat()).unwrap();
        assert_eq!(cached(&cache), Some(cache.join(image)));
        fs::write(cache.join(image), "kernal").unwrap();
        assert_eq!(cached(&cache), None);
        fs::remove_dir_all(cache).unwrap();
    }
}
