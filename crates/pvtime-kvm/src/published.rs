//! A structure that the VMM publishes and the guest can only read.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kvm_ioctls::VmFd;
use pvtime::seqlock::{SequenceWriter, Shape, Word, WriteWords};
use vm_memory::GuestAddress;

use crate::region::{Access, Block};

/// A structure under a sequence count, at the start of a block of its own.
#[derive(Debug)]
pub(crate) struct Published<W> {
    block: Block,
    shape: Shape<W>,
    writer: Mutex<SequenceWriter<W>>,
}

impl<W: Word> Published<W>
where
    Block: WriteWords<W>,
{
    /// In a new block, all zero: no structure until it is published first.
    pub fn new(vm: Arc<VmFd>, slot: u32, base: GuestAddress, shape: Shape<W>) -> io::Result<Self> {
        Ok(Self {
            block: Block::new(vm, slot, base, Access::ReadOnly)?,
            shape,
            writer: Mutex::new(SequenceWriter::start(shape)),
        })
    }

    /// Its block.
    pub fn block(&self) -> &Block {
        &self.block
    }

    /// Guest physical address of the structure.
    pub fn address(&self) -> GuestAddress {
        self.block.address(0)
    }

    /// Publishes the bytes of the structure. No vCPU runs meanwhile, so that a reader in the guest
    /// finds the count changed or the structure whole, and waits for nobody.
    pub fn publish(&self, image: &[u8]) {
        let published = self.lock().publish(&self.block, image);
        published.expect("a block has room for every structure");
    }

    /// The count of the last publication, for saving.
    pub fn sequence(&self) -> W {
        self.lock().sequence()
    }

    /// Goes on after a count that was saved, so that a guest that was stopped while it read the
    /// structure notices the next publication.
    pub fn resume(&self, sequence: W) {
        let writer = SequenceWriter::resume(self.shape, sequence);
        *self.lock() = writer.expect("saved counts were checked when they were parsed");
    }

    fn lock(&self) -> MutexGuard<'_, SequenceWriter<W>> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
