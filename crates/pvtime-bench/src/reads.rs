//! What it costs to read a clock.
#![expect(
    unsafe_code,
    reason = "clock_gettime as C programs call it, without a wrapper's cost"
)]

use crate::measure::Round;
use crate::report::Read;
use anyhow::Result;
use pvtime::abi::live_physical_time::{LivePhysicalTime, SHAPE, SIZE_BYTES};
#[cfg(target_arch = "aarch64")]
use pvtime::guest::arm64::VirtualCounter as NativeCounter;
#[cfg(target_arch = "x86_64")]
use pvtime::guest::x86_64::TimeStampCounter as NativeCounter;
use pvtime::guest::{Counter, LiveClock};
use pvtime::scale::{Frequency, NS_PER_S};
use pvtime::seqlock::SequenceWriter;
use std::hint::black_box;
use std::mem::MaybeUninit;
use std::sync::atomic::AtomicU64;
use std::thread;
use std::time::{Duration, Instant};

const ROUNDS: usize = 200;
const TIMES: u32 = 20_000;

/// The clocks in the order in which they are measured: name, and whether their reads are ordered.
///
/// An ordered reading waits for what the program did before. `clock_gettime` is ordered; the two
/// libraries read the counter as the processor likes. A counter with a factor is the least that
/// any scaled clock can cost: where the next reading waits for this one, nothing hides the
/// multiplication.
const CLOCKS: [(&str, bool); 9] = [
    ("counter", true),
    ("counter times a constant", true),
    ("LiveClock::now", true),
    ("clock_gettime(CLOCK_MONOTONIC)", true),
    ("std::time::Instant::now", true),
    ("counter", false),
    ("LiveClock::now_unordered", false),
    ("quanta::Clock::now", false),
    ("minstant::Instant::now", false),
];
const BARE_ORDERED: usize = 0;
const CLOCK_GETTIME: usize = 3;
const BARE_UNORDERED: usize = 5;

/// Measures all clocks in one run; the live clock shows nanoseconds, as its peers do.
pub fn measure() -> Result<Vec<Read>> {
    let memory = [const { AtomicU64::new(0) }; SIZE_BYTES / size_of::<u64>()];
    let mapping = LivePhysicalTime::between(counter_rate()?, Frequency::from_hz(NS_PER_S)?)?;
    SequenceWriter::start(SHAPE).publish(&memory[..], &mapping.emit())?;
    let clock = LiveClock::attach(&memory[..], NativeCounter)?;
    let quanta = quanta::Clock::new();
    let factor = black_box(mapping.to_pv.factor().get());

    let mut round = Round::default();
    round.add(|| NativeCounter.read_ordered());
    round.add(|| upper_half(NativeCounter.read_ordered(), factor));
    round.add(|| clock.now().unwrap_or(0));
    round.add(monotonic);
    round.add(Instant::now);
    round.add(|| NativeCounter.read_unordered());
    round.add(|| clock.now_unordered().unwrap_or(0));
    round.add(|| quanta.now());
    round.add(minstant::Instant::now);
    let costs = round.run(ROUNDS, TIMES);

    let reads = CLOCKS
        .into_iter()
        .zip(&costs)
        .map(|((name, ordered), cost)| {
            let bare = costs[if ordered {
                BARE_ORDERED
            } else {
                BARE_UNORDERED
            }];
            Read {
                name,
                ordered,
                median_ns: cost.median_ns,
                least_ns: cost.least_ns,
                to_counter: cost.least_ns / bare.least_ns,
                to_clock_gettime: cost.least_ns / costs[CLOCK_GETTIME].least_ns,
            }
        });
    Ok(reads.collect())
}

fn upper_half(count: u64, factor: u64) -> u64 {
    ((u128::from(count) * u128::from(factor)) >> 64) as u64
}

fn monotonic() -> i64 {
    let mut time = MaybeUninit::<libc::timespec>::uninit();
    // SAFETY: the call writes a whole timespec through the pointer, or fails and returns -1.
    let time = unsafe {
        let failed = libc::clock_gettime(libc::CLOCK_MONOTONIC, time.as_mut_ptr());
        assert!(failed == 0, "every Linux has CLOCK_MONOTONIC");
        time.assume_init()
    };
    time.tv_nsec
}

/// The rate of the counter to some millionths, which is enough to map it: no result depends on it.
fn counter_rate() -> Result<Frequency> {
    let (start, first) = (Instant::now(), NativeCounter.read_ordered());
    thread::sleep(Duration::from_millis(50));
    let (passed, last) = (start.elapsed(), NativeCounter.read_ordered());
    let ticks = u128::from(last - first) * u128::from(NS_PER_S) / passed.as_nanos();
    Ok(Frequency::from_hz(u64::try_from(ticks)?)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_live_clock_shows_nanoseconds() {
        let rate = counter_rate().unwrap();
        let again = counter_rate().unwrap();
        assert!(
            rate.hz().abs_diff(again.hz()) < rate.hz() / 100,
            "{rate} and {again}"
        );
    }
}
