//! The server's thread.

use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::fs::Mode;
use rustix::process::umask;

use super::http::{Request, Response};
use super::{Resources, answer};

/// How long a client may take to ask, or to take the answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// A control socket. Dropping it ends its thread and removes the socket.
#[derive(Debug)]
pub struct Server {
    path: PathBuf,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Makes the socket, for this user alone, and answers there.
    ///
    /// To be called before other threads make files: the mask for their modes is the process's.
    ///
    /// # Errors
    ///
    /// Where the path is taken or cannot be made.
    pub fn start(path: &Path, resources: impl Resources) -> Result<Self> {
        let mask = umask(Mode::RWXG | Mode::RWXO | Mode::XUSR);
        let listener = UnixListener::bind(path);
        umask(mask);
        let listener = listener.with_context(|| {
            format!(
                "cannot make the control socket {}; give --api-socket a path that does not exist, \
                 in a folder that does",
                path.display()
            )
        })?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = Builder::new()
            .name("api".into())
            .spawn(move || serve(&listener, &resources, &stopped))
            .context("cannot start the control socket's thread")?;
        Ok(Self {
            path: path.into(),
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        // Wakes the thread; where nobody can connect it is not waiting either.
        let _ = UnixStream::connect(&self.path);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        let _ = std::fs::remove_file(&self.path);
    }
}

fn serve(listener: &UnixListener, resources: &impl Resources, stop: &AtomicBool) {
    for stream in listener.incoming() {
        if stop.load(Ordering::Acquire) {
            return;
        }
        // A client that breaks off is its own loss.
        let _ = stream.and_then(|stream| converse(stream, resources));
    }
}

fn converse(mut stream: UnixStream, resources: &impl Resources) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let response = match Request::read(&mut stream) {
        Ok(request) => answer(resources, &request),
        Err(error) => Response::fault(400, &error.to_string()),
    };
    response.write(&mut stream)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::{FileTypeExt, MetadataExt};

    use serde_json::{Value, json};
    use tempfile::TempDir;

    use super::*;
    use crate::api::client;

    struct Fixed;

    impl Resources for Fixed {
        fn time(&self) -> Result<Value> {
            Ok(json!({ "elapsed_ns": 7 }))
        }
    }

    #[test]
    fn a_client_gets_its_answer_and_the_socket_goes_with_the_server() {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("vm.sock");
        let server = Server::start(&path, Fixed).unwrap();
        let metadata = path.metadata().unwrap();
        assert!(metadata.file_type().is_socket());
        assert_eq!(metadata.mode() & 0o777, 0o600, "for this user alone");

        assert_eq!(
            client::get(&path, "/time").unwrap(),
            json!({ "elapsed_ns": 7 })
        );
        let error = client::get(&path, "/none").unwrap_err().to_string();
        assert_eq!(
            error,
            "the VM refuses: there is no /none; GET / and /time exist"
        );

        drop(server);
        assert!(!path.exists());
        let error = client::get(&path, "/").unwrap_err().to_string();
        assert!(error.starts_with("cannot reach a VM at "), "{error}");
    }

    #[test]
    fn nonsense_and_silence_do_not_hold_up_the_next_client() {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("vm.sock");
        let _server = Server::start(&path, Fixed).unwrap();
        let mut nonsense = UnixStream::connect(&path).unwrap();
        nonsense.write_all(b"\xff\xff\r\n\r\n").unwrap();
        assert_eq!(Response::read(&mut nonsense).unwrap().status, 400);
        let _silent = UnixStream::connect(&path).unwrap();
        client::get(&path, "/").unwrap();
    }

    #[test]
    fn a_path_that_is_taken_is_left_alone() {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("taken");
        std::fs::write(&path, "precious").unwrap();
        let error = Server::start(&path, Fixed).unwrap_err().to_string();
        assert!(
            error.contains("give --api-socket a path that does not exist"),
            "{error}"
        );
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    }
}
