//! Arm counters and conduits, in the 64-bit state.
#![expect(
    unsafe_code,
    reason = "system registers and hypervisor calls have no safe form"
)]

use super::{Conduit, Counter};
use crate::abi::smccc::{CallResult, FunctionId};
use crate::abi::vmclock::CounterId;
use crate::scale::{Frequency, ScaleError};
use core::arch::asm;

/// Reads a counter register after the instructions before it and before the loads after it.
///
/// `isb` keeps the read behind the branch on a sequence count, which keeps it behind that load.
/// Loads after it wait for no system register, so one is made to depend on the count: the address
/// is the stack pointer plus (count xor count), and the barrier that follows in a reader orders
/// that load before its own. No `nomem`: the compiler must not move accesses across either.
macro_rules! read_ordered {
    ($register:literal) => {{
        let count: u64;
        // SAFETY: reads a counter register, which EL0 may unless a trap says otherwise, and eight
        // bytes at the stack pointer, which are mapped; it changes two scratch registers.
        unsafe {
            asm!(
                "isb",
                concat!("mrs {count}, ", $register),
                "eor {address}, {count}, {count}",
                "add {address}, sp, {address}",
                "ldr xzr, [{address}]",
                count = out(reg) count,
                address = out(reg) _,
                options(readonly, nostack, preserves_flags),
            );
        }
        count
    }};
}

macro_rules! read_unordered {
    ($register:literal) => {{
        let count: u64;
        // SAFETY: reads a counter register, which EL0 may unless a trap says otherwise.
        unsafe {
            asm!(
                concat!("mrs {count}, ", $register),
                count = out(reg) count,
                options(nomem, nostack, preserves_flags),
            );
        }
        count
    }};
}

/// The virtual counter, `CNTVCT_EL0`: what a guest of a hypervisor uses.
#[derive(Clone, Copy, Debug, Default)]
pub struct VirtualCounter;

impl Counter for VirtualCounter {
    #[inline]
    fn read_ordered(&self) -> u64 {
        read_ordered!("cntvct_el0")
    }

    #[inline]
    fn read_unordered(&self) -> u64 {
        read_unordered!("cntvct_el0")
    }

    fn id(&self) -> CounterId {
        CounterId::ARM_VCNT
    }
}

/// The physical counter, `CNTPCT_EL0`.
///
/// An operating system may trap it at EL0, and a hypervisor at EL1 where it has an offset that the
/// hardware cannot apply.
#[derive(Clone, Copy, Debug, Default)]
pub struct PhysicalCounter;

impl Counter for PhysicalCounter {
    #[inline]
    fn read_ordered(&self) -> u64 {
        read_ordered!("cntpct_el0")
    }

    #[inline]
    fn read_unordered(&self) -> u64 {
        read_unordered!("cntpct_el0")
    }
}

/// The rate of both counters as firmware wrote it, `CNTFRQ_EL0`.
///
/// # Errors
///
/// [`ScaleError::ZeroFrequency`] if firmware wrote nothing.
pub fn counter_frequency() -> Result<Frequency, ScaleError> {
    let cntfrq = read_unordered!("cntfrq_el0");
    // The upper half is reserved.
    Frequency::from_hz(cntfrq & u64::from(u32::MAX))
}

macro_rules! conduit {
    ($name:ident, $instruction:literal, $doc:literal) => {
        #[doc = $doc]
        #[derive(Debug)]
        pub struct $name(());

        impl $name {
            /// The conduit of this CPU.
            ///
            /// # Safety
            ///
            /// - The CPU is at EL1 or EL2 of a machine whose PSCI or firmware tables name this
            ///   conduit with SMCCC 1.1 or later.
            /// - The program issues no call through the value that does something to its memory or
            ///   its CPUs that it does not expect. The calls of [`discovery`](super::PvTime) write
            ///   the structures whose addresses they return, which are in no RAM of the program.
            #[must_use]
            pub const unsafe fn new() -> Self {
                Self(())
            }
        }

        impl Conduit for $name {
            fn call(&mut self, id: FunctionId, argument: u64) -> CallResult {
                let result: u64;
                // SAFETY: by the contract of `new` the instruction is a call that returns. SMCCC
                // 1.1 lets it change x0 to x3 and nothing else; memory is clobbered by default.
                unsafe {
                    asm!(
                        $instruction,
                        inout("x0") u64::from(id.0) => result,
                        inout("x1") argument => _,
                        out("x2") _,
                        out("x3") _,
                        options(nostack),
                    );
                }
                CallResult(result)
            }
        }
    };
}

conduit!(
    Hvc,
    "hvc #0",
    "Calls by `HVC`, which a hypervisor at EL2 takes."
);
conduit!(
    Smc,
    "smc #0",
    "Calls by `SMC`, which firmware at EL3 takes, or a hypervisor that traps it."
);

#[cfg(test)]
mod tests {
    use super::*;

    fn moves_forward(counter: &impl Counter) {
        let first = counter.read_ordered();
        let mut last = first;
        for _ in 0..1000 {
            let next = counter.read_ordered();
            assert!(next >= last);
            last = next;
        }
        assert!(counter.read_unordered() >= first);
    }

    #[test]
    fn the_virtual_counter_moves_forward_at_a_known_rate() {
        moves_forward(&VirtualCounter);
        assert!(counter_frequency().is_ok());
        assert_eq!(VirtualCounter.id(), CounterId::ARM_VCNT);
        assert_eq!(PhysicalCounter.id(), CounterId::INVALID);
    }
}
