//! The command line.

use std::num::NonZero;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::builder::styling::Styles;
use clap::{Args, Parser, Subcommand, value_parser};

mod time;

pub use time::{LivePhysicalTimeArg, PolicyArg, StallArg, StolenTimeArg, SwitchArg, TimeArgs};

use crate::api::requests::DEFAULT_DOWNTIME_MS;
use crate::console::Destination;
use crate::layout::{END, MAX_VCPUS, RAM};
use crate::migration::address::Address;
use crate::migration::tls;

/// Runs virtual machines whose clocks are right.
#[derive(Debug, Parser)]
#[command(name = "pvtime", version, styles = Styles::plain(), arg_required_else_help = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What clap says over several lines, in one, with the way to the help of this program.
pub fn in_one_line(error: &clap::Error, program: &str) -> String {
    let text = error.to_string();
    let said = text.split("Usage:").next().unwrap_or_default();
    let said = said
        .split("For more information")
        .next()
        .unwrap_or_default();
    let words: Vec<&str> = said.split_whitespace().collect();
    let said = words.join(" ").replace(" tip: ", "; ");
    format!(
        "{}; see `{program} --help`",
        said.strip_prefix("error: ").unwrap_or(&said)
    )
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a VM until its guest turns it off
    Run(RunArgs),
    /// Let a VM go on that was saved
    Restore(RestoreArgs),
    /// Say what this machine can do with time, as a host and as a guest
    Probe(ProbeArgs),
    /// Ask a running VM, and tell it what to do
    Ctl(CtlArgs),
    /// Move a running VM to another host
    Migrate(MigrateArgs),
    /// Await a VM from another host, and run it
    Receive(ReceiveArgs),
}

const MIGRATE_EXAMPLES: &str = "\
Examples:
  pvtime migrate vm.sock tcp:other.example:7001 --dry-run \\
      --tls-cert this.pem --tls-key this.key --tls-ca ca.pem
  pvtime migrate vm.sock tcp:10.0.0.2:7001 --insecure --downtime 100 --bandwidth 200
  pvtime migrate vm.sock unix:/run/other.sock --json

The other host is asked before any memory moves: a VM that it cannot go on with stays and does not
notice. Ctrl-C calls the migration off, and the VM runs on here. docs/migration.md says what each
failure leaves.
Exit status: 0 when the VM was moved, or would be accepted; 1 when it was not, or would not.";

/// A VM and where it goes.
#[derive(Debug, Args)]
#[command(after_help = MIGRATE_EXAMPLES)]
pub struct MigrateArgs {
    /// What the VM's --api-socket was given
    #[arg(value_name = "SOCKET")]
    pub socket: PathBuf,

    /// Where `pvtime receive` waits: tcp:HOST:PORT or unix:PATH
    #[arg(value_name = "DESTINATION")]
    pub destination: Address,

    /// Ask whether the VM could go there, and no more
    #[arg(long)]
    pub dry_run: bool,

    /// Send no more than this while the guest runs
    #[arg(long, value_name = "MIB/S")]
    pub bandwidth: Option<NonZero<u32>>,

    /// Stop the guest when what is left would take so long, in ms
    #[arg(long, value_name = "MS", default_value_t = DEFAULT_DOWNTIME_MS)]
    pub downtime: u32,

    /// Let the guest go on here if it was stopped for so long and is not ready to run there, in ms; ten
    /// times the downtime by default, and 10000 at least
    #[arg(long, value_name = "MS")]
    pub stop_limit: Option<u32>,

    /// Print JSON
    #[arg(long)]
    pub json: bool,

    /// How the stream is kept from others.
    #[command(flatten)]
    pub security: SecurityArgs,
}

const RECEIVE_EXAMPLES: &str = "\
Examples:
  pvtime receive tcp:0.0.0.0:7001 --api-socket vm.sock \\
      --tls-cert this.pem --tls-key this.key --tls-ca ca.pem
  pvtime receive unix:/run/other.sock --console guest.log

