//! What the lab needs from elsewhere: kernels, programs, QEMU.

use crate::initramfs::Initramfs;
use crate::machine::Place;
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

/// Files of this machine that hosts and guests are made of.
#[derive(Debug, Clone)]
pub struct Assets {
    /// Image of the hosts.
    pub host_kernel: PathBuf,
    /// Image of the Linux guests.
    pub guest_kernel: PathBuf,
    /// Folder with the static arm64 programs: `lab-agent`, `pvtime`, the guest's `init`, and the
    /// bare-metal guest.
    pub programs: PathBuf,
    /// `qemu-system-aarch64`, a path or a name in `PATH`.
    pub qemu: PathBuf,
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

    /// Path of the bare-metal guest.
    ///
    /// # Errors
    /// When it is not there.
    pub fn bare_guest(&self) -> Result<PathBuf> {
        self.program(BARE_GUEST)
    }

    /// The archive whose init is the Linux guest program.
    ///
    /// # Errors
    /// When the program cannot be read.
    pub fn guest_initramfs(&self) -> Result<Vec<u8>> {
        let mut archive = Initramfs::default();
        archive.add_file("init", 0o755, &self.program(GUEST_PROGRAM)?)?;
        archive.finish()
    }
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
