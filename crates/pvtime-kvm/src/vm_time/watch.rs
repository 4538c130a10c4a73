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
use crate::sleep::{BEAT, Silence};

/// How long a vCPU may take to come out when the host has slept; then it is waited for again, and
/// others that want to change the VM's time have their turn.
const TURN: Duration = Duration::from_secs(1);

/// The clocks and the vCPUs' threads are looked at every so many beats: often enough that a sleep
/// is told from the drift of two clocks, and seldom enough to cost nothing.
const LOOK_EVERY: u32 = 20;

/// A VM's watch.
#[derive(Debug, Default)]
pub(super) struct Watch {
    thread: Mutex<Option<(Sender<Infallible>, JoinHandle<()>)>>,
    /// Why the VM waits since the host slept; `None` where it does not.
    held_up: Mutex<Option<String>>,
}

impl Watch {
    /// Starts the thread, which goes when its VM's time does.
    pub fn start(&self, time: &Arc<VmTime>) -> io::Result<()> {
        let looked = clock::sample(time.frequency);
        let time = Arc::downgrade(time);
        let (stop, stopped) = channel::<Infallible>();
        let thread = Builder::new().name("host-sleep".into()).spawn(move || {
            let mut watcher = Watcher {
                beats: 0,
                looked,
                is_unsettled: false,
            };
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
    /// The gate is closed because the VM's time could not be set right.
    is_unsettled: bool,
}

impl Watcher {
    fn beat(&mut self, time: &VmTime) {
        let now_ns = clock::boottime_ns();
        let settled = if self.is_unsettled || time.gate.lease().had_ended_at(now_ns) {
            self.settle(time, None)
        } else {
            time.gate.renew_lease(now_ns);
            self.look_now_and_then(time)
        };
        *lock(&time.watch.held_up) = settled.err().map(|error| error.to_string());
    }

    fn look_now_and_then(&mut self, time: &VmTime) -> Result<(), Error> {
        self.beats = self.beats.wrapping_add(1);
        let due = self.beats.is_multiple_of(LOOK_EVERY);
        let Some(mut state) = due.then(|| time.state.try_lock().ok()).flatten() else {
            return Ok(());
        };
        if !state.timeline.is_running() {
            return Ok(());
        }
        let now = time.now();
        for account in state.accounts_of_threads().flatten() {
            account.look(time.gate.lease());
        }
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
                let seen = Evidence::Clocks { error_ns: u64::MAX };
                self.settle(time, Some(seen))
            }
            Err(error) => Err(error),
        }
    }

    /// Sets a running VM's time right, for what is known or for what can be found out.
    fn settle(&mut self, time: &VmTime, known: Option<Evidence>) -> Result<(), Error> {
        let mut state = time.lock();
        if !state.timeline.is_running() {
            // Nobody is in the guest, and what passes until then belongs to the pause.
            time.gate.renew_lease(clock::boottime_ns());
            return Ok(());
        }
        time.closed_for.set(Cause::HostSuspend);
        let now = time.gate.close(TURN, || time.now())?;
        let silence = time.silence(&state);
        let evidence = known.or_else(|| silence.evidence(&state.timeline, &self.looked, &now));
        // Nobody passes before the gate opens, and it does not after an error, until a later beat.
        self.is_unsettled = true;
        self.looked = now;
        time.gate.renew_lease(now.boottime_ns);
        match evidence {
            Some(evidence) => time.slept(&mut state, now, evidence, &silence)?,
            None => time.gate.open(),
        }
        self.is_unsettled = false;
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

    /// Enters a sleep of the host up to `now` in the accounts, all vCPUs being at the gate, takes it
    /// out of the VM's time, and lets the vCPUs in. What passes from `now` on is as if they ran.
    fn slept(
        &self,
        state: &mut State,
        now: HostSample,
        evidence: Evidence,
        silence: &Silence,
    ) -> Result<(), Error> {
        let certain_ns = now.boottime_ns - silence.certain_ns(now.boottime_ns);
        for account in state.accounts_of_threads().flatten() {
            account.slept(Cause::HostSuspend, silence.since_ns, certain_ns);
        }
        let event = Event::Slept(evidence);
        let stepped = || self.step(state, now, event);
        let record = self.gate.open_after(stepped)?;
        let gap = record.as_ref().and_then(|record| record.gap.as_ref());
        if let Some(gap_ns) = gap.and_then(|gap| u64::try_from(gap.ns).ok()) {
            state.stops.add(gap_ns);
        }
        self.keep(record);
        Ok(())
    }

    /// Why the VM waits, where it does because its host slept and its time could not be set right
    /// yet.
    #[must_use]
    pub fn held_up_by(&self) -> Option<String> {
        self.watch.held_up()
    }
}

impl State {
    /// The account of each vCPU, where it has a thread.
    fn accounts_of_threads(&self) -> impl Iterator<Item = Option<&VcpuAccount>> {
        self.vcpus.iter().map(|vcpu| match vcpu {
            Vcpu::Bound(bound) => Some(&*bound.account),
            Vcpu::New | Vcpu::Attached(_) => None,
        })
    }
}
