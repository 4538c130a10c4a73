//! Memory of the time interfaces, mapped a page at a time: as Normal memory, write-back and inner
//! shareable, which the map of devices around it is not.
#![expect(unsafe_code, reason = "a page table decides what an address means")]

use core::arch::asm;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering};

use guest_protocol::heapless::Vec;
use pvtime::seqlock::{MappedWords, Word};
use spin::Mutex;

use super::interfaces::number;
use super::{registers, vectors};

/// Where the window begins: the upper range has 25 bits.
const BASE: u64 = 0xffff_ffff_fe00_0000;
const PAGE_BYTES: u64 = 4096;
/// Pages of the interfaces of one VM: stolen time has 64 bytes a CPU, the others a page each.
const PAGES: usize = 16;

#[repr(align(4096))]
struct Table([AtomicU64; 512]);

static SECOND_LEVEL: Table = Table([const { AtomicU64::new(0) }; 512]);
static THIRD_LEVEL: Table = Table([const { AtomicU64::new(0) }; 512]);

/// The pages that are mapped, in the order of their places.
static MAPPED: Mutex<Vec<u64, PAGES>> = Mutex::new(Vec::new());

/// No page is left in the window.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the structure at {address:#x} cannot be mapped: all {PAGES} pages for such are used")]
pub struct WindowFull {
    address: u64,
}

const TABLE: u64 = 3;
/// A page of attribute 1, inner shareable, accessed, never executed.
const PAGE: u64 = 3 | 1 << 2 | 3 << 8 | 1 << 10 | 3 << 53;

/// Turns the window on, on the CPU that calls.
pub fn enable() {
    SECOND_LEVEL.0[0].store(address_of(&THIRD_LEVEL) | TABLE, Ordering::Release);
    registers::publish_stores();
    // SAFETY: the table is a static, and its only descriptor that is not 0 names another.
    unsafe { registers::set_upper_table(address_of(&SECOND_LEVEL)) }
}

fn address_of(table: &'static Table) -> u64 {
    // RAM is mapped where it is.
    core::ptr::from_ref(table) as u64
}

/// The words of a structure at a physical address; `size_bytes` of it lie in one page.
///
/// # Errors
/// [`WindowFull`].
pub fn map<W: Word>(address: u64, size_bytes: usize) -> Result<MappedWords<W>, WindowFull> {
    let base = mapped(address)?;
    // SAFETY: the page is mapped readable and writable for as long as the program runs. It belongs
    // to the hypervisor, and this program reaches it through such values alone: each structure is
    // mapped with one width of words. Structures are aligned to their size.
    Ok(unsafe { MappedWords::new(base, size_bytes) })
}

fn mapped(address: u64) -> Result<NonNull<u8>, WindowFull> {
    let page = address / PAGE_BYTES * PAGE_BYTES;
    let place = place_of(page).ok_or(WindowFull { address })?;
    let mapped = BASE + place as u64 * PAGE_BYTES + address % PAGE_BYTES;
    NonNull::new(mapped as *mut u8).ok_or(WindowFull { address })
}

/// How much one store writes.
#[derive(Clone, Copy, Debug)]
pub enum Width {
    Byte,
    Half,
    Word,
    Double,
}

impl Width {
    pub const ALL: [Self; 4] = [Self::Byte, Self::Half, Self::Word, Self::Double];
    pub const LONGEST_BYTES: u64 = 8;

    pub fn bytes(self) -> u64 {
        1 << self as u64
    }
}

/// Writes the low bytes of a value at any address of one page, aligned or not, and says whether that
/// faulted.
///
/// # Errors
/// [`WindowFull`].
///
/// # Panics
/// If it goes beyond the page.
pub fn scribble(address: u64, width: Width, value: u64) -> Result<bool, WindowFull> {
    assert!(address % PAGE_BYTES + width.bytes() <= PAGE_BYTES);
    let at = mapped(address)?.as_ptr();
    // SAFETY: the bytes are in a page that is mapped. It belongs to the hypervisor or is nothing's,
    // and readers of what is there know that anything may stand there.
    let fault = vectors::catch(|| unsafe {
        match width {
            Width::Byte => asm!("strb {1:w}, [{0}]", in(reg) at, in(reg) value, options(nostack)),
            Width::Half => asm!("strh {1:w}, [{0}]", in(reg) at, in(reg) value, options(nostack)),
            Width::Word => asm!("str {1:w}, [{0}]", in(reg) at, in(reg) value, options(nostack)),
            Width::Double => asm!("str {1}, [{0}]", in(reg) at, in(reg) value, options(nostack)),
        }
    });
    Ok(fault.is_some())
}

/// Stores whose syndrome does not say what was stored, so that a hypervisor cannot emulate them.
type HardStore = unsafe fn(*mut u64);
const HARD_STORES: [HardStore; 3] = [store_pair, store_and_step, zero_block];

/// Writes over a structure with such stores, and returns how many of them faulted, of how many.
///
/// # Errors
/// [`WindowFull`].
pub fn scribble_hard(address: u64) -> Result<(u32, u32), WindowFull> {
    let base = mapped(address)?.cast().as_ptr();
    let mut faults = 0;
    for store in HARD_STORES {
        // SAFETY: the structure is mapped, and 64 bytes long and aligned. It belongs to the
        // hypervisor, and its readers know that anything may stand there.
        let fault = vectors::catch(|| unsafe { store(base) });
        faults += u32::from(fault.is_some());
    }
    Ok((faults, number(HARD_STORES.len())))
}

/// # Safety
/// Sixteen bytes at the address are mapped.
unsafe fn store_pair(base: *mut u64) {
    // SAFETY: by the contract.
    unsafe { asm!("stp {0}, {0}, [{0}]", in(reg) base, options(nostack)) }
}

/// # Safety
/// As [`store_pair`].
unsafe fn store_and_step(base: *mut u64) {
    // SAFETY: by the contract; the register that is stepped is given up.
    unsafe { asm!("str {1}, [{0}], #8", inout(reg) base => _, in(reg) u64::MAX, options(nostack)) }
}

/// # Safety
/// The block that the address is in, 64 bytes on the CPUs that this runs on, is mapped.
unsafe fn zero_block(base: *mut u64) {
    // SAFETY: by the contract.
    unsafe { asm!("dc zva, {0}", in(reg) base, options(nostack)) }
}

fn place_of(page: u64) -> Option<usize> {
    let mut mapped = MAPPED.lock();
    if let Some(place) = mapped.iter().position(|known| *known == page) {
        return Some(place);
    }
    mapped.push(page).ok()?;
    let place = mapped.len() - 1;
    THIRD_LEVEL.0[place].store(page | PAGE, Ordering::Release);
    registers::publish_stores();
    Some(place)
}
