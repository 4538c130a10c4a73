//! `pvtime run`, `pvtime restore` and `pvtime receive`: build a machine, run it to its end, and clean up.

use std::io::{self, IsTerminal};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use pvtime::host::Cause;
use pvtime_kvm::{LIVE_PHYSICAL_TIME_LIMITS, SavedTime};
use rustix::event::{PollFd, PollFlags, poll};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::backend::SignalDelivery;
use signal_hook::iterator::exfiltrator::SignalOnly;

use crate::api::Server;
use crate::attendance::Attendance;
use crate::boot::Boot;
use crate::cli::{ReceiveArgs, RestoreArgs, RunArgs, VmArgs};
use crate::console::{Destination, RawTerminal};
use crate::event::Event;
use crate::input::Input;
use crate::machine::{Machine, MachineConfig};
use crate::migration::ownership::Owner;
use crate::receive;
use crate::snapshot::{Facts, Progress, Snapshot};
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
    let signals = catch_signals()?;
    let config = machine_config(&args.vm, args.memory, args.cpus, None)?;
    let machine = Machine::new(config, &mut boot)?;
    let control = control_socket(args.vm.api_socket.as_deref())?;
    let attendance = Attendance::start(control, &machine.time)?;
    drive(&args.vm, machine, attendance, signals, |machine| {
        Ok(machine.time.start()?)
    })
}

/// Lets a saved VM go on, to its end. A guest that has suspended itself sleeps on.
///
/// # Errors
///
/// What of the memory does not verify, and whatever the host refuses.
pub fn restore(args: &RestoreArgs, snapshot: Snapshot) -> Result<ExitCode> {
    let signals = catch_signals()?;
    let Facts {
        memory_bytes,
        vcpus,
        ..
    } = *snapshot.facts();
    let time = snapshot.time()?;
    let config = machine_config(
        &args.vm,
        memory_bytes >> 20,
        u64::try_from(vcpus)?,
        Some(&time),
    )?;
    config.check_saved(&time)?;
    if time.is_guest_suspended() && args.vm.api_socket.is_none() {
        bail!(
            "the guest of this snapshot has suspended itself, and nobody could wake it; give \
             --api-socket PATH, and then `pvtime ctl PATH resume`"
        );
    }
    let (machine, time) = Machine::restore(config, snapshot, &mut progress("loading"))?;
    let control = control_socket(args.vm.api_socket.as_deref())?;
    let attendance = Attendance::start(control, &machine.time)?;
    drive(&args.vm, machine, attendance, signals, |machine| {
        let begun = Instant::now();
        machine.time.restore(&time, Cause::Snapshot)?;
        if !args.paused && !machine.time.is_guest_suspended() {
            machine.resume()?;
        }
        let took_us = begun.elapsed().as_micros();
        eprintln!("pvtime: restored the time of {vcpus} vCPUs in {took_us} us");
        Ok(())
    })
}

/// Awaits a VM from another host and lets it go on, to its end.
///
/// # Errors
///
/// Where nothing can be awaited, and what is wrong with a VM that arrived whole.
pub fn receive(args: &ReceiveArgs) -> Result<ExitCode> {
    let mut signals = catch_signals()?;
    let Some(arrival) = receive::await_vm(args, signals.get_read())? else {
        return finish(Stop::Signal(signals.pending().next().unwrap_or(SIGTERM)));
    };
    let (args, machine, attendance, takeover) = arrival.begin();
    drive(&args, machine, attendance, signals, |machine| {
        takeover.take(machine)
    })
}

/// Makes the control socket, if there is to be one.
///
/// # Errors
///
/// Where the path is taken or cannot be made.
pub fn control_socket(path: Option<&Path>) -> Result<Option<Arc<Server>>> {
    Ok(path.map(Server::start).transpose()?.map(Arc::new))
}

/// What a machine with these options is made of.
///
/// # Errors
///
/// Where a port has nowhere to go.
pub fn machine_config(
    args: &VmArgs,
    memory_mib: u64,
    cpus: u64,
    saved: Option<&SavedTime>,
) -> Result<MachineConfig> {
    if args.console == Destination::Stdio && args.serial == Destination::Stdio {
        bail!("two ports cannot share stdio; give --console or --serial a file or off");
    }
    Ok(MachineConfig {
        memory_mib,
        cpus,
        time: args.time,
        live_physical_time: args.time.live_physical_time(saved),
        paused_time: args.time.paused_time(saved),
        console: args.console.open()?,
        serial: args.serial.open()?,
    })
}

