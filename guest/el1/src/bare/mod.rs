//! What runs without an operating system.

mod conduit;
mod cpus;
mod events;
mod failure;
mod gic;
mod interfaces;
mod machine;
mod memory;
mod paused;
mod port;
mod registers;
mod service;
mod spinning;
mod start;
mod suspend;
mod tests;
mod timers;
mod vectors;
mod window;
mod work;

use crate::cmdline::{OptionError, Options};
use machine::{Machine, MachineError};

/// What the machine lacks, or what it was told that it cannot do.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The device tree.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// The command line.
    #[error(transparent)]
    Options(#[from] OptionError),
    /// The interrupt controller.
    #[error("the interrupt controller refused: {0}")]
    Gic(#[from] arm_gic::gicv3::GicError),
    /// A CPU did not start.
    #[error("PSCI CPU_ON of CPU {cpu} was refused: {error}")]
    CpuOn {
        /// Number of the CPU.
        cpu: usize,
        /// What PSCI said.
        error: smccc::psci::Error,
    },
}

/// The first CPU, with the address of the device tree, on a stack with the MMU on.
fn main(device_tree: u64, _: u64, _: u64, _: u64) -> ! {
    cpu_reach_memory(0);
    let failed = match set_up(device_tree) {
        Ok(()) => work::run(0),
        Err(error) => error,
    };
    failure::stop(format_args!("{failed}"))
}

/// Everything that is done once, before the first report.
fn set_up(device_tree: u64) -> Result<(), StartError> {
    let tree = machine::tree(device_tree)?;
    // The port first: what is wrong with the rest can then be reported.
    let place = machine::port(&tree)?;
    port::open(&place);
    let machine = Machine::parse(&tree, device_tree, place)?;
    let options = Options::parse(&machine.command_line)?;
    memory::set_end(machine.memory_end);
    gic::set_up(&machine)?;
    let machine = machine::keep(machine);
    for (cpu, workload) in options
        .workloads
        .iter()
        .enumerate()
        .take(machine.cpus.len())
    {
        cpus::set_workload(cpu, *workload);
    }
    interfaces::find(machine);
    cpu_set_up(0);
    paused::find(machine);
    start::start_others(machine)?;
    service::introduce();
    Ok(())
}

/// A CPU that was turned on.
fn cpu_begin(cpu: usize) {
    cpu_reach_memory(cpu);
    cpu_set_up(cpu);
}

/// The first that a CPU does: from then on it can fault.
fn cpu_reach_memory(cpu: usize) {
    registers::set_cpu(cpu);
    vectors::install();
    window::enable();
}

/// What each CPU does for itself.
fn cpu_set_up(cpu: usize) {
    gic::set_up_cpu(cpu);
    interfaces::find_own(cpu);
    events::forget(cpu);
    timers::put_back(cpu);
    cpus::arrive();
    registers::enable_interrupts();
}

/// Every CPU but the first.
fn secondary(cpu: usize) -> ! {
    cpu_begin(cpu);
    work::run(cpu)
}
