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

/// Builds the programs for hosts and guests.
pub fn build_for_hosts(workspace: &Workspace) -> Result<()> {
    let packages = [
        "--package=lab-agent",
        "--package=pvtime-vmm",
        "--package=guest-linux",
    ];
    let mut command =
        workspace.cargo(&["build", "--quiet", "--target", TARGET, "--profile", PROFILE]);
    process::run(command.args(packages))?;
    build_kvm_tests(workspace)
}

/// Crates with tests that need KVM. Everywhere else these tests are empty.
const KVM_TESTED: [&str; 1] = ["--package=pvtime-kvm"];

/// Builds those tests, under names by which the scenario `kvm-tests` finds them.
fn build_kvm_tests(workspace: &Workspace) -> Result<()> {
    let mut command = workspace.cargo(&["test", "--quiet", "--no-run", "--test=*"]);
    command.args([
        "--target",
        TARGET,
        "--profile",
        PROFILE,
        "--message-format=json",
    ]);
    let messages = process::output(command.args(KVM_TESTED))?;
    let folder = workspace.target.join(TARGET).join(PROFILE);
    remove_old_tests(&folder)?;
    for message in messages.lines() {
        let message: Value = serde_json::from_str(message).context("cargo printed no JSON")?;
        if let (Some(program), Some(name)) = (
            message["executable"].as_str(),
            message["target"]["name"].as_str(),
        ) {
            let named = folder.join(format!("{KVM_TEST}{name}"));
            fs::copy(program, &named)
                .with_context(|| format!("cannot copy {program} to {}", named.display()))?;
        }
    }
    Ok(())
}

/// What the names of the test programs begin with.
const KVM_TEST: &str = "kvm-test-";

/// Removes the test programs of an earlier build, which may have had others.
fn remove_old_tests(folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with(KVM_TEST) {
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
