//! The stolen-time structures of a VM, in their block.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kvm_ioctls::VmFd;
use pvtime::abi::stolen_time::{STOLEN_WORD, STRIDE_BYTES, StolenTime};
use serde::Serialize;
use vm_memory::{Address, GuestAddress};

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
}

/// All of them. Until a guest asks for its structure it says that it is none: all ones is a
/// revision that no guest accepts.
#[derive(Debug)]
pub(crate) struct Structures {
    block: Block,
    /// By vCPU.
    lowered: Mutex<Vec<Lowered>>,
}

/// A value that was lowered by what KVM will add when the vCPU enters the guest.
#[derive(Clone, Copy, Debug, Default)]
struct Lowered {
    from_ns: u64,
    to_ns: u64,
}

impl Structures {
    /// In a new block, none of them claimed.
    pub fn new(vm: Arc<VmFd>, slot: u32, base: GuestAddress, access: Access) -> io::Result<Self> {
        let block = Block::new(vm, slot, base, access)?;
        block.fill(0xff);
        let lowered = Mutex::new(vec![Lowered::default(); CAPACITY]);
        Ok(Self { block, lowered })
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
        let offset = index * STRIDE_BYTES;
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.block.load_u64(offset).to_le_bytes());
        bytes[8..].copy_from_slice(&self.block.load_u64(offset + 8 * STOLEN_WORD).to_le_bytes());
        let value = StolenTime::parse(&bytes);
        StolenTimeSample {
            address: self.address(index).raw_value(),
            claimed: value.is_ok(),
            stolen_ns: value.map_or(0, |value| self.lowered()[index].shown(value.stolen_ns)),
        }
    }

    /// Takes back from a claimed value, whose vCPU is about to enter the guest, what KVM will add and
    /// nobody stole.
    pub fn lower(&self, index: usize, by_ns: u64) {
        let StolenTimeSample {
            claimed, stolen_ns, ..
        } = self.load(index);
        if !claimed || by_ns == 0 {
            return;
        }
        // The sum is right again when KVM has added to it, whatever it is until then.
        let to_ns = stolen_ns.wrapping_sub(by_ns);
        self.lowered()[index] = Lowered {
            from_ns: stolen_ns,
            to_ns,
        };
        self.store(index, StolenTime { stolen_ns: to_ns });
    }

    fn lowered(&self) -> MutexGuard<'_, Vec<Lowered>> {
        self.lowered.lock().unwrap_or_else(PoisonError::into_inner)
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

impl Lowered {
    /// What a value is to the guest, which sees it only after KVM has added to it.
    fn shown(self, stolen_ns: u64) -> u64 {
        if stolen_ns == self.to_ns && self.from_ns != self.to_ns {
            self.from_ns
        } else {
            stolen_ns
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn m6_a_lowered_value_is_shown_as_the_guest_will_see_it() {
        let lowered = Lowered {
            from_ns: 100,
            to_ns: 60,
        };
        assert_eq!(lowered.shown(60), 100, "KVM has not added the 40 yet");
        assert_eq!(lowered.shown(107), 107);
        assert_eq!(lowered.shown(0), 0, "the guest has restarted it");
        assert_eq!(Lowered::default().shown(0), 0);
    }
}
