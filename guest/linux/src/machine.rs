//! What process 1 owes the machine: its file systems at the start, its power at the end.

use std::fs;
use std::process;
use std::thread;

use anyhow::{Context, Result};
use guest_protocol::report::ByeReason;
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount};
use rustix::system::{RebootCommand, reboot};

/// Whether the kernel started this process as its init.
pub fn is_process_one() -> bool {
    process::id() == 1
}

/// Mounts `/proc`, `/sys` and `/dev`, making the folders where the archive has none.
pub fn mount_all() -> Result<()> {
    for (target, kind) in [("/proc", "proc"), ("/sys", "sysfs"), ("/dev", "devtmpfs")] {
        fs::create_dir_all(target).with_context(|| format!("cannot make {target}"))?;
        match mount(kind, target, kind, MountFlags::empty(), None) {
            // A kernel with CONFIG_DEVTMPFS_MOUNT was here first.
            Ok(()) | Err(Errno::BUSY) => {}
            Err(error) => {
                return Err(error).with_context(|| {
                    format!("cannot mount {kind} on {target}; is it in the guest's kernel?")
                });
            }
        }
    }
    Ok(())
}

/// Stops the machine, or this kernel alone where another was loaded. If the kernel will not, waits for ever: returning would be a kernel panic.
pub fn stop(reason: ByeReason) -> ! {
    let command = match reason {
        ByeReason::Reset => RebootCommand::Restart,
        ByeReason::Kexec => RebootCommand::Kexec,
        ByeReason::PowerOff | ByeReason::Failed => RebootCommand::PowerOff,
    };
    let result = reboot(command);
    eprintln!("init: the kernel does not stop the machine ({result:?}); stop it from outside");
    loop {
        thread::park();
    }
}
