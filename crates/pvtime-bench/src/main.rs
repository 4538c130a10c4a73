//! What a reading of pvtime's clocks and a publication of its structures cost, beside their peers
//! in the same run.

mod host;
mod machine;
mod measure;
mod reads;
mod report;

use anyhow::{Context as _, Result};
use clap::Parser;
use report::Report;
use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

/// Measures what pvtime's operations cost, beside their peers in the same run.
#[derive(Parser)]
struct Options {
    /// Also write the figures to this file, as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("pvtime-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<()> {
    eprintln!("measuring reads, publications and a fleet: a few seconds");
    let report = Report {
        machine: machine::describe(),
        reads: reads::measure()?,
        host: host::measure()?,
        fleet: host::fleet()?,
    };
    print!("{report}");
    if let Some(path) = &options.json {
        let json = serde_json::to_string_pretty(&report)?;
        fs::write(path, json + "\n")
            .with_context(|| format!("{} cannot be written", path.display()))?;
    }
    Ok(())
}
