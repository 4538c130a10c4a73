//! System registers and instructions that have no safe form elsewhere.
#![expect(unsafe_code, reason = "system registers are reached by assembly")]

use core::arch::asm;

macro_rules! read {
    ($name:ident, $register:literal) => {
        #[doc = concat!("Reads `", $register, "`.")]
        pub fn $name() -> u64 {
            let value;
            // SAFETY: reading this register has no effect.
            unsafe {
                asm!(
                    concat!("mrs {}, ", $register),
                    out(reg) value,
                    options(nomem, nostack, preserves_flags),
                );
            }
            value
        }
    };
}

macro_rules! write {
    ($name:ident, $register:literal) => {
        #[doc = concat!("Writes `", $register, "`, and waits until it holds.")]
        pub fn $name(value: u64) {
            // SAFETY: the register is a timer's or holds a number of ours: it changes when
            // interrupts and events come, which the program expects at any time.
            unsafe {
                asm!(
                    concat!("msr ", $register, ", {}"),
                    "isb",
                    in(reg) value,
                    options(nostack, preserves_flags),
                );
            }
        }
    };
}

read!(virtual_control, "cntv_ctl_el0");
read!(physical_control, "cntp_ctl_el0");
read!(virtual_compare, "cntv_cval_el0");
read!(physical_compare, "cntp_cval_el0");
read!(event_control, "cntkctl_el1");
read!(memory_features, "id_aa64mmfr0_el1");
read!(syndrome, "esr_el1");
read!(fault_address, "far_el1");
read!(cpu_number, "tpidr_el1");
read!(masks, "daif");
write!(set_virtual_control, "cntv_ctl_el0");
write!(set_virtual_compare, "cntv_cval_el0");
write!(set_physical_control, "cntp_ctl_el0");
write!(set_physical_compare, "cntp_cval_el0");
write!(set_event_control, "cntkctl_el1");
write!(set_cpu_number, "tpidr_el1");

// SAFETY of the instructions below, unless they say more: barriers, hints and the interrupt mask
// change no memory and no register of the program, and interrupts may come at any time anyway.
macro_rules! instruction {
    ($instruction:literal) => {
        // SAFETY: as above; memory is clobbered by default, so accesses stay on their side.
        unsafe {
            asm!($instruction, options(nostack, preserves_flags));
        }
    };
}

/// The number of this CPU.
pub fn cpu() -> usize {
    usize::try_from(cpu_number()).unwrap_or(usize::MAX)
}

/// Gives this CPU its number; the first thing that it does.
pub fn set_cpu(cpu: usize) {
    set_cpu_number(cpu as u64);
}

/// Lets interrupts in.
pub fn enable_interrupts() {
    instruction!("msr daifclr, #0b0111");
}

/// Does something that no interrupt of this CPU may come into the middle of.
pub fn without_interrupts<R>(act: impl FnOnce() -> R) -> R {
    const IRQ_MASKED: u64 = 1 << 7;
    let was_masked = masks() & IRQ_MASKED != 0;
    instruction!("msr daifset, #0b0010");
    let result = act();
    if !was_masked {
        instruction!("msr daifclr, #0b0010");
    }
    result
}

/// Waits for an interrupt, unless there is something to do already. It is looked for with
/// interrupts masked, which end the wait all the same: none comes between the two.
pub fn wait_for_interrupt_unless(is_something_to_do: impl FnOnce() -> bool) {
    without_interrupts(|| {
        if !is_something_to_do() {
            instruction!("dsb sy");
            instruction!("wfi");
        }
    });
}

/// Waits for an event.
pub fn wait_for_event() {
    instruction!("wfe");
}

/// Waits until every earlier load has its value.
#[inline]
pub fn wait_for_loads() {
    instruction!("dsb ishld");
}

/// Waits until every earlier store can be seen by all, page table walks included.
pub fn publish_page_table() {
    instruction!("dsb ishst");
    instruction!("isb");
}

/// Has exceptions go to a table of vectors.
///
/// # Safety
/// The address is that of sixteen vectors, aligned to 2 KiB.
pub unsafe fn set_vectors(address: u64) {
    // SAFETY: by the contract.
    unsafe {
        asm!("msr vbar_el1, {}", "isb", in(reg) address, options(nostack, preserves_flags));
    }
}

/// Turns on the upper range of addresses, 32 MiB, with the table of its second level.
///
/// # Safety
/// The address is that of a table of 16 valid or zero descriptors that lives as long as the program.
pub unsafe fn set_upper_table(address: u64) {
    const UPPER_BITS: u64 = 0x3f << 16 | 1 << 22 | 1 << 23 | 0x3f << 24 | 3 << 30;
    // 39 of 64 bits are fixed; walks are inner shareable, write-back; 4 KiB pages.
    const UPPER: u64 = 39 << 16 | 1 << 24 | 1 << 26 | 3 << 28 | 2 << 30;
    let control: u64;
    // SAFETY: reading this register has no effect.
    unsafe {
        asm!("mrs {}, tcr_el1", out(reg) control, options(nomem, nostack, preserves_flags));
    }
    let control = control & !UPPER_BITS | UPPER;
    // SAFETY: the lower range, where the program is, keeps its table and its settings; the upper
    // one had none, so no stale translation of it exists.
    unsafe {
        asm!(
            "msr ttbr1_el1, {table}",
            "isb",
            "msr tcr_el1, {control}",
            "isb",
            "tlbi vmalle1",
            "dsb nsh",
            "isb",
            table = in(reg) address,
            control = in(reg) control,
            options(nostack, preserves_flags),
        );
    }
}
