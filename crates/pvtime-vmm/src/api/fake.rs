//! A VM without a machine, for tests of the socket.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Result, bail};
use pvtime_kvm::record::{GapRecord, ReadingRecord, Record, Records};

use time_figure::Sample;

use super::Vm;
use super::answers::{
    Accounts, Generation, GenerationId, Ledger, LivePhysicalTime, Migration, MigrationClocks,
    MigrationOutcome, MigrationReport, PausedByCause, PausedTime, Phase, Prepared, Saving,
    SnapshotPhase, StolenTime, Time, Transfer, VcpuTime, VmState,
};
use super::requests::Migrate;

/// A VM that has one vCPU, records what is done to it, and does nothing.
#[derive(Clone, Default)]
pub struct FakeVm(Arc<Inner>);

/// What its clones share.
#[derive(Default)]
pub struct Inner {
    pub records: Records,
    pub is_paused: AtomicBool,
    /// It is paused because its host is about to sleep.
    pub host_sleeps: AtomicBool,
    /// Its guest is asked to suspend itself, and does not.
    pub guest_is_slow: AtomicBool,
    /// It need not any more.
    pub is_called_off: AtomicBool,
    /// Whatever it is told fails.
    pub is_broken: AtomicBool,
    pub is_stopped: AtomicBool,
    /// Another host may run it.
    pub is_in_doubt: AtomicBool,
    /// Its migration was called off.
    pub is_cancelled: AtomicBool,
    pub snapshots: Mutex<Vec<PathBuf>>,
    /// How far the last of them is.
    pub saving: Mutex<Saving>,
    pub migrations: Mutex<Vec<Migrate>>,
    /// Where a snapshot says that it began, and what it then waits for.
    hold: Mutex<Option<(Sender<()>, Receiver<()>)>>,
}

impl std::ops::Deref for FakeVm {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        &self.0
    }
}

impl FakeVm {
    /// A VM that was started.
    pub fn started() -> Self {
        let vm = Self::default();
        vm.records.push(record("start"));
        vm
    }

    /// The next snapshot says that it began, and goes on when it is told.
    pub fn hold_snapshot(&self) -> (Receiver<()>, Sender<()>) {
        let (begins, has_begun) = channel();
        let (go_on, waits) = channel();
        *self.hold.lock().unwrap() = Some((begins, waits));
        (has_begun, go_on)
    }

    fn check(&self) -> Result<()> {
        if self.is_broken.load(Ordering::SeqCst) {
            bail!("the thread has ended")
        }
        Ok(())
    }
}

/// What a migration to a host that takes everything but one did.
fn migration_report(request: &Migrate) -> MigrationReport {
    let outcome = match (
        request.destination.to_string().contains("full"),
        request.dry_run,
    ) {
        (true, _) => MigrationOutcome::Refused,
        (false, true) => MigrationOutcome::Accepted,
        (false, false) => MigrationOutcome::Moved,
    };
    let is_moved = outcome == MigrationOutcome::Moved;
    MigrationReport {
        outcome,
        destination: request.destination.to_string(),
        who: "pvtime-vmm on other, pvtime 0.1.0".into(),
        refusals: match outcome {
            MigrationOutcome::Refused => vec!["it is full".into(), "it is old".into()],
            MigrationOutcome::Accepted | MigrationOutcome::Moved => Vec::new(),
        },
        clocks: MigrationClocks {
            source_frequency_hz: 25_000_000,
            destination_frequency_hz: 25_000_000,
            source_error_ns: Some(1_000_000),
            destination_error_ns: None,
        },
        transfer: is_moved.then_some(Transfer {
            rounds: 3,
            memory_bytes: 256 << 20,
            sent_bytes: 91 << 20,
            stopped_bytes: 1 << 20,
            total_ms: 1_500,
            downtime_ms: 40,
            converged: true,
        }),
        stolen_at_stop_ns: if is_moved {
            vec![Some(87_639_000), None]
        } else {
            Vec::new()
        },
        record: is_moved.then(|| Record {
            sequence: 2,
            cause: Some("migration".into()),
            ..record("resume")
        }),
    }
}

/// A record of an event with all there can be.
pub fn record(event: &str) -> Record {
    let reading = ReadingRecord {
        host: 250_000_000,
        guest: 50_000_000,
        offset: 200_000_000,
        frequency_hz: 25_000_000,
    };
    let is_start = event == "start";
    let text = |text: &str| (!is_start).then(|| text.to_owned());
    Record {
        sequence: 0,
        wall_ns: 1_789_000_000_123_456_789,
        event: event.into(),
        cause: text("operator"),
        policy: text("freeze"),
        gap: (event == "resume").then(|| GapRecord {
            ns: 3_000_000_000,
            ticks: 75_000_000,
            error_ns: Some(1_500),
            source: "counter".into(),
        }),
        hidden_ns: if is_start { 0 } else { 3_000_000_000 },
        shown_ticks: (event == "resume").then_some(0),
        clamped: false,
        before: reading,
        after: reading,
        live: None,
        timers: None,
        unanswered_ms: None,
        unfinished_ms: None,
    }
}

