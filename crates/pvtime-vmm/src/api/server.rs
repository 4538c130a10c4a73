//! The server's threads: one that accepts, and one for each of a few connections.

use std::fs;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{self, Builder, JoinHandle, Scope};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::Mode;
use rustix::process::umask;

use super::http::{Request, Response};
use super::routes::Api;
use super::{Fault, Vm};
use crate::event::Event;

/// How much a server lets itself be asked at a time.
#[derive(Clone, Copy, Debug)]
struct Limits {
    /// Connections at a time.
    connections: usize,
    /// For a whole request to arrive, and again for its answer to be taken.
    patience: Duration,
}

const LIMITS: Limits = Limits {
    connections: 32,
    patience: Duration::from_secs(2),
};

/// How long the end waits for clients that follow the VM, so that they learn of it and of the last
/// records.
const FAREWELL: Duration = Duration::from_millis(200);

/// How long to wait with the next client when the process has no file descriptor left for it.
const WITHOUT_DESCRIPTORS: Duration = Duration::from_millis(100);

/// A control socket. Dropping it ends its threads and removes the socket.
pub struct Server {
    path: PathBuf,
    /// Device and inode of the socket.
    file: (u64, u64),
    /// Of the VM, once there is one.
    api: Arc<OnceLock<Api>>,
    stop: Event,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Makes the socket, for this user alone, and answers there that there is no VM, until it has one
    /// to [serve](Self::serve).
    ///
    /// To be called before other threads make files: the mask for their modes is the process's.
    ///
    /// # Errors
    ///
    /// Where the path is taken or cannot be made.
    pub fn start(path: &Path) -> Result<Self> {
        Self::start_with(path, LIMITS)
    }

    fn start_with(path: &Path, limits: Limits) -> Result<Self> {
        let listener = bind(path)?;
        let metadata = fs::symlink_metadata(path).context("the control socket is gone")?;
        let api = Arc::new(OnceLock::new());
        let stop = Event::new()?;
        let (its_api, its_stop) = (Arc::clone(&api), stop.clone());
        let thread = Builder::new()
            .name("api".into())
            .spawn(move || serve(&listener, &its_api, &its_stop, limits))
            .context("cannot start the control socket's thread")?;
        Ok(Self {
            path: path.into(),
            file: (metadata.dev(), metadata.ino()),
            api,
            stop,
            thread: Some(thread),
        })
    }

