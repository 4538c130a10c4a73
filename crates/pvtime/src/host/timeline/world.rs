//! Simulated hosts for the tests: one physical time, and what each host makes of it.

use super::{HostSample, WallStandard};
use crate::host::HostCount;
use crate::scale::{Frequency, NS_PER_S};

/// What a host's counter does while it sleeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InSleep {
    CountsOn,
    StandsStill,
    /// Goes on from this count afterwards.
    RestartsAt(u64),
}

/// A host, whose clocks follow from physical time.
#[derive(Clone, Copy, Debug)]
pub struct Host {
    pub hz: u64,
    /// The counter had `counter_base` at `counter_since_ns` of physical time.
    pub counter_base: u64,
    pub counter_since_ns: u64,
    pub booted_at_ns: u64,
    pub slept_ns: u64,
    /// Physical time plus this is wall-clock time.
    pub wall_skew_ns: i64,
    pub wall_error_ns: u64,
    /// NTP makes the adjusted clocks faster by this.
    pub slew_ppm: i64,
    /// The oscillator of the clocks is faster than that of the counter by this.
    pub drift_ppm: i64,
    pub span_ns: u64,
}

/// Physical time starts here, so that a host can have booted before.
pub const BEGIN_NS: u64 = 1 << 60;

impl Host {
    /// Booted a second ago, nothing special.
    pub fn new(hz: u64) -> Self {
        let booted_at_ns = BEGIN_NS - NS_PER_S;
        Self {
            hz,
            counter_base: 0,
            counter_since_ns: booted_at_ns,
            booted_at_ns,
            slept_ns: 0,
            wall_skew_ns: 0,
            wall_error_ns: 0,
            slew_ppm: 0,
            drift_ppm: 0,
            span_ns: 0,
        }
    }

    pub fn frequency(&self) -> Frequency {
        Frequency::from_hz(self.hz).unwrap()
    }

    pub fn counter(&self, at_ns: u64) -> u64 {
        let passed = u128::from(at_ns - self.counter_since_ns);
        let ticks = passed * u128::from(self.hz) / u128::from(NS_PER_S);
        self.counter_base
            .wrapping_add(u64::try_from(ticks).unwrap())
    }

    pub fn sample(&self, at_ns: u64) -> HostSample {
        let faster = |ns: u64, ppm: i64| {
            let ns = i128::from(ns);
            u64::try_from(ns + ns * i128::from(ppm) / 1_000_000).unwrap()
        };
        let awake_ns = at_ns - self.booted_at_ns - self.slept_ns;
        let monotonic_raw_ns = faster(awake_ns, self.drift_ppm);
        let monotonic_ns = faster(awake_ns, self.slew_ppm);
        HostSample {
            counter: HostCount(self.counter(at_ns)),
            frequency: self.frequency(),
            wall_ns: at_ns.checked_add_signed(self.wall_skew_ns).unwrap(),
            wall_standard: WallStandard::Tai,
            wall_error_ns: self.wall_error_ns,
            boottime_ns: monotonic_ns + self.slept_ns,
            monotonic_ns,
            monotonic_raw_ns,
            span_ns: self.span_ns,
        }
    }

    /// Sleeps for `ns` from `at_ns` on.
    pub fn sleep(&mut self, at_ns: u64, ns: u64, counter: InSleep) {
        self.slept_ns += ns;
        match counter {
            InSleep::CountsOn => {}
            InSleep::StandsStill => self.counter_since_ns += ns,
            InSleep::RestartsAt(count) => {
                self.counter_base = count;
                self.counter_since_ns = at_ns + ns;
            }
        }
    }
}
