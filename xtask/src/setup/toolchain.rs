//! The toolchain that has Miri.

use super::say;
use crate::process;
use anyhow::{Context, Result};
use std::process::Command;

/// As cargo takes it.
const NIGHTLY: &str = "+nightly";

/// Installs a nightly toolchain with Miri and the sources of the standard library, if there is none.
pub fn install_nightly() -> Result<&'static str> {
    let mut cargo = Command::new("cargo");
    if process::output(cargo.args([NIGHTLY, "miri", "--version"])).is_err() {
        say("installing a nightly toolchain with Miri, with rustup");
        let mut rustup = Command::new("rustup");
        rustup.args(["toolchain", "install", "nightly", "--profile", "minimal"]);
        rustup.args(["--component", "miri", "--component", "rust-src"]);
        process::run(&mut rustup).context(
            "cannot install a nightly toolchain; run `rustup toolchain install nightly --component \
             miri --component rust-src`",
        )?;
    }
    Ok(NIGHTLY)
}
