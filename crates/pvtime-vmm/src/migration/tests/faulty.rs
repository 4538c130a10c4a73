//! Connections that fail at a byte or at a message.

use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::migration::wire::{Connection, Wire};

/// When a connection fails.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cut {
    source: Fault,
    destination: Fault,
}

/// How what one side sends fails.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fault {
    #[default]
    Never,
    /// The connection ends before this byte.
    Byte(u64),
    /// The connection ends before this write; a frame is one write, the hello another.
    Frame(u64),
    /// A bit of this byte changes.
    Flip(u64, u8),
}

impl Cut {
    pub fn byte_to_destination(byte: u64) -> Self {
        Self {
            source: Fault::Byte(byte),
            ..Self::default()
        }
    }

    pub fn byte_to_source(byte: u64) -> Self {
        Self {
            destination: Fault::Byte(byte),
            ..Self::default()
        }
    }

    pub fn frame_to_destination(frame: u64) -> Self {
        Self {
            source: Fault::Frame(frame + 1),
            ..Self::default()
        }
    }

    pub fn frame_to_source(frame: u64) -> Self {
        Self {
            destination: Fault::Frame(frame + 1),
            ..Self::default()
        }
    }

    pub fn flip(byte: u64, bit: u8) -> Self {
        Self {
            source: Fault::Flip(byte, bit),
            ..Self::default()
        }
    }

    /// The longest wait of either side: what is not to come does not come after a second either.
    pub fn patience(self) -> Duration {
        let never = self.source == Fault::Never && self.destination == Fault::Never;
        Duration::from_secs(if never { 60 } else { 1 })
    }

    pub fn of_source(self) -> Fault {
        self.source
    }

    pub fn of_destination(self) -> Fault {
        self.destination
    }
}

/// A connection with a fault in what it sends.
pub struct Faulty {
    inner: Box<dyn Wire>,
    socket: UnixStream,
    fault: Fault,
    patience: Duration,
    pub bytes: Arc<AtomicU64>,
    pub writes: Arc<AtomicU64>,
}

impl Faulty {
    pub fn new(socket: UnixStream, fault: Fault, patience: Duration) -> Self {
        Self {
            inner: Box::new(Connection::from(socket.try_clone().unwrap())),
            socket,
            fault,
            patience,
            bytes: Arc::default(),
            writes: Arc::default(),
        }
    }

    /// Puts something between what fails and the socket.
    pub fn over<E>(
        self,
        carrier: impl FnOnce(Box<dyn Wire>) -> Result<Box<dyn Wire>, E>,
    ) -> Result<Self, E> {
        let inner = carrier(self.inner)?;
        Ok(Self { inner, ..self })
    }

    fn end(&self) -> io::Error {
        let _ = self.socket.shutdown(std::net::Shutdown::Both);
        ErrorKind::BrokenPipe.into()
    }
}

impl Read for Faulty {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.inner.read(buffer)
    }
}

impl Write for Faulty {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_all(bytes)?;
        Ok(bytes.len())
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        let start = self.bytes.fetch_add(bytes.len() as u64, Ordering::SeqCst);
        let write = self.writes.fetch_add(1, Ordering::SeqCst);
        let end = start + bytes.len() as u64;
        match self.fault {
            Fault::Byte(byte) if byte < end => {
                let kept = usize::try_from(byte.saturating_sub(start)).unwrap();
                let _ = self.inner.write_all(&bytes[..kept]);
                let _ = self.inner.flush();
                Err(self.end())
            }
            Fault::Frame(frame) if frame <= write => Err(self.end()),
            Fault::Flip(byte, bit) if (start..end).contains(&byte) => {
                let mut changed = bytes.to_vec();
                changed[usize::try_from(byte - start).unwrap()] ^= 1 << bit;
                self.inner.write_all(&changed)
            }
            _ => self.inner.write_all(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl Wire for Faulty {
    fn set_deadline(&mut self, until: Instant) {
        self.inner
            .set_deadline(until.min(Instant::now() + self.patience));
    }

    fn ignore_cancel(&mut self) {
        self.inner.ignore_cancel();
    }
}
