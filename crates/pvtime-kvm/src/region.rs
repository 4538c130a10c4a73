//! The memory that the time interfaces live in: outside guest RAM, one 64 KiB block a kind.
#![expect(unsafe_code, reason = "KVM is given the address of a mapping")]

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use kvm_bindings::{KVM_MEM_READONLY, kvm_userspace_memory_region};
use kvm_ioctls::VmFd;
use pvtime::seqlock::{ReadWords, Word, WriteWords};
use vm_memory::{Address, AtomicAccess, Bytes, GuestAddress, MmapRegion, VolatileMemory};

use crate::ReservedMemory;

/// What the guest may do with a block. One that only the VMM writes is read-only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    ReadWrite,
    ReadOnly,
}

/// One block: a mapping of this process and the memory slot that shows it to the guest.
#[derive(Debug)]
pub(crate) struct Block {
    vm: Arc<VmFd>,
    memory: MmapRegion,
    slot: kvm_userspace_memory_region,
}

/// What a guest with 64 KiB pages can map without touching anything else.
pub(crate) const BLOCK_BYTES: usize = 64 * 1024;

impl Block {
    /// Makes a zeroed block and gives it the memory slot.
    pub fn new(vm: Arc<VmFd>, slot: u32, base: GuestAddress, access: Access) -> io::Result<Self> {
        let memory = MmapRegion::new(BLOCK_BYTES).map_err(io::Error::other)?;
        let slot = kvm_userspace_memory_region {
            slot,
            flags: match access {
                Access::ReadWrite => 0,
                Access::ReadOnly => KVM_MEM_READONLY,
            },
            guest_phys_addr: base.raw_value(),
            memory_size: BLOCK_BYTES as u64,
            userspace_addr: memory.as_ptr() as u64,
        };
        // SAFETY: the mapping is as long as the slot, and a block unmaps it only after it took the
        // slot away. Rust code reaches it through volatile accesses alone, so the guest may write
        // to it at any time.
        unsafe { vm.set_user_memory_region(slot) }?;
        Ok(Self { vm, memory, slot })
    }

    /// Guest physical address of the byte at `offset`.
    pub fn address(&self, offset: usize) -> GuestAddress {
        assert!(offset < BLOCK_BYTES, "offset {offset} is outside the block");
        GuestAddress(self.slot.guest_phys_addr + offset as u64)
    }

    /// Fills the block with one byte.
    pub fn fill(&self, byte: u8) {
        let bytes = vec![byte; BLOCK_BYTES];
        self.memory.as_volatile_slice().copy_from(&bytes);
    }

    /// Reads the aligned 64-bit little-endian word at `offset`, in one access.
    pub fn load_u64(&self, offset: usize) -> u64 {
        let word: u64 = self
            .memory
            .as_volatile_slice()
            .load(offset, Ordering::Relaxed)
            .expect("an aligned word inside the block");
        u64::from_le(word)
    }

    /// Writes the aligned 64-bit word at `offset` as little-endian, in one access.
    pub fn store_u64(&self, offset: usize, word: u64) {
        self.memory
            .as_volatile_slice()
            .store(word.to_le(), offset, Ordering::Relaxed)
            .expect("an aligned word inside the block");
    }

    /// The block as the device tree names it.
    pub fn reserved(&self, name: &'static str) -> ReservedMemory {
        ReservedMemory {
            name,
            base: self.slot.guest_phys_addr,
            size: self.slot.memory_size,
        }
    }
}

impl<W: Word + AtomicAccess> ReadWords<W> for Block {
    fn len(&self) -> usize {
        BLOCK_BYTES / W::BYTES
    }

    fn load(&self, index: usize) -> W {
        let memory = self.memory.as_volatile_slice();
        let word: W = memory
            .load(index * W::BYTES, Ordering::Relaxed)
            .expect("a word inside the block");
        // A change of byte order undoes itself.
        word.to_le()
    }
}

impl<W: Word + AtomicAccess> WriteWords<W> for Block {
    fn store(&self, index: usize, value: W) {
        let memory = self.memory.as_volatile_slice();
        memory
            .store(value.to_le(), index * W::BYTES, Ordering::Relaxed)
            .expect("a word inside the block");
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        let none = kvm_userspace_memory_region {
            memory_size: 0,
            ..self.slot
        };
        // SAFETY: a slot of no size shows the guest nothing.
        if let Err(error) = unsafe { self.vm.set_user_memory_region(none) } {
            // Unmapping memory that the guest can still reach would hand it whatever is mapped
            // there next.
            panic!("memory slot {} cannot be removed: {error}", self.slot.slot);
        }
    }
}
