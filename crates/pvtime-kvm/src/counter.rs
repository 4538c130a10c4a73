//! The host's counter.
#![cfg_attr(
    target_arch = "aarch64",
    expect(
        unsafe_code,
        reason = "system registers are read by instructions of their own"
    )
)]

/// The counter's nominal rate in Hz (`CNTFRQ_EL0`); `None` on other architectures than arm64.
#[must_use]
pub fn frequency_hz() -> Option<u64> {
    #[cfg(target_arch = "aarch64")]
    {
        let frequency_hz: u64;
        // SAFETY: Linux lets user space read CNTFRQ_EL0; reading it has no effect.
        unsafe {
            core::arch::asm!(
                "mrs {}, cntfrq_el0",
                out(reg) frequency_hz,
                options(nomem, nostack, preserves_flags)
            );
        }
        // The upper half of the register is reserved.
        Some(frequency_hz & u64::from(u32::MAX))
    }
    #[cfg(not(target_arch = "aarch64"))]
    None
}

/// Whether the CPU has `FEAT_ECV`, which offsets the physical counter without trapping; `None` on
/// other architectures than arm64.
#[must_use]
pub fn has_ecv() -> Option<bool> {
    #[cfg(target_arch = "aarch64")]
    {
        // HWCAP2_ECV (arch/arm64/include/uapi/asm/hwcap.h)
        const HWCAP2_ECV: usize = 1 << 19;
        Some(rustix::param::linux_hwcap().1 & HWCAP2_ECV != 0)
    }
    #[cfg(not(target_arch = "aarch64"))]
    None
}
