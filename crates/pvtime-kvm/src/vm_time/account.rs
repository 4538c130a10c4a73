//! The ledger of one vCPU, kept by its own thread.
//!
//! A thread knows best when it left the guest and when it goes back: it enters its accounts when it
//! arrives at the gate and when it leaves it. What lies between is paused time, by the cause for
//! which the gate was closed. A query closes the gate for some microseconds, and that is paused by
//! the operator.

use std::sync::{Mutex, MutexGuard, PoisonError};

use pvtime::host::Cause;
use pvtime::host::ledger::{Accounts, Ledger, LedgerError, ThreadSample};
use rustix::thread::Pid;

use crate::clock;
use crate::sleep::{Activity, Lease};
use crate::thread_stat::{self, HaltTime, ThreadAccounts};

/// A vCPU's account, shared by its thread and whoever asks.
#[derive(Debug)]
pub(super) struct VcpuAccount {
    thread: Pid,
    entries: Mutex<Entries>,
}

#[derive(Debug)]
struct Entries {
    thread: ThreadAccounts,
    /// From the start or the restoration on.
    ledger: Option<Ledger>,
    /// The thread's run delay when it arrived at the gate.
    arrived_ns: u64,
    /// What the thread did when it was last known to run.
    looked: Option<Activity>,
    /// What went wrong on the vCPU's thread, until somebody asks.
    failure: Option<AccountError>,
}

/// The account cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum AccountError {
    /// The kernel's figures cannot be read.
    #[error(transparent)]
    Thread(#[from] thread_stat::Error),
    /// They contradict themselves.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The VM was neither started nor restored.
    #[error("the VM was not started yet; start it first")]
    NotStarted,
}

impl VcpuAccount {
    /// For the calling thread.
    pub fn of_this_thread(halt: HaltTime) -> Result<Self, thread_stat::Error> {
        let thread = ThreadAccounts::of_this_thread(halt)?;
        Ok(Self {
            thread: thread.thread(),
            entries: Mutex::new(Entries {
                thread,
                ledger: None,
                arrived_ns: 0,
                looked: None,
                failure: None,
            }),
        })
    }

    /// The thread.
    pub fn thread(&self) -> Pid {
        self.thread
    }

    /// The thread arrived at the gate, with its vCPU on or off.
    pub fn arrive(&self, is_off: bool) {
        let mut entries = self.lock();
        let entered = entries.arrive(is_off);
        entries.keep(entered);
    }

    /// The thread leaves the gate, which was closed for this cause. Returns for how long, in ns, it
    /// waited there for a CPU: part of the pause, and not stolen.
    pub fn leave(&self, cause: Cause, is_off: bool) -> u64 {
        let mut entries = self.lock();
        let waited = entries.leave(cause, is_off);
        let waited_ns = *waited.as_ref().unwrap_or(&0);
        entries.keep(waited.map(drop));
        waited_ns
    }

    /// The gate, which was closed for this cause, was opened at `at_ns` on `CLOCK_BOOTTIME`: from when it
    /// left until then the thread waited for others to be ready.
    pub fn went_on(&self, cause: Cause, at_ns: u64) {
        let mut entries = self.lock();
        let Some(ledger) = &mut entries.ledger else {
            return;
        };
        let entered = ledger.went_on(at_ns, cause);
        entries.keep(entered.map_err(AccountError::from));
    }

    /// Takes down what the thread did up to now, for the two below, if the lease has not ended by
    /// then: a stop that was not dealt with must not lie before the last look.
    pub fn look(&self, lease: &Lease) {
        let mut entries = self.lock();
        let looked = entries.look();
        if !lease.has_ended() {
            entries.looked = looked;
        }
    }

    /// What it did up to the last look, and up to now; `None` where nothing is known.
    pub fn activity(&self) -> Option<(Activity, Activity)> {
        let entries = self.lock();
        entries.looked.zip(entries.activity())
    }

    /// Up to when, on `CLOCK_BOOTTIME`, the thread was not stopped since the last look; `None` where
    /// it may have been.
    pub fn ran_until_ns(&self) -> Option<u64> {
        let (before, now) = self.activity()?;
        before.ran_until(&now).then_some(now.physical_ns)
    }

    /// The host slept while the thread, which waits at the gate now, was in the guest or about to
    /// enter it: not before `since_ns`, and from `certain_ns` on for certain, on `CLOCK_BOOTTIME`.
    pub fn slept(&self, cause: Cause, since_ns: u64, certain_ns: u64) {
        let mut entries = self.lock();
        let Some(ledger) = &mut entries.ledger else {
            return;
        };
        let entered = ledger.slept(cause, since_ns, certain_ns);
        entries.keep(entered.map_err(AccountError::from));
    }

