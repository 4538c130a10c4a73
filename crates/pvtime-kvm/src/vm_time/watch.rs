//! The thread that renews the lease on which vCPUs run, and that sets the VM's time right after a
//! time in which it could not.

use std::convert::Infallible;
use std::io;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::{self, Builder, JoinHandle};
use std::time::Duration;

use pvtime::host::Cause;
use pvtime::host::timeline::{Event, Evidence, HostSample, TimelineError};

use super::account::VcpuAccount;
use super::{Error, State, Vcpu, VmTime};
use crate::clock;
use crate::record::Record;
use crate::sleep::{BEAT, Silence};

/// How long a vCPU may take to come out when the host has slept; then it is waited for again, and
/// others that want to change the VM's time have their turn.
const TURN: Duration = Duration::from_secs(1);

/// The clocks are looked at every so many beats: often enough that a sleep is told from the drift of
/// two clocks, and seldom enough to cost nothing.
///
/// The vCPUs' threads are at each: what one waited or halted since then may have been before a stop,
/// and is not hidden with it, so that it has to be less than what is left of the lease then.
const LOOK_EVERY: u32 = 20;

/// A VM's watch.
#[derive(Debug, Default)]
pub(super) struct Watch {
    thread: Mutex<Option<(Sender<Infallible>, JoinHandle<()>)>>,
    /// Why the VM waits since the host slept; `None` where it does not.
    held_up: Mutex<Option<String>>,
    /// A stop after which the VM's time could not be set right yet, and the gate stays closed until
    /// it is; whoever changes it has the VM's state.
    unsettled: Mutex<Option<Silence>>,
}

impl Watch {
    /// Starts the thread, which goes when its VM's time does.
    pub fn start(&self, time: &Arc<VmTime>) -> io::Result<()> {
        let looked = time.now();
        let time = Arc::downgrade(time);
        let (stop, stopped) = channel::<Infallible>();
        let thread = Builder::new().name("host-sleep".into()).spawn(move || {
            let mut watcher = Watcher { beats: 0, looked };
            while stopped.recv_timeout(BEAT) == Err(RecvTimeoutError::Timeout) {
                let Some(time) = Weak::upgrade(&time) else {
                    return;
                };
                watcher.beat(&time);
            }
        })?;
        *lock(&self.thread) = Some((stop, thread));
        Ok(())
    }

    /// Ends the thread.
    pub fn end(&self) {
        let running = lock(&self.thread).take();
        if let Some((stop, thread)) = running {
            drop(stop);
            // It may be this thread that had the last reference to the VM's time.
            if thread.thread().id() != thread::current().id() {
                let _ = thread.join();
            }
        }
    }

    /// Whether the VM's time is right, but for a stop that nobody has looked at yet.
    pub fn is_settled(&self) -> bool {
        lock(&self.unsettled).is_none()
    }

