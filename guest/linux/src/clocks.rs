//! The guest's clocks, read as close together as can be.

use rustix::thread::sched_getcpu;
use rustix::time::{ClockId, clock_gettime};

use crate::counter;

/// Readings of which the tightest is kept.
const TRIES: u32 = 5;

/// The clocks at one moment, between two reads of the counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    pub cpu: u32,
    pub counter_before: u64,
    pub monotonic_ns: u64,
    pub monotonic_raw_ns: u64,
    pub boottime_ns: u64,
    pub realtime_ns: u64,
    pub counter_after: u64,
}

impl Reading {
    /// Reads the clocks a few times and keeps the reading that took fewest ticks.
    pub fn take() -> Self {
        tightest(TRIES, Self::try_once)
    }

    /// One reading; none if the thread moved to another CPU meanwhile.
    fn try_once() -> Option<Self> {
        let cpu = current_cpu();
        let reading = Self {
            cpu,
            counter_before: counter::read(),
            monotonic_ns: read_ns(ClockId::Monotonic),
            monotonic_raw_ns: read_ns(ClockId::MonotonicRaw),
            boottime_ns: read_ns(ClockId::Boottime),
            realtime_ns: read_ns(ClockId::Realtime),
            counter_after: counter::read(),
        };
        (current_cpu() == cpu).then_some(reading)
    }

    const fn window_ticks(&self) -> u64 {
        self.counter_after.wrapping_sub(self.counter_before)
    }
}

/// The tightest of `tries` readings (at least one is made) that stayed on one CPU.
fn tightest(tries: u32, mut read: impl FnMut() -> Option<Reading>) -> Reading {
    let mut read_on_one_cpu = || {
        loop {
            if let Some(reading) = read() {
                return reading;
            }
        }
    };
    let mut best = read_on_one_cpu();
    for _ in 1..tries {
        let next = read_on_one_cpu();
        if next.window_ticks() < best.window_ticks() {
            best = next;
        }
    }
    best
}

fn current_cpu() -> u32 {
    u32::try_from(sched_getcpu()).expect("Linux numbers CPUs in 32 bits")
}

/// A clock in nanoseconds.
pub fn read_ns(clock: ClockId) -> u64 {
    let time = clock_gettime(clock);
    let seconds = u64::try_from(time.tv_sec).expect("Linux lets no clock be before 1970");
    let nanoseconds = u64::try_from(time.tv_nsec).expect("Linux normalizes its times");
    seconds * 1_000_000_000 + nanoseconds
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(counter_before: u64, counter_after: u64) -> Reading {
        Reading {
            cpu: 0,
            counter_before,
            monotonic_ns: 0,
            monotonic_raw_ns: 0,
            boottime_ns: 0,
            realtime_ns: 0,
            counter_after,
        }
    }

    #[test]
    fn tightest_reading_on_one_cpu_is_kept() {
        let mut readings = [
            None,
            Some(reading(10, 20)),
            None,
            Some(reading(u64::MAX, 2)),
            Some(reading(40, 44)),
            Some(reading(50, 50)),
        ]
        .into_iter();
        let best = tightest(3, || {
            readings.next().expect("asked for more than three readings")
        });
        assert_eq!(best, reading(u64::MAX, 2));
    }

    #[test]
    fn reading_brackets_every_clock() {
        let (first, second) = (Reading::take(), Reading::take());
        assert!(first.counter_before <= first.counter_after);
        assert!(first.counter_after <= second.counter_before);
        assert!(first.monotonic_ns <= second.monotonic_ns);
        assert!(first.monotonic_raw_ns < second.monotonic_raw_ns);
        assert!(
            first.boottime_ns >= first.monotonic_ns,
            "boot time includes sleep"
        );
        assert!(
            first.realtime_ns > 1_600_000_000_000_000_000,
            "a clock set after 2020"
        );
    }
}
