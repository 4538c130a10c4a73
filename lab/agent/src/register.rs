//! The counter's frequency, from the register that has it.
#![cfg_attr(
    target_arch = "aarch64",
    expect(
        unsafe_code,
        reason = "the frequency of the counter is in a system register only"
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
