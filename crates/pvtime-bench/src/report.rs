//! What was measured, as a table and as JSON.

use crate::measure::Cost;
use serde::Serialize;
use std::fmt;

/// Everything that one run measured.
#[derive(Debug, Serialize)]
pub struct Report {
    /// What it ran on.
    pub machine: Machine,
    /// Readings of clocks.
    pub reads: Vec<Read>,
    /// The host's operations.
    pub host: Vec<Operation>,
    /// A million vCPUs in one thread.
    pub fleet: Fleet,
}

/// What the figures hold for.
#[derive(Debug, Serialize)]
pub struct Machine {
    /// The processor's own name.
    pub processor: String,
    /// The kernel's release.
    pub kernel: String,
    /// What the kernel's clocks read.
    pub clocksource: String,
}

/// A reading of a clock.
#[derive(Debug, Serialize)]
pub struct Read {
    /// What was read.
    pub name: &'static str,
    /// Whether it waits for what the program did before.
    pub ordered: bool,
    /// Nanoseconds in the median batch.
    pub median_ns: f64,
    /// Nanoseconds in the batch that was disturbed least.
    pub least_ns: f64,
    /// Times the bare counter with the same ordering, least to least.
    pub to_counter: f64,
    /// Times `clock_gettime`, least to least.
    pub to_clock_gettime: f64,
}

/// Something that a host does.
#[derive(Debug, Serialize)]
pub struct Operation {
    /// What it does.
    pub name: &'static str,
    /// Nanoseconds in the median batch.
    pub median_ns: f64,
    /// Nanoseconds in the batch that was disturbed least.
    pub least_ns: f64,
}

impl Operation {
    /// An operation and its cost.
    pub fn new(
        name: &'static str,
        Cost {
            median_ns,
            least_ns,
        }: Cost,
    ) -> Self {
        Self {
            name,
            median_ns,
            least_ns,
        }
    }
}

/// The accounting of many vCPUs by one thread.
#[derive(Debug, Serialize)]
pub struct Fleet {
    /// How many.
    pub vcpus: usize,
    /// Seconds that one publication for each of them took.
    pub seconds: f64,
    /// Bytes of host state for each.
    pub bytes_per_vcpu: usize,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let machine = &self.machine;
        writeln!(
            f,
            "{}, Linux {}, clock source {}\n",
            machine.processor, machine.kernel, machine.clocksource
        )?;
        writeln!(
            f,
            "| read | ordered | median ns | least ns | to counter | to clock_gettime |"
        )?;
        writeln!(f, "|---|---|---|---|---|---|")?;
        for read in &self.reads {
            writeln!(
                f,
                "| {} | {} | {:.2} | {:.2} | {:.3} | {:.3} |",
                read.name,
                if read.ordered { "yes" } else { "no" },
                read.median_ns,
                read.least_ns,
                read.to_counter,
                read.to_clock_gettime
            )?;
        }
        writeln!(
            f,
            "\n| host operation | median ns | least ns |\n|---|---|---|"
        )?;
        for operation in &self.host {
            let Operation {
                name,
                median_ns,
                least_ns,
            } = operation;
            writeln!(f, "| {name} | {median_ns:.2} | {least_ns:.2} |")?;
        }
        let Fleet {
            vcpus,
            seconds,
            bytes_per_vcpu,
        } = self.fleet;
        writeln!(
            f,
            "\n{vcpus} vCPUs: {seconds:.3} s, {bytes_per_vcpu} bytes of host state each"
        )
    }
}
