//! Installs and fetches what the other tasks need. What is there already is left alone.

mod apt;
mod emulator;
mod headers;
mod kernel;
mod peer;
mod program;
mod sources;
mod targets;
mod toolchain;
mod userland;

use crate::workspace::Workspace;
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Names another VMM to the lab.
pub const PEER: &str = "PVTIME_LAB_PEER";

/// What to set up.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Needs {
    /// For the lab.
    Lab,
    /// For every task.
    Everything,
}

/// Sets up, and returns the kernel for hosts and guests.
pub fn prepare(workspace: &Workspace, needs: Needs) -> Result<PathBuf> {
    targets::install(match needs {
        Needs::Lab => &targets::FOR_LAB,
        Needs::Everything => &targets::ALL,
    })?;
    if !is_host() {
        program::QEMU.install()?;
    }
    kernel::fetch(workspace, &kernel::CLOUD)
}

/// The one scenario with a Debian guest, whose kernel has drivers for keys.
const DEBIAN_SCENARIO: &str = "suspend-coordinated";
/// The one scenario with another VMM, besides the bench.
const PEER_SCENARIO: &str = "side-by-side";
/// The one scenario with a host that has `FEAT_ECV`.
const ECV_SCENARIO: &str = "physical-counter";

/// Sets up what one scenario needs beyond all others, and tells the lab of it.
pub fn equip(workspace: &Workspace, scenario: &str, lab: &mut Command) -> Result<()> {
    match scenario {
        DEBIAN_SCENARIO => {
            let kernel = kernel::fetch(workspace, &kernel::GENERIC)?;
            lab.env("PVTIME_LAB_KEY_KERNEL", kernel);
            lab.env("PVTIME_LAB_USERLAND", prepare_userland(workspace)?);
        }
        PEER_SCENARIO => {
            lab.env(PEER, prepare_peer(workspace)?);
        }
        ECV_SCENARIO if !is_host() => match emulator::fetch(workspace) {
            Ok(program) => {
                lab.env("PVTIME_LAB_QEMU_ECV", program);
            }
            // The lab leaves that host out, and its report says so.
            Err(error) => say(&format!("there is no QEMU with FEAT_ECV: {error:#}")),
        },
        _ => {}
    }
    Ok(())
}

/// Sets up a Debian system for a guest, and returns the folder with its packages' files.
pub fn prepare_userland(workspace: &Workspace) -> Result<PathBuf> {
    userland::fetch(workspace).context(
        "cannot fetch systemd for arm64; on a machine without apt, name a folder with its unpacked \
         packages with PVTIME_LAB_USERLAND",
    )
}

/// Sets up kernel headers to compare with, and returns their folder.
pub fn prepare_headers(workspace: &Workspace) -> Result<PathBuf> {
    headers::fetch(workspace)
}

/// Sets up what fuzz targets are built with.
pub fn prepare_fuzzing() -> Result<()> {
    program::CXX.install()
}

/// Sets up the toolchain that has what stable Rust has not, and returns its name for cargo.
pub fn prepare_nightly() -> Result<&'static str> {
    toolchain::install_nightly()
}

/// Sets up the VMM to measure beside, and returns its folder.
pub fn prepare_peer(workspace: &Workspace) -> Result<PathBuf> {
    peer::fetch(workspace).context(
        "cannot fetch an arm64 QEMU; on a machine without apt, name a folder with one and its \
         libraries with PVTIME_LAB_PEER",
    )
}

/// Whether this machine can be a lab host itself. `PVTIME_LAB_HOST` decides, as in the lab.
fn is_host() -> bool {
    match std::env::var("PVTIME_LAB_HOST").as_deref() {
        Ok("local") => true,
        Ok("qemu") => false,
        _ => cfg!(target_arch = "aarch64") && Path::new("/dev/kvm").exists(),
    }
}

/// Says what is being set up.
fn say(what: &str) {
    eprintln!("set-up: {what}");
}
