//! Measures the code of a linked program.

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use object::{Object as _, ObjectSection as _, SectionKind};
use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

/// Prints the size of a program's code and data, and fails above a limit of code.
#[derive(Parser)]
struct Options {
    /// The program, built for aarch64-unknown-none.
    #[arg(value_name = "PROGRAM")]
    program: PathBuf,
    /// Most bytes of code that pass.
    #[arg(long, value_name = "BYTES", default_value_t = 16 * 1024)]
    limit: u64,
}

pub fn main() -> ExitCode {
    match measure(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("guest-size: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn measure(options: &Options) -> Result<()> {
    let name = options.program.display();
    let bytes = fs::read(&options.program).with_context(|| {
        format!("{name} cannot be read: build it for aarch64-unknown-none first")
    })?;
    let program = object::File::parse(&*bytes).with_context(|| format!("{name} is no program"))?;
    let size = |kinds: &[SectionKind]| -> u64 {
        program
            .sections()
            .filter(|s| kinds.contains(&s.kind()))
            .map(|s| s.size())
            .sum()
    };
    let code = size(&[SectionKind::Text]);
    let constants = size(&[SectionKind::ReadOnlyData, SectionKind::ReadOnlyString]);
    let variables = size(&[SectionKind::Data, SectionKind::UninitializedData]);
    println!(
        "code {code} bytes of {}, constants {constants}, variables {variables}",
        options.limit
    );
    ensure!(
        code > 0,
        "{name} has no code: it is not the program that uses the readers"
    );
    ensure!(
        code <= options.limit,
        "{name} has {code} bytes of code, more than {}",
        options.limit
    );
    Ok(())
}
