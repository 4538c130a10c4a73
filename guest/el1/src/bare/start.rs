//! Where CPUs begin: the `Image` header, the first page table, the stacks.
#![expect(
    unsafe_code,
    reason = "the header and the entry have to be at places that the linker is told by name"
)]

use core::arch::global_asm;
use core::cell::UnsafeCell;

use aarch64_rt::{InitialPagetable, Stack, entry, initial_pagetable, start_core};
use guest_protocol::report::MAX_BARE_CPUS;
use smccc::psci;

use super::machine::{Conduit, Machine};
use super::secondary;

// The header of Documentation/arch/arm64/booting.rst: a branch, the offset from a 2 MiB boundary,
// the bytes of memory that the image needs, flags (little-endian, 4 KiB pages), the magic number.
global_asm!(
    r#"
    .pushsection .head, "ax"
        b entry
        .long 0
        .quad 0x80000
        .quad image_bytes
        .quad 2
        .quad 0
        .quad 0
        .quad 0
        .ascii "ARM\x64"
        .long 0
    .popsection
    "#
);

const VALID_BLOCK: usize = 1;
const NORMAL_MEMORY: usize = 1 << 2;
const INNER_SHAREABLE: usize = 3 << 8;
const ACCESSED: usize = 1 << 10;
const NEVER_EXECUTED: usize = 3 << 53;
const GIB: usize = 1 << 30;

// What `pvtime run` and QEMU's virt machine have alike: devices in the first GiB, RAM in the second.
initial_pagetable!({
    let mut table = [0; 512];
    table[0] = VALID_BLOCK | ACCESSED | NEVER_EXECUTED;
    table[1] = VALID_BLOCK | NORMAL_MEMORY | INNER_SHAREABLE | ACCESSED | GIB;
    InitialPagetable(table)
});

entry!(super::main);

/// Pages of 4 KiB of a CPU's stack.
const STACK_PAGES: usize = 16;

/// The stacks of all CPUs but the first.
struct Stacks([UnsafeCell<Stack<STACK_PAGES>>; MAX_BARE_CPUS - 1]);

// SAFETY: `start_cpu` hands each stack to one CPU, once, and nothing else touches them.
unsafe impl Sync for Stacks {}

// SAFETY: the section is memory that nothing is loaded into, and a stack needs no initial contents.
#[unsafe(link_section = ".stack.secondary")]
static STACKS: Stacks = Stacks([const { UnsafeCell::new(Stack::new()) }; MAX_BARE_CPUS - 1]);

/// Turns a CPU on. It is called once for each, from the first CPU.
pub fn start_cpu(machine: &Machine, cpu: usize, affinity: u64) -> Result<(), psci::Error> {
    let stack = STACKS.0[cpu - 1].get();
    let begin = move || secondary(cpu);
    // SAFETY: the stack is this CPU's alone, is mapped by the table that all CPUs start with, and
    // lives as long as the program. The closure does not return.
    unsafe {
        match machine.conduit {
            Conduit::Hvc => start_core::<smccc::Hvc, _, STACK_PAGES>(affinity, stack, begin),
            Conduit::Smc => start_core::<smccc::Smc, _, STACK_PAGES>(affinity, stack, begin),
        }
    }
}
