//! The event stream: at the rate that was asked for, whatever the counter's frequency becomes.

use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use guest_protocol::report::{self, MAX_BARE_CPUS};
use pvtime::scale::{EventStream, Frequency, TranslatedStream};
use spin::Mutex;

use super::{interfaces, registers};

/// What was asked for, and what it came to.
struct Stream {
    /// The bit that would be nearest, had the counter all bits, at the first frequency.
    wanted_bit: i16,
    first: Frequency,
    /// The frequency that the stream is for now.
    now: Frequency,
    nearest: TranslatedStream,
    translations: u32,
}

static STREAM: Mutex<Option<Stream>> = Mutex::new(None);
/// Grows with every change: a CPU that has set up an older one sets up anew.
static GENERATION: AtomicU32 = AtomicU32::new(0);
static DONE: [AtomicU32; MAX_BARE_CPUS] = [const { AtomicU32::new(0) }; MAX_BARE_CPUS];
static IS_ON: AtomicBool = AtomicBool::new(false);
static EVENTS: AtomicU64 = AtomicU64::new(0);

const ENABLE: u64 = 1 << 2;
/// Events at changes from 0 to 1.
const DIRECTION: u64 = 1 << 3;

/// The rate is out of reach.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the counter's frequency is not known; the event stream needs it")]
pub struct NoFrequency;

/// Asks for events at about this rate; 0 turns them off.
///
/// # Errors
/// [`NoFrequency`].
pub fn set_rate(rate_hz: u32) -> Result<(), NoFrequency> {
    let mut stream = STREAM.lock();
    *stream = None;
    if rate_hz > 0 {
        // A bit changes from 0 to 1 once in its period of 2^(bit + 1) ticks.
        let period = Frequency::from_hz(2 * u64::from(rate_hz)).map_err(|_| NoFrequency)?;
        let now = Frequency::from_hz(interfaces::native_hz()).map_err(|_| NoFrequency)?;
        let wanted_bit = EventStream::translate_bit(0, period, now);
        *stream = Some(Stream {
            wanted_bit,
            first: now,
            now,
            nearest: EventStream::nearest(wanted_bit, has_ecv()),
            translations: 0,
        });
    }
    IS_ON.store(rate_hz > 0, Ordering::Relaxed);
    GENERATION.fetch_add(1, Ordering::Release);
    Ok(())
}

fn has_ecv() -> bool {
    registers::memory_features() >> 60 != 0
}

/// Sets this CPU's stream up if it is not as asked for; translates it if the counter's frequency is
/// another.
pub fn follow(cpu: usize) {
    if IS_ON.load(Ordering::Relaxed) {
        translate();
    }
    let generation = GENERATION.load(Ordering::Acquire);
    if DONE[cpu].swap(generation, Ordering::Relaxed) == generation {
        return;
    }
    let others = registers::event_control() & !(ENABLE | DIRECTION);
    let control = STREAM.lock().as_ref().map_or(others, |stream| {
        stream.nearest.stream.to_cntkctl(others) | ENABLE | DIRECTION
    });
    registers::set_event_control(control);
}

fn translate() {
    let Ok(now) = Frequency::from_hz(interfaces::native_hz()) else {
        return;
    };
    let mut stream = STREAM.lock();
    let Some(stream) = stream.as_mut().filter(|stream| stream.now != now) else {
        return;
    };
    let bit = EventStream::translate_bit(stream.wanted_bit, stream.first, now);
    stream.nearest = EventStream::nearest(bit, has_ecv());
    stream.now = now;
    stream.translations += 1;
    GENERATION.fetch_add(1, Ordering::Release);
}

/// Has this CPU set its stream up anew: it was turned on.
pub fn forget(cpu: usize) {
    DONE[cpu].store(0, Ordering::Relaxed);
}

/// Waits for some events, and counts them.
pub fn wait() {
    const ROUND: u64 = 16;
    for _ in 0..ROUND {
        registers::wait_for_event();
    }
    EVENTS.fetch_add(ROUND, Ordering::Relaxed);
}

/// The stream, for a report.
pub fn describe() -> Option<report::EventStream> {
    let stream = STREAM.lock();
    let stream = stream.as_ref()?;
    let bit = stream.nearest.stream.bit();
    Some(report::EventStream {
        bit,
        lost_bits: stream.nearest.lost_bits,
        rate_hz: u32::try_from(stream.now.hz() >> (bit + 1)).unwrap_or(u32::MAX),
        translations: stream.translations,
        events: EVENTS.load(Ordering::Relaxed),
    })
}
