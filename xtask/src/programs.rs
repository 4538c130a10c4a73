//! Building the lab, and the programs that it puts on its hosts.

use crate::process;
use crate::setup::{self, Needs};
use crate::workspace::Workspace;
use anyhow::{Context, Result};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Target of everything that runs on a host or in a Linux guest.
pub const TARGET: &str = "aarch64-unknown-linux-musl";

/// Target of what runs without an operating system.
pub const BARE_TARGET: &str = "aarch64-unknown-none";

/// The bare-metal guest and the firmware of hosts that have any: flat files beside the programs.
const IMAGES: [&str; 2] = ["el1", "el3"];

/// Cargo profile for them.
const PROFILE: &str = "lab";

/// The lab's program with what it was set up with.
pub struct Lab {
    program: PathBuf,
    kernel: Option<PathBuf>,
    programs: PathBuf,
    logs: PathBuf,
    root: PathBuf,
}

/// Builds the lab alone.
pub fn build_lab(workspace: &Workspace) -> Result<Lab> {
    process::run(&mut workspace.cargo(&["build", "--quiet", "--package", "lab"]))?;
    Ok(Lab {
        program: workspace.target.join("debug/lab"),
        kernel: None,
        programs: workspace.target.join(TARGET).join(PROFILE),
        logs: workspace.target.join("lab"),
        root: workspace.root.clone(),
    })
}

/// What hosts and guests run, and the tests and examples that need KVM. Everywhere else those are empty.
const PACKAGES: [&str; 5] = [
    "--package=lab-agent",
    "--package=pvtime-vmm",
    "--package=guest-linux",
    "--package=pvtime-kvm",
    "--package=kvm-tests",
];
const TARGETS: [&str; 6] = [
    "--bins",
    "--examples",
    "--test=kvm",
    "--test=machine_state",
    "--test=hostile_guest",
    "--test=failed_wake",
];

/// What the names of programs begin with by which the scenario `kvm-tests` finds them.
const KVM_TEST: &str = "kvm-test-";
const KVM_EXAMPLE: &str = "kvm-example-";

/// Builds the programs for hosts and guests. All at once: apart, each build would have features of its own,
/// and build again what they share.
pub fn build_for_hosts(workspace: &Workspace) -> Result<()> {
    let mut command = workspace.cargo(&[
        "build",
        "--quiet",
        "--message-format=json-render-diagnostics",
    ]);
    command.args(["--target", TARGET, "--profile", PROFILE]);
    let messages = process::output(command.args(PACKAGES).args(TARGETS))?;
    let folder = workspace.target.join(TARGET).join(PROFILE);
    remove_old(&folder)?;
    for message in messages.lines() {
        let message: Value = serde_json::from_str(message).context("cargo printed no JSON")?;
        name_for_kvm(&message, &folder)?;
    }
    build_images(workspace)
}

/// Copies a test or an example that was built to its name.
fn name_for_kvm(message: &Value, folder: &Path) -> Result<()> {
    let prefix = match message["target"]["kind"][0].as_str() {
        Some("test") => KVM_TEST,
        Some("example") => KVM_EXAMPLE,
        _ => return Ok(()),
    };
    if let (Some(program), Some(name)) = (
        message["executable"].as_str(),
        message["target"]["name"].as_str(),
    ) {
        let named = folder.join(format!("{prefix}{name}"));
        fs::copy(program, &named)
            .with_context(|| format!("cannot copy {program} to {}", named.display()))?;
    }
    Ok(())
}

/// Builds what runs without an operating system, and puts it where the lab finds the other programs.
fn build_images(workspace: &Workspace) -> Result<()> {
    let mut command = workspace.cargo(&["build", "--quiet"]);
    command.args(["--package=guest-el1", "--package=lab-firmware"]);
    process::run(command.args(["--target", BARE_TARGET, "--profile", PROFILE]))?;
    let folder = |target| workspace.target.join(target).join(PROFILE);
    for image in IMAGES {
        let (from, to) = (folder(BARE_TARGET).join(image), folder(TARGET).join(image));
        fs::copy(&from, &to)
            .with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
    }
    Ok(())
}

/// Removes the programs of an earlier build, which may have had others.
fn remove_old(folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with(KVM_TEST) || name.starts_with(KVM_EXAMPLE) {
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}

impl Lab {
    /// Sets up and builds all that hosts and guests are made of.
    pub fn with_hosts(self, workspace: &Workspace) -> Result<Self> {
        let kernel = setup::prepare(workspace, Needs::Lab)?;
        build_for_hosts(workspace)?;
        Ok(Self {
            kernel: Some(kernel),
            ..self
        })
    }

    /// The lab, to be given its arguments.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.current_dir(&self.root);
        command
            .env("PVTIME_LAB_PROGRAMS", &self.programs)
            .env("PVTIME_LAB_LOGS", &self.logs);
        if let Some(kernel) = &self.kernel {
            command.env("PVTIME_LAB_KERNEL", kernel);
        }
        command
    }
}
