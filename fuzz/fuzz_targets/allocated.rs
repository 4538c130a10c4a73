//! How much memory is taken meanwhile.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

/// Bytes that are allocated, and the most of them.
pub struct Counted {
    pub now: AtomicUsize,
    pub most: AtomicUsize,
}

#[global_allocator]
pub static ALLOCATED: Counted = Counted {
    now: AtomicUsize::new(0),
    most: AtomicUsize::new(0),
};

// SAFETY: all is left to the system's allocator, with what it gave and wants.
unsafe impl GlobalAlloc for Counted {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = self.now.fetch_add(layout.size(), SeqCst) + layout.size();
        self.most.fetch_max(now, SeqCst);
        // SAFETY: the caller's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        self.now.fetch_sub(layout.size(), SeqCst);
        // SAFETY: the caller's.
        unsafe { System.dealloc(pointer, layout) }
    }
}
