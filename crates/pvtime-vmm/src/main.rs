//! The `pvtime` command.

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use clap::error::ErrorKind;
use pvtime_vmm::boot::Boot;
use pvtime_vmm::cli::{self, Cli, Command};
use pvtime_vmm::{ctl, failure, migrate, probe, run, snapshot};

const HELP_FOR_NO_ARGUMENTS: ErrorKind = ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) if error.use_stderr() && error.kind() != HELP_FOR_NO_ARGUMENTS => {
            eprintln!("pvtime: {}", cli::in_one_line(&error, "pvtime"));
            return ExitCode::from(2);
        }
        // Help and the version.
        Err(text) => text.exit(),
    };
    match command(cli.command) {
        Ok(status) => status,
        Err(error) => {
            eprintln!("pvtime: {}", failure::in_one_line(&error));
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
        Command::Restore(args) => {
            let snapshot = snapshot::open(&args.snapshot)?;
            run::restore(&args, snapshot)
        }
        Command::Probe(args) => probe::probe(args.json),
        Command::Ctl(args) => ctl::ctl(&args),
        Command::Migrate(args) => migrate::migrate(&args),
        Command::Receive(args) => run::receive(&args),
    }
}
