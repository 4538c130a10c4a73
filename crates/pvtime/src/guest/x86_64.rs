//! The x86 time-stamp counter.
#![expect(
    unsafe_code,
    reason = "reading the counter with a fence has no safe form"
)]

use super::Counter;
use crate::abi::vmclock::CounterId;
use core::arch::asm;

/// The time-stamp counter.
///
/// It must be invariant and the same on all CPUs (CPUID leaf `0x8000_0007`, EDX bit 8), which every
/// processor that runs a modern hypervisor has. Its rate is in no architectural register.
///
/// An ordered read is `lfence; rdtsc`: it waits for everything before it. Later loads may still be
/// done before it, by some nanoseconds. A re-basing of live physical time cannot fall in between,
/// because the host does it while the vCPU is stopped, and no instruction straddles a stop; a
/// VMClock reading may then be that much later than the parameters that it was computed with.
#[derive(Clone, Copy, Debug, Default)]
pub struct TimeStampCounter;

impl Counter for TimeStampCounter {
    #[inline]
    fn read_ordered(&self) -> u64 {
        let (low, high): (u32, u32);
        // SAFETY: `rdtsc` is allowed in user space unless the kernel says otherwise, and writes
        // two registers. No `nomem`: the compiler must not move accesses across it.
        unsafe {
            asm!(
                "lfence",
                "rdtsc",
                out("eax") low,
                out("edx") high,
                options(readonly, nostack, preserves_flags),
            );
        }
        u64::from(high) << 32 | u64::from(low)
    }

    #[inline]
    fn read_unordered(&self) -> u64 {
        let (low, high): (u32, u32);
        // SAFETY: as in `read_ordered`.
        unsafe {
            asm!(
                "rdtsc",
                out("eax") low,
                out("edx") high,
                options(nomem, nostack, preserves_flags),
            );
        }
        u64::from(high) << 32 | u64::from(low)
    }

    fn id(&self) -> CounterId {
        CounterId::X86_TSC
    }
}

#[cfg(all(test, not(miri)))]
mod tests {
    use super::*;

    #[test]
    fn the_counter_moves_forward() {
        let counter = &TimeStampCounter;
        let mut last = counter.read_ordered();
        for _ in 0..1000 {
            let next = counter.read_ordered();
            assert!(next > last);
            last = next;
        }
        assert!(counter.read_unordered() > 0);
        assert_eq!((&counter).id(), CounterId::X86_TSC);
    }
}
