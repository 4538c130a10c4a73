//! A connection whose reads and writes end at a deadline, or when they are called off.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::Mode;
use rustix::process::umask;

use super::address::{Address, ResolveError, resolve};
use super::frame::StreamError;
use super::tls::SetupError;

/// Longest wait for a connection.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// What carries a stream.
pub trait Wire: Read + Write + Send {
    /// From now on reads and writes fail at this moment, with [`ErrorKind::TimedOut`].
    fn set_deadline(&mut self, until: Instant);

    /// From now on nothing but the deadline ends a read or a write.
    fn ignore_cancel(&mut self);
}

impl Wire for Box<dyn Wire> {
    fn set_deadline(&mut self, until: Instant) {
        (**self).set_deadline(until);
    }

    fn ignore_cancel(&mut self) {
        (**self).ignore_cancel();
    }
}

/// A connection could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The address is of no use.
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    /// Nobody answers there.
    #[error("cannot reach {address}: {source}; start `pvtime receive` there first")]
    Unreachable {
        /// Where.
        address: Address,
        /// What the kernel said.
        source: io::Error,
    },
    /// It cannot be listened there.
    #[error("cannot wait at {address}: {source}; choose an address of this host that is free")]
    Listen {
        /// Where.
        address: Address,
        /// What the kernel said.
        source: io::Error,
    },
    /// TLS cannot be spoken with what was given.
    #[error(transparent)]
    Tls(#[from] SetupError),
    /// One of the two sides refuses the other.
    #[error("no secure connection: {0}")]
    Refused(#[from] StreamError),
}

/// A socket with a deadline.
#[derive(Debug)]
pub struct Connection {
    socket: Socket,
    until: Instant,
    /// Readable when reads and writes are to end.
    cancel: Option<OwnedFd>,
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// What the error of a read or write says that was called off.
#[derive(Debug, thiserror::Error)]
#[error("it was called off")]
pub struct Cancelled;

impl Connection {
    /// Connects; `may_leave` says whether the address may be another machine's.
    ///
    /// # Errors
    ///
    /// [`ConnectError`].
    pub fn open(
        address: &Address,
        may_leave: bool,
        cancel: Option<OwnedFd>,
    ) -> Result<Self, ConnectError> {
        let unreachable = |source| ConnectError::Unreachable {
            address: address.clone(),
            source,
        };
        let socket = match address {
            Address::Tcp { host, port } => {
                let mut last = ErrorKind::NotFound.into();
                let connected = resolve(host, *port, may_leave)?.iter().find_map(|it| {
                    TcpStream::connect_timeout(it, CONNECT_LIMIT)
                        .map_err(|error| last = error)
                        .ok()
                });
                Socket::Tcp(connected.ok_or(last).map_err(unreachable)?)
            }
            Address::Unix(path) => Socket::Unix(UnixStream::connect(path).map_err(unreachable)?),
        };
        Self::new(socket, cancel).map_err(unreachable)
    }

    fn new(socket: Socket, cancel: Option<OwnedFd>) -> io::Result<Self> {
        match &socket {
            Socket::Tcp(stream) => {
                stream.set_nonblocking(true)?;
                stream.set_nodelay(true)?;
            }
            Socket::Unix(stream) => stream.set_nonblocking(true)?,
        }
        Ok(Self {
            socket,
            until: Instant::now(),
            cancel,
        })
    }

    /// Waits until the socket is ready for something.
    fn wait(&self, flags: PollFlags) -> io::Result<()> {
        let remaining = self.until.saturating_duration_since(Instant::now());
        if remaining.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        let remaining = Timespec::try_from(remaining).map_err(io::Error::other)?;
        let socket = self.socket.as_fd();
        let mut fds = vec![PollFd::new(&socket, flags)];
        fds.extend(
            self.cancel
                .iter()
                .map(|cancel| PollFd::new(cancel, PollFlags::IN)),
        );
        match poll(&mut fds, Some(&remaining)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        match fds.get(1) {
            Some(cancel) if !cancel.revents().is_empty() => Err(io::Error::other(Cancelled)),
            _ => Ok(()),
        }
    }
}

impl From<UnixStream> for Connection {
    /// # Panics
    ///
    /// Never: a socket can be told not to wait.
    fn from(stream: UnixStream) -> Self {
        Self::new(Socket::Unix(stream), None).expect("a socket")
    }
}

impl Wire for Connection {
    fn set_deadline(&mut self, until: Instant) {
        self.until = until;
    }

    fn ignore_cancel(&mut self) {
        self.cancel = None;
    }
}

impl Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(stream) => stream.as_fd(),
            Self::Unix(stream) => stream.as_fd(),
        }
    }
}

impl Read for Connection {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let read = match &mut self.socket {
                Socket::Tcp(stream) => stream.read(buffer),
                Socket::Unix(stream) => stream.read(buffer),
            };
            match read {
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.wait(PollFlags::IN)?,
                read => return read,
            }
        }
    }
}

