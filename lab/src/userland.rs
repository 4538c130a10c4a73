//! A Debian system as the initramfs of a guest: its packages as they were unpacked, and what installing
//! them would have made of them. No program in it is ours.

use crate::initramfs::Initramfs;
use anyhow::{Context, Result, bail};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

/// Folders that are links into `usr` on an installed system.
const MERGED: [&str; 3] = ["bin", "lib", "sbin"];

/// What a guest of some minutes reads nothing of: two thirds of it all.
const LEFT_OUT: [&str; 5] = [
    "boot",
    "usr/lib/aarch64-linux-gnu/gconv",
    "usr/lib/udev/hwdb.d",
    "usr/share/doc",
    "usr/share/locale",
];

/// Process 1.
const INIT: &str = "lib/systemd/systemd";

/// Accounts as `base-passwd` has them, and where they are put when it is installed.
const ACCOUNTS: [(&str, &str); 2] = [
    ("usr/share/base-passwd/passwd.master", "etc/passwd"),
    ("usr/share/base-passwd/group.master", "etc/group"),
];

/// A machine that has none is a new one, and waits for somebody to set it up.
const MACHINE_ID: &str = "70617573656474696d65000000000000\n";

/// The index of the modules, which is written when a kernel's package is installed; here it is at each
/// boot, before anybody looks for a module.
const DEPMOD: &str = "\
[Unit]
Description=Index of the kernel's modules
DefaultDependencies=no
Before=systemd-modules-load.service systemd-udev-trigger.service

[Service]
Type=oneshot
ExecStart=/sbin/depmod --all
";
const DEPMOD_UNIT: &str = "etc/systemd/system/depmod.service";
const DEPMOD_WANTED: &str = "etc/systemd/system/sysinit.target.wants/depmod.service";

/// The archive of a system with these packages, and these modules of its kernel from where they are in
/// `lib/modules/RELEASE/kernel`.
///
/// # Errors
/// When something is not there or cannot be read.
pub fn archive(packages: &Path, modules: &[PathBuf]) -> Result<Vec<u8>> {
    let mut archive = Initramfs::default();
    for name in MERGED {
        archive.add_link(name, &format!("usr/{name}"))?;
    }
    archive.add_link("init", INIT)?;
    add_tree(&mut archive, packages, "")?;
    for (from, to) in ACCOUNTS {
        archive.add_file(to, 0o644, &packages.join(from))?;
    }
    archive.add("etc/machine-id", 0o444, MACHINE_ID.as_bytes())?;
    archive.add(DEPMOD_UNIT, 0o644, DEPMOD.as_bytes())?;
    archive.add_link(DEPMOD_WANTED, "../depmod.service")?;
    for module in modules {
        let (_, place) = module
            .to_str()
            .and_then(|path| path.split_once("/lib/modules/"))
            .with_context(|| format!("{} is not in lib/modules", module.display()))?;
        archive.add_file(&format!("usr/lib/modules/{place}"), 0o644, module)?;
    }
    archive.finish()
}

/// Adds what a folder of the packages holds.
fn add_tree(archive: &mut Initramfs, packages: &Path, folder: &str) -> Result<()> {
    let from = packages.join(folder);
    let entries = fs::read_dir(&from).with_context(|| format!("cannot list {}", from.display()))?;
    let mut entries: Vec<_> = entries.collect::<Result<_, _>>()?;
    // The order of a folder is its file system's.
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let Ok(name) = entry.file_name().into_string() else {
            bail!("a name in {} is no UTF-8", from.display());
        };
        let path = if folder.is_empty() {
            name
        } else {
            format!("{folder}/{name}")
        };
        let kind = entry.file_type()?;
        if LEFT_OUT.contains(&path.as_str()) || kind.is_symlink() && MERGED.contains(&path.as_str())
        {
            continue;
        }
        let place = merged(&path);
        if kind.is_symlink() {
            let target = fs::read_link(entry.path())?;
            let target = target
                .to_str()
                .context("a link to a name that is no UTF-8")?;
            archive.add_link(&place, target)?;
            continue;
        }
        let mode = entry.metadata()?.permissions().mode() & 0o7777;
        if kind.is_dir() {
            archive.add_folder(&place, mode)?;
            add_tree(archive, packages, &path)?;
        } else {
            archive.add_file(&place, mode, &entry.path())?;
        }
    }
    Ok(())
}

/// Where a file of a package is on an installed system.
fn merged(path: &str) -> String {
    let top = path.split('/').next().unwrap_or_default();
    if MERGED.contains(&top) {
        format!("usr/{path}")
    } else {
        path.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cpio::newc::Reader;
    use std::collections::BTreeMap;
    use std::io::Read as _;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn list(mut rest: &[u8]) -> BTreeMap<String, (u32, String)> {
        let mut entries = BTreeMap::new();
        loop {
            let mut reader = Reader::new(rest).unwrap();
            if reader.entry().is_trailer() {
                return entries;
            }
            let (name, mode) = (reader.entry().name().to_owned(), reader.entry().mode());
            let mut contents = String::new();
            reader.read_to_string(&mut contents).unwrap();
            let before = entries.insert(name.clone(), (mode, contents));
            assert_eq!(before, None, "{name} is there twice");
            rest = reader.finish().unwrap();
        }
    }

    #[test]
    fn packages_become_a_system() {
        let root = std::env::temp_dir().join(format!("lab-userland-{}", std::process::id()));
        let packages = root.join("packages");
        let write = |path: &str, text: &str| {
            let path = packages.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("lib/systemd/systemd", "process 1");
        write("usr/lib/os-release", "Debian");
        write("usr/share/doc/systemd/copyright", "long");
        for (from, _) in ACCOUNTS {
            write(from, "root");
        }
        fs::create_dir(packages.join("tmp")).unwrap();
        fs::set_permissions(packages.join("tmp"), PermissionsExt::from_mode(0o1777)).unwrap();
        symlink("usr/bin", packages.join("bin")).unwrap();
        symlink("../usr/lib/os-release", packages.join("usr/os-release")).unwrap();
        let module = root.join("lib/modules/6.12-arm64/kernel/drivers/input/evdev.ko.xz");
        fs::create_dir_all(module.parent().unwrap()).unwrap();
        fs::write(&module, "module").unwrap();

        let system = list(&archive(&packages, std::slice::from_ref(&module)).unwrap());
        let has = |path: &str, mode: u32, contents: &str| {
            assert_eq!(
                system.get(path),
                Some(&(mode, contents.to_owned())),
                "{path}"
            );
        };
        has("init", 0o120_777, INIT);
        has("lib", 0o120_777, "usr/lib");
        has("bin", 0o120_777, "usr/bin");
        has("usr/lib/systemd/systemd", 0o100_644, "process 1");
        has("usr/os-release", 0o120_777, "../usr/lib/os-release");
        has("tmp", 0o041_777, "");
        has("etc/passwd", 0o100_644, "root");
        has(DEPMOD_WANTED, 0o120_777, "../depmod.service");
        has(
            "usr/lib/modules/6.12-arm64/kernel/drivers/input/evdev.ko.xz",
            0o100_644,
            "module",
        );
        assert!(!system.contains_key("usr/share/doc"));
        assert!(!system.keys().any(|path| path.starts_with("lib/")));

        let error = archive(&packages, &[root.join("evdev.ko")]).unwrap_err();
        assert!(
            error.to_string().ends_with("is not in lib/modules"),
            "{error}"
        );
        fs::remove_dir_all(root).unwrap();
    }
}
