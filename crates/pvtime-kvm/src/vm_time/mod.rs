//! The one owner of a VM's time.

mod account;
mod close;
mod config;
mod execute;
mod guest_suspend;
mod host;
mod interfaces;
mod lost;
mod sample;
mod saved;
mod state;
mod vcpu;
mod watch;

pub use account::AccountError;
pub use config::{Error, VmTimeConfig};
pub use host::{Host, KvmHost};
pub use interfaces::{LivePhysicalTimeSample, PausedTimeSample};
pub use lost::LostTime;
pub use sample::{TimeSample, VcpuSample};
pub use vcpu::{RunningVcpu, VcpuTime};

use account::VcpuAccount;
use close::CLOSE_LIMIT;
use interfaces::Interfaces;
use state::{Bound, ClosedFor, State, Stops, Vcpu};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kvm_ioctls::{VcpuFd, VmFd};
use pvtime::host::Cause;
use pvtime::host::ledger::Accounts;
use pvtime::host::timeline::{Config, CounterScope, Event, HostSample, Timeline};
use pvtime::scale::Frequency;

use crate::gate::Gate;
use crate::record::{Record, Records};
use crate::sleep::Lease;
use crate::stolen_time::{self, Stolen};
use crate::thread_stat::HaltTime;
use crate::untranslated::Untranslated;
use crate::{HostTime, ReservedMemory, StolenTimeProvider, clock, counter};

/// The time of one VM.
///
/// Nothing else writes a counter, a timer or an offset of the VM. All methods may be called from
/// any thread; those that change something take their turns.
#[derive(Debug)]
pub struct VmTime {
    host: Box<dyn Host>,
    gate: Arc<Gate<VcpuFd>>,
    counter_limits: Option<String>,
    stolen: Stolen,
    interfaces: Interfaces,
    created_ns: u64,
    closed_for: ClosedFor,
    watch: watch::Watch,
    state: Mutex<State>,
    records: Records,
}

impl VmTime {
    /// Decides which interfaces the guest gets and makes their memory. No vCPU runs before
    /// [`start`](Self::start), or [`restore`](Self::restore) and [`resume`](Self::resume).
    ///
    /// The VM keeps a memory slot for each block until this is dropped.
    ///
    /// # Errors
    ///
    /// [`Error::Vcpus`], [`Error::NoPeriod`], [`Error::Unaligned`], [`Error::NoFrequency`], [`Error::StolenTime`],
    /// [`Error::Unavailable`], [`Error::PvFrequency`], [`Error::Timeline`] for live physical time
    /// with a policy that advances, [`Error::Signal`], [`Error::Region`], [`Error::Filter`],
    /// [`Error::Publisher`], [`Error::Interrupt`], [`Error::Watch`].
    pub fn new(vm: &Arc<VmFd>, host: &HostTime, config: VmTimeConfig) -> Result<Arc<Self>, Error> {
        let kvm = KvmHost::new(vm)?;
        Self::with_host(vm, host, config, Box::new(kvm))
    }

    /// The same on a host of the caller's making.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new).
    #[doc(hidden)]
    pub fn with_host(
        vm: &Arc<VmFd>,
        host: &HostTime,
        config: VmTimeConfig,
        its_host: Box<dyn Host>,
    ) -> Result<Arc<Self>, Error> {
        config.check(host, its_host.sample().frequency)?;
        let signal = config.kick_signal;
        let counters = config.counters.plan(host);
        let timeline = Timeline::new(Config {
            policies: config.policies,
            negative_elapsed: config.negative_elapsed,
            counters: counters.scope,
            live_physical_time: config.live_physical_time,
            paused_time: config.paused_time,
            has_ecv: counter::has_ecv() == Some(true),
            ..Config::default()
        })?;
        let vcpus = (0..config.vcpus).map(|_| Vcpu::New).collect();
        let stolen = Stolen::new(vm, config.stolen_time.provider(host)?, &config)?;
        let interfaces = Interfaces::new(vm, &config)?;
        interfaces.forward_calls(vm, stolen.provider())?;
        let lease = if config.watches_host_sleep {
            Lease::ended()
        } else {
            Lease::forever()
        };
        let gate = Gate::new(signal, lease).map_err(|source| Error::Signal { signal, source })?;
        let time = Arc::new(Self {
            host: its_host,
            gate: Arc::new(gate),
            counter_limits: counters.limits,
            stolen,
            interfaces,
            created_ns: clock::boottime_ns(),
            closed_for: ClosedFor::default(),
            watch: watch::Watch::default(),
            state: Mutex::new(State {
                timeline,
                stops: Stops::default(),
                vcpus,
                translated: None,
                untranslated: Untranslated::default(),
                is_half_restored: false,
            }),
            records: Records::default(),
        });
        if config.watches_host_sleep {
            time.watch.start(&time).map_err(Error::Watch)?;
        }
        Ok(time)
    }