impl Write for Connection {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            let written = match &mut self.socket {
                Socket::Tcp(stream) => stream.write(bytes),
                Socket::Unix(stream) => stream.write(bytes),
            };
            match written {
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.wait(PollFlags::OUT)?,
                written => return written,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // The other side learns of the end even where a child of this process has the socket.
        let _ = match &self.socket {
            Socket::Tcp(stream) => stream.shutdown(Shutdown::Both),
            Socket::Unix(stream) => stream.shutdown(Shutdown::Both),
        };
    }
}

/// Where VMs are awaited. A socket of this machine is removed when this is dropped.
#[derive(Debug)]
pub enum Listener {
    /// By TCP.
    Tcp(TcpListener),
    /// At a path.
    Unix(UnixListener, PathBuf),
}

impl Listener {
    /// Listens; `may_leave` says whether other machines may connect. A Unix socket is for this user
    /// alone.
    ///
    /// # Errors
    ///
    /// [`ConnectError`].
    pub fn bind(address: &Address, may_leave: bool) -> Result<Self, ConnectError> {
        let refused = |source| ConnectError::Listen {
            address: address.clone(),
            source,
        };
        let listener = match address {
            Address::Tcp { host, port } => {
                let addresses = resolve(host, *port, may_leave)?;
                Self::Tcp(TcpListener::bind(&addresses[..]).map_err(refused)?)
            }
            Address::Unix(path) => Self::Unix(bind_private(path).map_err(refused)?, path.clone()),
        };
        match &listener {
            Self::Tcp(listener) => listener.set_nonblocking(true),
            Self::Unix(listener, _) => listener.set_nonblocking(true),
        }
        .map_err(refused)?;
        Ok(listener)
    }

    /// Where it listens, with the port that it got.
    #[must_use]
    pub fn address(&self) -> Option<Address> {
        match self {
            Self::Tcp(listener) => listener.local_addr().ok().map(|address| Address::Tcp {
                host: address.ip().to_string(),
                port: address.port(),
            }),
            Self::Unix(_, path) => Some(Address::Unix(path.clone())),
        }
    }

    /// The next connection; `None` where whoever was there has gone again.
    pub fn accept(&self, cancel: Option<OwnedFd>) -> Option<Connection> {
        let socket = match self {
            Self::Tcp(listener) => Socket::Tcp(listener.accept().ok()?.0),
            Self::Unix(listener, _) => Socket::Unix(listener.accept().ok()?.0),
        };
        Connection::new(socket, cancel).ok()
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(listener) => listener.as_fd(),
            Self::Unix(listener, _) => listener.as_fd(),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Self::Unix(_, path) = self {
            let is_socket = path
                .symlink_metadata()
                .is_ok_and(|metadata| metadata.file_type().is_socket());
            if is_socket {
                let _ = std::fs::remove_file(path);
            }
        }
    }
}

fn bind_private(path: &Path) -> io::Result<UnixListener> {
    let mask = umask(Mode::RWXG | Mode::RWXO | Mode::XUSR);
    let listener = UnixListener::bind(path);
    umask(mask);
    listener
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Event;

    #[test]
    fn a_read_ends_at_its_deadline() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let mut connection = Connection::from(ours);
        let start = Instant::now();
        connection.set_deadline(start + Duration::from_millis(50));
        let error = connection.read(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        assert!(start.elapsed() >= Duration::from_millis(50));
        assert!(start.elapsed() < Duration::from_secs(5));
    }

    #[test]
    fn a_write_to_somebody_who_does_not_read_ends_at_its_deadline() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let mut connection = Connection::from(ours);
        connection.set_deadline(Instant::now() + Duration::from_millis(50));
        let error = connection.write_all(&vec![0; 64 << 20]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut);
    }

    #[test]
    fn a_read_is_called_off_unless_it_may_not() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let event = Event::new().unwrap();
        event.raise();
        let cancel = event.as_fd().try_clone_to_owned().unwrap();
        let mut connection = Connection::new(Socket::Unix(ours), Some(cancel)).unwrap();
        connection.set_deadline(Instant::now() + Duration::from_secs(30));
        let error = connection.read(&mut [0]).unwrap_err();
        assert_eq!(error.to_string(), "it was called off");
        connection.ignore_cancel();
        connection.set_deadline(Instant::now() + Duration::from_millis(10));
        let error = connection.read(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut);
    }

    #[test]
    fn a_socket_of_this_machine_is_private_and_goes_with_its_listener() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::TempDir::new().unwrap();
        let path = folder.path().join("socket");
        let address = Address::Unix(path.clone());
        let listener = Listener::bind(&address, false).unwrap();
        let mode = path.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(listener.accept(None).is_none(), "nobody came");
        let error = Listener::bind(&address, false).unwrap_err();
        assert!(error.to_string().contains("choose an address"), "{error}");
        let _client = Connection::open(&address, false, None).unwrap();
        assert!(listener.accept(None).is_some());
        drop(listener);
        assert!(!path.exists());
        let error = Connection::open(&address, false, None).unwrap_err();
        assert!(error.to_string().contains("`pvtime receive`"), "{error}");
    }
}