/// Gives a machine threads, lets its time `begin`, and serves it until something stops it.
fn drive(
    args: &VmArgs,
    mut machine: Machine,
    attendance: Attendance,
    mut signals: Signals,
    begin: impl FnOnce(&Machine) -> Result<()>,
) -> Result<ExitCode> {
    let vcpus = machine.take_vcpus();
    let cpus = vcpus.len();
    let machine = Arc::new(machine);
    let (signs, server) = attendance.attend(&args.id, &machine);
    let wake = Event::new()?;
    let threads = VcpuThreads::start(vcpus, &machine, &wake)?;
    let suspends = machine.serve_suspends()?;
    begin(&machine)?;
    signs.has_begun.store(true, Ordering::Release);
    announce(cpus, &machine);
    let (terminal, mut input) = standard_input(args, &machine);
    let stop = wait(&mut signals, &threads, &wake, &signs.stop, &mut input);
    // A migration that is under way ends before the machine does.
    signs.cancel.raise();
    drop((suspends, threads, terminal, server));
    if let Owner::Gone { to } = machine.ownership.owner() {
        eprintln!("pvtime: the VM is at {to} now");
        return Ok(ExitCode::SUCCESS);
    }
    finish(stop?)
}

/// Says what was started.
fn announce(cpus: usize, machine: &Machine) {
    let (plural, time) = (if cpus == 1 { "" } else { "s" }, &machine.time);
    let live = time.live_physical_time();
    let of_live = live.map(|live| format!(", live physical time: {} Hz", live.frequency_hz));
    let of_pauses = time.paused_time().map(|_| ", paused time: on");
    eprintln!(
        "pvtime: {cpus} vCPU{plural}, {} MiB, stolen time: {}{}{}",
        machine.memory_mib(),
        time.stolen_time_provider(),
        of_live.unwrap_or_default(),
        of_pauses.unwrap_or_default()
    );
    if live.is_some() {
        eprintln!("pvtime: live physical time: {LIVE_PHYSICAL_TIME_LIMITS}");
    }
    if time.is_guest_suspended() {
        eprintln!("pvtime: its guest has suspended itself; `pvtime ctl SOCKET resume` wakes it");
    }
    if let Some(limits) = time.counter_limits() {
        eprintln!("pvtime: {limits}");
    }
}

/// Shows how far saving or loading memory is, on a terminal.
pub fn progress(doing: &'static str) -> impl FnMut(Progress) {
    let mut shown = None;
    move |Progress {
              done_bytes,
              total_bytes,
          }| {
        let percent = done_bytes
            .saturating_mul(100)
            .checked_div(total_bytes)
            .unwrap_or(100);
        if io::stderr().is_terminal() && shown.replace(percent) != Some(percent) {
            let end = if percent == 100 { "\r\n" } else { "" };
            eprint!("\rpvtime: {doing} memory: {percent} %{end}");
        }
    }
}

/// Connects standard input to the port that asked for it.
fn standard_input<'a>(
    args: &VmArgs,
    machine: &'a Machine,
) -> (Option<RawTerminal>, Option<Input<'a>>) {
    let port = match (&args.console, &args.serial) {
        (Destination::Stdio, _) => &machine.console,
        (_, Destination::Stdio) => &machine.serial,
        _ => return (None, None),
    };
    let terminal = match RawTerminal::enter() {
        Ok(terminal) => terminal,
        Err(error) => {
            // The machine may be the only one of its VM by now.
            eprintln!(
                "pvtime: the guest gets no input, since the terminal does not go into raw mode: \
                 {error}"
            );
            return (None, None);
        }
    };
    if terminal.is_some() {
        eprint!("pvtime: every key goes to the guest; Ctrl-A x stops it\r\n");
    }
    let input = Input::new(port, terminal.is_some());
    (terminal, Some(input))
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
