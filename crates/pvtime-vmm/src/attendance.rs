//! What attends to a machine from outside: its control socket, and the samples of its time.
//!
//! All of it that can fail or take long is there before the machine is whole. A VM that arrives from
//! another host stands still until it is, and from then on nothing may end it but what ends the VM.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::Result;
use pvtime_kvm::VmTime;

use crate::api::Server;
use crate::event::Event;
use crate::history::History;
use crate::machine::Machine;
use crate::status::Status;

/// What the control socket and whoever serves the machine tell each other.
#[derive(Clone, Debug)]
pub struct Signs {
    /// Nobody but the control socket changes the machine's time any more.
    pub has_begun: Arc<AtomicBool>,
    /// Raised when the machine is to end.
    pub stop: Event,
    /// Raised when its migration is called off.
    pub cancel: Event,
}

/// What attends to a machine that may have yet to arrive.
pub struct Attendance {
    signs: Signs,
    control: Option<(Arc<Server>, History)>,
}

impl Attendance {
    /// Samples this time for whoever will ask the control socket for it, if there is one.
    ///
    /// # Errors
    ///
    /// Where no thread can be started.
    pub fn start(control: Option<Arc<Server>>, time: &Arc<VmTime>) -> Result<Self> {
        let sample = |server| anyhow::Ok((server, History::start(Arc::clone(time))?));
        Ok(Self {
            signs: Signs {
                has_begun: Arc::default(),
                stop: Event::new()?,
                cancel: Event::new()?,
            },
            control: control.map(sample).transpose()?,
        })
    }

    /// Answers for the machine of this name from now on, until the result is dropped.
    pub fn attend(self, id: &str, machine: &Arc<Machine>) -> (Signs, Option<Arc<Server>>) {
        let Self { signs, control } = self;
        let server = control.map(|(server, history)| {
            server.serve(Status::new(id, machine, history, signs.clone()));
            server
        });
        (signs, server)
    }
}
