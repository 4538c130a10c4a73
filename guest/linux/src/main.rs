//! The init program of a Linux test guest.
//!
//! As process 1 of an initramfs it keeps the CPUs at work as its options say, samples the guest's
//! clocks and stolen time, and reports them to whoever runs the guest, in the messages of
//! `guest-protocol` over a serial port. `docs/guests.md` is its manual.
//!
//! It never exits: process 1 that dies takes the kernel with it, in a panic that hides the cause.
//! What cannot be mended is reported, and the machine is powered off.

mod clocks;
mod counter;
mod cpus;
mod guest;
mod kexec;
mod machine;
mod memory;
mod options;
mod pauses;
mod port;
mod proc_stat;
mod schedule;
mod sleeping;
mod spin;
mod work;

use std::panic;
use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use guest_protocol::report::{Bye, ByeReason, ErrorKind};
use guest_protocol::{Body, LineBuffer, Report};

use crate::guest::{Guest, Next};
use crate::options::Options;
use crate::port::Port;

fn main() -> ExitCode {
    if !machine::is_process_one() {
        // Help and version leave from here, with what they print.
        let _ = Options::parse();
        eprintln!(
            "init: this is the init program of a test guest and runs as process 1 only; boot a \
             kernel with it as /init, options after `--` on the command line"
        );
        return ExitCode::FAILURE;
    }
    if let Err(error) = machine::mount_all() {
        eprintln!("init: {error:#}");
        machine::stop(ByeReason::Failed);
    }
    let options = Options::of_process_one(std::env::args_os());
    let wanted = options
        .as_ref()
        .ok()
        .and_then(|options| options.port.as_deref());
    match Port::open(wanted) {
        Ok(port) => run_on(port, options),
        Err(error) => report_without(&error),
    }
}

/// Reports that the port could not be had where one is usually found: there the runner listens.
fn report_without(error: &anyhow::Error) -> ! {
    eprintln!("init: {error:#}");
    if let Ok(mut port) = Port::open(None) {
        let reason = fail(&mut port, &format!("{error:#}"));
        end(&port, reason);
    }
    machine::stop(ByeReason::Failed)
}

/// Serves on the port until the machine is to stop, and stops it.
fn run_on(mut port: Port, options: Result<Options>) -> ! {
    report_panics_on(&port);
    let served = options.and_then(|options| serve(&mut port, &options));
    let reason = served.unwrap_or_else(|error| fail(&mut port, &format!("{error:#}")));
    end(&port, reason)
}

/// Samples when it is time, answers what is asked, until the machine is to stop.
fn serve(port: &mut Port, options: &Options) -> Result<ByeReason> {
    let mut guest = Guest::start(options)?;
    port.send(&Report::new(guest.hello()))?;
    let mut lines: LineBuffer = LineBuffer::new();
    let mut input = [0; 256];
    loop {
        guest.follow_pauses()?;
        for body in guest.sample_if_due()? {
            port.send(&Report::new(body))?;
        }
        let received = port.receive(&mut input, guest.until_next_turn())?;
        for &byte in &input[..received] {
            let answer = match lines.push(byte) {
                Ok(None) => continue,
                Ok(Some(line)) => guest.answer_line(line)?,
                Err(too_long) => guest::refusal(ErrorKind::Malformed, None, too_long),
            };
            for report in &answer.reports {
                port.send(report)?;
            }
            if let Next::Stop(reason) = answer.next {
                return Ok(reason);
            }
        }
    }
}

/// Reports what cannot be mended, and that the machine stops for it.
fn fail(port: &mut Port, message: &str) -> ByeReason {
    let reason = ByeReason::Failed;
    for body in [guest::failure(message), Body::Bye(Bye { reason })] {
        if let Err(error) = port.send(&Report::new(body)) {
            eprintln!("init: {message}; and it could not be reported: {error:#}");
        }
    }
    reason
}

/// Stops the machine when everything written has left it.
fn end(port: &Port, reason: ByeReason) -> ! {
    if let Err(error) = port.drain() {
        eprintln!("init: the last report may be lost: {error:#}");
    }
    machine::stop(reason)
}

/// A panic on any thread is reported like every other failure, and stops the machine.
fn report_panics_on(port: &Port) {
    match port.try_clone() {
        Ok(port) => panic::set_hook(Box::new(move |panic| {
            let said = panic.to_string().replace('\n', " ");
            eprintln!("init: {said}");
            if let Ok(mut port) = port.try_clone() {
                let reason = fail(&mut port, &said);
                end(&port, reason);
            }
            machine::stop(ByeReason::Failed)
        })),
        Err(error) => eprintln!("init: a panic would go unreported: {error:#}"),
    }
}
