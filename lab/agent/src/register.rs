//! What a host's registers say of its counter, and the counter itself.
#![cfg_attr(
    target_arch = "aarch64",
    expect(
        unsafe_code,
        reason = "the counter and what is known of it are in system registers only"
    )
)]

/// `CNTFRQ_EL0`, the frequency of the counter; `None` where there is no such register.
pub fn counter_frequency_hz() -> Option<u64> {
    FREQUENCY.map(|read| read())
}

/// `ECV` of `ID_AA64MMFR0_EL1`: 0 without `FEAT_ECV`, 1 with it, 2 with `CNTPOFF_EL2` too; `None` where
/// there is no such register.
pub fn enhanced_counter() -> Option<u64> {
    const ECV_SHIFT: u32 = 60;
    MEMORY_FEATURES.map(|read| read() >> ECV_SHIFT)
}

#[cfg(target_arch = "aarch64")]
const FREQUENCY: Option<fn() -> u64> = Some(|| {
    let frequency_hz: u64;
    // SAFETY: Linux lets programs read CNTFRQ_EL0, and the read has no side effect.
    unsafe {
        core::arch::asm!("mrs {}, cntfrq_el0", out(reg) frequency_hz, options(nomem, nostack));
    }
    frequency_hz
});

#[cfg(target_arch = "aarch64")]
const MEMORY_FEATURES: Option<fn() -> u64> = Some(|| {
    let features: u64;
    // SAFETY: Linux since 4.11 answers reads of this register for programs, with what all CPUs have,
    // and the read has no side effect.
    unsafe {
        core::arch::asm!("mrs {}, id_aa64mmfr0_el1", out(reg) features, options(nomem, nostack));
    }
    features
});

#[cfg(not(target_arch = "aarch64"))]
const FREQUENCY: Option<fn() -> u64> = None;
#[cfg(not(target_arch = "aarch64"))]
const MEMORY_FEATURES: Option<fn() -> u64> = None;

/// `CNTVCT_EL0`, the counter; `None` where there is no such register.
pub fn counter() -> Option<u64> {
    COUNTER.map(|read| read())
}

#[cfg(target_arch = "aarch64")]
const COUNTER: Option<fn() -> u64> = Some(|| {
    let count: u64;
    // SAFETY: Linux lets programs read CNTVCT_EL0, and neither the barrier nor the read has a side
    // effect on memory or the stack.
    unsafe {
        core::arch::asm!("isb", "mrs {}, cntvct_el0", out(reg) count, options(nomem, nostack));
    }
    count
});

#[cfg(not(target_arch = "aarch64"))]
const COUNTER: Option<fn() -> u64> = None;
