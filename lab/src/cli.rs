//! Options of the lab.

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand, ValueEnum};
use lab::assets::Assets;
use lab::machine::Place;
use std::path::PathBuf;

/// Disrupts a virtual machine's time on real KVM and measures what its guest saw.
#[derive(Parser)]
#[command(name = "lab", version, after_help = EXAMPLES)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

const EXAMPLES: &str = "\
Examples:
  cargo xtask demo
  cargo xtask lab list
  cargo xtask lab run boot stolen-time
  cargo xtask lab run --json stolen-time > report.json
  PVTIME_LAB_KERNEL=/boot/vmlinuz-6.12-arm64 cargo xtask lab run boot

Exit status: 0 if every check passed, 1 if one failed or a scenario did not run to its end,
2 if nothing could be run.";

#[derive(Subcommand)]
pub enum Command {
    /// Names every scenario.
    List(Output),
    /// Shows where the time of three Linux guests went, by three accounts; takes about a minute.
    Demo {
        #[command(flatten)]
        machines: Machines,
        #[command(flatten)]
        output: Output,
    },
    /// Measures `pvtime run` beside QEMU on one host; takes some minutes.
    Bench {
        #[command(flatten)]
        machines: Machines,
        /// Where the page goes.
        #[arg(long, value_name = "FILE", default_value = "docs/benchmarks-vmms.md")]
        page: PathBuf,
        #[command(flatten)]
        output: Output,
    },
    /// Runs scenarios, one after the other.
    Run {
        /// Their names, as `lab list` prints them.
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
        #[command(flatten)]
        machines: Machines,
        #[command(flatten)]
        output: Output,
    },
}

#[derive(Args)]
pub struct Output {
    /// Prints JSON on standard output.
    #[arg(long)]
    pub json: bool,
}

/// What hosts and guests are made of.
#[derive(Args)]
pub struct Machines {
    /// The hosts' kernel, an uncompressed arm64 Image.
    #[arg(long, env = "PVTIME_LAB_KERNEL", value_name = "IMAGE")]
    kernel: Option<PathBuf>,
    /// The guests' kernel; the hosts' if it is not given.
    #[arg(long, env = "PVTIME_LAB_GUEST_KERNEL", value_name = "IMAGE")]
    guest_kernel: Option<PathBuf>,
    /// The kernel of Debian guests, with drivers for keys, as a package has it beside its modules.
    #[arg(long, env = "PVTIME_LAB_KEY_KERNEL", value_name = "IMAGE")]
    key_kernel: Option<PathBuf>,
    /// Folder with the unpacked arm64 packages of Debian guests.
    #[arg(long, env = "PVTIME_LAB_USERLAND", value_name = "FOLDER")]
    userland: Option<PathBuf>,
    /// Folder of the static arm64 programs.
    #[arg(
        long,
        env = "PVTIME_LAB_PROGRAMS",
        value_name = "FOLDER",
        default_value = "target/aarch64-unknown-linux-musl/lab"
    )]
    programs: PathBuf,
    /// The emulator.
    #[arg(
        long,
        env = "PVTIME_LAB_QEMU",
        value_name = "PROGRAM",
        default_value = "qemu-system-aarch64"
    )]
    qemu: PathBuf,
    /// Another for hosts with `FEAT_ECV`, where that one has none: QEMU 9 or later.
    #[arg(long, env = "PVTIME_LAB_QEMU_ECV", value_name = "PROGRAM")]
    qemu_ecv: Option<PathBuf>,
    /// Folder with an arm64 QEMU and its libraries, to measure beside.
    #[arg(long, env = "PVTIME_LAB_PEER", value_name = "FOLDER")]
    peer: Option<PathBuf>,
    /// Where hosts live.
    #[arg(long, env = "PVTIME_LAB_HOST", value_enum, default_value_t = Hosts::Auto)]
    host: Hosts,
    /// Folder for logs and reports.
    #[arg(
        long,
        env = "PVTIME_LAB_LOGS",
        value_name = "FOLDER",
        default_value = "target/lab"
    )]
    pub logs: PathBuf,
}

#[derive(Clone, Copy, ValueEnum)]
enum Hosts {
    /// This machine if it is arm64 Linux with /dev/kvm, else QEMU.
    Auto,
    /// Emulated by QEMU.
    Qemu,
    /// This machine.
    Local,
}

impl Machines {
    pub fn assets(&self) -> Result<Assets> {
        let kernel = self.kernel.as_ref().context(
            "no kernel for the hosts: run `cargo xtask lab`, which fetches one, or name an arm64 \
             Image with --kernel or PVTIME_LAB_KERNEL",
        )?;
        let assets = Assets {
            host_kernel: kernel.clone(),
            guest_kernel: self.guest_kernel.as_ref().unwrap_or(kernel).clone(),
            key_kernel: self.key_kernel.clone(),
            userland: self.userland.clone(),
            programs: self.programs.clone(),
            qemu: self.qemu.clone(),
            qemu_ecv: self.qemu_ecv.clone(),
            peer: self.peer.clone(),
            place: match self.host {
                Hosts::Auto => Place::detect(),
                Hosts::Qemu => Place::Emulated,
                Hosts::Local => Place::Local,
            },
        };
        assets.check()?;
        Ok(assets)
    }
}
