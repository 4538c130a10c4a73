//! `pvtime receive`: awaits a VM from another host, and hands it to whoever runs it.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, poll};
use vm_memory::GuestMemoryMmap;

use crate::api::Server;
use crate::attendance::Attendance;
use crate::cli::{ReceiveArgs, SecurityArgs, VmArgs};
use crate::failure::{self, printable};
use crate::machine::arriving;
use crate::machine::{Blank, Machine, MachineConfig};
use crate::migration::HELLO_PATIENCE;
use crate::migration::frame::Channel;
use crate::migration::message::{Answer, Offer};
use crate::migration::receive::{self, Arrived, Destination, Taken, Visit};
use crate::migration::transport::{Door, Security};
use crate::migration::wire::Wire;
use crate::run::{control_socket, machine_config};

/// A VM that arrived, and the source that waits for what becomes of it.
pub struct Arrival {
    /// What it has here.
    pub args: VmArgs,
    /// The machine, stopped.
    pub machine: Machine,
    attendance: Attendance,
    time: Vec<u8>,
    runs: bool,
    channel: Channel<Box<dyn Wire>>,
}

/// Awaits a VM; `None` where `cancel` became readable before one arrived.
///
/// # Errors
///
/// Where nothing can be awaited.
pub fn await_vm(args: &ReceiveArgs, cancel: &impl AsFd) -> Result<Option<Arrival>> {
    let control = control_socket(args.api_socket.as_deref())?;
    let mut here = Here { args, control };
    let door = Security::try_from(&args.security)?.listen(&args.address)?;
    let address = door.address();
    let address = address.as_ref().unwrap_or(&args.address);
    let over = if door.is_secured() { " over TLS" } else { "" };
    eprintln!("pvtime: waiting for a VM at {address}{over}");
    while !is_cancelled(&door, cancel)? {
        match here.visit(&door, cancel) {
            Ok(Some(arrival)) => return Ok(Some(arrival)),
            Ok(None) => {}
            Err(error) => eprintln!(
                "pvtime: no VM came: {}; waiting for the next",
                failure::in_one_line(&error)
            ),
        }
    }
    Ok(None)
}

/// Waits for somebody to connect; true where there is to be no more waiting.
fn is_cancelled(door: &Door, cancel: &impl AsFd) -> Result<bool> {
    loop {
        let mut fds = [
            PollFd::new(cancel, PollFlags::IN),
            PollFd::new(door, PollFlags::IN),
        ];
        match poll(&mut fds, None) {
            Ok(_) => return Ok(!fds[0].revents().is_empty()),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("cannot wait for a connection"),
        }
    }
}

fn assemble(
    args: &ReceiveArgs,
    arrived: Arrived<Awaited>,
    mut channel: Channel<Box<dyn Wire>>,
) -> Result<Arrival> {
    let Arrived {
        offer,
        blank: Awaited { blank, attendance },
        arrival,
        time,
    } = arrived;
    let state = &arrival.machine;
    match blank.finish(state.generation, Some(state)) {
        Ok(machine) => Ok(Arrival {
            args: vm_args(args, &offer),
            machine,
            attendance,
            time,
            runs: arrival.runs,
            channel,
        }),
        Err(error) => {
            receive::fail(&mut channel, &error);
            Err(error)
        }
    }
}

/// What the VM brings, and what it finds.
fn vm_args(args: &ReceiveArgs, offer: &Offer) -> VmArgs {
    VmArgs {
        time: offer.time,
        console: args.console.clone(),
        serial: args.serial.clone(),
        id: offer.id.clone(),
        api_socket: args.api_socket.clone(),
    }
}

impl Arrival {
    /// Takes the VM over from the source once its vCPUs have threads, and lets it go on. It is the
    /// source's until then.
    pub fn begin(self) -> (VmArgs, Machine, Attendance, Takeover) {
        self.machine.ownership.give_away();
        let takeover = Takeover {
            time: self.time,
            runs: self.runs,
            channel: self.channel,
            can_be_decided: self.args.api_socket.is_some(),
        };
        (self.args, self.machine, self.attendance, takeover)
    }
}

