//! A running VM on its way to another host.

use std::os::fd::AsFd;
use std::time::Duration;

use anyhow::{Context, Result};
use pvtime::host::Cause;
use vm_memory::GuestMemoryMmap;

use crate::api::answers::MigrationReport;
use crate::api::requests::Migrate;
use crate::event::Event;
use crate::machine::Machine;
use crate::migration::dirty::DirtyPages;
use crate::migration::frame::Channel;
use crate::migration::monitor::Monitor;
use crate::migration::pace::Plan;
use crate::migration::send::{Sender, Source};
use crate::migration::transport::Security;
use crate::migration::{LONGEST_SILENCE, PATIENCE};
use crate::state::MachineState;

/// A VM, and where it is to go.
pub struct Leaving<'a> {
    /// Its name.
    pub id: &'a str,
    /// The machine.
    pub machine: &'a Machine,
    /// What was asked for.
    pub request: &'a Migrate,
}

impl Leaving<'_> {
    /// Asks the destination, and moves the VM there if it takes it.
    pub fn leave(&self, monitor: &Monitor, cancel: &Event) -> Result<MigrationReport> {
        let Migrate {
            destination,
            dry_run,
            bandwidth_mib_s,
            downtime_ms,
            stop_limit_ms,
            ..
        } = self.request;
        let downtime = Duration::from_millis((*downtime_ms).into());
        let stop_limit = stop_limit_ms.map(|ms| Duration::from_millis(ms.into()));
        let offer = self.machine.offer(self.id, *dry_run)?;
        monitor.update(|it| it.memory_bytes = offer.memory_bytes());
        let its_cancel = cancel.as_fd().try_clone_to_owned()?;
        let wire = self.security().connect(destination, Some(its_cancel))?;
        let channel = Channel::open(wire, PATIENCE)
            .with_context(|| format!("the VM stays, since {destination} does not speak to it"))?;
        let sender = Sender {
            channel,
            source: self,
            plan: Plan {
                bytes_per_s: bandwidth_mib_s.map(|it| u64::from(it.get()) << 20),
                downtime,
                stop_limit: stop_limit.unwrap_or_else(|| Plan::default_stop_limit(downtime)),
            },
            monitor,
            cancel,
            longest_silence: LONGEST_SILENCE,
        };
        let sent = sender.send(&destination.to_string(), &offer);
        self.machine.ownership.stay();
        Ok(sent?)
    }

    fn security(&self) -> Security {
        Security {
            insecure: self.request.insecure,
            tls: self.request.tls.clone(),
        }
    }
}

impl Source for Leaving<'_> {
    fn memory(&self) -> &GuestMemoryMmap {
        self.machine.memory()
    }

    fn log_dirty(&self, on: bool) -> Result<()> {
        self.machine.log_dirty(on)
    }

    fn dirty(&self) -> Result<DirtyPages> {
        self.machine.dirty()
    }

    fn pause(&self) -> Result<bool> {
        // One that is stopped already is not let go on by somebody else from here on.
        self.machine.ownership.hold();
        let runs = self.machine.time.is_running();
        if runs {
            self.machine.time.pause(Cause::Migration)?;
        }
        Ok(runs)
    }

    fn state(&self) -> Result<(MachineState, Vec<u8>)> {
        self.machine.leave()
    }

    fn stolen_ns(&self) -> Vec<Option<u64>> {
        self.machine.time.stolen_ns()
    }

    fn resume(&self) -> Result<()> {
        self.machine.ownership.stay();
        self.machine.resume()
    }

    fn give_away(&self) {
        self.machine.ownership.give_away();
    }

    fn take_back(&self) {
        self.machine.ownership.take_back();
    }

    fn gone(&self) {
        self.machine
            .ownership
            .gone(self.request.destination.to_string());
    }
}
