//! What is known of a VM and its vCPUs from one step to the next.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use pvtime::host::Cause;
use pvtime::host::ledger::Accounts;
use pvtime::host::timeline::Timeline;
use pvtime::host::timers::Asked;
use rustix::thread::Pid;

use super::account::{AccountError, VcpuAccount};
use super::config::Error;
use crate::record::TimersRecord;
use crate::thread_stat::HaltTime;
use crate::untranslated::Untranslated;

/// What changes, behind the owner's one lock.
#[derive(Debug)]
pub(super) struct State {
    pub(super) timeline: Timeline,
    pub(super) stops: Stops,
    pub(super) vcpus: Vec<Vcpu>,
    /// What the step under way did to the timers.
    pub(super) translated: Option<TimersRecord>,
    /// Timers that a step before it did not finish with.
    pub(super) untranslated: Untranslated,
    /// A restoration has begun, and has not ended well.
    pub(super) is_half_restored: bool,
}

/// How far a vCPU has come.
#[derive(Debug)]
pub(super) enum Vcpu {
    New,
    Attached(HaltTime),
    Bound(Bound),
}

/// A vCPU that has a thread.
#[derive(Debug)]
pub(super) struct Bound {
    pub(super) account: Arc<VcpuAccount>,
    pub(super) asked: Option<Asked>,
}

impl State {
    /// What each vCPU's guest asked for, of its timers.
    pub(super) fn asked(&mut self) -> Vec<Option<Asked>> {
        self.bound().map(|(_, bound)| bound.asked).collect()
    }

    /// The vCPUs that have a thread.
    pub(super) fn bound(&mut self) -> impl Iterator<Item = (usize, &mut Bound)> {
        self.vcpus
            .iter_mut()
            .enumerate()
            .filter_map(|(index, vcpu)| match vcpu {
                Vcpu::Bound(bound) => Some((index, bound)),
                Vcpu::New | Vcpu::Attached(_) => None,
            })
    }

    pub(super) fn check_bound(&self) -> Result<(), Error> {
        match self.vcpus.iter().position(|vcpu| vcpu.thread().is_none()) {
            Some(index) => Err(Error::NoThread { index }),
            None => Ok(()),
        }
    }

    pub(super) fn accounts(
        &self,
        read: impl Fn(&VcpuAccount) -> Result<Accounts, AccountError>,
    ) -> Result<Vec<Accounts>, Error> {
        let accounts = self
            .vcpus
            .iter()
            .enumerate()
            .map(|(index, vcpu)| match vcpu {
                Vcpu::Bound(bound) => {
                    read(&bound.account).map_err(|source| Error::Account { index, source })
                }
                Vcpu::New | Vcpu::Attached(_) => Err(Error::NoThread { index }),
            });
        accounts.collect()
    }
}

impl Vcpu {
    pub(super) fn thread(&self) -> Option<Pid> {
        match self {
            Self::Bound(bound) => Some(bound.account.thread()),
            Self::New | Self::Attached(_) => None,
        }
    }
}

/// Physical time in which this process kept the VM stopped.
#[expect(clippy::struct_field_names, reason = "units last")]
#[derive(Debug, Default)]
pub(super) struct Stops {
    over_ns: u64,
    since_ns: Option<u64>,
    /// When the timeline was stepped last.
    pub(super) entered_ns: u64,
}

impl Stops {
    pub(super) fn enter(&mut self, is_stopped: bool, now_ns: u64) {
        self.over_ns = self.up_to(now_ns);
        self.since_ns = is_stopped.then_some(now_ns);
        self.entered_ns = now_ns;
    }

    /// Adds what was noticed afterwards, of a VM that was not stopped.
    pub(super) fn add(&mut self, ns: u64) {
        self.over_ns = self.over_ns.saturating_add(ns);
    }

    pub(super) fn up_to(&self, now_ns: u64) -> u64 {
        self.over_ns + self.since_ns.map_or(0, |since_ns| now_ns - since_ns)
    }
}

/// Why the gate is closed, for the accounts of those who wait there.
#[derive(Debug, Default)]
pub(super) struct ClosedFor(AtomicUsize);

impl ClosedFor {
    pub(super) fn set(&self, cause: Cause) {
        let position = Cause::ALL.iter().position(|it| *it == cause);
        self.0
            .store(position.expect("every cause is listed"), Ordering::Release);
    }

    pub(super) fn get(&self) -> Cause {
        Cause::ALL[self.0.load(Ordering::Acquire)]
    }
}
