//! Stolen time kept by one thread for all vCPUs of a VM.
//!
//! It reads each vCPU thread's run delay once in a period and writes the sum of what was added to
//! guest memory, so the guest's figure is KVM's, late by at most the period.

use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;
use std::{convert::Infallible, io};

use pvtime::abi::stolen_time::StolenTime;
use pvtime::host::stolen::{StolenAccount, StolenError};
use rustix::thread::Pid;

use super::structures::Structures;
use crate::thread_stat::{self, run_delay_ns};

/// A vCPU's stolen time could not be counted.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// The scheduler's accounts cannot be read.
    #[error(transparent)]
    Accounts(#[from] thread_stat::Error),
    /// The accounts contradict themselves.
    #[error(transparent)]
    Count(#[from] StolenError),
}

/// The structures and the thread that keeps them. Dropping it ends the thread.
#[derive(Debug)]
pub(crate) struct Publisher {
    shared: Arc<Shared>,
    thread: Option<(Sender<Infallible>, JoinHandle<()>)>,
}

#[derive(Debug)]
struct Shared {
    structures: Structures,
    vcpus: Mutex<Vec<Option<Published>>>,
    /// Why the last publication was not whole.
    failure: Mutex<Option<String>>,
}

/// A vCPU whose thread is known.
#[derive(Debug)]
struct Published {
    thread: Pid,
    account: StolenAccount,
    claimed: bool,
    /// It waits there, and what it waits for a CPU is not stolen.
    at_gate: bool,
}

impl Publisher {
    /// Starts the thread.
    pub fn start(structures: Structures, vcpus: usize, period: Duration) -> io::Result<Self> {
        let vcpus = Mutex::new((0..vcpus).map(|_| None).collect());
        let shared = Arc::new(Shared {
            structures,
            vcpus,
            failure: Mutex::default(),
        });
        let (stop, stopped) = channel::<Infallible>();
        let publishing = Arc::clone(&shared);
        let thread = Builder::new().name("stolen-time".into()).spawn(move || {
            while stopped.recv_timeout(period) == Err(RecvTimeoutError::Timeout) {
                // It is kept, for whoever asks, until a publication is whole.
                let _ = publishing.publish();
            }
        })?;
        Ok(Self {
            shared,
            thread: Some((stop, thread)),
        })
    }

    /// The structures.
    pub fn structures(&self) -> &Structures {
        &self.shared.structures
    }

    /// Makes a thread the one of vCPU `index`, whose value is `restored` if it was saved.
    pub fn bind(
        &self,
        index: usize,
        thread: Pid,
        restored: Option<StolenTime>,
    ) -> Result<(), PublishError> {
        let run_delay_ns = run_delay_ns(thread)?;
        let account = match restored {
            Some(value) => StolenAccount::restore(value.stolen_ns, run_delay_ns),
            None => StolenAccount::attach(run_delay_ns),
        };
        if let Some(value) = restored {
            self.shared.structures.write(index, value);
        }
        self.shared.lock()[index] = Some(Published {
            thread,
            account,
            claimed: restored.is_some(),
            at_gate: restored.is_some(),
        });
        Ok(())
    }

    /// Starts a vCPU's value at 0 because its guest asked for the structure.
    pub fn restart(&self, index: usize) -> Result<(), PublishError> {
        let mut vcpus = self.shared.lock();
        let vcpu = vcpus[index]
            .as_mut()
            .expect("a vCPU that calls has a thread");
        vcpu.account.restart(run_delay_ns(vcpu.thread)?)?;
        vcpu.claimed = true;
        self.shared.structures.write(index, vcpu.account.value());
        Ok(())
    }

    /// A vCPU's thread is at the gate from now on.
    pub fn arrive(&self, index: usize) {
        if let Some(vcpu) = &mut self.shared.lock()[index] {
            // An error is for the publication, which meets it again.
            let _ = vcpu.count();
            vcpu.at_gate = true;
        }
    }

    /// It leaves the gate.
    pub fn leave(&self, index: usize) {
        if let Some(vcpu) = &mut self.shared.lock()[index] {
            vcpu.at_gate = false;
            // As above.
            let _ = vcpu.skip();
        }
    }

    /// Brings every value up to now; that of a vCPU at the gate, up to its arrival.
    ///
    /// The error has the index of the first vCPU that has one; all others are published.
    pub fn publish(&self) -> Result<(), (usize, PublishError)> {
        self.shared.publish()
    }

    /// Why the last publication was not whole; `None` where it was.
    pub fn failure(&self) -> Option<String> {
        self.shared.failure().clone()
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        if let Some((stop, thread)) = self.thread.take() {
            drop(stop);
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn publish(&self) -> Result<(), (usize, PublishError)> {
        let mut result = Ok(());
        for (index, vcpu) in self.lock().iter_mut().enumerate() {
            if let Some(vcpu) = vcpu.as_mut().filter(|vcpu| vcpu.claimed) {
                result = result.and(
                    vcpu.publish(index, &self.structures)
                        .map_err(|error| (index, error)),
                );
            }
        }
        let failed = result.as_ref().err();
        *self.failure() = failed.map(|(index, error)| format!("vCPU {index}: {error}"));
        result
    }

    fn failure(&self) -> MutexGuard<'_, Option<String>> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Option<Published>>> {
        self.vcpus.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Published {
    fn count(&mut self) -> Result<(), PublishError> {
        Ok(self.account.count(run_delay_ns(self.thread)?)?)
    }

    fn skip(&mut self) -> Result<(), PublishError> {
        Ok(self.account.skip(run_delay_ns(self.thread)?)?)
    }

    fn publish(&mut self, index: usize, structures: &Structures) -> Result<(), PublishError> {
        if !self.at_gate {
            self.count()?;
        }
        let stored: Result<(), Infallible> = self.account.publish(|value| {
            structures.store(index, value);
            Ok(())
        });
        let Ok(()) = stored;
        Ok(())
    }
}
