//! The stolen-time structures of a VM, in their block.

use std::io;
use std::sync::Arc;

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
pub(crate) struct Structures(Block);

impl Structures {
    /// In a new block, none of them claimed.
    pub fn new(vm: Arc<VmFd>, slot: u32, base: GuestAddress, access: Access) -> io::Result<Self> {
        let block = Block::new(vm, slot, base, access)?;
        block.fill(0xff);
        Ok(Self(block))
    }

    /// Their block.
    pub fn block(&self) -> &Block {
        &self.0
    }

    /// Where a vCPU's structure is.
    pub fn address(&self, index: usize) -> GuestAddress {
        self.0.address(index * STRIDE_BYTES)
    }

    /// A vCPU's structure; what does not parse was not claimed, or the guest spoilt it.
    pub fn load(&self, index: usize) -> StolenTimeSample {
        let offset = index * STRIDE_BYTES;
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.0.load_u64(offset).to_le_bytes());
        bytes[8..].copy_from_slice(&self.0.load_u64(offset + 8 * STOLEN_WORD).to_le_bytes());
        let value = StolenTime::parse(&bytes);
        StolenTimeSample {
            address: self.address(index).raw_value(),
            claimed: value.is_ok(),
            stolen_ns: value.map_or(0, |value| value.stolen_ns),
        }
    }

    /// Writes a vCPU's whole structure; it must not run meanwhile.
    pub fn write(&self, index: usize, value: StolenTime) {
        let offset = index * STRIDE_BYTES;
        for (word, bytes) in value.emit().as_chunks::<8>().0.iter().enumerate() {
            self.0
                .store_u64(offset + 8 * word, u64::from_le_bytes(*bytes));
        }
    }

    /// Writes the value alone, in one store, while the vCPU may run.
    pub fn store(&self, index: usize, value: StolenTime) {
        self.0
            .store_u64(index * STRIDE_BYTES + 8 * STOLEN_WORD, value.stolen_ns);
    }
}
