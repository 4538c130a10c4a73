//! Compares what this project writes down of Linux's interfaces with the headers of a kernel.
//!
//! It reads the headers itself, because the project builds where there is no C compiler: macros
//! are expanded and structures laid out by the rules of the 64-bit ABIs, which for members of
//! natural alignment are those of every compiler.

mod checks;
mod expression;
mod headers;
mod macros;
mod structures;
mod tokens;

use anyhow::{Result, bail};
use clap::Parser;
use headers::Headers;
use std::path::PathBuf;
use std::process::ExitCode;

/// Compares pvtime's structures and constants with the headers of a Linux kernel.
#[derive(Parser)]
struct Options {
    /// An unpacked package linux-headers-VERSION-common of Linux 6.13 or later, or a source tree.
    #[arg(long, value_name = "DIR")]
    headers: PathBuf,
}

fn main() -> ExitCode {
    match compare(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("header-check: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn compare(options: &Options) -> Result<()> {
    let checks = checks::run(&Headers::read(&options.headers)?);
    let mut differing = 0;
    for check in &checks {
        differing += usize::from(!check.differences.is_empty());
        for difference in &check.differences {
            println!("{}: {difference}", check.name);
        }
    }
    if differing > 0 {
        bail!(
            "{differing} of {} structures and constants differ from the headers",
            checks.len()
        );
    }
    println!(
        "{} structures and constants agree with the headers",
        checks.len()
    );
    Ok(())
}