The VM brings its name, its memory, its vCPUs and how its time is kept. Whoever asks for what this
host cannot do is told so, and the next is awaited.";

/// Where a VM is awaited.
#[derive(Debug, Args)]
#[command(after_help = RECEIVE_EXAMPLES)]
pub struct ReceiveArgs {
    /// Where to wait: tcp:HOST:PORT or unix:PATH
    #[arg(value_name = "ADDRESS")]
    pub address: Address,

    /// Where its console goes: stdio, off or a file
    #[arg(long, value_name = "DEST", default_value = "stdio")]
    pub console: Destination,

    /// Where its second serial port goes: stdio, off or a file; one port can have stdio
    #[arg(long, value_name = "DEST", default_value = "off")]
    pub serial: Destination,

    /// A Unix socket to make, for `pvtime ctl`; without it nobody can decide about a VM in doubt
    #[arg(long, value_name = "PATH")]
    pub api_socket: Option<PathBuf>,

    /// How the stream is kept from others.
    #[command(flatten)]
    pub security: SecurityArgs,
}

/// How a migration's stream is kept from others.
#[derive(Clone, Debug, Args)]
pub struct SecurityArgs {
    /// This host's certificate, and those between it and its authority, PEM; encrypts the stream
    #[arg(long, value_name = "FILE", requires_all = ["tls_key", "tls_ca"])]
    pub tls_cert: Option<PathBuf>,

    /// The key to it, PEM, which nobody else may read
    #[arg(long, value_name = "FILE", requires_all = ["tls_cert", "tls_ca"])]
    pub tls_key: Option<PathBuf>,

    /// Certificates of the authorities that may have signed the other host's, PEM
    #[arg(long, value_name = "FILE", requires_all = ["tls_cert", "tls_key"])]
    pub tls_ca: Option<PathBuf>,

    /// The name or IP address that the other host's certificate has to have; by default that of the
    /// destination's address for `migrate`, and any for `receive`
    #[arg(long, value_name = "NAME", requires = "tls_cert")]
    pub tls_name: Option<String>,

    /// Let the guest's memory cross the network in the clear, for everybody there to read and change
    #[arg(long, conflicts_with_all = ["tls_cert", "tls_key", "tls_ca", "tls_name"])]
    pub insecure: bool,
}

impl SecurityArgs {
    /// The files, if there are any, by paths that are right wherever they are read.
    ///
    /// # Errors
    ///
    /// For what is no path, or cannot be told to another process.
    pub fn tls(&self) -> Result<Option<tls::Files>> {
        let (Some(cert), Some(key), Some(ca)) = (&self.tls_cert, &self.tls_key, &self.tls_ca)
        else {
            return Ok(None);
        };
        Ok(Some(tls::Files {
            cert: absolute(cert)?,
            key: absolute(key)?,
            ca: absolute(ca)?,
            name: self.tls_name.clone(),
        }))
    }
}

/// A path from the root on, as it can stand in JSON.
///
/// # Errors
///
/// For what is no path, or not UTF-8.
pub fn absolute(path: &Path) -> Result<PathBuf> {
    let absolute =
        std::path::absolute(path).with_context(|| format!("{} is no path", path.display()))?;
    absolute
        .to_str()
        .with_context(|| format!("{} is not UTF-8; give another path", path.display()))?;
    Ok(absolute)
}

const RUN_EXAMPLES: &str = "\
Examples:
  pvtime run --kernel Image --initramfs initramfs.cpio --cmdline 'console=ttyS0'
  pvtime run --kernel Image --cpus 4 --memory 1024 --stolen-time on \\
      --cmdline 'console=ttyS0 root=…' --console guest.log --api-socket vm.sock

