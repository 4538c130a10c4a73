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

use super::{Error, State, Vcpu, VmTime};
use crate::clock;
use crate::sleep::{Activity, BEAT, Silence, TERM};

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
        let time = Arc::downgrade(time);
        let (stop, stopped) = channel::<Infallible>();
        let thread = Builder::new().name("host-sleep".into()).spawn(move || {
            let mut watcher = Watcher {
                is_stopped: true,
                ..Watcher::default()
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
#[derive(Default)]
struct Watcher {
    /// When the lease was renewed last, and until when; on `CLOCK_BOOTTIME`.
    renewed_ns: u64,
    until_ns: u64,
    beats: u32,
    /// At the last look the VM did not run, or there was none.
    is_stopped: bool,
    /// The last look at the clocks and at each vCPU's thread.
    looked: Option<Look>,
}

struct Look {
    sample: HostSample,
    vcpus: Vec<Option<Activity>>,
}

impl Watcher {
    fn beat(&mut self, time: &VmTime) {
        let now_ns = clock::boottime_ns();
        let settled = if now_ns < self.until_ns {
            // What changed the VM's time meanwhile has looked at the clocks.
            self.renew(time, now_ns);
            self.look_now_and_then(time)
        } else {
            self.settle(time, None)
        };
        let failure = settled.err().map(|error| error.to_string());
        if failure.is_none() && clock::boottime_ns() >= self.until_ns {
            self.renew(time, clock::boottime_ns());
        }
        *lock(&time.watch.held_up) = failure;
    }

    fn renew(&mut self, time: &VmTime, now_ns: u64) {
        let term_ns = u64::try_from(TERM.as_nanos()).expect("some milliseconds");
        (self.renewed_ns, self.until_ns) = (now_ns, now_ns + term_ns);
        time.gate.renew_lease(self.until_ns);
    }

    fn look_now_and_then(&mut self, time: &VmTime) -> Result<(), Error> {
        self.beats = self.beats.wrapping_add(1);
        let due = self.is_stopped || self.beats.is_multiple_of(LOOK_EVERY);
        let Some(mut state) = due.then(|| time.state.try_lock().ok()).flatten() else {
            return Ok(());
        };
        self.is_stopped = !state.timeline.is_running();
        if self.is_stopped {
            // Nothing to set right. But what a thread waits at the gate is no sleep when the VM
            // goes on, so it is looked at until then.
            self.look(time, &state);
            return Ok(());
        }
        match time.step(&mut state, Event::Observe) {
            Ok(_) => {
                self.look(time, &state);
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

    fn look(&mut self, time: &VmTime, state: &State) {
        self.looked = Some(Look {
            sample: clock::sample(time.frequency),
            vcpus: state.activities(),
        });
    }

    /// Sets a running VM's time right, for what is known or for what can be found out.
    fn settle(&mut self, time: &VmTime, known: Option<Evidence>) -> Result<(), Error> {
        let mut state = time.lock();
        if !state.timeline.is_running() {
            return Ok(());
        }
        time.closed_for.set(Cause::HostSuspend);
        time.gate.close(TURN)?;
        let now = clock::sample(time.frequency);
        let found = self.looked.as_ref().map(|looked| {
            let silence = self.silence(&state, looked);
            let evidence = silence.evidence(&state.timeline, &looked.sample, &now);
            (evidence, now.boottime_ns.saturating_sub(silence.since_ns))
        });
        let (found, most_ns) = found.unwrap_or_default();
        if let Some(evidence) = known.or(found) {
            // The gate stays closed after an error, until a later beat does it.
            time.slept(&mut state, evidence, most_ns)?;
        }
        self.look(time, &state);
        time.gate.open();
        Ok(())
    }

    fn silence(&self, state: &State, looked: &Look) -> Silence {
        let now = state.activities();
        Silence {
            since_ns: self.renewed_ns,
            ended_ns: self.until_ns,
            stepped_ns: state.stops.entered_ns,
            vcpus: looked
                .vcpus
                .iter()
                .zip(now)
                .map(|(before, now)| before.zip(now))
                .collect(),
        }
    }
}

impl VmTime {
    /// Takes a sleep of the host out of the VM's time, all vCPUs being at the gate, and enters it in
    /// the accounts.
    fn slept(&self, state: &mut State, evidence: Evidence, most_ns: u64) -> Result<(), Error> {
        let adjustment = self.step(state, Event::Slept(evidence))?;
        let gap = adjustment.and_then(|adjustment| adjustment.gap);
        let Some(gap_ns) = gap.and_then(|gap| u64::try_from(gap.ns).ok()) else {
            return Ok(());
        };
        state.stops.add(gap_ns);
        for (_, bound) in state.bound() {
            bound.account.slept(Cause::HostSuspend, most_ns);
        }
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
    /// What each vCPU's thread did up to now.
    fn activities(&self) -> Vec<Option<Activity>> {
        let of = |vcpu: &Vcpu| match vcpu {
            Vcpu::Bound(bound) => bound.account.activity().ok(),
            Vcpu::New | Vcpu::Attached(_) => None,
        };
        self.vcpus.iter().map(of).collect()
    }
}