    /// Why the VM waits.
    pub fn held_up(&self) -> Option<String> {
        lock(&self.held_up).clone()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the thread remembers from one beat to the next.
struct Watcher {
    beats: u32,
    /// The clocks at the last look.
    looked: HostSample,
}

/// Nobody was stopped, for all that is known; the clocks may have something to say still.
const NO_STOP: Evidence = Evidence::Stall {
    certain_ns: 0,
    possible_ns: 0,
};

impl Watcher {
    fn beat(&mut self, time: &VmTime) {
        let now_ns = clock::boottime_ns();
        let is_right = time.watch.is_settled() && !time.gate.lease().had_ended_at(now_ns);
        let settled = if is_right {
            time.gate.renew_lease(now_ns);
            self.look_now_and_then(time)
        } else {
            self.settle(time)
        };
        *lock(&time.watch.held_up) = settled.err().map(|error| error.to_string());
    }

    fn look_now_and_then(&mut self, time: &VmTime) -> Result<(), Error> {
        self.beats = self.beats.wrapping_add(1);
        let Ok(mut state) = time.state.try_lock() else {
            return Ok(());
        };
        if !state.timeline.is_running() {
            return Ok(());
        }
        for account in state.accounts_of_threads().flatten() {
            account.look(time.gate.lease());
        }
        if !self.beats.is_multiple_of(LOOK_EVERY) {
            return Ok(());
        }
        let now = time.now();
        // A stop that was not dealt with must not lie before what is known of the clocks.
        if time.gate.lease().has_ended() {
            return Ok(());
        }
        match time.step(&mut state, now, Event::Observe) {
            Ok(_) => {
                self.looked = now;
                Ok(())
            }
            Err(Error::Timeline(
                TimelineError::UnhandledSleep { .. } | TimelineError::UnhandledRestart { .. },
            )) => {
                // Too short for the lease to end: vCPUs ran through it, and have seen it.
                drop(state);
                self.settle(time)
            }
            Err(error) => Err(error),
        }
    }

    /// Sets a running VM's time right, for what can be found out or was found out before. After an
    /// error the gate stays closed and what was found out is kept, for a later beat: nothing would
    /// be found any more, the lease being new.
    fn settle(&mut self, time: &VmTime) -> Result<(), Error> {
        let mut state = time.lock();
        if !state.timeline.is_running() {
            // Nobody is in the guest, and what passes until then belongs to the pause.
            time.gate.renew_lease(clock::boottime_ns());
            return Ok(());
        }
        time.closed_for.set(Cause::HostSuspend);
        time.gate.close(TURN, || ())?;
        // Those who wait there have done their accounts, which takes the longer the fewer CPUs there are.
        let now = time.now();
        let found_before = lock(&time.watch.unsettled).take();
        let is_new = found_before.is_none();
        let silence = found_before.unwrap_or_else(|| time.silence(&state));
        // Nobody came in since it was found, so that what is certain of it lasts up to now.
        let found = silence.evidence(&state.timeline, &self.looked, &now);
        if is_new && found.is_some() {
            let certain_ns = silence.certain_ns(now.boottime_ns);
            state.enter_sleep(silence.since_ns, now.boottime_ns - certain_ns);
        }
        *lock(&time.watch.unsettled) = Some(silence.clone());
        // Those who get ready look at what they did, and do so on a lease that has not ended.
        time.gate.renew_lease(now.boottime_ns);
        let (record, now) = time.gate.open_after(|| {
            // What was found lasted while they got ready; where nothing was, that alone is no stop.
            let now = time.host.sample_again(&now);
            let lasted = || silence.evidence(&state.timeline, &self.looked, &now);
            let event = Event::Slept(found.and_then(|_| lasted()).unwrap_or(NO_STOP));
            let record = time.try_step(&mut state, now, event)?;
            Ok::<_, Error>((record, now))
        })?;
        state.went_on(Cause::HostSuspend);
        *lock(&time.watch.unsettled) = None;
        self.looked = now;
        time.keep_sleep(&mut state, record);
        Ok(())
    }
}

impl VmTime {
    /// The time since the lease was renewed last, all vCPUs being at the gate.
    fn silence(&self, state: &State) -> Silence {
        let (since_ns, ended_ns) = self.gate.lease().term_ns();
        let of_threads = state.accounts_of_threads();
        Silence {
            since_ns,
            ended_ns,
            stepped_ns: state.stops.entered_ns,
            vcpus: of_threads.map(|it| it?.activity()).collect(),
        }
    }

    /// Keeps the record of a sleep, if there is one, which lasted while the VM ran.
    pub(super) fn keep_sleep(&self, state: &mut State, record: Option<Record>) {
        let gap = record.as_ref().and_then(|record| record.gap.as_ref());
        if let Some(gap_ns) = gap.and_then(|gap| u64::try_from(gap.ns).ok()) {
            state.stops.add(gap_ns);
        }
        self.keep(record);
    }

    /// Why the VM waits, where it does because its host slept and its time could not be set right
    /// yet.
    #[must_use]
    pub fn held_up_by(&self) -> Option<String> {
        self.watch.held_up()
    }
}

impl State {
    /// Enters a sleep of the host in the accounts, all vCPUs being at the gate: it began at
    /// `since_ns` at the earliest and at `certain_ns` at the latest. What passes from now on is
    /// entered by those who wait there.
    pub(super) fn enter_sleep(&self, since_ns: u64, certain_ns: u64) {
        for account in self.accounts_of_threads().flatten() {
            account.slept(Cause::HostSuspend, since_ns, certain_ns);
        }
    }

    /// Enters in the accounts that the gate, which was closed for this cause, was opened with the last
    /// step.
    pub(super) fn went_on(&self, cause: Cause) {
        for account in self.accounts_of_threads().flatten() {
            account.went_on(cause, self.stops.entered_ns);
        }
    }

    /// The account of each vCPU, where it has a thread.
    fn accounts_of_threads(&self) -> impl Iterator<Item = Option<&VcpuAccount>> {
        self.vcpus.iter().map(|vcpu| match vcpu {
            Vcpu::Bound(bound) => Some(&*bound.account),
            Vcpu::New | Vcpu::Attached(_) => None,
        })
    }
}
