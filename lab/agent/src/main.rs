//! The program that runs commands on a lab host.
//!
//! As process 1 of an emulated host it mounts what a system needs, takes its requests from a
//! virtio-serial port, and powers the machine off at the end. Otherwise its standard input is a
//! socket to the lab. Either way the end of the channel ends everything that it started.
//!
//! With [`WITHHOLD_ATTRIBUTES`] or [`WITHHOLD_COUNTER_OFFSET`] it becomes another program instead, with
//! [`RELAY`] it relays one connection, with [`TALK`] it talks to a socket.

mod children;
mod clocks;
mod files;
mod init;
mod network;
mod processes;
mod register;
mod service;
mod stop;
mod talk;
mod withhold;

use anyhow::{Context, Result, bail};
use lab_agent::relay::{self, RELAY};
use lab_agent::{TALK, WITHHOLD_ATTRIBUTES, WITHHOLD_COUNTER_OFFSET};
use rustix::process::{Signal, getpid, set_parent_process_death_signal};
use service::Service;
use std::fs::File;
use std::os::fd::AsFd;
use std::process::ExitCode;

fn main() -> ExitCode {
    let is_init = getpid().is_init();
    let ended = if is_init { as_init() } else { as_child() };
    if let Err(error) = &ended {
        eprintln!("lab-agent: {error:#}");
    }
    if is_init {
        init::power_off();
    }
    ExitCode::from(u8::from(ended.is_err()))
}

fn as_init() -> Result<()> {
    init::mount()?;
    let port = init::open_port()?;
    Service::new().serve(port)
}

fn as_child() -> Result<()> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    match &arguments[..] {
        [] => {}
        [first, argv @ ..] if first == WITHHOLD_ATTRIBUTES => {
            match withhold::from(argv, &withhold::ATTRIBUTES)? {}
        }
        [first, argv @ ..] if first == WITHHOLD_COUNTER_OFFSET => {
            match withhold::from(argv, &withhold::COUNTER_OFFSET)? {}
        }
        [first, path] if first == TALK => return talk::with(path),
        [first, order] if first == RELAY => {
            let order = serde_json::from_str(order).context("cannot understand the order")?;
            println!("{}", serde_json::to_string(&relay::run(&order)?)?);
            return Ok(());
        }
        _ => bail!("there are no arguments {arguments:?}; the lab starts this program"),
    }
    set_parent_process_death_signal(Some(Signal::TERM)).context("cannot follow the lab's end")?;
    let socket = std::io::stdin()
        .as_fd()
        .try_clone_to_owned()
        .context("no standard input")?;
    Service::new().serve(File::from(socket))
}
