//! The control socket: HTTP over a Unix socket, with JSON. `docs/api.md` describes it.
//!
//! | resource | method | is |
//! |---|---|---|
//! | `/` | GET | what runs, and its state |
//! | `/vm` | PATCH | pauses and resumes it |
//! | `/snapshot/create` | PUT | saves it |
//! | `/snapshot` | GET | how far that is |
//! | `/migration` | PUT | moves it to another host |
//! | `/migration` | PATCH | calls that off |
//! | `/migration` | GET | how far that is |
//! | `/actions` | PUT | ends it |
//! | `/time` | GET | its clocks, and what the host counted for each vCPU |
//! | `/time/ledger` | GET | where each vCPU's time went |
//! | `/time/events` | GET | what was done to its time |
//! | `/time/host-sleep` | PUT | announces a sleep of the host, and its end |
//! | `/time/history` | GET | one vCPU's times, over the VM's life |
//!
//! Names and bodies are Firecracker's where it has the same thing. There is one thread for each
//! connection, of which there are few, and one request on each; whatever a client does, it holds a
//! connection for a limited time.

pub mod answers;
pub mod client;
mod http;
pub mod requests;
mod routes;
mod server;

pub use server::Server;

use std::path::Path;

use pvtime_kvm::record::Records;
use time_figure::Sample;

use crate::failure;
use answers::{Ledger, Migration, MigrationReport, Prepared, Saving, Time, VmState};
use requests::Migrate;

/// A VM, as the resources need it.
pub trait Vm: Send + Sync + 'static {
    /// Its name.
    fn id(&self) -> &str;

    /// What it does.
    fn state(&self) -> VmState;

    /// Its clocks.
    ///
    /// # Errors
    ///
    /// Where the accounts cannot be read.
    fn time(&self) -> anyhow::Result<Time>;

    /// Where its vCPUs' time went.
    ///
    /// # Errors
    ///
    /// Where the accounts cannot be read.
    fn ledger(&self) -> anyhow::Result<Ledger>;

    /// What was done to its time.
    fn records(&self) -> &Records;

    /// The times of one vCPU; `None` where there is no such vCPU.
    fn history(&self, vcpu: usize) -> Option<Vec<Sample>>;

    /// Pauses it.
    ///
    /// # Errors
    ///
    /// Where it does not stop; it runs on then.
    fn pause(&self) -> anyhow::Result<()>;

    /// Lets it go on.
    ///
    /// # Errors
    ///
    /// Where its time cannot be set; it stays paused then.
    fn resume(&self) -> anyhow::Result<()>;

    /// Stops a VM that runs, because the host is about to sleep.
    ///
    /// # Errors
    ///
    /// Where it does not stop; it runs on then.
    fn prepare_sleep(&self) -> anyhow::Result<Prepared>;

    /// Ends a [`prepare_sleep`](Self::prepare_sleep) that waits for the guest, because the sleep is over.
    fn call_off_sleep(&self);

    /// Lets it go on after the host's sleep, if that is why it is stopped.
    ///
    /// # Errors
    ///
    /// Where its time cannot be set; it stays stopped then.
    fn finish_sleep(&self) -> anyhow::Result<()>;

    /// Saves it into a new folder, stopping it for that.
    ///
    /// # Errors
    ///
    /// Where it cannot be saved: nothing that could be restored is left then. And where it was
    /// saved and does not go on: the folder holds it whole then, it stays paused, and the error says
    /// both.
    fn snapshot(&self, folder: &Path) -> anyhow::Result<()>;

    /// How far its snapshot is.
    fn saving(&self) -> Saving;

    /// Lets a VM in doubt go on here, whose other host does not run it. One that is in no doubt
    /// goes on as with [`resume`](Self::resume).
    ///
    /// # Errors
    ///
    /// Where its time cannot be set; it stays paused then.
    fn take_over(&self) -> anyhow::Result<()>;

    /// Moves it to another host, or asks whether it could. It ends here where it was moved.
    ///
    /// # Errors
    ///
    /// Where it was not; the error says what state that leaves it in.
    fn migrate(&self, request: &Migrate) -> anyhow::Result<MigrationReport>;

    /// How far its migration is.
    fn migration(&self) -> Migration;

    /// Calls off a migration that has not given it away yet.
    fn cancel_migration(&self);

    /// Ends it, soon.
    fn stop(&self);
}

/// HTTP's number for what is asked of a VMM whose VM has yet to arrive, and for nothing else.
const NO_VM: u16 = 503;

/// A refusal or a failure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// HTTP's number for it.
    pub status: u16,
    /// What is wrong and what to do, in one sentence.
    pub message: String,
}

impl Fault {
    /// The client asked for what cannot be asked for.
    #[must_use]
    pub fn bad_request(message: String) -> Self {
        Self {
            status: 400,
            message,
        }
    }

    /// The VM is in no state for this.
    #[must_use]
    pub fn conflict(message: String) -> Self {
        Self {
            status: 409,
            message,
        }
    }

    /// The most connections are open.
    fn too_many_connections(most: usize) -> Self {
        Self {
            status: 429,
            message: format!("{most} connections are open; close one, or ask again in a moment"),
        }
    }

    /// There is a VMM, and no VM yet.
    fn no_vm() -> Self {
        Self {
            status: NO_VM,
            message: "the VM has not arrived yet; ask again when it has".into(),
        }
    }
}

impl From<anyhow::Error> for Fault {
    fn from(error: anyhow::Error) -> Self {
        Self {
            status: 500,
            message: failure::in_one_line(&error),
        }
    }
}

#[cfg(test)]
mod description;
#[cfg(test)]
pub(crate) mod fake;
