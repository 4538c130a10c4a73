//! Children that do not outlive their parent.
#![expect(
    unsafe_code,
    reason = "only a hook between fork and exec can ask for the signal"
)]

use rustix::process::{Signal, getpid, getppid, set_parent_process_death_signal};
use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Makes the kernel kill the child of this command when the thread that spawns it ends, however it
/// ends, and puts the child into a process group of its own, so that a terminal's Ctrl-C reaches the
/// parent alone.
///
/// The signal belongs to the spawning *thread*: spawn from one that lives as long as the child may.
pub fn tether(command: &mut Command) -> &mut Command {
    let parent = getpid();
    let hook = move || {
        set_parent_process_death_signal(Some(Signal::KILL))?;
        if getppid() == Some(parent) {
            Ok(())
        } else {
            // The parent ended before the signal was asked for.
            Err(io::Error::from_raw_os_error(
                rustix::io::Errno::SRCH.raw_os_error(),
            ))
        }
    };
    // SAFETY: the hook makes two system calls and allocates nothing, locks nothing, and unwinds
    // nowhere, so it is sound in the child of a process with several threads.
    unsafe { command.process_group(0).pre_exec(hook) }
}
