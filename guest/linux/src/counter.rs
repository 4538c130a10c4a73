//! The guest's counter, as user space reads it.
//!
//! On aarch64 it is the virtual counter, `CNTVCT_EL0`. Elsewhere `CLOCK_MONOTONIC_RAW` takes its
//! place, a counter of 1 GHz, so that everything above runs and is tested on any Linux.

pub use arch::{frequency_hz, read};

#[cfg(target_arch = "aarch64")]
mod arch {
    #![expect(
        unsafe_code,
        reason = "two system registers are read, which needs assembly"
    )]

    use core::arch::asm;

    /// The counter in ticks, read after every earlier load and instruction is complete.
    ///
    /// `dsb ishld` waits for the loads, so that a value that another CPU published is not newer
    /// than this read; `isb` keeps the read from being made ahead of them.
    pub fn read() -> u64 {
        let ticks: u64;
        // SAFETY: the three instructions are open to EL0 under Linux, which sets
        // CNTKCTL_EL1.EL0VCTEN or emulates the read; they write no memory and no register but the
        // output. Memory is left out of the options so that the compiler moves no load past them.
        unsafe {
            asm!(
                "dsb ishld",
                "isb",
                "mrs {ticks}, cntvct_el0",
                ticks = out(reg) ticks,
                options(nostack, preserves_flags),
            );
        }
        ticks
    }

    /// Ticks a second, from `CNTFRQ_EL0`.
    pub fn frequency_hz() -> u64 {
        let frequency_hz: u64;
        // SAFETY: CNTFRQ_EL0 is readable wherever CNTVCT_EL0 is; nothing else is touched.
        unsafe {
            asm!(
                "mrs {frequency}, cntfrq_el0",
                frequency = out(reg) frequency_hz,
                options(nomem, nostack, preserves_flags),
            );
        }
        frequency_hz
    }
}

#[cfg(not(target_arch = "aarch64"))]
mod arch {
    use rustix::time::ClockId;

    use crate::clocks;

    /// The counter in ticks, which are nanoseconds.
    pub fn read() -> u64 {
        clocks::read_ns(ClockId::MonotonicRaw)
    }

    /// Ticks a second.
    pub fn frequency_hz() -> u64 {
        1_000_000_000
    }
}

#[cfg(test)]
mod tests {
    use std::thread::sleep;
    use std::time::Duration;

    #[test]
    fn counter_runs_at_its_frequency() {
        let before = super::read();
        sleep(Duration::from_millis(20));
        let ticks = super::read() - before;
        let at_least = super::frequency_hz() / 1000 * 19;
        assert!(ticks >= at_least, "{ticks} ticks in 20 ms");
    }
}
