//! The `pvtime` command.

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use pvtime_vmm::boot::Boot;
use pvtime_vmm::cli::{Cli, Command};
use pvtime_vmm::{ctl, probe, run};

fn main() -> ExitCode {
    match command(Cli::parse().command) {
        Ok(status) => status,
        Err(error) => {
            eprintln!("pvtime: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn command(command: Command) -> Result<ExitCode> {
    match command {
        Command::Run(args) => {
            let initramfs = args.initramfs.as_deref();
            let boot = Boot::new(&args.kernel, initramfs, &args.cmdline, args.memory)?;
            run::run(&args, boot)
        }
        Command::Probe(args) => probe::probe(args.json),
        Command::Ctl(args) => ctl::ctl(&args),
    }
}
