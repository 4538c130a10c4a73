//! A running VM, as its control socket shows and changes it.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use anyhow::Result;
use pvtime::host::Cause;
use pvtime::scale::Frequency;
use pvtime_kvm::record::Records;
use pvtime_kvm::{
    LivePhysicalTimeSample, PausedTimeSample, TimeSample, VcpuSample, VmTime, counter,
};
use time_figure::Sample;

use crate::api::Vm;
use crate::api::answers::{
    Accounts, Ledger, LivePhysicalTime, Migration, MigrationReport, PausedTime, Prepared, Saving,
    StolenTime, Time, VcpuTime, VmState,
};
use crate::api::requests::Migrate;
use crate::attendance::Signs;
use crate::history::{self, History, Sampled};
use crate::leaving::Leaving;
use crate::machine::Machine;
use crate::migration::monitor::{Monitor, Phase};
use crate::migration::ownership::Owner;
use crate::migration::report::Outcome;
use crate::run::progress;
use crate::snapshot;
use crate::snapshot::monitor::Monitor as SnapshotMonitor;

/// Answers for a VM, from any thread.
pub struct Status {
    id: String,
    machine: Arc<Machine>,
    time: Arc<VmTime>,
    history: History,
    signs: Signs,
    monitor: Monitor,
    snapshots: SnapshotMonitor,
}

impl Status {
    /// For a machine with this name, and the history of its time.
    pub fn new(id: &str, machine: &Arc<Machine>, history: History, signs: Signs) -> Self {
        Self {
            monitor: Monitor::default(),
            snapshots: SnapshotMonitor::default(),
            id: id.into(),
            machine: Arc::clone(machine),
            time: Arc::clone(&machine.time),
            history,
            signs,
        }
    }
}

impl Vm for Status {
    fn id(&self) -> &str {
        &self.id
    }

    fn state(&self) -> VmState {
        if !self.signs.has_begun.load(Ordering::Acquire) {
            return VmState::NotStarted;
        }
        match self.machine.ownership.owner() {
            Owner::InDoubt => VmState::InDoubt,
            Owner::Gone { .. } => VmState::Moved,
            Owner::Ours | Owner::Leaving if self.time.is_running() => VmState::Running,
            Owner::Ours | Owner::Leaving if self.time.is_guest_suspended() => VmState::Suspended,
            Owner::Ours | Owner::Leaving => VmState::Paused,
        }
    }

    fn time(&self) -> Result<Time> {
        let TimeSample {
            elapsed_ns,
            paused_ns,
            stolen_time_failure,
            vcpus,
        } = self.time.sample()?;
        Ok(Time {
            counter_frequency_hz: counter::frequency().map(Frequency::hz),
            counter_limits: self.time.counter_limits().map(str::to_owned),
            held_up_by: self.time.held_up_by(),
            stolen_time: self.time.stolen_time_provider().to_string(),
            stolen_time_failure,
            live_physical_time: self.time.live_physical_time().map(LivePhysicalTime::from),
            paused_time: self.time.paused_time().map(PausedTime::from),
            elapsed_ns,
            paused_ns,
            generation: self.machine.generation,
            vcpus: vcpus.into_iter().map(VcpuTime::from).collect(),
        })
    }

    fn ledger(&self) -> Result<Ledger> {
        let accounts = self.time.ledger()?;
        let vcpus = accounts.iter().enumerate();
        Ok(Ledger {
            vcpus: vcpus
                .map(|(index, accounts)| Accounts::new(index, accounts))
                .collect(),
        })
    }

    fn records(&self) -> &Records {
        self.time.records()
    }

    fn history(&self, vcpu: usize) -> Option<Vec<Sample>> {
        self.history.of_vcpu(vcpu, || self.time.accounts())
    }

    fn pause(&self) -> Result<()> {
        Ok(self.time.pause(Cause::Operator)?)
    }

    fn resume(&self) -> Result<()> {
        self.machine.resume()
    }

    fn take_over(&self) -> Result<()> {
        self.machine.ownership.take_over()?;
        self.machine.resume()
    }

    fn migrate(&self, request: &Migrate) -> Result<MigrationReport> {
        self.signs.cancel.clear();
        self.monitor.begin(request.destination.to_string());
        let leaving = Leaving {
            id: &self.id,
            machine: &self.machine,
            request,
        };
        let report = leaving.leave(&self.monitor, &self.signs.cancel);
        let is_moved = report.as_ref().is_ok_and(|it| it.outcome == Outcome::Moved);
        self.monitor.update(|it| {
            it.phase = match &report {
                Ok(_) if is_moved => Phase::Moved,
                Ok(_) => Phase::Idle,
                Err(_) => Phase::Failed,
            }
        });
        if is_moved {
            self.signs.stop.raise();
        }
        report
    }

    fn migration(&self) -> Migration {
        self.monitor.progress()
    }

    fn cancel_migration(&self) {
        self.signs.cancel.raise();
    }

    fn prepare_sleep(&self) -> Result<Prepared> {
        self.machine.prepare_sleep()
    }

    fn call_off_sleep(&self) {
        self.machine.call_off_sleep();
    }

    fn finish_sleep(&self) -> Result<()> {
        self.machine.finish_sleep()
    }

    fn snapshot(&self, folder: &Path) -> Result<()> {
        snapshot::check_place(folder)?;
        self.snapshots.begin(folder);
        let runs = self.time.is_running();
        if runs {
            let stopped = self.time.pause(Cause::Snapshot);
            stopped.inspect_err(|_| self.snapshots.end(false))?;
        }
        let mut on_terminal = progress("saving");
        let saved = self.machine.save(folder, &mut |progress| {
            self.snapshots.update(progress);
            on_terminal(progress);
        });
        self.snapshots.end(saved.is_ok());
        let resumed = if runs { self.machine.resume() } else { Ok(()) };
        snapshot::outcome(folder, saved, resumed)
    }

    fn saving(&self) -> Saving {
        self.snapshots.saving()
    }

    fn stop(&self) {
        self.signs.stop.raise();
    }
}

impl Sampled for Arc<VmTime> {
    fn records(&self) -> &Records {
        VmTime::records(self)
    }

    fn accounts(&self) -> Option<history::Accounts> {
        // A vCPU's thread that has ended has no accounts any more.
        let lost = self.lost().ok()?;
        Some(history::Accounts {
            physical_ns: lost.elapsed_ns,
            paused_ns: lost.paused_ns,
            stolen_ns: lost.stolen_ns,
        })
    }
}

impl From<LivePhysicalTimeSample> for LivePhysicalTime {
    fn from(live: LivePhysicalTimeSample) -> Self {
        Self {
            address: live.address,
            frequency_hz: live.frequency_hz,
            claimed: live.claimed,
        }
    }
}

impl From<PausedTimeSample> for PausedTime {
    fn from(paused: PausedTimeSample) -> Self {
        Self {
            address: paused.address,
            events: paused.events,
            paused_ns: paused.paused_ns,
        }
    }
}

impl From<VcpuSample> for VcpuTime {
    fn from(vcpu: VcpuSample) -> Self {
        Self {
            index: vcpu.index,
            thread_id: vcpu.thread_id,
            run_ns: vcpu.run_ns,
            run_delay_ns: vcpu.run_delay_ns,
            stolen_time: vcpu.stolen_time.map(|structure| StolenTime {
                address: structure.address,
                claimed: structure.claimed,
                stolen_ns: structure.stolen_ns,
                surplus_ns: structure.surplus_ns,
            }),
        }
    }
}