    /// Gives a vCPU its time interfaces: after `KVM_ARM_VCPU_INIT` and before the first `KVM_RUN`
    /// of any vCPU. vCPUs may be attached in any order, others already being attached.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchVcpu`], [`Error::AttachedTwice`], [`Error::Attach`], [`Error::Hide`],
    /// [`Error::Accounts`], [`Error::Timeline`] for live physical time, or a policy that freezes, on
    /// a vCPU that can be a hypervisor.
    pub fn attach(self: &Arc<Self>, vcpu: &VcpuFd, index: usize) -> Result<VcpuTime, Error> {
        let mut state = self.lock();
        let (vcpus, config) = (state.vcpus.len(), *state.timeline.config());
        let known = state
            .vcpus
            .get_mut(index)
            .ok_or(Error::NoSuchVcpu { index, vcpus })?;
        if !matches!(known, Vcpu::New) {
            return Err(Error::AttachedTwice { index });
        }
        let nested_virtualization = self.host.is_nested(vcpu);
        Timeline::new(Config {
            nested_virtualization,
            ..config
        })?;
        let halt = HaltTime::of(vcpu).map_err(|source| Error::Accounts { index, source })?;
        *known = Vcpu::Attached(halt);
        if self.has_no_calls() {
            stolen_time::hide(vcpu).map_err(|source| Error::Hide { index, source })?;
        }
        self.stolen.attach(vcpu, index)?;
        Ok(VcpuTime::new(self, index))
    }

    /// Lets the VM run for the first time. Its counters start at 0 now.
    ///
    /// # Errors
    ///
    /// [`Error::NoThread`] where a vCPU was not attached and bound, [`Error::Timeline`] for a VM
    /// that was started or restored before, [`Error::HalfRestored`], and what setting the counters
    /// fails with.
    pub fn start(&self) -> Result<(), Error> {
        let mut state = self.lock();
        if state.is_half_restored {
            return Err(Error::HalfRestored);
        }
        self.check_threads(&state)?;
        let record = self.open_after(&mut state, Event::Start)?;
        self.keep(record);
        Ok(())
    }

    /// Takes every vCPU out of the guest and keeps it out. The guest's counter at the stop is taken
    /// once, when all are out.
    ///
    /// # Errors
    ///
    /// [`Error::Timeline`] for a VM that does not run, [`Error::Close`] where a vCPU does not come
    /// out, [`Error::HeldUp`] after a sleep of the host. The VM runs on after an error, if it ran
    /// before.
    pub fn pause(&self, cause: Cause) -> Result<(), Error> {
        self.pause_with(cause, None)
    }

    fn pause_with(&self, cause: Cause, unanswered: Option<Duration>) -> Result<(), Error> {
        let (mut state, now) = self.close_for(cause)?;
        let ran = state.timeline.is_running();
        let paused = self
            .stolen
            .publish()
            .and_then(|()| self.step(&mut state, now, Event::Pause(cause)));
        if ran && paused.is_err() {
            self.gate.open();
        }
        self.keep(paused?.map(|record| Record {
            unanswered_ms: unanswered.map(whole_ms),
            ..record
        }));
        Ok(())
    }

    /// Sets the counters of a stopped VM by its policy, and lets its vCPUs into the guest.
    ///
    /// # Errors
    ///
    /// [`Error::Timeline`] for a VM that runs and for clocks that the policy cannot go by, and what
    /// setting the counters fails with. The VM is stopped still after an error.
    pub fn resume(&self) -> Result<(), Error> {
        self.resume_with(None)
    }

    /// The same for a VM that was stopped for a sleep of its host of which nobody said that it was over
    /// while the host was awake for as long as this: the record says so.
    ///
    /// # Errors
    ///
    /// As [`resume`](Self::resume).
    pub fn resume_unfinished(&self, awake: Duration) -> Result<(), Error> {
        self.resume_with(Some(awake))
    }

    fn resume_with(&self, unfinished: Option<Duration>) -> Result<(), Error> {
        let mut state = self.lock();
        if state.timeline.stop_cause().is_none() {
            // It fails, and says why.
            return self.step(&mut state, self.now(), Event::Resume).map(drop);
        }
        let record = self.open_after(&mut state, Event::Resume)?;
        state.went_on(self.closed_for.get());
        self.keep(record.map(|record| Record {
            unfinished_ms: unfinished.map(whole_ms),
            ..record
        }));
        Ok(())
    }

