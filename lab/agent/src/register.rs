//! The counter and its frequency, from the registers that have them.
#![cfg_attr(
    target_arch = "aarch64",
    expect(
        unsafe_code,
        reason = "the counter and its frequency are in system registers only"
    )
)]

/// `CNTFRQ_EL0`, the frequency of the counter; `None` where there is no such register.
pub fn counter_frequency_hz() -> Option<u64> {
    REGISTER.map(|read| read())
}

#[cfg(target_arch = "aarch64")]
const REGISTER: Option<fn() -> u64> = Some(|| {
    let frequency_hz: u64;
    // SAFETY: Linux lets programs read CNTFRQ_EL0, and the read has no side effect.
    unsafe {
        core::arch::asm!("mrs {}, cntfrq_el0", out(reg) frequency_hz, options(nomem, nostack));
    }
    frequency_hz
});

#[cfg(not(target_arch = "aarch64"))]
const REGISTER: Option<fn() -> u64> = None;

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
