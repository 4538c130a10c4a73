//! The registers of a vCPU that are its time, as `KVM_GET_ONE_REG` numbers them.
//!
//! They have one owner, `VmTime`. Whoever saves and restores the other registers
//! of a vCPU leaves these out: a counter that is written back rewinds the whole VM, or does nothing
//! where the VM-wide offset was set before (`KVM_ARM_SET_COUNTER_OFFSET`).

/// Virtual timer: control (`CNTV_CTL_EL0`).
pub const TIMER_CTL: u64 = el0(3, 1);
/// Virtual timer: compare value. By an old mistake that is ABI now, KVM has it under the encoding
/// of the counter, `CNTVCT_EL0`.
pub const TIMER_CVAL: u64 = el0(0, 2);
/// Virtual counter. KVM has it under the encoding of the compare value, `CNTV_CVAL_EL0`.
pub const TIMER_CNT: u64 = el0(3, 2);
/// Physical timer: control (`CNTP_CTL_EL0`).
pub const PTIMER_CTL: u64 = el0(2, 1);
/// Physical timer: compare value (`CNTP_CVAL_EL0`).
pub const PTIMER_CVAL: u64 = el0(2, 2);
/// Physical counter (`CNTPCT_EL0`).
pub const PTIMER_CNT: u64 = el0(0, 1);

/// `CNTKCTL_EL1`, which holds the event stream.
pub const CNTKCTL_EL1: u64 = 0x6030_0000_0013_c708;

/// What `VmTime` writes of a vCPU's timers, in this order: each compare value before the control that
/// lets it fire.
pub const TIMERS: [u64; 5] = [CNTKCTL_EL1, TIMER_CVAL, PTIMER_CVAL, TIMER_CTL, PTIMER_CTL];

/// Counters, their other views, and timers, of EL1 and EL2. `CNTKCTL_EL1` and `CNTHCTL_EL2` are
/// not among them: they say who may read a counter, and change no time.
const TIME_REGISTERS: [u64; 18] = [
    TIMER_CTL,
    TIMER_CVAL,
    TIMER_CNT,
    PTIMER_CTL,
    PTIMER_CVAL,
    PTIMER_CNT,
    el0(0, 5), // CNTPCTSS_EL0
    el0(0, 6), // CNTVCTSS_EL0
    el0(2, 0), // CNTP_TVAL_EL0
    el0(3, 0), // CNTV_TVAL_EL0
    el2(0, 3), // CNTVOFF_EL2
    el2(0, 6), // CNTPOFF_EL2
    el2(2, 0), // CNTHP_TVAL_EL2
    el2(2, 1), // CNTHP_CTL_EL2
    el2(2, 2), // CNTHP_CVAL_EL2
    el2(3, 0), // CNTHV_TVAL_EL2
    el2(3, 1), // CNTHV_CTL_EL2
    el2(3, 2), // CNTHV_CVAL_EL2
];

/// Whether a register is part of a VM's time, and so none of `KVM_SET_ONE_REG`'s but
/// `VmTime`'s.
#[must_use]
pub fn is_time_register(id: u64) -> bool {
    TIME_REGISTERS.contains(&id)
}

const fn el0(crm: u64, op2: u64) -> u64 {
    timer_register(3, crm, op2)
}

const fn el2(crm: u64, op2: u64) -> u64 {
    timer_register(4, crm, op2)
}

/// A 64-bit arm64 system register with op0 3 and `CRn` 14, the generic timer's.
const fn timer_register(op1: u64, crm: u64, op2: u64) -> u64 {
    const KVM_REG_ARM64_SYSREG_U64: u64 = 0x6030_0000_0013_0000;
    KVM_REG_ARM64_SYSREG_U64 | 3 << 14 | op1 << 11 | 14 << 7 | crm << 3 | op2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn t12_ids_are_those_of_the_kernel_with_its_swapped_pair() {
        // arch/arm64/include/uapi/asm/kvm.h
        let ids = [
            (TIMER_CTL, 0x6030_0000_0013_df19),
            (TIMER_CVAL, 0x6030_0000_0013_df02),
            (TIMER_CNT, 0x6030_0000_0013_df1a),
            (PTIMER_CTL, 0x6030_0000_0013_df11),
            (PTIMER_CVAL, 0x6030_0000_0013_df12),
            (PTIMER_CNT, 0x6030_0000_0013_df01),
        ];
        for (id, of_the_kernel) in ids {
            assert_eq!(id, of_the_kernel);
            assert!(is_time_register(id), "{id:#x}");
        }
    }

    #[test]
    fn t3_nobody_writes_the_guests_own_offsets() {
        // They are the guest's, if it is a hypervisor itself. Whoever replays registers leaves them out,
        // and none of those that `VmTime` writes is EL2's.
        let is_el2s = |id: u64| id >> 11 & 7 == 4;
        let own = [el2(0, 3), el2(0, 6)];
        assert!(
            own.into_iter()
                .all(|id| is_el2s(id) && is_time_register(id))
        );
        for id in TIMERS.into_iter().chain([TIMER_CNT]) {
            assert!(!is_el2s(id), "{id:#x}");
        }
    }

    #[test]
    fn every_counter_and_timer_is_time() {
        let names = [
            ("CNTPCTSS_EL0", 0xdf05),
            ("CNTVCTSS_EL0", 0xdf06),
            ("CNTP_TVAL_EL0", 0xdf10),
            ("CNTV_TVAL_EL0", 0xdf18),
            ("CNTVOFF_EL2", 0xe703),
            ("CNTPOFF_EL2", 0xe706),
            ("CNTHP_TVAL_EL2", 0xe710),
            ("CNTHP_CTL_EL2", 0xe711),
            ("CNTHP_CVAL_EL2", 0xe712),
            ("CNTHV_TVAL_EL2", 0xe718),
            ("CNTHV_CTL_EL2", 0xe719),
            ("CNTHV_CVAL_EL2", 0xe71a),
        ];
        for (name, encoding) in names {
            assert!(is_time_register(0x6030_0000_0013_0000 | encoding), "{name}");
        }
    }

    #[test]
    fn nothing_else_is_time() {
        let ids = [
            ("x0", 0x6030_0000_0010_0000),
            ("CNTFRQ_EL0", 0x6030_0000_0013_df00),
            ("CNTKCTL_EL1", 0x6030_0000_0013_c708),
            ("CNTHCTL_EL2", 0x6030_0000_0013_e708),
            ("PMEVCNTR0_EL0", 0x6030_0000_0013_df40),
            ("PMCCFILTR_EL0", 0x6030_0000_0013_df7f),
            ("CNTV_CTL_EL0 of 32 bits", 0x6020_0000_0013_df19),
            ("a firmware register", 0x6030_0000_0014_df19),
        ];
        for (name, id) in ids {
            assert!(!is_time_register(id), "{name}");
        }
    }
}
