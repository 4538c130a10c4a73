//! The serial port that reports leave by and requests come in by.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use guest_protocol::{MAX_LINE, Report};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_setfl};
use rustix::io::Errno;
use rustix::termios::{
    ControlModes, OptionalActions, isatty, speed, tcdrain, tcgetattr, tcsetattr,
};

/// The port that a runner gives its guest beside the console.
const USUAL: &str = "ttyS1";
const CONSOLE: &str = "console";

/// An open port, in raw mode where it is a terminal: no echo, no translation of line ends.
#[derive(Debug)]
pub struct Port {
    name: String,
    device: File,
}

impl Port {
    /// Opens the port of that name in `/dev`; without a name the usual one, or else the console.
    pub fn open(name: Option<&str>) -> Result<Self> {
        match name {
            Some(name) => Self::open_named(name),
            None if has_uart(USUAL) => Self::open_named(USUAL),
            None => Self::open_named(CONSOLE),
        }
    }

    fn open_named(name: &str) -> Result<Self> {
        let is_plain = !name.is_empty() && !name.contains('/');
        ensure!(
            is_plain,
            "`{name}` is no name of a device in /dev; write one such as ttyS1"
        );
        ensure!(
            has_uart(name) || !is_serial(name),
            "no {name} on this machine; leave --port out"
        );
        let path = format!("/dev/{name}");
        // Without NONBLOCK, opening would wait for a carrier.
        let device = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags((OFlags::NOCTTY | OFlags::NONBLOCK).bits().cast_signed())
            .open(&path)
            .with_context(|| format!("cannot open {path}; leave --port out to use the console"))?;
        let port = Self {
            name: name.to_owned(),
            device,
        };
        port.make_raw()
            .with_context(|| format!("cannot set up {path}"))?;
        Ok(port)
    }

    fn make_raw(&self) -> Result<(), Errno> {
        if isatty(&self.device) {
            let mut terminal = tcgetattr(&self.device)?;
            terminal.make_raw();
            // No modem, no handshake: only bytes.
            terminal.control_modes |= ControlModes::CLOCAL | ControlModes::CREAD;
            terminal.control_modes -= ControlModes::CRTSCTS;
            terminal.set_speed(speed::B115200)?;
            tcsetattr(&self.device, OptionalActions::Now, &terminal)?;
        }
        fcntl_setfl(&self.device, OFlags::empty())
    }

    /// A second handle on the same port.
    pub fn try_clone(&self) -> Result<Self> {
        let device = self
            .device
            .try_clone()
            .with_context(|| format!("no second {}", self.name))?;
        Ok(Self {
            name: self.name.clone(),
            device,
        })
    }

    /// Writes one report, waiting while the port is full.
    pub fn send(&mut self, report: &Report) -> Result<()> {
        let mut line = [0; MAX_LINE];
        let length = report.emit(&mut line)?;
        self.device
            .write_all(&line[..length])
            .with_context(|| format!("cannot write to {}", self.name))
    }

    /// Waits until everything written has left the machine.
    pub fn drain(&self) -> Result<()> {
        match tcdrain(&self.device) {
            Ok(()) | Err(Errno::NOTTY) => Ok(()),
            Err(error) => Err(error).with_context(|| format!("cannot drain {}", self.name)),
        }
    }

    /// Waits for input, at most for `patience` (for ever if none), and reads what there is: the
    /// number of bytes, 0 if none came.
    pub fn receive(&mut self, input: &mut [u8], patience: Option<Duration>) -> Result<usize> {
        let patience = patience
            .map(Timespec::try_from)
            .transpose()
            .context("period too long")?;
        let mut fds = [PollFd::new(&self.device, PollFlags::IN)];
        match poll(&mut fds, patience.as_ref()) {
            Ok(0) | Err(Errno::INTR) => return Ok(0),
            Ok(_) => {}
            Err(error) => {
                return Err(error).with_context(|| format!("cannot wait for {}", self.name));
            }
        }
        let length = self
            .device
            .read(input)
            .with_context(|| format!("cannot read from {}", self.name))?;
        if length == 0 {
            bail!("{} was hung up", self.name);
        }
        Ok(length)
    }
}

/// Whether the name is a serial port's, present or not: Linux makes nodes for ports that are not.
fn is_serial(name: &str) -> bool {
    fs::exists(format!("/sys/class/tty/{name}/type")).unwrap_or(false)
}

/// Whether a serial port of that name has hardware behind it.
fn has_uart(name: &str) -> bool {
    fs::read_to_string(format!("/sys/class/tty/{name}/type")).is_ok_and(|kind| is_known_kind(&kind))
}

/// Type 0 is what the serial core calls a port that it did not find (`PORT_UNKNOWN`).
fn is_known_kind(kind: &str) -> bool {
    kind.trim_end() != "0"
}
