//! Live physical time and paused time: what the guest is told of the whole VM.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use kvm_ioctls::VmFd;
use pvtime::abi::Ipa;
use pvtime::abi::live_physical_time::{self, LivePhysicalTime};
use pvtime::abi::paused_time::{self, PausedTime};
use pvtime::abi::smccc::{Dialect, PvTimeCall};
use pvtime::host::hypercalls::Services;
use pvtime::host::live::LiveState;
use pvtime::host::saved::Sequences;
use pvtime::seqlock::{Shape, Word, WriteWords};
use serde::Serialize;
use vm_memory::{Address, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{Error, VmTime, VmTimeConfig};
use crate::published::Published;
use crate::region::{BLOCK_BYTES, Block};
use crate::{ReservedMemory, StolenTimeProvider, filter};

/// Blocks after that of stolen time, by their place in the region.
const LIVE_BLOCK: u32 = 1;
const PAUSED_BLOCK: u32 = 2;

/// What a VM has of the two.
#[derive(Debug)]
pub(super) struct Interfaces {
    live: Option<Live>,
    paused: Option<Paused>,
}

#[derive(Debug)]
struct Live {
    structure: Published<u64>,
    /// Set by the thread of the vCPU that calls, which cannot wait for whoever stops the VM.
    found: AtomicBool,
}

#[derive(Debug)]
struct Paused {
    structure: Published<u32>,
    interrupt: EventFd,
}

/// Live physical time as the guest is offered it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct LivePhysicalTimeSample {
    /// Guest physical address of the structure.
    pub address: u64,
    /// Rate of the PV counter, in Hz.
    pub frequency_hz: u64,
    /// Whether the guest asked for it, and so goes to hosts of other frequencies.
    pub claimed: bool,
}

/// Paused time as the guest reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct PausedTimeSample {
    /// Guest physical address of the structure.
    pub address: u64,
    /// Pauses so far.
    pub events: u64,
    /// Time of them that the guest's counters did not show, in ns.
    pub paused_ns: u64,
}

impl Interfaces {
    /// Makes the blocks of what is on. Their places do not depend on what else is.
    pub fn new(vm: &Arc<VmFd>, config: &VmTimeConfig) -> Result<Self, Error> {
        let live = || -> Result<_, Error> {
            Ok(Live {
                structure: published(vm, config, LIVE_BLOCK, live_physical_time::SHAPE)?,
                found: AtomicBool::new(false),
            })
        };
        let paused = || -> Result<_, Error> {
            Ok(Paused {
                structure: published(vm, config, PAUSED_BLOCK, paused_time::SHAPE)?,
                interrupt: EventFd::new(EFD_NONBLOCK).map_err(Error::Interrupt)?,
            })
        };
        let has_live = config.live_physical_time.is_some();
        Ok(Self {
            live: has_live.then(live).transpose()?,
            paused: config.paused_time.then(paused).transpose()?,
        })
    }

    /// The blocks, as the device tree names them.
    pub fn reserved(&self) -> impl Iterator<Item = ReservedMemory> {
        let live = self.live.as_ref().map(|it| it.structure.block());
        let paused = self.paused.as_ref().map(|it| it.structure.block());
        let live = live.map(|block| block.reserved("live-physical-time"));
        live.into_iter()
            .chain(paused.map(|block| block.reserved("paused-time")))
    }

    pub fn publish_live(&self, value: &LivePhysicalTime) {
        let live = self.live.as_ref();
        let live = live.expect("the timeline has live physical time where the VM has");
        live.structure.publish(&value.emit());
    }

    /// Publishes paused time, and then raises its interrupt if there is something to learn.
    pub fn publish_paused(&self, value: &PausedTime, notify: bool) {
        let paused = self.paused.as_ref();
        let paused = paused.expect("the timeline has paused time where the VM has");
        paused.structure.publish(&value.emit());
        if notify {
            // The only failure is a counter that is full, and then the interrupt is raised already.
            let _ = paused.interrupt.write(1);
        }
    }

    pub fn sequences(&self) -> Sequences {
        let live = self.live.as_ref().map(|it| it.structure.sequence());
        let paused = self.paused.as_ref().map(|it| it.structure.sequence());
        Sequences {
            live_physical_time: live.unwrap_or_default(),
            paused_time: paused.unwrap_or_default(),
        }
    }

    pub fn resume(&self, sequences: Sequences) {
        if let Some(live) = &self.live {
            live.structure.resume(sequences.live_physical_time);
        }
        if let Some(paused) = &self.paused {
            paused.structure.resume(sequences.paused_time);
        }
    }

