//! RAM that the program does not occupy, and the pattern in it.
#![expect(unsafe_code, reason = "free memory has an address and no owner")]

use core::ptr;
use core::slice;
use core::sync::atomic::{AtomicUsize, Ordering};

use guest_protocol::pattern::{PAGE_WORDS, Page, Pattern};
use guest_protocol::report::Memory;
use guest_protocol::request::Fill;
use pvtime::guest::Counter;
use pvtime::guest::arm64::VirtualCounter;
use spin::mutex::TicketMutex;

use super::interfaces;

unsafe extern "C" {
    static image_end: u8;
}

static END: AtomicUsize = AtomicUsize::new(0);

/// Says where free RAM ends.
pub fn set_end(end: usize) {
    END.store(end, Ordering::Relaxed);
}

/// The pattern, and the pace at which it is changed.
struct Filled {
    pattern: Pattern<&'static mut [Page], &'static mut [u32]>,
    /// Ticks of the counter between two changes.
    period_ticks: u64,
    next: u64,
}

// Fair, so that who compares is not kept out by who changes.
static FILLED: TicketMutex<Option<Filled>> = TicketMutex::new(None);

/// There is less free memory.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("fill 1 to {most_mib} MiB: so much memory is free")]
pub struct DoesNotFit {
    most_mib: usize,
}

const PAGE_BYTES: usize = size_of::<Page>();
const MIB: usize = 1 << 20;

/// Fills memory with a pattern, in place of one that was there.
///
/// # Errors
/// [`DoesNotFit`].
pub fn fill(order: &Fill) -> Result<(), DoesNotFit> {
    let mut filled = FILLED.lock();
    *filled = None;
    let start = (&raw const image_end).expose_provenance();
    let free = END.load(Ordering::Relaxed).saturating_sub(start);
    let pages = order.mib as usize * (MIB / PAGE_BYTES);
    let needed = pages * (PAGE_BYTES + size_of::<u32>());
    if pages == 0 || needed > free {
        let most_mib = free / (MIB + MIB / PAGE_BYTES * size_of::<u32>());
        return Err(DoesNotFit { most_mib });
    }
    // SAFETY: free RAM, mapped and aligned to 64 KiB, from the end of the program to the device
    // tree, so that nothing else is in it; the references of an earlier fill went with it above.
    // Any bits are words.
    let (pages, versions) = unsafe {
        let first = ptr::with_exposed_provenance_mut::<Page>(start);
        let versions = first.add(pages).cast::<u32>();
        (
            slice::from_raw_parts_mut(first, pages),
            slice::from_raw_parts_mut(versions, pages),
        )
    };
    let rate = u64::from(order.changes_per_s);
    *filled = Some(Filled {
        pattern: Pattern::fill(pages, versions, order.seed),
        period_ticks: interfaces::native_hz().checked_div(rate).unwrap_or(0),
        next: VirtualCounter.read_ordered(),
    });
    Ok(())
}

/// Changes a page, if it is time.
pub fn change() {
    let mut filled = FILLED.lock();
    let Some(filled) = filled.as_mut() else {
        return;
    };
    let now = VirtualCounter.read_ordered();
    let late = now.wrapping_sub(filled.next);
    // A count before `next` is far behind it, modulo 2^64.
    if filled.period_ticks == 0 || late < 1 << 63 {
        filled.pattern.change();
        // What was missed while the VM did not run is not made up for.
        let base = if late > filled.period_ticks {
            now
        } else {
            filled.next
        };
        filled.next = base.wrapping_add(filled.period_ticks);
    }
}

/// Compares the memory with what was written; none if nothing was.
pub fn verify() -> Option<Memory> {
    let filled = FILLED.lock();
    let pattern = &filled.as_ref()?.pattern;
    let damage = pattern.verify();
    let start = (&raw const image_end).addr();
    let address = |page: usize| (start + page * PAGE_WORDS * size_of::<u64>()) as u64;
    Some(Memory {
        pages: pattern.pages() as u64,
        changes: pattern.changes(),
        damaged: damage.pages,
        first_damaged: damage.first.map(address),
    })
}

/// Flips one bit of the first page: for the test of the comparison. Twice is as before.
pub fn flip_a_bit() {
    if let Some(filled) = FILLED.lock().as_mut() {
        filled.pattern.pages_mut()[0][PAGE_WORDS / 2] ^= 1;
    }
}

/// Forgets the pattern.
pub fn empty() {
    *FILLED.lock() = None;
}
