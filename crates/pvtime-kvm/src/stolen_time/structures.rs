//! The stolen-time structures of a VM, in their block.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kvm_ioctls::VmFd;
use pvtime::abi::stolen_time::{STOLEN_WORD, STRIDE_BYTES, StolenTime};
use serde::Serialize;
use vm_memory::{Address, GuestAddress};

use super::lowered::Lowered;
use crate::region::{Access, BLOCK_BYTES, Block};

/// Structures that a block has room for.
pub(crate) const CAPACITY: usize = BLOCK_BYTES / STRIDE_BYTES;

/// A vCPU's structure as it lies in guest memory, where the guest may have written to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct StolenTimeSample {
    /// Its guest physical address.
    pub address: u64,
    /// Whether the guest asked for it (`PV_TIME_ST`) since it started.
    pub claimed: bool,
    /// Stolen time in ns since the guest last asked for the structure; 0 before.
    pub stolen_ns: u64,
    /// As much of it as nobody stole, in ns: the vCPU's thread waited for so long outside the guest,
    /// and KVM counts it, at a time when the value was less, so that it could not be taken from it.
    pub surplus_ns: u64,
}

/// All of them. Until a guest asks for its structure it says that it is none: all ones is a
/// revision that no guest accepts.
#[derive(Debug)]
pub(crate) struct Structures {
    block: Block,
    /// By vCPU.
    waits: Vec<Waits>,
}

/// What KVM will add to a vCPU's value when it enters the guest, and nobody stole.
#[derive(Debug, Default)]
struct Waits {
    /// In ns: not taken from the value yet.
    pending_ns: AtomicU64,
    /// Held over every look at the value that goes by it.
    lowered: Mutex<Lowered>,
}

impl Structures {
    /// In a new block, none of them claimed.
    pub fn new(vm: Arc<VmFd>, slot: u32, base: GuestAddress, access: Access) -> io::Result<Self> {
        let block = Block::new(vm, slot, base, access)?;
        block.fill(0xff);
        let waits = (0..CAPACITY).map(|_| Waits::default()).collect();
        Ok(Self { block, waits })
    }

    /// Their block.
    pub fn block(&self) -> &Block {
        &self.block
    }

    /// Where a vCPU's structure is.
    pub fn address(&self, index: usize) -> GuestAddress {
        self.block.address(index * STRIDE_BYTES)
    }

    /// A vCPU's structure; what does not parse was not claimed, or the guest spoilt it.
    pub fn load(&self, index: usize) -> StolenTimeSample {
        let lowered = self.waits[index].lowered();
        let value_ns = self.value_ns(index);
        StolenTimeSample {
            address: self.address(index).raw_value(),
            claimed: value_ns.is_some(),
            stolen_ns: value_ns.map_or(0, |value_ns| lowered.shown(value_ns)),
            surplus_ns: value_ns.map_or(0, |value_ns| lowered.surplus(value_ns)),
        }
    }

    /// What stands in a claimed structure.
    fn value_ns(&self, index: usize) -> Option<u64> {
        let offset = index * STRIDE_BYTES;
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.block.load_u64(offset).to_le_bytes());
        bytes[8..].copy_from_slice(&self.block.load_u64(offset + 8 * STOLEN_WORD).to_le_bytes());
        StolenTime::parse(&bytes).ok().map(|it| it.stolen_ns)
    }

    /// A vCPU's thread has waited for so long for a CPU, and nobody stole it: KVM adds it all the same
    /// when the vCPU enters the guest next.
    pub fn excuse(&self, index: usize, waited_ns: u64) {
        let pending_ns = &self.waits[index].pending_ns;
        pending_ns.fetch_add(waited_ns, Ordering::Relaxed);
    }

    /// Takes from a vCPU's value what KVM is about to add and nobody stole: on the vCPU's thread, with
    /// nothing after it but `KVM_RUN`. Until KVM has added to it the value is too low, and other vCPUs
    /// may read it.
    pub fn take_back(&self, index: usize) {
        let waits = &self.waits[index];
        if waits.pending_ns.load(Ordering::Relaxed) == 0 {
            return;
        }
        let by_ns = waits.pending_ns.swap(0, Ordering::Relaxed);
        let mut lowered = waits.lowered();
        // KVM starts one at 0 that is claimed later, without what was waited before.
        if let Some(value_ns) = self.value_ns(index) {
            *lowered = lowered.further(value_ns, by_ns);
            let stolen_ns = lowered.to_ns();
            self.store(index, StolenTime { stolen_ns });
        }
    }

    /// Writes a claimed structure for a vCPU that was not run yet, whose thread has waited for so long
    /// since it began: KVM will add all of that.
    pub fn restore(&self, index: usize, value: StolenTime, waited_ns: u64) {
        let waits = &self.waits[index];
        *waits.lowered() = Lowered::default();
        self.write(index, value);
        waits.pending_ns.store(waited_ns, Ordering::Relaxed);
    }

    /// Writes a vCPU's whole structure; it must not run meanwhile.
    pub fn write(&self, index: usize, value: StolenTime) {
        let offset = index * STRIDE_BYTES;
        for (word, bytes) in value.emit().as_chunks::<8>().0.iter().enumerate() {
            self.block
                .store_u64(offset + 8 * word, u64::from_le_bytes(*bytes));
        }
    }

    /// Writes the value alone, in one store, while the vCPU may run.
    pub fn store(&self, index: usize, value: StolenTime) {
        self.block
            .store_u64(index * STRIDE_BYTES + 8 * STOLEN_WORD, value.stolen_ns);
    }
}

impl Waits {
    fn lowered(&self) -> MutexGuard<'_, Lowered> {
        self.lowered.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