    /// Another kernel begins in the guest, which the VMM reset, or of which it knows that it did kexec:
    /// that the one before asked for live physical time says nothing of this one, and the VM goes to
    /// no host of another frequency until this one has asked. To be called while no vCPU is in the
    /// guest, since a call of the new kernel's that comes before is forgotten with the old one's.
    ///
    /// # Errors
    ///
    /// [`Error::Timeline`] for a VM that was not started.
    pub fn guest_reset(&self) -> Result<(), Error> {
        let mut state = self.lock();
        let step = state.timeline.step(self.now(), Event::GuestReset)?;
        state.timeline = step.timeline;
        self.interfaces.clear_live_found();
        Ok(())
    }

    /// Sends every vCPU thread away, for good: [`RunningVcpu::run`] returns `None`.
    pub fn shut_down(&self) {
        self.gate.stop();
        self.watch.end();
        self.records.finish();
    }

    /// Does `job` on every vCPU of a stopped VM, on the thread that runs it, and returns the
    /// results in the order of the vCPUs; `None` for a VM that runs, that is being shut down, or one
    /// of whose vCPUs has no thread.
    pub fn on_each_vcpu<R: Send + 'static>(
        &self,
        job: impl Fn(usize, &mut VcpuFd) -> R + Send + Sync + 'static,
    ) -> Option<Vec<R>> {
        let state = self.lock();
        let results = self.gate.on_each(job);
        results.filter(|results| results.len() == state.vcpus.len())
    }

    /// What was done to the VM's time.
    pub fn records(&self) -> &Records {
        &self.records
    }

    /// Who keeps this VM's stolen time.
    #[must_use]
    pub fn stolen_time_provider(&self) -> StolenTimeProvider {
        self.stolen.provider()
    }

    /// Which of the guest's counters the VM's offset is for.
    #[must_use]
    pub fn counters(&self) -> CounterScope {
        self.lock().timeline.config().counters
    }

    /// What the guest's counters cannot do on this host, and why, for the operator; `None` where
    /// one offset is for all of them.
    #[must_use]
    pub fn counter_limits(&self) -> Option<&str> {
        self.counter_limits.as_deref()
    }

    /// Whether the VM could go on at a host whose counter runs at `host`; to be asked before
    /// anything is moved.
    ///
    /// # Errors
    ///
    /// [`Error::Timeline`], with both frequencies and the way out.
    pub fn admits(&self, host: Frequency) -> Result<(), Error> {
        let timeline = self.heard(&self.lock(), self.now())?;
        Ok(timeline.admits(host)?)
    }

    /// Whether the VM runs; not before it was started, and not while it is paused.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.lock().timeline.is_running()
    }

    /// Why the VM is paused; `None` where it is not.
    #[must_use]
    pub fn stop_cause(&self) -> Option<Cause> {
        self.lock().timeline.stop_cause()
    }

    /// What to reserve in the device tree.
    #[must_use]
    pub fn reserved_memory(&self) -> Vec<ReservedMemory> {
        let stolen = self.stolen.structures();
        stolen
            .map(|it| it.block().reserved("stolen-time"))
            .into_iter()
            .chain(self.interfaces.reserved())
            .collect()
    }

    /// Where each vCPU's physical time went since the VM was started first, up to now. A running
    /// VM's vCPUs are taken out of the guest for it, for some ten microseconds.
    ///
    /// # Errors
    ///
    /// [`Error::NoThread`] for a VM that was not started, [`Error::Close`] and [`Error::Accounts`].
    pub fn ledger(&self) -> Result<Vec<Accounts>, Error> {
        let (state, _) = self.close_for(Cause::Operator)?;
        state.check_bound()?;
        if let Some(cause) = state.timeline.stop_cause() {
            return state.accounts(|account| account.up_to_now(cause));
        }
        let accounts = state.accounts(VcpuAccount::entered);
        if state.timeline.is_running() {
            self.gate.open();
        }
        accounts
    }

    fn keep(&self, record: Option<Record>) {
        if let Some(record) = record {
            self.records.push(record);
        }
    }

    fn now(&self) -> HostSample {
        self.host.sample()
    }

    /// Returns when every vCPU has a thread that waits at the gate, which was not opened yet.
    fn check_threads(&self, state: &State) -> Result<(), Error> {
        state.check_bound()?;
        if !state.timeline.is_running() {
            self.gate.close(CLOSE_LIMIT, || ())?;
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for VmTime {
    fn drop(&mut self) {
        self.shut_down();
    }
}

fn whole_ms(time: Duration) -> u64 {
    time.as_millis().try_into().unwrap_or(u64::MAX)
}
