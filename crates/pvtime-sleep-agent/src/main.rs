//! `pvtime-sleep-agent`: tells the VMs of a host of its sleeps, as logind announces them.
//!
//! logind delays a sleep for whoever holds an inhibitor of the kind `delay`, for a few seconds at most,
//! says `PrepareForSleep(true)`, and `PrepareForSleep(false)` after the sleep. One process does that
//! for all VMs, so that no VMM needs a way to the system's bus.

mod logind;
mod vms;

use std::convert::Infallible;
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread::sleep;
use std::time::Duration;

use anyhow::Result;
use clap::Parser;
use pvtime_vmm::cli;
use pvtime_vmm::failure::{self, LastSaid};
use zbus::blocking::{Connection, connection};

use vms::Vms;

/// As it calls itself.
const NAME: &str = "pvtime-sleep-agent";

/// From one try to reach logind to the next.
const RETRY: Duration = Duration::from_secs(2);

/// How long logind may take for an answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// How often it is looked whether logind still knows of the lock or of the sleep.
const LOOK_EVERY: Duration = Duration::from_millis(500);

const EXAMPLES: &str = "\
Examples:
  pvtime-sleep-agent
  pvtime-sleep-agent --sockets /run/user/1000/vms

It delays each sleep until every VM is ready, as long as logind waits: InhibitDelayMaxSec of
logind.conf, 5 s by default. While there is no logind it tries again every 2 s. It runs until it is
killed; contrib/systemd has a unit for it, and a hook that does the same without D-Bus.";

/// Tells this host's pvtime VMs of its sleeps, as systemd's logind announces them.
#[derive(Debug, Parser)]
#[command(name = NAME, version, after_help = EXAMPLES)]
struct Cli {
    /// The folder with the VMs' --api-sockets: every *.sock in it when the host is about to sleep
    #[arg(long, value_name = "DIR", default_value = "/run/pvtime")]
    sockets: PathBuf,
}

/// Those who are told of sleeps.
trait Sleepers {
    /// The host is about to sleep, and waits for that long, or until it does not sleep any more.
    fn prepare(&self, limit: Duration, is_over: &dyn Fn() -> bool);
    /// It slept, or does not after all.
    fn finish(&self);
}

fn main() -> ExitCode {
    match Cli::try_parse() {
        Ok(cli) => serve_for_ever(&Vms::new(&cli.sockets)),
        Err(error) if error.use_stderr() => {
            say(&cli::in_one_line(&error, NAME));
            ExitCode::from(2)
        }
        // Help and the version.
        Err(text) => text.exit(),
    }
}

/// Serves until it is killed: what is missing now may be there later.
fn serve_for_ever(vms: &Vms) -> ! {
    let mut said = LastSaid::default();
    loop {
        let error = match connection::Builder::system().and_then(|bus| connect(bus, ANSWER_LIMIT)) {
            Ok(connection) => serve(connection, vms, &mut said),
            Err(error) => anyhow::Error::from(error).context("cannot reach the system's D-Bus"),
        };
        let error = failure::in_one_line(&error);
        let text = format!(
            "{error}; trying again every {} s. Without logind, announce sleeps with the hook \
             pvtime-sleep or `pvtime ctl SOCKET prepare-sleep`",
            RETRY.as_secs()
        );
        say_news(&mut said, text);
        sleep(RETRY);
    }
}

/// A connection on which nothing is waited for without a limit, but announcements.
fn connect(builder: connection::Builder<'_>, answer_limit: Duration) -> zbus::Result<Connection> {
    builder.method_timeout(answer_limit).build()
}

/// Serves until logind or the bus is lost, and says why.
fn serve(connection: Connection, vms: &Vms, said: &mut LastSaid) -> anyhow::Error {
    let begun = |limit: Duration| {
        let limit_s = limit.as_secs_f64();
        let mut text = format!(
            "logind waits {limit_s:.1} s before each sleep for the VMs in {}",
            vms.folder().display()
        );
        if !vms.folder().is_dir() {
            text += ", which is no folder yet; --sockets names another";
        }
        say_news(said, text);
    };
    let Err(error): Result<Infallible, _> = logind::follow(&connection, vms, LOOK_EVERY, begun);
    // Whoever waits for the connection's end has seen it by then.
    let _ = connection.close();
    anyhow::Error::from(error).context("logind does not announce sleeps")
}

/// Says what was not the last thing said.
fn say_news(said: &mut LastSaid, text: String) {
    if let Some(text) = said.news(text) {
        say(text);
    }
}

/// Says a line on standard error.
fn say(text: &str) {
    eprintln!("{NAME}: {text}");
}
