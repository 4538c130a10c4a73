//! What guests are to be, and hosts that have what they boot.

use crate::assets::Assets;
use crate::host::Host;
use crate::machine::{HostFile, HostSpec};
use crate::scenario::Stage;
use anyhow::{Context, Result};
use guest_protocol::Workload;
use std::fs;
use std::path::Path;

/// For a Linux guest's kernel: only what it warns of goes to its console. Each character of it takes its vCPU to
/// the VMM and back, which on an emulated host is most of the time that a guest takes to boot.
pub const WARNINGS: &str = "loglevel=5";

/// A host with the VMM, the guests' kernel and their initramfs, and the bare-metal guest.
///
/// # Errors
/// When a program is missing or the archive cannot be written.
pub fn host_spec(name: &'static str, assets: &Assets, logs: &Path) -> Result<HostSpec> {
    let initramfs = logs.join("guest.cpio");
    fs::write(&initramfs, assets.guest_initramfs()?)
        .with_context(|| format!("cannot write {}", initramfs.display()))?;
    let file = |name: &str, from| HostFile {
        name: name.to_owned(),
        from,
    };
    let files = vec![
        file("pvtime", assets.program("pvtime")?),
        file("Image", assets.guest_kernel.clone()),
        file("guest.cpio", initramfs),
        file("el1", assets.bare_guest()?),
    ];
    Ok(HostSpec {
        files,
        ..HostSpec::new(name)
    })
}

/// The same, and what Debian guests boot.
///
/// # Errors
/// As [`host_spec`], and when there is no kernel or no packages for them.
pub fn host_spec_with_debian(name: &'static str, assets: &Assets, logs: &Path) -> Result<HostSpec> {
    let (kernel, archive) = assets.debian_guest()?;
    let initramfs = logs.join("debian.cpio");
    fs::write(&initramfs, archive)
        .with_context(|| format!("cannot write {}", initramfs.display()))?;
    let mut spec = host_spec(name, assets, logs)?;
    let file = |name: &str, from| HostFile {
        name: name.to_owned(),
        from,
    };
    let more = [file("debian-Image", kernel), file("debian.cpio", initramfs)];
    spec.files.extend(more);
    Ok(spec)
}

/// The same, and an initramfs that has the guests' kernel in it.
///
/// # Errors
/// As [`host_spec`].
pub fn host_spec_with_next(name: &'static str, assets: &Assets, logs: &Path) -> Result<HostSpec> {
    let initramfs = logs.join("next.cpio");
    fs::write(&initramfs, assets.guest_initramfs_with_next()?)
        .with_context(|| format!("cannot write {}", initramfs.display()))?;
    let mut spec = host_spec(name, assets, logs)?;
    spec.files.push(HostFile {
        name: "next.cpio".to_owned(),
        from: initramfs,
    });
    Ok(spec)
}

/// Starts a host for guests, with its agent on its second CPU, away from vCPUs that have the first.
///
/// # Errors
/// As [`host_spec`], and when it does not come up.
pub fn boot_host(stage: &mut Stage) -> Result<Host> {
    let spec = host_spec("host", stage.assets, &stage.logs)?;
    boot_host_of(&spec, stage)
}

/// The same for a host that is not like the others.
///
/// # Errors
/// When it does not come up.
pub fn boot_host_of(spec: &HostSpec, stage: &mut Stage) -> Result<Host> {
    let mut host = stage.boot(spec)?;
    host.pin_agent(&[1])?;
    Ok(host)
}

/// What a guest boots.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GuestImage {
    /// Linux, with the program of `guest/linux` as its init.
    Linux,
    /// The same with a kernel in its initramfs that can take the place of the first, on a host of
    /// [`host_spec_with_next`].
    LinuxWithNext,
    /// Debian's own system, without a program of ours, on a host of [`host_spec_with_debian`]; there is a
    /// shell at its second serial port.
    Debian,
    /// The bare-metal guest, `guest/el1`.
    El1,
}

/// What a guest is to be.
#[derive(Debug, Clone)]
pub struct GuestSpec {
    /// Name in logs, unique on its host.
    pub name: &'static str,
    /// What is booted.
    pub image: GuestImage,
    /// vCPUs.
    pub cpus: u32,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// What each vCPU does from the start.
    pub workload: Workload,
    /// What its VMM does not find in the host's KVM: a `WITHHOLD_` of the agent's.
    pub withheld: Option<&'static str>,
    /// `--stolen-time`.
    pub stolen_time: &'static str,
    /// `--on-pause`.
    pub on_pause: &'static str,
    /// More options of `pvtime run`.
    pub vmm_options: &'static [&'static str],
    /// Words for its kernel; without [`WARNINGS`] or another `loglevel` it says everything.
    pub kernel_options: &'static str,
    /// Words for the program of a Linux guest.
    pub program_options: &'static str,
}

impl GuestSpec {
    /// A Linux guest with one idle vCPU and stolen time.
    #[must_use]
    pub fn new(name: &'static str) -> Self {
        Self {
            name,
            image: GuestImage::Linux,
            cpus: 1,
            memory_mib: 128,
            workload: Workload::Idle,
            withheld: None,
            stolen_time: "on",
            on_pause: "freeze",
            vmm_options: &[],
            kernel_options: WARNINGS,
            program_options: "",
        }
    }
}

/// What the kernel and the guest program are told.
pub(super) fn command_line(spec: &GuestSpec) -> String {
    let workload = vec![spec.workload.to_string(); spec.cpus as usize].join(",");
    let (kernel_options, program_options) = (spec.kernel_options, spec.program_options);
    match spec.image {
        GuestImage::El1 => format!("-- --workload {workload}"),
        GuestImage::Debian => {
            format!("console=ttyS0 panic=-1 systemd.debug_shell=ttyS1 {kernel_options}")
        }
        GuestImage::Linux | GuestImage::LinuxWithNext => format!(
            "console=ttyS0 panic=-1 {kernel_options} -- --port ttyS1 --workload {workload} \
             --sample-ms 0 {program_options}"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cpu_has_its_work_on_the_command_line() {
        let spec = GuestSpec {
            cpus: 3,
            workload: Workload::Busy,
            ..GuestSpec::new("three")
        };
        let line = command_line(&spec);
        assert!(
            line.ends_with("-- --port ttyS1 --workload busy,busy,busy --sample-ms 0 "),
            "{line}"
        );
        let bare = GuestSpec {
            image: GuestImage::El1,
            cpus: 2,
            ..GuestSpec::new("bare")
        };
        assert_eq!(command_line(&bare), "-- --workload idle,idle");
    }
}