/// The last step of a VM's way here.
pub struct Takeover {
    time: Vec<u8>,
    runs: bool,
    channel: Channel<Box<dyn Wire>>,
    /// Whether there is a control socket.
    can_be_decided: bool,
}

impl Takeover {
    /// Restores the VM's time, takes it over, and lets it go on; or leaves it in doubt.
    ///
    /// # Errors
    ///
    /// Where the VM is not ours: the source has it.
    pub fn take(mut self, machine: &Machine) -> Result<()> {
        let time = &machine.time;
        if let Err(error) = arriving::restore(time, &self.time) {
            receive::fail(&mut self.channel, &error);
            return Err(error);
        }
        let runs = self.runs;
        let start = || {
            machine.ownership.take_back();
            if runs {
                arriving::resume(machine)
            } else {
                Ok(None)
            }
        };
        match receive::take(&mut self.channel, start) {
            Taken::Ours => Ok(()),
            Taken::Kept(reason) => bail!("the source keeps the VM: {reason}"),
            Taken::Failed(error) => Err(error.context("the VM stays where it was")),
            Taken::InDoubt(error) if self.can_be_decided => {
                eprintln!(
                    "pvtime: the VM is in doubt ({error}): its source may run it; look there, then \
                     `pvtime ctl SOCKET resume --take-over` or `pvtime ctl SOCKET stop` here"
                );
                Ok(())
            }
            Taken::InDoubt(error) => bail!(
                "the VM is dropped here ({error}), since nobody could decide about it without \
                 --api-socket; look at its source"
            ),
        }
    }
}

/// This host.
struct Here<'a> {
    args: &'a ReceiveArgs,
    /// There is no VM behind it yet.
    control: Option<Arc<Server>>,
}

/// A machine that is awaited, and what is there for it.
struct Awaited {
    blank: Blank,
    attendance: Attendance,
}

impl Destination for Here<'_> {
    type Blank = Awaited;

    fn answer(&mut self, offer: &Offer) -> Answer {
        arriving::answer(offer)
    }

    fn prepare(&mut self, offer: &Offer) -> Result<Awaited> {
        let blank = Blank::prepare(self.config(offer)?)?;
        blank.try_out(offer)?;
        let attendance = Attendance::start(self.control.clone(), blank.time())?;
        Ok(Awaited { blank, attendance })
    }

    fn memory(awaited: &Awaited) -> &GuestMemoryMmap {
        awaited.blank.memory()
    }
}

impl Here<'_> {
    /// Hears one connection to its end or to a VM.
    fn visit(&mut self, door: &Door, cancel: &impl AsFd) -> Result<Option<Arrival>> {
        let cancel: OwnedFd = cancel.as_fd().try_clone_to_owned()?;
        let Some(wire) = door.accept(Some(cancel))? else {
            return Ok(None);
        };
        let mut channel = Channel::open(wire, HELLO_PATIENCE)?;
        match receive::receive(&mut channel, self)? {
            Visit::Asked { who, refusals } if refusals.is_empty() => {
                eprintln!("pvtime: {who:?} would be taken");
                Ok(None)
            }
            Visit::Asked { who, refusals } => {
                let refusals = printable(&refusals.join("; "));
                eprintln!("pvtime: {who:?} is not taken: {refusals}");
                Ok(None)
            }
            Visit::Arrived(arrived) => assemble(self.args, *arrived, channel).map(Some),
        }
    }

    fn config(&self, offer: &Offer) -> Result<MachineConfig> {
        let args = vm_args(self.args, offer);
        machine_config(&args, offer.memory_bytes() >> 20, offer.vcpus, None)
    }
}

impl TryFrom<&SecurityArgs> for Security {
    type Error = anyhow::Error;

    fn try_from(args: &SecurityArgs) -> Result<Self> {
        Ok(Self {
            insecure: args.insecure,
            tls: args.tls()?,
        })
    }
}
