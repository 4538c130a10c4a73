//! The host's counter.

use pvtime::scale::Frequency;

#[cfg(target_arch = "aarch64")]
mod arch {
    use pvtime::guest::Counter;
    use pvtime::guest::arm64::{VirtualCounter, counter_frequency};
    use pvtime::scale::Frequency;

    pub fn read() -> u64 {
        VirtualCounter.read_ordered()
    }

    pub fn frequency() -> Option<Frequency> {
        counter_frequency().ok()
    }

    pub const ECV: Option<fn() -> bool> = Some(|| {
        // HWCAP2_ECV (arch/arm64/include/uapi/asm/hwcap.h)
        const HWCAP2_ECV: usize = 1 << 19;
        rustix::param::linux_hwcap().1 & HWCAP2_ECV != 0
    });
}

#[cfg(target_arch = "x86_64")]
mod arch {
    use pvtime::guest::Counter;
    use pvtime::guest::x86_64::TimeStampCounter;
    use pvtime::scale::Frequency;

    pub fn read() -> u64 {
        TimeStampCounter.read_ordered()
    }

    pub fn frequency() -> Option<Frequency> {
        None
    }

    pub const ECV: Option<fn() -> bool> = None;
}

/// The counter now: `CNTVCT_EL0`, which on a host is what KVM takes a guest's offset from, or the
/// TSC.
#[must_use]
pub fn read() -> u64 {
    arch::read()
}

/// Its nominal rate, `CNTFRQ_EL0`; `None` on x86, where the hardware does not say, and where
/// firmware wrote nothing.
#[must_use]
pub fn frequency() -> Option<Frequency> {
    arch::frequency()
}

/// Whether the CPU has `FEAT_ECV`, which offsets the physical counter without trapping; `None` on
/// x86.
#[must_use]
pub fn has_ecv() -> Option<bool> {
    arch::ECV.map(|has_ecv| has_ecv())
}
