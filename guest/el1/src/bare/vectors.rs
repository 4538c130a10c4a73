//! Exceptions: interrupts are dispatched, faults that a test expects are noted and stepped over,
//! everything else ends the guest with a report.
//!
//! All registers are saved, those of vectors and floating point too: the compiler uses them for
//! copies.
#![expect(
    unsafe_code,
    reason = "exceptions arrive in assembly and have to leave as if nothing had been"
)]

use core::arch::global_asm;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use guest_protocol::report::MAX_BARE_CPUS;

use super::{gic, registers};

global_asm!(
    r#"
    .pushsection .text.vectors, "ax"
    .global vectors
    .balign 0x800
vectors:
    .set number, 0
    .rept 16
        .balign 0x80
        sub sp, sp, #816
        stp x0, x1, [sp]
        mov x0, #number
        b exception
        .set number, number + 1
    .endr

exception:
    stp x2, x3, [sp, #16]
    stp x4, x5, [sp, #32]
    stp x6, x7, [sp, #48]
    stp x8, x9, [sp, #64]
    stp x10, x11, [sp, #80]
    stp x12, x13, [sp, #96]
    stp x14, x15, [sp, #112]
    stp x16, x17, [sp, #128]
    stp x18, x19, [sp, #144]
    stp x20, x21, [sp, #160]
    stp x22, x23, [sp, #176]
    stp x24, x25, [sp, #192]
    stp x26, x27, [sp, #208]
    stp x28, x29, [sp, #224]
    mrs x1, elr_el1
    stp x30, x1, [sp, #240]
    mrs x1, spsr_el1
    mrs x2, fpsr
    stp x1, x2, [sp, #256]
    mrs x1, fpcr
    str x1, [sp, #272]
    add x1, sp, #288
    stp q0, q1, [x1], #32
    stp q2, q3, [x1], #32
    stp q4, q5, [x1], #32
    stp q6, q7, [x1], #32
    stp q8, q9, [x1], #32
    stp q10, q11, [x1], #32
    stp q12, q13, [x1], #32
    stp q14, q15, [x1], #32
    stp q16, q17, [x1], #32
    stp q18, q19, [x1], #32
    stp q20, q21, [x1], #32
    stp q22, q23, [x1], #32
    stp q24, q25, [x1], #32
    stp q26, q27, [x1], #32
    stp q28, q29, [x1], #32
    stp q30, q31, [x1], #32
    mov x1, sp
    bl {handle}
    add x1, sp, #288
    ldp q0, q1, [x1], #32
    ldp q2, q3, [x1], #32
    ldp q4, q5, [x1], #32
    ldp q6, q7, [x1], #32
    ldp q8, q9, [x1], #32
    ldp q10, q11, [x1], #32
    ldp q12, q13, [x1], #32
    ldp q14, q15, [x1], #32
    ldp q16, q17, [x1], #32
    ldp q18, q19, [x1], #32
    ldp q20, q21, [x1], #32
    ldp q22, q23, [x1], #32
    ldp q24, q25, [x1], #32
    ldp q26, q27, [x1], #32
    ldp q28, q29, [x1], #32
    ldp q30, q31, [x1], #32
    ldr x1, [sp, #272]
    msr fpcr, x1
    ldp x1, x2, [sp, #256]
    msr spsr_el1, x1
    msr fpsr, x2
    ldp x30, x1, [sp, #240]
    msr elr_el1, x1
    ldp x28, x29, [sp, #224]
    ldp x26, x27, [sp, #208]
    ldp x24, x25, [sp, #192]
    ldp x22, x23, [sp, #176]
    ldp x20, x21, [sp, #160]
    ldp x18, x19, [sp, #144]
    ldp x16, x17, [sp, #128]
    ldp x14, x15, [sp, #112]
    ldp x12, x13, [sp, #96]
    ldp x10, x11, [sp, #80]
    ldp x8, x9, [sp, #64]
    ldp x6, x7, [sp, #48]
    ldp x4, x5, [sp, #32]
    ldp x2, x3, [sp, #16]
    ldp x0, x1, [sp]
    add sp, sp, #816
    eret
    .popsection
    "#,
    handle = sym handle,
);

unsafe extern "C" {
    static vectors: u8;
}

/// What the assembly saves, as far as it is looked at here.
#[repr(C)]
struct Frame {
    registers: [u64; 31],
    return_address: u64,
}

const SYNCHRONOUS: u64 = 4;
const INTERRUPT: u64 = 5;

/// Points this CPU at the vectors.
pub fn install() {
    // SAFETY: sixteen vectors, aligned above.
    unsafe { registers::set_vectors(&raw const vectors as u64) }
}

extern "C" fn handle(kind: u64, frame: &mut Frame) {
    match kind {
        INTERRUPT => gic::dispatch(),
        SYNCHRONOUS if EXPECTED[registers::cpu()].swap(false, Ordering::Relaxed) => {
            SYNDROME[registers::cpu()].store(registers::syndrome(), Ordering::Relaxed);
            frame.return_address += 4;
        }
        _ => panic!(
            "exception {kind} at {:#x}: syndrome {:#x}, address {:#x}",
            frame.return_address,
            registers::syndrome(),
            registers::fault_address()
        ),
    }
}

/// Whether a CPU's next fault is to be stepped over, and the syndrome of it.
static EXPECTED: [AtomicBool; MAX_BARE_CPUS] = [const { AtomicBool::new(false) }; MAX_BARE_CPUS];
static SYNDROME: [AtomicU64; MAX_BARE_CPUS] = [const { AtomicU64::new(0) }; MAX_BARE_CPUS];

/// Does something that may fault once, and returns the fault's syndrome; none if nothing faulted.
///
/// The instruction that faults is skipped: what it would have loaded stays as it was.
pub fn catch(act: impl FnOnce()) -> Option<u64> {
    let cpu = registers::cpu();
    EXPECTED[cpu].store(true, Ordering::SeqCst);
    act();
    let faulted = !EXPECTED[cpu].swap(false, Ordering::SeqCst);
    faulted.then(|| SYNDROME[cpu].load(Ordering::Relaxed))
}