    /// Takes over what was saved, `away_ns` before `at_ns` on `CLOCK_BOOTTIME`. Returns for how long
    /// the thread has waited for a CPU up to now, in ns: nothing of it was stolen.
    pub fn restore(
        &self,
        accounts: Accounts,
        cause: Cause,
        away_ns: u64,
        at_ns: u64,
    ) -> Result<u64, AccountError> {
        let mut entries = self.lock();
        let now = entries.thread.peek()?;
        let away_ns = away_ns.saturating_add(now.physical_ns.saturating_sub(at_ns));
        entries.ledger = Some(Ledger::restore(accounts, now, cause, away_ns)?);
        // What it waits from here on is counted when it leaves the gate.
        entries.arrived_ns = now.stolen_ns;
        Ok(now.stolen_ns)
    }

    /// The accounts of a vCPU whose thread waits at the gate, without the wait.
    pub fn entered(&self) -> Result<Accounts, AccountError> {
        let mut entries = self.lock();
        match entries.failure.take() {
            Some(failure) => Err(failure),
            None => entries
                .ledger
                .map(|it| *it.accounts())
                .ok_or(AccountError::NotStarted),
        }
    }

    /// The same with the wait up to when its VM was stopped, on `CLOCK_BOOTTIME`, which is for this
    /// cause: what passes from then on is in no account yet.
    pub fn up_to_stop(&self, stop_ns: u64, cause: Cause) -> Result<Accounts, AccountError> {
        let accounts = self.entered()?;
        let entries = self.lock();
        let stop = ThreadSample {
            physical_ns: stop_ns,
            ..entries.thread.peek()?
        };
        let mut shown = entries.ledger.ok_or(AccountError::NotStarted)?;
        match shown.resume(stop, cause) {
            Ok(()) => Ok(*shown.accounts()),
            // The last to be out does its accounts when the VM is stopped.
            Err(LedgerError::Backwards { .. }) => Ok(accounts),
            Err(error) => Err(error.into()),
        }
    }

    /// The same with the wait up to now, which is for this cause.
    pub fn up_to_now(&self, cause: Cause) -> Result<Accounts, AccountError> {
        self.entered()?;
        let entries = self.lock();
        let now = entries.thread.peek()?;
        let mut shown = entries.ledger.ok_or(AccountError::NotStarted)?;
        shown.resume(now, cause)?;
        Ok(*shown.accounts())
    }

    /// Stolen time up to now; 0 before the VM was started or restored. Nobody is disturbed for it: a
    /// wait that is under way is not in it, and what a thread waits at the gate is nobody's.
    pub fn stolen_ns(&self) -> Result<u64, AccountError> {
        let entries = self.lock();
        let Some(mut shown) = entries.ledger else {
            return Ok(0);
        };
        match shown.enter(entries.thread.peek()?) {
            Ok(()) | Err(LedgerError::Stopped) => Ok(shown.accounts().stolen_ns),
            Err(error) => Err(error.into()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entries {
    fn arrive(&mut self, is_off: bool) -> Result<(), AccountError> {
        let now = self.thread.sample(is_off)?;
        self.arrived_ns = now.stolen_ns;
        match &mut self.ledger {
            Some(ledger) => Ok(ledger.stop(now)?),
            None => Ok(()),
        }
    }

    fn leave(&mut self, cause: Cause, is_off: bool) -> Result<u64, AccountError> {
        let now = self.thread.sample(is_off)?;
        match &mut self.ledger {
            Some(ledger) => ledger.resume(now, cause)?,
            None => self.ledger = Some(Ledger::start(now)),
        }
        Ok(now.stolen_ns.saturating_sub(self.arrived_ns))
    }

    fn look(&mut self) -> Option<Activity> {
        let busy_ns = self.thread.busy_so_far_ns().ok();
        // Last, so that nothing is missed of what the thread does meanwhile.
        let physical_ns = clock::boottime_ns();
        busy_ns.map(|busy_ns| Activity {
            physical_ns,
            busy_ns,
        })
    }

    fn activity(&self) -> Option<Activity> {
        Some(Activity {
            // First, for the same reason.
            physical_ns: clock::boottime_ns(),
            busy_ns: self.thread.busy_ns().ok()?,
        })
    }

    fn keep(&mut self, entered: Result<(), AccountError>) {
        if let Err(error) = entered {
            self.failure.get_or_insert(error);
        }
    }
}
