//! `pvtime run`: builds a machine, runs it to its end, and cleans up.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, poll};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::backend::SignalDelivery;
use signal_hook::iterator::exfiltrator::SignalOnly;

use crate::api;
use crate::boot::Boot;
use crate::cli::RunArgs;
use crate::console::{Destination, RawTerminal};
use crate::event::Event;
use crate::input::Input;
use crate::machine::{Machine, MachineConfig};
use crate::status::Status;
use crate::vcpu::{GuestStop, VcpuThreads};

/// Why a machine is stopped.
enum Stop {
    Guest(GuestStop),
    Signal(i32),
    Keys,
    Api,
}

/// Runs a VM to its end.
///
/// # Errors
///
/// Whatever the host refuses; files and sizes were checked before.
pub fn run(args: &RunArgs, mut boot: Boot) -> Result<ExitCode> {
    if args.console == Destination::Stdio && args.serial == Destination::Stdio {
        bail!("two ports cannot share stdio; give --console or --serial a file or off");
    }
    let mut signals = catch_signals()?;
    let mut machine = Machine::new(
        MachineConfig {
            memory_mib: args.memory,
            cpus: args.cpus,
            time: args.time,
            console: args.console.open()?,
            serial: args.serial.open()?,
        },
        &mut boot,
    )?;
    eprintln!(
        "pvtime: {} vCPU{}, {} MiB, stolen time: {}",
        args.cpus,
        if args.cpus == 1 { "" } else { "s" },
        args.memory,
        machine.time.stolen_time_provider()
    );
    let stop = Event::new()?;
    let server = args.api_socket.as_deref().map(|path| {
        let status = Status::new(&args.id, &machine.time, &stop)?;
        api::Server::start(path, status)
    });
    let server = server.transpose()?;

    let vcpus = machine.take_vcpus();
    let (terminal, mut input) = standard_input(args, &machine)?;
    let wake = Event::new()?;
    let threads = VcpuThreads::start(vcpus, &machine.time, &machine.bus, &wake)?;
    machine.time.start()?;
    let stop = wait(&mut signals, &threads, &wake, &stop, &mut input);
    drop((threads, terminal, server));
    finish(stop?)
}

/// Connects standard input to the port that asked for it.
fn standard_input<'a>(
    args: &RunArgs,
    machine: &'a Machine,
) -> Result<(Option<RawTerminal>, Option<Input<'a>>)> {
    let port = match (&args.console, &args.serial) {
        (Destination::Stdio, _) => &machine.console,
        (_, Destination::Stdio) => &machine.serial,
        _ => return Ok((None, None)),
    };
    let terminal = RawTerminal::enter().context("cannot put the terminal into raw mode")?;
    if terminal.is_some() {
        eprint!("pvtime: every key goes to the guest; Ctrl-A x stops it\r\n");
    }
    let input = Input::new(port, terminal.is_some());
    Ok((terminal, Some(input)))
}

/// Feeds the guest until something stops it.
fn wait(
    signals: &mut Signals,
    threads: &VcpuThreads,
    wake: &Event,
    stop: &Event,
    input: &mut Option<Input<'_>>,
) -> Result<Stop> {
    let stdin = io::stdin();
    loop {
        let (wants_bytes, drained) = match &input {
            Some(input) => (input.wants_bytes(), Some(&input.port().drained)),
            None => (false, None),
        };
        let mut fds = vec![
            PollFd::new(signals.get_read(), PollFlags::IN),
            PollFd::new(wake, PollFlags::IN),
            PollFd::new(stop, PollFlags::IN),
        ];
        fds.extend(drained.map(|drained| PollFd::new(drained, PollFlags::IN)));
        let stdin = stdin.as_fd();
        fds.extend(wants_bytes.then(|| PollFd::new(&stdin, PollFlags::IN)));
        match poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("cannot wait for events"),
        }
        let stdin_is_ready = wants_bytes && fds.last().is_some_and(|fd| !fd.revents().is_empty());

        if let Some(signal) = signals.pending().next() {
            return Ok(Stop::Signal(signal));
        }
        if let Some(stop) = threads.stopped() {
            return Ok(Stop::Guest(stop));
        }
        if stop.clear() {
            return Ok(Stop::Api);
        }
        if let Some(input) = input {
            if stdin_is_ready && input.read(stdin)?.is_break() {
                return Ok(Stop::Keys);
            }
            input.feed();
        }
    }
}

fn finish(stop: Stop) -> Result<ExitCode> {
    match stop {
        Stop::Guest(GuestStop::PowerOff) => {
            eprintln!("pvtime: the guest turned itself off");
            Ok(ExitCode::SUCCESS)
        }
        Stop::Guest(GuestStop::Reset) => {
            eprintln!("pvtime: the guest asked for a reset; start it again to go on");
            Ok(ExitCode::SUCCESS)
        }
        Stop::Guest(GuestStop::Failed(error)) => Err(error),
        Stop::Keys => {
            eprintln!("pvtime: stopped");
            Ok(ExitCode::SUCCESS)
        }
        Stop::Api => {
            eprintln!("pvtime: stopped through its control socket");
            Ok(ExitCode::SUCCESS)
        }
        Stop::Signal(signal) => {
            eprintln!("pvtime: stopped by signal {signal}");
            // As a shell reports a program that a signal ended.
            Ok(ExitCode::from(u8::try_from(128 + signal)?))
        }
    }
}

/// SIGINT and SIGTERM, as something to wait for.
type Signals = SignalDelivery<UnixStream, SignalOnly>;

fn catch_signals() -> Result<Signals> {
    let (read, write) = UnixStream::pair().context("cannot catch signals")?;
    SignalDelivery::with_pipe(read, write, SignalOnly, [SIGINT, SIGTERM])
        .context("cannot catch signals")
}
