//! The VMs of a host: every control socket in a folder.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread::{self, JoinHandle, sleep};
use std::time::{Duration, Instant};

use pvtime_vmm::api::client::{Client, Error};
use pvtime_vmm::api::requests::{HostSleep, SleepPhase};

use crate::{Sleepers, say};

/// How long the end of a sleep may take to be told.
const FINISH_LIMIT: Duration = Duration::from_secs(20);

/// A VM that does something else is asked again.
const ASK_AGAIN: Duration = Duration::from_millis(50);
const CONFLICT: u16 = 409;

/// The VMs.
pub struct Vms {
    folder: PathBuf,
    /// Who tells each. The end of a sleep is told after its beginning, however late that is: one that
    /// overtook it would leave the VM paused. It is told at once as well, which calls off a beginning that
    /// waits for the guest.
    telling: RefCell<HashMap<PathBuf, JoinHandle<()>>>,
}

impl Vms {
    /// Those whose sockets lie there, whenever they are told something.
    pub fn new(folder: &Path) -> Self {
        Self {
            folder: folder.into(),
            telling: RefCell::default(),
        }
    }

    /// Where their sockets are.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    fn sockets(&self) -> Vec<PathBuf> {
        let folder = fs::read_dir(&self.folder).inspect_err(|error| {
            if error.kind() != ErrorKind::NotFound {
                say(&format!(
                    "no VM is told of the sleep: cannot list {}: {error}; give the folder of the \
                     VMs' --api-sockets with --sockets",
                    self.folder.display()
                ));
            }
        });
        let entries = folder.into_iter().flatten().flatten();
        let mut sockets: Vec<_> = entries
            .map(|entry| entry.path())
            .filter(|path| path.extension().is_some_and(|it| it == "sock"))
            .collect();
        sockets.sort();
        sockets
    }

    /// Tells all of them at once and returns when all have done it, at the limit, or when it is over. What
    /// is wrong goes to standard error, and a VM that is late goes on with it.
    fn tell(&self, phase: SleepPhase, limit: Duration, is_over: &dyn Fn() -> bool) {
        let (done, results) = channel();
        let mut late = self.sockets();
        let mut telling = self.telling.borrow_mut();
        telling.retain(|_, before| !before.is_finished());
        for socket in late.clone() {
            let (done, before) = (done.clone(), telling.remove(&socket));
            let teller = thread::spawn({
                let socket = socket.clone();
                move || {
                    if let Some(before) = before {
                        after(before, &socket, phase);
                    }
                    let told = tell(&socket, phase, limit);
                    // At the limit nobody listens any more.
                    let _ = done.send((socket, told));
                }
            });
            telling.insert(socket, teller);
        }
        drop(done);
        let deadline = Instant::now() + limit;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match results.recv_timeout(left.min(ASK_AGAIN)) {
                Ok((socket, told)) => {
                    late.retain(|it| *it != socket);
                    if let Err(error) = told {
                        say(&format!("{}: {error}", socket.display()));
                    }
                }
                Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) if is_over() => return,
                Err(RecvTimeoutError::Timeout) if left > ASK_AGAIN => {}
                Err(RecvTimeoutError::Timeout) => break,
            }
        }
        for socket in late {
            let limit_s = limit.as_secs_f64();
            say(&format!(
                "{}: not done after {limit_s:.1} s; what it is not told it notices with \
                 --watch-host on",
                socket.display()
            ));
        }
    }
}

impl Sleepers for Vms {
    fn prepare(&self, limit: Duration, is_over: &dyn Fn() -> bool) {
        self.tell(SleepPhase::Prepare, limit, is_over);
    }

    fn finish(&self) {
        self.tell(SleepPhase::Finish, FINISH_LIMIT, &|| false);
    }
}

/// Waits for what a VM is being told. The end of a sleep calls that off: a VM may be asking its guest for
/// longer than the host slept. It may not have heard of the beginning yet, so that once is not enough.
fn after(before: JoinHandle<()>, socket: &Path, phase: SleepPhase) {
    while phase == SleepPhase::Finish && !before.is_finished() {
        // What is wrong with it is said when it is told after the beginning.
        let _ = tell(socket, phase, Duration::ZERO);
        sleep(ASK_AGAIN);
    }
    let _ = before.join();
}

/// Tells one VM, and asks again while another change is under way.
fn tell(socket: &Path, phase: SleepPhase, limit: Duration) -> Result<(), Error> {
    let (client, start) = (Client::new(socket), Instant::now());
    loop {
        match client.change("PUT", "/time/host-sleep", &HostSleep { phase }) {
            Err(Error::Refused { status, .. }) if status == CONFLICT && start.elapsed() < limit => {
                sleep(ASK_AGAIN);
            }
            Err(error) if error.is_without_vm() => return Ok(()),
            told => return told,
        }
    }
}

#[cfg(test)]
mod tests;
