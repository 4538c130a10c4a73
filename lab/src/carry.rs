//! Carrying a saved VM from one host to another.

use crate::host::Host;
use anyhow::Result;

/// Files of what `pvtime ctl SOCKET snapshot` writes.
const FILES: [&str; 5] = [
    "snapshot.json",
    "machine.json",
    "time.bin",
    "memory.json",
    "memory",
];

/// Copies a saved VM to a folder of the same name on the other host.
///
/// # Errors
/// When a file is missing, or a host answers no more.
pub fn carry(folder: &str, from: &mut Host, to: &mut Host) -> Result<String> {
    let (old, new) = (from.file(folder), to.file(folder));
    to.make_dirs(&new)?;
    for name in FILES {
        let contents = from.read_from(&format!("{old}/{name}"), 0)?;
        to.put_file(&format!("{new}/{name}"), 0o600, &contents)?;
    }
    Ok(new)
}
