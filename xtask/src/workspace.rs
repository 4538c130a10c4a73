//! Where things are.

use crate::process;
use anyhow::{Context, Result};
use std::path::PathBuf;
use std::process::Command;

/// The workspace that this program was built from.
pub struct Workspace {
    /// Its root.
    pub root: PathBuf,
    /// Where cargo builds.
    pub target: PathBuf,
}

impl Workspace {
    /// Asks cargo.
    pub fn find() -> Result<Self> {
        let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml");
        let mut command = Command::new(cargo());
        command.args([
            "metadata",
            "--no-deps",
            "--format-version=1",
            "--manifest-path",
            manifest,
        ]);
        let metadata: serde_json::Value = serde_json::from_str(&process::output(&mut command)?)
            .context("cannot understand `cargo metadata`")?;
        let path = |name: &str| metadata[name].as_str().map(PathBuf::from);
        path("workspace_root")
            .zip(path("target_directory"))
            .map(|(root, target)| Self { root, target })
            .context("`cargo metadata` names no folders")
    }

    /// Cargo, run in the root.
    pub fn cargo(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(cargo());
        command.current_dir(&self.root).args(arguments);
        command
    }

    /// Cargo of another toolchain, as rustup names it: `+nightly`.
    pub fn cargo_of(&self, toolchain: &str, arguments: &[&str]) -> Command {
        // The cargo that runs us is one toolchain's; rustup's takes the name of another.
        let mut command = Command::new("cargo");
        command.env_remove("CARGO").env_remove("RUSTUP_TOOLCHAIN");
        command
            .current_dir(&self.root)
            .arg(toolchain)
            .args(arguments);
        command
    }
}

/// The cargo that runs us, or the one in `PATH`.
fn cargo() -> String {
    std::env::var("CARGO").unwrap_or_else(|_| "cargo".into())
}