The guest is arm64 Linux. Its console is ttyS0; ttyS1 is a second port for programs in it.
At a terminal, Ctrl-A x stops the VM and Ctrl-A Ctrl-A types a Ctrl-A.
Exit status: 0 when the guest turned itself off or asked for a reset, 1 on an error, 128 and the
signal's number when SIGINT or SIGTERM stopped it.";

/// A VM.
#[derive(Debug, Args)]
#[command(after_help = RUN_EXAMPLES)]
pub struct RunArgs {
    /// The guest's kernel: an uncompressed arm64 Image
    #[arg(long, value_name = "FILE")]
    pub kernel: PathBuf,

    /// Its initial file system, compressed or not
    #[arg(long, value_name = "FILE")]
    pub initramfs: Option<PathBuf>,

    /// Its command line
    #[arg(
        long,
        value_name = "TEXT",
        default_value = "console=ttyS0",
        allow_hyphen_values = true
    )]
    pub cmdline: String,

    /// Its memory in MiB
    #[arg(long, value_name = "MIB", default_value_t = 256, allow_negative_numbers = true,
          value_parser = value_parser!(u64).range(1..=(END - RAM) >> 20))]
    pub memory: u64,

    /// Its vCPUs
    #[arg(long, value_name = "N", default_value_t = 1, allow_negative_numbers = true,
          value_parser = value_parser!(u64).range(1..=MAX_VCPUS))]
    pub cpus: u64,

    /// What a VM has however it begins.
    #[command(flatten)]
    pub vm: VmArgs,
}

/// What a VM has however it begins.
#[derive(Debug, Args)]
pub struct VmArgs {
    /// How its time is kept.
    #[command(flatten)]
    pub time: TimeArgs,

    /// Where its console goes: stdio, off or a file
    #[arg(long, value_name = "DEST", default_value = "stdio")]
    pub console: Destination,

    /// Where its second serial port goes: stdio, off or a file; one port can have stdio
    #[arg(long, value_name = "DEST", default_value = "off")]
    pub serial: Destination,

    /// Its name for `pvtime ctl`: letters, digits and hyphens
    #[arg(long, value_name = "NAME", default_value = "anonymous", value_parser = vm_name)]
    pub id: String,

    /// A Unix socket to make, for `pvtime ctl`
    #[arg(long, value_name = "PATH")]
    pub api_socket: Option<PathBuf>,
}

const RESTORE_EXAMPLES: &str = "\
Examples:
  pvtime ctl vm.sock snapshot before-upgrade
  pvtime restore before-upgrade --api-socket second.sock
  pvtime restore before-upgrade --on-restore advance --stolen-time on
  pvtime restore before-upgrade --paused --api-socket second.sock

