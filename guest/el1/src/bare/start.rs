//! Where CPUs begin: the `Image` header, the first page table, the stacks.
#![expect(
    unsafe_code,
    reason = "the header and the entry have to be at places that the linker is told by name"
)]

use core::arch::global_asm;
use core::cell::UnsafeCell;

use aarch64_rt::{InitialPagetable, Stack, entry, initial_pagetable, start_core};
use guest_protocol::report::MAX_BARE_CPUS;
use smccc::psci::{self, AffinityState, LowestAffinityLevel};

use super::machine::{Conduit, Machine};
use super::{StartError, cpus, secondary};

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

unsafe extern "C" {
    static mut boot_stack_end: u64;
}

/// Where the first CPU's stack begins, from which it grows downwards.
pub fn first_stack() -> *mut u64 {
    &raw mut boot_stack_end
}

/// Pages of 4 KiB of a CPU's stack.
const STACK_PAGES: usize = 16;

/// The stacks of all CPUs but the first.
struct Stacks([UnsafeCell<Stack<STACK_PAGES>>; MAX_BARE_CPUS - 1]);

// SAFETY: `start_cpu` hands each stack to one CPU, which is off, and nothing else touches them.
unsafe impl Sync for Stacks {}

// SAFETY: the section is memory that nothing is loaded into, and a stack needs no initial contents.
#[unsafe(link_section = ".stack.secondary")]
static STACKS: Stacks = Stacks([const { UnsafeCell::new(Stack::new()) }; MAX_BARE_CPUS - 1]);

/// Turns a CPU on that is off, from the first CPU.
fn start_cpu(machine: &Machine, cpu: usize, affinity: u64) -> Result<(), psci::Error> {
    let stack = STACKS.0[cpu - 1].get();
    let begin = move || secondary(cpu);
    // SAFETY: the stack is this CPU's alone, which is off, is mapped by the table that all CPUs start
    // with, and lives as long as the program. The closure does not return.
    unsafe {
        match machine.conduit {
            Conduit::Hvc => start_core::<smccc::Hvc, _, STACK_PAGES>(affinity, stack, begin),
            Conduit::Smc => start_core::<smccc::Smc, _, STACK_PAGES>(affinity, stack, begin),
        }
    }
}

/// Turns on every CPU that is not, and waits for them.
///
/// # Errors
/// [`StartError::CpuOn`].
pub fn start_others(machine: &Machine) -> Result<(), StartError> {
    for (cpu, affinity) in machine.cpus.iter().enumerate().skip(1) {
        if state(machine, cpu) != Ok(AffinityState::On) {
            start_cpu(machine, cpu, *affinity).map_err(|error| StartError::CpuOn { cpu, error })?;
        }
    }
    cpus::await_all(machine.cpus.len());
    Ok(())
}

/// Whether a CPU is on.
///
/// # Errors
/// What PSCI says of a CPU that it does not know.
pub fn state(machine: &Machine, cpu: usize) -> Result<AffinityState, psci::Error> {
    let (affinity, level) = (machine.cpus[cpu], LowestAffinityLevel::All);
    match machine.conduit {
        Conduit::Hvc => psci::affinity_info::<smccc::Hvc>(affinity, level),
        Conduit::Smc => psci::affinity_info::<smccc::Smc>(affinity, level),
    }
}
