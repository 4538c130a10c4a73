//! What the lab needs from elsewhere: kernels, programs, QEMU.

use crate::initramfs::Initramfs;
use crate::machine::{HostSpec, Place};
use crate::userland;
use anyhow::{Context, Result, bail};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// Where an arm64 Image has its magic number, in bytes.
const MAGIC_OFFSET: u64 = 56;
const MAGIC: [u8; 4] = *b"ARM\x64";

/// The Linux guest program.
const GUEST_PROGRAM: &str = "init";

/// The bare-metal guest, an arm64 Image.
const BARE_GUEST: &str = "el1";

/// What an emulated host with `FEAT_ECV` has at EL3.
const FIRMWARE: &str = "el3";

/// What virtio's network device needs, below the folder of a kernel's modules.
const NETWORK_MODULES: [&str; 3] = [
    "net/core/failover",
    "drivers/net/net_failover",
    "drivers/net/virtio_net",
];

/// What makes input devices of the keys that `pvtime run --suspend-guest` gives a guest.
const KEY_MODULES: [&str; 2] = ["drivers/input/evdev", "drivers/input/keyboard/gpio_keys"];

/// Files of this machine that hosts and guests are made of.
#[derive(Debug, Clone)]
pub struct Assets {
    /// Image of the hosts.
    pub host_kernel: PathBuf,
    /// Image of the Linux guests.
    pub guest_kernel: PathBuf,
    /// Image of Debian guests, with its modules where Debian's packages have them; the cloud kernel has
    /// no driver for keys.
    pub key_kernel: Option<PathBuf>,
    /// Folder with the unpacked packages of Debian guests.
    pub userland: Option<PathBuf>,
    /// Folder with the static arm64 programs: `lab-agent`, `pvtime`, the guest's `init`, and the
    /// bare-metal guest.
    pub programs: PathBuf,
    /// `qemu-system-aarch64`, a path or a name in `PATH`.
    pub qemu: PathBuf,
    /// Another that emulates `FEAT_ECV`, where the first does not.
    pub qemu_ecv: Option<PathBuf>,
    /// Folder with an arm64 QEMU for hosts and the libraries that it needs; for the benchmark.
    pub peer: Option<PathBuf>,
    /// Where hosts live.
    pub place: Place,
}

impl Assets {
    /// Fails unless the files are there and the kernels are arm64 Images.
    ///
    /// # Errors
    /// Names the file and the way out.
    pub fn check(&self) -> Result<()> {
        check_image(&self.host_kernel, "PVTIME_LAB_KERNEL")?;
        check_image(&self.guest_kernel, "PVTIME_LAB_GUEST_KERNEL")?;
        for program in ["lab-agent", "pvtime", GUEST_PROGRAM, BARE_GUEST] {
            self.program(program)?;
        }
        Ok(())
    }

    /// Path of one of our programs.
    ///
    /// # Errors
    /// When it is not there.
    pub fn program(&self, name: &str) -> Result<PathBuf> {
        let path = self.programs.join(name);
        if !path.is_file() {
            bail!(
                "no program {}: build it with `cargo xtask lab list`, or name its folder with \
                 --programs or PVTIME_LAB_PROGRAMS",
                path.display()
            );
        }
        Ok(path)
    }

    /// The emulator of a host.
    #[must_use]
    pub fn emulator_of(&self, spec: &HostSpec) -> &Path {
        let other = self.qemu_ecv.as_ref().filter(|_| spec.enhanced_counter);
        other.unwrap_or(&self.qemu)
    }

    /// Path of the bare-metal guest.
    ///
    /// # Errors
    /// When it is not there.
    pub fn bare_guest(&self) -> Result<PathBuf> {
        self.program(BARE_GUEST)
    }

    /// Path of the firmware of hosts with `FEAT_ECV`.
    ///
    /// # Errors
    /// When it is not there.
    pub fn firmware(&self) -> Result<PathBuf> {
        self.program(FIRMWARE)
    }

    /// Modules of the hosts' kernel for virtio's network devices, each after those that it needs;
    /// none where there is no folder of its modules, so that they have to be built in. The folder is
    /// looked for where Debian's packages have it: `lib/modules/RELEASE` beside
    /// `boot/vmlinuz-RELEASE`.
    ///
    /// # Errors
    /// When that folder lacks one of them.
    pub fn network_modules(&self) -> Result<Vec<PathBuf>> {
        let Some(folder) = modules_of(&self.host_kernel).filter(|it| it.is_dir()) else {
            return Ok(Vec::new());
        };
        let modules = NETWORK_MODULES.iter();
        modules.map(|name| module(&folder, name)).collect()
    }