    /// Answers for this VM from now on.
    ///
    /// # Panics
    ///
    /// If it has one.
    pub fn serve(&self, vm: impl Vm) {
        let given = self.api.set(Api::new(vm));
        assert!(given.is_ok(), "the control socket of another VM");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Whoever waits for a record would hold up the end.
        if let Some(api) = self.api.get() {
            api.vm().records().finish();
        }
        self.stop.raise();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        let is_ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|metadata| (metadata.dev(), metadata.ino()) == self.file);
        if is_ours {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn bind(path: &Path) -> Result<UnixListener> {
    let mask = umask(Mode::RWXG | Mode::RWXO | Mode::XUSR);
    let listener = UnixListener::bind(path);
    umask(mask);
    let path_shown = path.display();
    let listener = match listener {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse && is_abandoned(path) => bail!(
            "the control socket {path_shown} was left by a VMM that has ended; remove it, or give \
             --api-socket another path"
        ),
        listener => listener.with_context(|| {
            format!(
                "cannot make the control socket {path_shown}; give --api-socket a path that does \
                 not exist, in a folder that does"
            )
        })?,
    };
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Whether this is a socket with nobody behind it.
fn is_abandoned(path: &Path) -> bool {
    let is_socket = fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket());
    let refuses = |error: io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
    is_socket && UnixStream::connect(path).is_err_and(refuses)
}

fn serve(listener: &UnixListener, api: &OnceLock<Api>, stop: &Event, limits: Limits) {
    let open = Open::default();
    thread::scope(|scope| {
        let accept = || match listener.accept() {
            Ok((stream, _)) => admit(scope, &open, stream, api, limits),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => thread::sleep(WITHOUT_DESCRIPTORS),
        };
        while next_client(listener, stop) {
            accept();
        }
        let until = Instant::now() + FAREWELL;
        let expects_followers = || api.get().is_some_and(Api::expects_followers);
        while expects_followers() && last_client(listener, until) {
            accept();
        }
        open.hang_up();
    });
}

/// Waits for a client; false where there is to be none any more.
fn next_client(listener: &UnixListener, stop: &Event) -> bool {
    let mut fds = [
        PollFd::new(stop, PollFlags::IN),
        PollFd::new(listener, PollFlags::IN),
    ];
    // The only error is a signal, and accepting does not wait.
    let _ = poll(&mut fds, None);
    fds[0].revents().is_empty()
}

/// Waits for a client up to a moment; false where none came.
fn last_client(listener: &UnixListener, until: Instant) -> bool {
    let patience = until.saturating_duration_since(Instant::now());
    let patience = Timespec::try_from(patience).expect("a short time");
    let mut fds = [PollFd::new(listener, PollFlags::IN)];
    poll(&mut fds, Some(&patience)).is_ok_and(|ready| ready > 0)
}

/// Converses with a client on a thread of its own, or tells it that there are too many.
fn admit<'scope>(
    scope: &'scope Scope<'scope, '_>,
    open: &'scope Open,
    stream: UnixStream,
    api: &'scope OnceLock<Api>,
    limits: Limits,
) {
    let stream = Arc::new(stream);
    let admitted = open.enter(&stream, limits.connections).is_some_and(|seat| {
        let stream = Arc::clone(&stream);
        let thread = Builder::new().name("api-client".into());
        let started = thread.spawn_scoped(scope, move || {
            // A client that breaks off is its own loss.
            let _ = converse(&stream, api, limits.patience);
            drop(seat);
        });
        started.is_ok()
    });
    if !admitted {
        // It fits into the socket's buffer: nobody is waited for.
        let _ = stream.set_nonblocking(true);
        let fault = Fault::too_many_connections(limits.connections);
        let _ = Response::fault(&fault).write(&mut &*stream);
    }
}

/// Takes one request and answers it.
fn converse(stream: &UnixStream, api: &OnceLock<Api>, patience: Duration) -> io::Result<()> {
    let response = match Request::read(&mut Timed::new(stream, patience)) {
        Ok(request) => match api.get() {
            Some(api) => api.answer(&request),
            None => Response::fault(&Fault::no_vm()),
        },
        Err(error) => match error.fault() {
            Some(fault) => Response::fault(&fault),
            None => return Ok(()),
        },
    };
    response.write(&mut Timed::new(stream, patience))
}

/// A stream that fails when a moment has come, however many reads and writes that takes.
struct Timed<'a> {
    stream: &'a UnixStream,
    until: Instant,
}

impl<'a> Timed<'a> {
    fn new(stream: &'a UnixStream, patience: Duration) -> Self {
        Self {
            stream,
            until: Instant::now() + patience,
        }
    }

    fn remaining(&self) -> io::Result<Option<Duration>> {
        match self.until.saturating_duration_since(Instant::now()) {
            Duration::ZERO => Err(io::ErrorKind::TimedOut.into()),
            remaining => Ok(Some(remaining)),
        }
    }
}

impl Read for Timed<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(self.remaining()?)?;
        self.stream.read(buffer)
    }
}

impl Write for Timed<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(self.remaining()?)?;
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

/// The connections that are open.
#[derive(Default)]
struct Open(Mutex<Vec<Arc<UnixStream>>>);

impl Open {
    /// Takes a place, if there is one.
    fn enter(&self, stream: &Arc<UnixStream>, most: usize) -> Option<Seat<'_>> {
        let mut streams = self.lock();
        if streams.len() >= most {
            return None;
        }
        streams.push(Arc::clone(stream));
        Some(Seat {
            open: self,
            stream: Arc::clone(stream),
        })
    }

    /// Ends the wait for requests that have not arrived; answers are given still.
    fn hang_up(&self) {
        for stream in &*self.lock() {
            let _ = stream.shutdown(Shutdown::Read);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<UnixStream>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection's place, until this is dropped.
struct Seat<'a> {
    open: &'a Open,
    stream: Arc<UnixStream>,
}

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        self.open
            .lock()
            .retain(|stream| !Arc::ptr_eq(stream, &self.stream));
    }
}

#[cfg(test)]
mod tests;
