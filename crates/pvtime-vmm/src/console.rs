//! Where the bytes of a serial port go and come from.

use std::convert::Infallible;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::str::FromStr;

use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcsetattr};

/// The other end of a serial port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Destination {
    /// Standard input and output.
    Stdio,
    /// Nowhere: output is dropped, and there is no input.
    Off,
    /// A file that is made or emptied; there is no input.
    File(PathBuf),
}

impl FromStr for Destination {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(match text {
            "stdio" => Self::Stdio,
            "off" => Self::Off,
            path => Self::File(path.into()),
        })
    }
}

/// A file for a serial port could not be made.
#[derive(Debug, thiserror::Error)]
#[error("cannot write to {path}: {source}; give a path in a folder that exists, stdio or off")]
pub struct OpenError {
    path: PathBuf,
    source: io::Error,
}

impl Destination {
    /// Opens the output.
    ///
    /// # Errors
    ///
    /// [`OpenError`] where the file cannot be made.
    pub fn open(&self) -> Result<Box<dyn Write + Send>, OpenError> {
        Ok(match self {
            Self::Stdio => Box::new(Flushed(io::stdout())),
            Self::Off => Box::new(io::sink()),
            Self::File(path) => Box::new(File::create(path).map_err(|source| OpenError {
                path: path.clone(),
                source,
            })?),
        })
    }
}

/// Standard output without a buffer: a guest's prompt has no newline.
struct Flushed(io::Stdout);

impl Write for Flushed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.0.write(bytes)?;
        self.0.flush()?;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// Standard input's terminal in raw mode, so that every key reaches the guest; as it was again
/// when this is dropped.
#[derive(Debug)]
pub struct RawTerminal {
    before: Termios,
}

impl RawTerminal {
    /// Goes to raw mode; `None` where standard input is no terminal.
    ///
    /// # Errors
    ///
    /// What the terminal refuses.
    pub fn enter() -> io::Result<Option<Self>> {
        let stdin = io::stdin();
        if !isatty(stdin.as_fd()) {
            return Ok(None);
        }
        let before = tcgetattr(stdin.as_fd())?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(stdin.as_fd(), OptionalActions::Now, &raw)?;
        Ok(Some(Self { before }))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // There is nobody left to tell.
        let _ = tcsetattr(io::stdin().as_fd(), OptionalActions::Now, &self.before);
    }
}

/// What is typed at a terminal in raw mode: Ctrl-A begins a command to the VMM.
#[derive(Debug, Default)]
pub struct Keys {
    commanding: bool,
}

/// What somebody typed.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Typed {
    /// For the guest.
    pub input: Vec<u8>,
    /// Ctrl-A x: stop.
    pub stop: bool,
}

impl Keys {
    /// The key that begins a command; twice, it is sent to the guest.
    const CTRL_A: u8 = 0x01;

    /// Separates commands from input.
    pub fn typed(&mut self, bytes: &[u8]) -> Typed {
        let mut typed = Typed::default();
        for &byte in bytes {
            match (std::mem::take(&mut self.commanding), byte) {
                (true, b'x') => typed.stop = true,
                (false, Self::CTRL_A) => self.commanding = true,
                (true, Self::CTRL_A) | (false, _) => typed.input.push(byte),
                (true, _) => {}
            }
        }
        typed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destinations_are_told_apart() {
        assert_eq!("stdio".parse(), Ok(Destination::Stdio));
        assert_eq!("off".parse(), Ok(Destination::Off));
        assert_eq!("./off".parse(), Ok(Destination::File("./off".into())));
    }

    #[test]
    fn a_file_that_cannot_be_made_is_named() {
        let error = Destination::File("/nonexistent/log".into())
            .open()
            .err()
            .unwrap()
            .to_string();
        assert!(
            error.starts_with("cannot write to /nonexistent/log: "),
            "{error}"
        );
    }

    #[test]
    fn ctrl_a_x_stops_and_everything_else_reaches_the_guest() {
        let mut keys = Keys::default();
        let input = |bytes: &[u8]| Typed {
            input: bytes.to_vec(),
            stop: false,
        };
        assert_eq!(keys.typed(b"ls\x03\r"), input(b"ls\x03\r"));
        assert_eq!(keys.typed(b"a\x01"), input(b"a"));
        assert_eq!(keys.typed(b"\x01b\x01qx"), input(b"\x01bx"));
        assert_eq!(
            keys.typed(b"\x01x"),
            Typed {
                input: vec![],
                stop: true
            }
        );
    }
}
