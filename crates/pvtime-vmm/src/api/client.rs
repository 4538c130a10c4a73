//! The control socket's other end, for `pvtime ctl`.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::NO_VM;
use super::answers::FaultMessage;
use super::http::{self, Request, Response};

/// How long a VMM may take for an answer that it need not wait for. It may need some seconds to
/// take a vCPU out of the guest.
const PATIENCE: Duration = Duration::from_secs(20);

/// A VM's control socket.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
}

/// The VM did not do or say what was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody listens.
    #[error(
        "cannot reach a VM at {}: {source}; give the path that its `pvtime run --api-socket` was \
         given",
        socket.display()
    )]
    Unreachable {
        /// The path.
        socket: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// It does not understand, or does not want to.
    #[error("the VM refuses: {message}")]
    Refused {
        /// HTTP's number for it.
        status: u16,
        /// Its reason.
        message: String,
    },
    /// It cannot be understood.
    #[error("the VM at {} does not answer as one: {source}", socket.display())]
    Broken {
        /// The path.
        socket: PathBuf,
        /// What is wrong.
        source: http::Error,
    },
    /// It answers something else.
    #[error("the VM's answer to {path} is not understood: {source}; use the `pvtime` that runs it")]
    Answer {
        /// The resource.
        path: String,
        /// What is wrong.
        source: serde_json::Error,
    },
}

impl Error {
    /// Whether a VMM answered whose VM has yet to arrive.
    #[must_use]
    pub fn is_without_vm(&self) -> bool {
        matches!(self, Self::Refused { status: NO_VM, .. })
    }
}

impl Client {
    /// For the VM at this socket; nothing is asked yet.
    #[must_use]
    pub fn new(socket: &Path) -> Self {
        Self {
            socket: socket.into(),
        }
    }

    /// Where the socket is.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Reads a resource.
    ///
    /// # Errors
    ///
    /// [`Error`].
    pub fn get<T: DeserializeOwned>(&self, target: &str) -> Result<T, Error> {
        self.get_after(target, Duration::ZERO)
    }

    /// Reads a resource that was asked to wait for `wait`.
    ///
    /// # Errors
    ///
    /// [`Error`].
    pub fn get_after<T: DeserializeOwned>(&self, target: &str, wait: Duration) -> Result<T, Error> {
        let request = Request::new("GET", target, Vec::new());
        let body = self.ask(&request, Some(wait + PATIENCE))?;
        serde_json::from_slice(&body).map_err(|source| Error::Answer {
            path: request.path,
            source,
        })
    }

    /// Changes something, which takes as long as it takes.
    ///
    /// # Errors
    ///
    /// [`Error`].
    ///
    /// # Panics
    ///
    /// On a body without a JSON form.
    pub fn change(&self, method: &str, path: &str, body: &impl Serialize) -> Result<(), Error> {
        let body = serde_json::to_vec(body).expect("a request has a JSON form");
        self.ask(&Request::new(method, path, body), None).map(drop)
    }

    /// Changes something, which takes as long as it takes, and hears what that did.
    ///
    /// # Errors
    ///
    /// [`Error`].
    ///
    /// # Panics
    ///
    /// On a body without a JSON form.
    pub fn change_and_hear<T: DeserializeOwned>(
        &self,
        method: &str,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, Error> {
        let body = serde_json::to_vec(body).expect("a request has a JSON form");
        let request = Request::new(method, path, body);
        let answer = self.ask(&request, None)?;
        serde_json::from_slice(&answer).map_err(|source| Error::Answer {
            path: request.path,
            source,
        })
    }

    fn ask(&self, request: &Request, patience: Option<Duration>) -> Result<Vec<u8>, Error> {
        let mut stream =
            UnixStream::connect(&self.socket).map_err(|source| Error::Unreachable {
                socket: self.socket.clone(),
                source,
            })?;
        let response =
            converse(&mut stream, request, patience).map_err(|source| Error::Broken {
                socket: self.socket.clone(),
                source,
            })?;
        match response.status {
            200 | 204 => Ok(response.body),
            status => Err(Error::Refused {
                status,
                message: serde_json::from_slice(&response.body).map_or_else(
                    |_| format!("HTTP status {status}, without a reason"),
                    |fault: FaultMessage| fault.fault_message,
                ),
            }),
        }
    }
}

fn converse(
    stream: &mut UnixStream,
    request: &Request,
    patience: Option<Duration>,
) -> Result<Response, http::Error> {
    stream.set_read_timeout(patience)?;
    stream.set_write_timeout(patience)?;
    // A server that refuses early does not read on; its answer tells more than the broken pipe.
    match (request.write(stream), Response::read(stream)) {
        (Err(error), Err(_)) => Err(error.into()),
        (_, response) => response,
    }
}