impl Vm for FakeVm {
    fn id(&self) -> &'static str {
        "fake"
    }

    fn state(&self) -> VmState {
        if self.is_in_doubt.load(Ordering::SeqCst) {
            return VmState::InDoubt;
        }
        match (self.records.last(), self.is_paused.load(Ordering::SeqCst)) {
            (0, _) => VmState::NotStarted,
            (_, true) => VmState::Paused,
            (_, false) => VmState::Running,
        }
    }

    fn time(&self) -> Result<Time> {
        self.check()?;
        Ok(Time {
            counter_frequency_hz: Some(25_000_000),
            counter_limits: None,
            held_up_by: None,
            stolen_time_failure: None,
            stolen_time: "kernel".into(),
            live_physical_time: Some(LivePhysicalTime {
                address: 0xa01_0000,
                frequency_hz: 1_000_000_000,
                claimed: true,
            }),
            paused_time: Some(PausedTime {
                address: 0xa02_0000,
                events: 3,
                paused_ns: 500_000_000,
            }),
            elapsed_ns: 2_000_000_000,
            paused_ns: 500_000_000,
            generation: Generation {
                count: 2,
                id: GenerationId([0xab; 16]),
            },
            vcpus: vec![VcpuTime {
                index: 0,
                thread_id: Some(7),
                run_ns: 1_500_000_000,
                run_delay_ns: 2_000_000,
                stolen_time: Some(StolenTime {
                    address: 0xa00_0000,
                    claimed: true,
                    stolen_ns: 3_000_000,
                    surplus_ns: 20_000,
                }),
            }],
        })
    }

    fn ledger(&self) -> Result<Ledger> {
        self.check()?;
        Ok(Ledger {
            vcpus: vec![Accounts {
                index: 0,
                physical_ns: 4_000_000_000,
                run_ns: 2_000_000_000,
                idle_ns: 1_000_000_000,
                stolen_ns: 400_000_000,
                paused_ns: PausedByCause {
                    operator_ns: 500_000_000,
                    snapshot_ns: 100_000_000,
                    migration_ns: 0,
                    host_suspend_ns: 0,
                },
                residual_ns: -7_000,
                virtual_ns: 3_000_000_000,
                live_ns: 3_400_000_000,
            }],
        })
    }

    fn records(&self) -> &Records {
        &self.records
    }

    fn history(&self, vcpu: usize) -> Option<Vec<Sample>> {
        let sample = |physical_ns: u64, paused_ns: u64| Sample {
            physical_ns,
            live_ns: physical_ns - paused_ns,
            virtual_ns: (physical_ns - paused_ns) / 2,
        };
        let samples = vec![
            sample(0, 0),
            sample(1_000_000_000, 0),
            sample(2_000_000_000, 500_000_000),
        ];
        (vcpu == 0).then_some(samples)
    }

    fn pause(&self) -> Result<()> {
        self.check()?;
        self.is_paused.store(true, Ordering::SeqCst);
        self.records.push(record("pause"));
        Ok(())
    }

    fn resume(&self) -> Result<()> {
        self.check()?;
        self.is_paused.store(false, Ordering::SeqCst);
        self.records.push(record("resume"));
        Ok(())
    }

    fn prepare_sleep(&self) -> Result<Prepared> {
        if self.is_paused.load(Ordering::SeqCst) {
            return Ok(Prepared::Stopped);
        }
        if self.guest_is_slow.load(Ordering::SeqCst) {
            while !self.is_called_off.swap(false, Ordering::SeqCst) {
                sleep(Duration::from_millis(1));
            }
            return Ok(Prepared::CalledOff);
        }
        self.pause()?;
        self.host_sleeps.store(true, Ordering::SeqCst);
        Ok(Prepared::Stopped)
    }

    fn call_off_sleep(&self) {
        self.is_called_off.store(true, Ordering::SeqCst);
    }

    fn finish_sleep(&self) -> Result<()> {
        if self.host_sleeps.swap(false, Ordering::SeqCst) {
            self.resume()?;
        }
        Ok(())
    }

    fn snapshot(&self, folder: &Path) -> Result<()> {
        let saving = |phase, done_bytes| Saving {
            phase,
            snapshot_path: Some(folder.into()),
            memory_bytes: 256 << 20,
            done_bytes,
        };
        *self.saving.lock().unwrap() = saving(SnapshotPhase::Saving, 64 << 20);
        if let Some((begins, waits)) = self.hold.lock().unwrap().take() {
            begins.send(()).unwrap();
            waits.recv().unwrap();
        }
        let failed = saving(SnapshotPhase::Failed, 64 << 20);
        self.check()
            .inspect_err(|_| *self.saving.lock().unwrap() = failed)?;
        self.snapshots.lock().unwrap().push(folder.into());
        *self.saving.lock().unwrap() = saving(SnapshotPhase::Saved, 256 << 20);
        Ok(())
    }

    fn saving(&self) -> Saving {
        self.saving.lock().unwrap().clone()
    }

    fn take_over(&self) -> Result<()> {
        self.is_in_doubt.store(false, Ordering::SeqCst);
        self.resume()
    }

    fn migrate(&self, request: &Migrate) -> Result<MigrationReport> {
        if let Some((begins, waits)) = self.hold.lock().unwrap().take() {
            begins.send(()).unwrap();
            waits.recv().unwrap();
        }
        self.check()?;
        self.migrations.lock().unwrap().push(request.clone());
        Ok(migration_report(request))
    }

    fn migration(&self) -> Migration {
        Migration {
            phase: Phase::Copying,
            destination: Some("tcp:other:7001".into()),
            round: 2,
            memory_bytes: 256 << 20,
            left_bytes: 1 << 20,
            sent_bytes: 90 << 20,
        }
    }

    fn cancel_migration(&self) {
        self.is_cancelled.store(true, Ordering::SeqCst);
    }

    fn stop(&self) {
        self.is_stopped.store(true, Ordering::SeqCst);
    }
}