    /// Remembers that the guest asked for live physical time.
    pub fn set_live_found(&self) {
        if let Some(live) = &self.live {
            live.found.store(true, Ordering::Release);
        }
    }

    /// Forgets that the guest asked.
    pub fn clear_live_found(&self) {
        if let Some(live) = &self.live {
            live.found.store(false, Ordering::Release);
        }
    }

    /// Whether a vCPU's call has asked for live physical time in this process.
    pub fn is_live_found(&self) -> bool {
        let live = self.live.as_ref();
        live.is_some_and(|live| live.found.load(Ordering::Acquire))
    }

    /// Has the VMM handed the calls that KVM cannot answer. `PV_TIME_FEATURES` is one call for all
    /// interfaces, so with live physical time the VMM answers it for stolen time too, whoever keeps
    /// that.
    pub fn forward_calls(&self, vm: &VmFd, stolen: StolenTimeProvider) -> Result<(), Error> {
        let in_user_space = stolen == StolenTimeProvider::User;
        let has_live = self.live.is_some();
        let calls = [
            (PvTimeCall::Features, in_user_space || has_live),
            (PvTimeCall::StolenTime, in_user_space),
            (PvTimeCall::LivePhysicalTime, has_live),
        ];
        let forwarded = calls.into_iter().filter(|(_, forwarded)| *forwarded);
        for id in forwarded.filter_map(|(call, _)| self.dialect().id(call)) {
            filter::forward(vm, id).map_err(Error::Filter)?;
        }
        Ok(())
    }

    fn dialect(&self) -> Dialect {
        match self.live {
            Some(_) => Dialect::FinalWithLpt,
            None => Dialect::Final,
        }
    }

    fn live_address(&self) -> Option<Ipa> {
        let live = self.live.as_ref();
        live.map(|live| Ipa(live.structure.address().raw_value()))
    }
}

fn published<W: Word>(
    vm: &Arc<VmFd>,
    config: &VmTimeConfig,
    block: u32,
    shape: Shape<W>,
) -> Result<Published<W>, Error>
where
    Block: WriteWords<W>,
{
    let slot = config.first_slot + block;
    let address = config.region.raw_value() + u64::from(block) * BLOCK_BYTES as u64;
    Published::new(Arc::clone(vm), slot, GuestAddress(address), shape).map_err(|source| {
        Error::Region {
            address,
            slot,
            source,
        }
    })
}

impl VmTime {
    /// Live physical time as the guest is offered it; `None` where it is off.
    #[must_use]
    pub fn live_physical_time(&self) -> Option<LivePhysicalTimeSample> {
        let state = self.lock();
        let live = self.interfaces.live.as_ref()?;
        let frequency = state.timeline.config().live_physical_time?;
        let was_found = state.timeline.live().is_some_and(LiveState::is_found);
        Some(LivePhysicalTimeSample {
            address: live.structure.address().raw_value(),
            frequency_hz: frequency.hz(),
            claimed: was_found || self.interfaces.is_live_found(),
        })
    }

    /// Paused time as the guest reads it; `None` where it is off.
    #[must_use]
    pub fn paused_time(&self) -> Option<PausedTimeSample> {
        let state = self.lock();
        let paused = self.interfaces.paused.as_ref()?;
        let told = state.timeline.paused_time()?;
        Some(PausedTimeSample {
            address: paused.structure.address().raw_value(),
            events: told.events,
            paused_ns: told.paused_ns,
        })
    }

    /// The interrupt of paused time: written after each publication that tells the guest something.
    /// The VMM connects it to the interrupt that its device tree names (`KVM_IRQFD`), as one that is
    /// triggered by an edge. `None` where paused time is off.
    #[must_use]
    pub fn paused_time_interrupt(&self) -> Option<&EventFd> {
        self.interfaces.paused.as_ref().map(|it| &it.interrupt)
    }

    /// What a vCPU's calls are answered with, where they are forwarded.
    pub(super) fn services(&self, index: usize) -> Services {
        Services {
            dialect: self.interfaces.dialect(),
            stolen_time: self.stolen.address(index),
            live_physical_time: self.interfaces.live_address(),
        }
    }

    /// Whether the guest is to be told that there are no time calls at all.
    pub(super) fn has_no_calls(&self) -> bool {
        self.stolen.provider() == StolenTimeProvider::Off && self.interfaces.live.is_none()
    }
}