The guest goes on where it was saved: freeze, its counters show no time; advance, they show what
passed by the two hosts' wall clocks. One that had suspended itself sleeps on until `pvtime ctl SOCKET
resume` or finish-sleep, and its counters show what passed. A snapshot can be restored as often as one
likes, on any host whose counter has the same frequency, or on any at all if its guest uses live
physical time. What does not verify is refused before a vCPU exists.";

/// A VM out of a snapshot.
#[derive(Debug, Args)]
#[command(after_help = RESTORE_EXAMPLES)]
pub struct RestoreArgs {
    /// What `pvtime ctl SOCKET snapshot` was given
    #[arg(value_name = "DIR")]
    pub snapshot: PathBuf,

    /// Leave it paused until `pvtime ctl SOCKET resume`, so that its threads can be placed before
    #[arg(long, requires = "api_socket")]
    pub paused: bool,

    /// What a VM has however it begins.
    #[command(flatten)]
    pub vm: VmArgs,
}

/// A name as Firecracker takes it.
///
/// # Errors
///
/// For any other, with what it has to be.
pub fn vm_name(text: &str) -> Result<String, String> {
    let fits = (1..=64).contains(&text.len());
    if fits
        && text
            .chars()
            .all(|it| it.is_ascii_alphanumeric() || it == '-')
    {
        Ok(text.into())
    } else {
        Err("a name is 1 to 64 letters, digits and hyphens".into())
    }
}

const PROBE_EXAMPLES: &str = "\
Examples:
  pvtime probe
  pvtime probe --json | jq '.host.capabilities[] | select(.support == \"no\")'

Run it on a host to see what its KVM offers, and in a guest to see what reached it.";

/// What to print of a probe.
#[derive(Debug, Args)]
#[command(after_help = PROBE_EXAMPLES)]
pub struct ProbeArgs {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

const CTL_EXAMPLES: &str = "\
Examples:
  pvtime ctl vm.sock status
  pvtime ctl vm.sock pause && sleep 3 && pvtime ctl vm.sock resume
  pvtime ctl vm.sock ledger
  pvtime ctl vm.sock ledger --json | jq '.vcpus[] | {index, stolen_ns}'
  pvtime ctl vm.sock events --follow
  pvtime ctl vm.sock events --json --after 10 | jq 'select(.event == \"resume\") | .gap.ns'
  pvtime ctl vm.sock figure vcpu1.svg --vcpu 1
  pvtime ctl vm.sock stop

SOCKET speaks HTTP and JSON; docs/api.md has what each of these asks for.
Exit status: 0 when the VM did or said what was asked, 1 when it did not, 2 for a command line that
is not understood.";

/// A question or an order to a VM.
#[derive(Debug, Args)]
#[command(after_help = CTL_EXAMPLES)]
pub struct CtlArgs {
    /// What the VM's --api-socket was given
    #[arg(value_name = "SOCKET")]
    pub socket: PathBuf,
    /// What is asked.
    #[command(subcommand)]
    pub command: CtlCommand,
}

/// What a VM can be asked and told.
#[derive(Debug, Subcommand)]
pub enum CtlCommand {
    /// Its state, its clocks, and what the host counted for each vCPU
    Status {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Where each vCPU's physical time went: run, idle, stolen, paused by cause, and the rest
    Ledger {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// What was done to its time: every start, pause and resumption, by how much, with what error
    Events {
        /// Leave out the records up to this number
        #[arg(
            long,
            value_name = "N",
            default_value_t = 0,
            allow_negative_numbers = true
        )]
        after: u64,
        /// Go on with those to come, until the VM ends or Ctrl-C is pressed
        #[arg(long)]
        follow: bool,
        /// Print JSON, one record a line
        #[arg(long)]
        json: bool,
    },
    /// Stop its vCPUs; what its counters do meanwhile is for its --on-pause to say
    Pause {
        /// Print what was done as JSON, one record a line
        #[arg(long)]
        json: bool,
    },
    /// Let them go on
    Resume {
        /// Of a VM in doubt, after making sure that the other host does not run it
        #[arg(long)]
        take_over: bool,
        /// Print what was done as JSON, one record a line
        #[arg(long)]
        json: bool,
    },
    /// Stop its vCPUs because the host is about to sleep; --on-suspend says what its counters do
    PrepareSleep {
        /// Print what was done as JSON, one record a line
        #[arg(long)]
        json: bool,
    },
    /// Let them go on after the host's sleep; a VM that was paused for another reason stays so
    FinishSleep {
        /// Print what was done as JSON, one record a line
        #[arg(long)]
        json: bool,
    },
    /// Save it into a new folder
    Snapshot {
        /// The folder to make
        #[arg(value_name = "DIR")]
        folder: PathBuf,
        /// Print what came of it as one line of JSON, and no progress
        #[arg(long)]
        json: bool,
    },
    /// Draw physical, live physical and virtual time of one of its vCPUs, over its life so far
    Figure {
        /// The SVG file to write
        #[arg(value_name = "FILE.svg")]
        file: PathBuf,
        /// The vCPU
        #[arg(
            long,
            value_name = "N",
            default_value_t = 0,
            allow_negative_numbers = true
        )]
        vcpu: usize,
    },
    /// End it, as SIGTERM does; its guest is not asked
    Stop,
}
