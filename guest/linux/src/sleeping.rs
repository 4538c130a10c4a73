//! The guest suspends itself because it is asked to.

use std::fs;

use anyhow::{Context, Result};

/// Has the kernel suspend, and returns when it has resumed.
pub fn suspend() -> Result<()> {
    fs::write("/sys/power/state", "mem").context(
        "the kernel does not suspend; does the machine have PSCI SYSTEM_SUSPEND \
         (pvtime run --suspend-guest on)?",
    )
}
