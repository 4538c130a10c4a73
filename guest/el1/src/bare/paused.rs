//! Paused time, and the interrupt that announces it.

use core::sync::atomic::{AtomicU32, Ordering};

use guest_protocol::report;
use pvtime::guest::PausedTimeReader;
use pvtime::seqlock::MappedWords;
use spin::Once;

use super::machine::Machine;
use super::window;

type Reader = PausedTimeReader<MappedWords<u32>>;

static READER: Once<Option<(u64, Reader)>> = Once::new();
static INTERRUPTS: AtomicU32 = AtomicU32::new(0);

/// Finds the structure that the device tree names.
pub fn find(machine: &Machine) {
    READER.call_once(|| {
        let address = machine.paused_time?.address;
        let words = window::map(address, 64).ok()?;
        Some((address, PausedTimeReader::attach(words).ok()?))
    });
}

/// The structure, and where it is.
pub fn reader() -> Option<&'static (u64, Reader)> {
    READER.get()?.as_ref()
}

/// Counts an interrupt.
pub fn announced() {
    INTERRUPTS.fetch_add(1, Ordering::Relaxed);
}

/// What it says now.
pub fn describe() -> Option<report::PausedTime> {
    let (address, reader) = reader()?;
    let now = reader.read().ok()?;
    Some(report::PausedTime {
        address: *address,
        paused_ns: now.paused_ns,
        events: now.events,
        last_paused_ns: now.last.physical_ns,
        last_counter: now.last.counter,
        last_error_ns: now.last.error_ns,
        last_cause: now.last.cause.0,
        last_frozen: now.last.frozen,
        interrupts: INTERRUPTS.load(Ordering::Relaxed),
    })
}
