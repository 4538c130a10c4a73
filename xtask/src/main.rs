//! One command for everything: set-up, tests, demo, lab, benchmarks. People and CI run the same.

mod checks;
mod process;
mod programs;
mod setup;
mod workspace;

use anyhow::Result;
use clap::{Parser, Subcommand};
use setup::Needs;
use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::process::ExitCode;
use workspace::Workspace;

/// One command for everything: set-up, tests, demo, lab, benchmarks.
#[derive(Parser)]
#[command(name = "cargo xtask", after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

const EXAMPLES: &str = "\
Examples:
  cargo xtask demo
  cargo xtask test
  cargo xtask test format clippy
  cargo xtask lab list
  cargo xtask lab run stolen-time
  PVTIME_LAB_KERNEL=/boot/vmlinuz-6.12-arm64 cargo xtask lab run boot

What is fetched and built lies under target/. A kernel or an emulator of your own is named with
PVTIME_LAB_KERNEL, PVTIME_LAB_GUEST_KERNEL and PVTIME_LAB_QEMU.";

/// Measures the core crate on this machine, and adds that to the page with the lab's figures.
fn add_reads(workspace: &Workspace) -> Result<ExitCode> {
    let mut bench = workspace.cargo(&["run", "--quiet", "--release", "--package=pvtime-bench"]);
    let figures = process::output(&mut bench)?;
    let page = workspace.root.join("docs/benchmarks-vmms.md");
    let mut file = OpenOptions::new().append(true).open(&page)?;
    writeln!(
        file,
        "\n## Reading clocks and publishing structures\n\n{}",
        figures.trim()
    )?;
    println!("{figures}");
    Ok(ExitCode::SUCCESS)
}

#[derive(Subcommand)]
enum Task {
    /// Installs and fetches what the other tasks need, and says what.
    Setup,
    /// Runs Linux guests under real KVM, and shows where their time went.
    Demo {
        /// Further options of `lab demo`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        options: Vec<OsString>,
    },
    /// Runs every check but the lab's scenarios that are run by name; with names, those checks only.
    Test {
        /// Checks by name, as a full run prints them.
        #[arg(value_name = "CHECK")]
        names: Vec<String>,
    },
    /// Runs the lab: `lab list`, `lab run NAME…`.
    #[command(disable_help_flag = true)]
    Lab {
        /// Arguments of the lab.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Measures against other VMMs, and writes docs/benchmarks-vmms.md.
    Bench {
        /// Further options of `lab bench`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        options: Vec<OsString>,
    },
}

fn main() -> ExitCode {
    match Workspace::find().and_then(|workspace| run(&workspace, Cli::parse().task)) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run(workspace: &Workspace, task: Task) -> Result<ExitCode> {
    match task {
        Task::Setup => {
            setup::prepare(workspace, Needs::Everything)?;
            println!("set-up is complete");
            Ok(ExitCode::SUCCESS)
        }
        Task::Test { names } => checks::run(workspace, &names),
        Task::Demo { options } => {
            let lab = programs::build_lab(workspace)?.with_hosts(workspace)?;
            Err(process::replace_by(lab.command().arg("demo").args(options)))
        }
        Task::Bench { options } => {
            let lab = programs::build_lab(workspace)?.with_hosts(workspace)?;
            let mut command = lab.command();
            command.env(setup::PEER, setup::prepare_peer(workspace)?);
            process::run(command.arg("bench").args(options))?;
            add_reads(workspace)
        }
        Task::Lab { arguments } => {
            let lab = programs::build_lab(workspace)?;
            // What only prints needs no kernel and no emulator.
            let needs_hosts = arguments.first().is_some_and(|it| it == "run");
            let lab = if needs_hosts {
                lab.with_hosts(workspace)?
            } else {
                lab
            };
            let mut command = lab.command();
            for name in arguments.iter().filter(|_| needs_hosts) {
                setup::equip(workspace, name.to_str().unwrap_or_default(), &mut command)?;
            }
            Err(process::replace_by(command.args(arguments)))
        }
    }
}
