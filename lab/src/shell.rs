//! The root shell that a Debian guest has at its second serial port (`systemd.debug_shell=ttyS1`).

use crate::dialogue::Dialogue;
use crate::guest::{BOOT_LIMIT, Guest};
use crate::host::Host;
use anyhow::{Context, Result, bail};
use std::time::Instant;

/// What a shell of root's asks for commands with.
const PROMPT: &str = "# ";

/// What it writes when a command is done, with a number and its exit status. As it is typed there are
/// quotes in it.
const DONE: &str = "command";

/// Commands to it, and what they print.
pub struct Shell {
    dialogue: Dialogue,
    commands: u32,
}

/// What a command printed.
#[derive(Debug, Clone)]
pub struct Printed {
    /// Its lines, with what was typed before the first.
    pub lines: Vec<String>,
    /// Before it was typed.
    pub asked: Instant,
    /// When the first line that was wanted had begun, at the latest.
    pub began: Instant,
}

impl Shell {
    /// Waits for the shell of a guest that boots.
    ///
    /// # Errors
    /// When it does not come.
    pub fn await_prompt(guest: &Guest, host: &mut Host) -> Result<Self> {
        let output = host.file(&format!("{}-reports.log", guest.name()));
        host.wait_for_text(&output, PROMPT, BOOT_LIMIT)
            .with_context(|| format!("guest {} has no shell", guest.name()))?;
        Ok(Self {
            dialogue: guest.dialogue(),
            commands: 0,
        })
    }

    /// Runs a command to its end, and tells when a line was there that begins with this.
    ///
    /// # Errors
    /// When it fails, or prints nothing of the kind.
    pub fn run(&mut self, host: &mut Host, command: &str, first: &str) -> Result<Printed> {
        self.commands += 1;
        let done = format!("{DONE} {}: ", self.commands);
        let typed = format!("{command}; echo \"{DONE}\" \"{}:\" $?\r", self.commands);
        let asked = Instant::now();
        self.dialogue.write(host, typed.as_bytes())?;
        let (mut lines, mut began) = (Vec::new(), None);
        loop {
            let (line, at) = self.dialogue.await_line(host, |line| {
                Some(String::from_utf8_lossy(line).trim().to_owned())
            })?;
            if let Some(status) = line.strip_prefix(&done) {
                if status != "0" {
                    bail!("{command:?} ended with {status} in the guest: {lines:?}");
                }
                break;
            }
            if line.starts_with(first) && began.is_none() {
                began = Some(at);
            }
            lines.push(line);
        }
        let began = began.with_context(|| format!("{command:?} printed {lines:?} in the guest"))?;
        Ok(Printed {
            lines,
            asked,
            began,
        })
    }
}