    /// The kernel and the initramfs of a Debian guest.
    ///
    /// # Errors
    /// When one of its parts is not there, or lacks something.
    pub fn debian_guest(&self) -> Result<(PathBuf, Vec<u8>)> {
        let missing = "run `cargo xtask lab run`, which fetches one, or name";
        let kernel = self.key_kernel.clone().with_context(|| {
            format!(
                "no kernel with gpio_keys: {missing} an arm64 Image beside its modules with \
                 PVTIME_LAB_KEY_KERNEL"
            )
        })?;
        check_image(&kernel, "PVTIME_LAB_KEY_KERNEL")?;
        let modules = modules_of(&kernel)
            .with_context(|| format!("{} is not named vmlinuz-RELEASE", kernel.display()))?;
        let packages = self.userland.as_ref().with_context(|| {
            format!(
                "no Debian system for a guest: {missing} a folder with its unpacked arm64 packages \
                 with PVTIME_LAB_USERLAND"
            )
        })?;
        let modules = KEY_MODULES.map(|name| module(&modules, name));
        let modules: Vec<_> = modules.into_iter().collect::<Result<_>>()?;
        Ok((kernel, userland::archive(packages, &modules)?))
    }

    /// The archive whose init is the Linux guest program.
    ///
    /// # Errors
    /// When the program cannot be read.
    pub fn guest_initramfs(&self) -> Result<Vec<u8>> {
        self.with_guest_program()?.finish()
    }

    /// The same with the guests' kernel in it, for a guest that starts it in place of its own.
    ///
    /// # Errors
    /// As [`Self::guest_initramfs`], and when the kernel is missing.
    pub fn guest_initramfs_with_next(&self) -> Result<Vec<u8>> {
        let mut archive = self.with_guest_program()?;
        archive.add_file("next/Image", 0o644, &self.guest_kernel)?;
        archive.finish()
    }

    fn with_guest_program(&self) -> Result<Initramfs> {
        let mut archive = Initramfs::default();
        archive.add_file("init", 0o755, &self.program(GUEST_PROGRAM)?)?;
        Ok(archive)
    }
}

fn modules_of(kernel: &Path) -> Option<PathBuf> {
    let release = kernel.file_name()?.to_str()?.strip_prefix("vmlinuz-")?;
    let root = kernel.parent()?.parent()?;
    Some(root.join("lib/modules").join(release).join("kernel"))
}

/// A module in whichever form it is there.
fn module(folder: &Path, name: &str) -> Result<PathBuf> {
    let forms = ["ko", "ko.xz", "ko.zst", "ko.gz"];
    let mut paths = forms
        .iter()
        .map(|form| folder.join(format!("{name}.{form}")));
    paths
        .find(|path| path.is_file())
        .with_context(|| format!("{} has no {name}", folder.display()))
}

fn check_image(path: &Path, variable: &str) -> Result<()> {
    let mut magic = [0; MAGIC.len()];
    let read = File::open(path).and_then(|mut image| {
        image.seek(SeekFrom::Start(MAGIC_OFFSET))?;
        image.read_exact(&mut magic)
    });
    read.with_context(|| {
        format!(
            "cannot read a kernel from {}; name an arm64 Image with {variable}",
            path.display()
        )
    })?;
    if magic != MAGIC {
        bail!(
            "{} is no uncompressed arm64 Image; name one with {variable}, for example /boot/vmlinuz \
             of a Debian arm64 kernel package",
            path.display()
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn modules_are_taken_from_beside_the_kernel() {
        let root = std::env::temp_dir().join(format!("lab-modules-{}", std::process::id()));
        let folder = root.join("lib/modules/6.12-arm64/kernel");
        assert_eq!(
            modules_of(&root.join("boot/vmlinuz-6.12-arm64")),
            Some(folder.clone())
        );
        assert_eq!(modules_of(Path::new("Image")), None);
        fs::create_dir_all(folder.join("drivers/net")).unwrap();
        let network = folder.join("drivers/net/virtio_net.ko.xz");
        fs::write(&network, "module").unwrap();
        let found = module(&folder, "drivers/net/virtio_net").unwrap();
        assert_eq!(found, network);
        let error = module(&folder, "net/core/failover").unwrap_err();
        assert!(
            error.to_string().ends_with("has no net/core/failover"),
            "{error}"
        );
        fs::remove_dir_all(root).unwrap();
    }
}
