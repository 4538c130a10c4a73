//! The memory that the time interfaces live in: outside guest RAM, one 64 KiB block a kind.
#![expect(unsafe_code, reason = "KVM is given the address of a mapping")]

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use vm_memory::{Address, Bytes, GuestAddress, MmapRegion, VolatileMemory};

use crate::ReservedMemory;

/// One block: a mapping of this process and the memory slot that shows it to the guest.
#[derive(Debug)]
pub(crate) struct Block {
    vm: Arc<VmFd>,
    slot: u32,
    base: GuestAddress,
    memory: MmapRegion,
}

/// What a guest with 64 KiB pages can map without touching anything else.
pub(crate) const BLOCK_BYTES: usize = 64 * 1024;

impl Block {
    /// Makes a zeroed block and gives it the memory slot.
    pub fn new(vm: Arc<VmFd>, slot: u32, base: GuestAddress) -> io::Result<Self> {
        let memory = MmapRegion::new(BLOCK_BYTES).map_err(io::Error::other)?;
        let block = Self {
            vm,
            slot,
            base,
            memory,
        };
        block.set_slot(BLOCK_BYTES as u64)?;
        Ok(block)
    }

    /// Guest physical address of the byte at `offset`.
    pub fn address(&self, offset: usize) -> GuestAddress {
        assert!(offset < BLOCK_BYTES, "offset {offset} is outside the block");
        self.base.unchecked_add(offset as u64)
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

    /// Sets the slot's size; 0 takes it away.
    fn set_slot(&self, memory_size: u64) -> io::Result<()> {
        let region = kvm_userspace_memory_region {
            slot: self.slot,
            flags: 0,
            guest_phys_addr: self.base.raw_value(),
            memory_size,
            userspace_addr: self.memory.as_ptr() as u64,
        };
        // SAFETY: the mapping is owned by `self`, is at least `memory_size` bytes long, and is
        // unmapped only after `drop` took the slot away. Rust code reaches it through volatile
        // accesses alone, so the guest may write to it at any time.
        unsafe { self.vm.set_user_memory_region(region) }.map_err(Into::into)
    }

    /// The block as the device tree names it.
    pub fn reserved(&self, name: &'static str) -> ReservedMemory {
        ReservedMemory {
            name,
            base: self.base.raw_value(),
            size: BLOCK_BYTES as u64,
        }
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        if let Err(error) = self.set_slot(0) {
            // Unmapping memory that the guest can still reach would hand it whatever is mapped
            // there next.
            panic!("memory slot {} cannot be removed: {error}", self.slot);
        }
    }
}
