//! The bare-metal guest on a QEMU machine without a hypervisor of ours: the same file, and what is
//! there without us.

use crate::assets::Assets;
use crate::bare::{Bare, is_answered_by_one};
use crate::interrupt;
use crate::machine::start;
use anyhow::{Context, Result, bail};
use guest_protocol::report::Hello;
use guest_protocol::{Action, Body, LineBuffer, MAX_LINE, Report, Request};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

/// Longest time to the first report, for an answer, and to the end.
const LIMIT: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// A machine that runs the guest. It ends when it is dropped.
pub struct PlainMachine {
    process: Child,
    port: UnixStream,
    lines: LineBuffer,
    last_id: u32,
}

impl PlainMachine {
    /// Starts it, all CPUs idle.
    ///
    /// # Errors
    /// When QEMU or the guest is missing.
    pub fn start(assets: &Assets, cpus: u32, logs: &Path) -> Result<Self> {
        let (port, theirs) = UnixStream::pair()?;
        port.set_read_timeout(Some(LOOK_EVERY))?;
        let mut command = Command::new(&assets.qemu);
        command
            .args(["-nodefaults", "-no-user-config", "-display", "none"])
            .args(["-monitor", "none", "-no-reboot", "-m", "256"])
            .args(["-M", "virt,gic-version=3", "-cpu", "cortex-a76"])
            .args(["-smp", &cpus.to_string()])
            .args(["-chardev", "socket,id=port,fd=0", "-serial", "chardev:port"])
            .arg("-kernel")
            .arg(assets.bare_guest()?);
        let process = start(&mut command, theirs.into(), &logs.join("plain-qemu.log"))?;
        Ok(Self {
            process,
            port,
            lines: LineBuffer::new(),
            last_id: 0,
        })
    }

    /// Waits for the guest's introduction.
    ///
    /// # Errors
    /// When it does not come.
    pub fn await_hello(&mut self) -> Result<Hello> {
        match self.next(|report| matches!(report.body, Body::Hello(_)))? {
            Body::Hello(hello) => Ok(hello),
            other => bail!("the guest on a plain machine sent {other:?} for a hello"),
        }
    }

    /// Asks the guest to power off, and waits for the machine's end.
    ///
    /// # Errors
    /// When either does not happen.
    pub fn power_off(mut self) -> Result<()> {
        self.ask_one(Action::PowerOff)?;
        let start = Instant::now();
        while self.process.try_wait()?.is_none() {
            if start.elapsed() > LIMIT {
                bail!("the plain machine did not power off");
            }
            interrupt::sleep(LOOK_EVERY)?;
        }
        Ok(())
    }

    /// The next report of this kind; others are passed over.
    fn next(&mut self, is_wanted: impl Fn(&Report) -> bool) -> Result<Body> {
        let start = Instant::now();
        let mut byte = [0];
        loop {
            match self.port.read(&mut byte) {
                Ok(0) => bail!("the plain machine ended; see plain-qemu.log"),
                Ok(_) => {
                    let Some(line) = self.lines.push(byte[0])? else {
                        continue;
                    };
                    let report = Report::parse(line).with_context(|| {
                        format!("the guest sent {:?}", String::from_utf8_lossy(line))
                    })?;
                    if is_wanted(&report) {
                        return Ok(report.body);
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => interrupt::check()?,
                Err(error) => return Err(error).context("the plain machine's port"),
            }
            if start.elapsed() > LIMIT {
                bail!("the guest on a plain machine did not report within 60 s");
            }
        }
    }
}

impl Bare for PlainMachine {
    fn ask_all(&mut self, action: Action) -> Result<Vec<Body>> {
        self.last_id += 1;
        let id = self.last_id;
        let mut line = [0; MAX_LINE];
        let length = Request::new(action).with_id(id).emit(&mut line)?;
        self.port.write_all(&line[..length])?;
        let mut bodies = Vec::new();
        loop {
            match self.next(|report| report.answers == Some(id))? {
                Body::Done => return Ok(bodies),
                Body::Error(error) => bail!("the guest on a plain machine: {}", error.message),
                body => bodies.push(body),
            }
            if is_answered_by_one(action) {
                return Ok(bodies);
            }
        }
    }
}

impl Drop for PlainMachine {
    fn drop(&mut self) {
        let _ended_already = self.process.kill();
        let _reaped_already = self.process.wait();
    }
}
