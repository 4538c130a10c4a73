//! `pvtime migrate`: tells a running VM to move, and shows how far that is.

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressStyle};
use signal_hook::consts::SIGINT;

use crate::api::answers::{Migration, MigrationReport, Phase};
use crate::api::client::{self, Client};
use crate::api::requests::{ChangeMigration, Migrate, WantedMigration};
use crate::cli::MigrateArgs;
use crate::failure::printable;
use crate::migration::report::{Outcome, Transfer};

/// How often progress is asked for.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Carries out the command.
///
/// # Errors
///
/// Where the VM cannot be reached, refuses, or was not moved.
pub fn migrate(args: &MigrateArgs) -> Result<ExitCode> {
    let cancel = Arc::new(AtomicBool::new(false));
    signal_hook::flag::register(SIGINT, Arc::clone(&cancel)).context("cannot catch Ctrl-C")?;
    let client = Client::new(&args.socket);
    let report = watch(&client, &start(&client, request(args)?), &cancel)?;
    let mut stdout = io::stdout().lock();
    let text = if args.json {
        serde_json::to_string(&report)?
    } else {
        for_people(&report, args.downtime)
    };
    writeln!(stdout, "{text}")?;
    Ok(match report.outcome {
        Outcome::Accepted | Outcome::Moved => ExitCode::SUCCESS,
        Outcome::Refused => ExitCode::FAILURE,
    })
}

fn request(args: &MigrateArgs) -> Result<Migrate> {
    Ok(Migrate {
        destination: args.destination.clone(),
        dry_run: args.dry_run,
        bandwidth_mib_s: args.bandwidth,
        downtime_ms: args.downtime,
        stop_limit_ms: args.stop_limit,
        insecure: args.security.insecure,
        tls: args.security.tls()?,
    })
}

type Answer = Result<MigrationReport, client::Error>;

/// Sends the request on a thread of its own, since its answer comes at the migration's end.
fn start(client: &Client, request: Migrate) -> Receiver<Answer> {
    let client = client.clone();
    let (answer, answered) = channel();
    thread::spawn(move || {
        // Nobody listens only where this process ends.
        let _ = answer.send(client.change_and_hear("PUT", "/migration", &request));
    });
    answered
}

/// Shows progress until the answer comes, and passes on that it is called off.
fn watch(client: &Client, answered: &Receiver<Answer>, cancel: &AtomicBool) -> Answer {
    let bar = bar();
    loop {
        match answered.recv_timeout(LOOK_EVERY) {
            Ok(answer) => {
                bar.finish_and_clear();
                return answer;
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => unreachable!("the thread sends its answer"),
        }
        if cancel.swap(false, Ordering::SeqCst) {
            let state = WantedMigration::Cancelled;
            client.change("PATCH", "/migration", &ChangeMigration { state })?;
        }
        // A VM that is about to end may not answer, and its other answer tells why.
        if let Ok(migration) = client.get::<Migration>("/migration") {
            show(&bar, &migration);
        }
    }
}

/// On a terminal; elsewhere nothing is shown.
fn bar() -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template(
        "{prefix} {bar:30} {binary_bytes}/{binary_total_bytes}, {msg}",
    );
    ProgressBar::no_length().with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

fn show(bar: &ProgressBar, migration: &Migration) {
    let doing = match migration.phase {
        Phase::Idle | Phase::Asking => "asking",
        Phase::Copying => "copying",
        Phase::Stopped | Phase::Committing => "handing over",
        Phase::Moved => "moved",
        Phase::Failed => "failed",
    };
    bar.set_prefix(format!("{doing}, round {}", migration.round));
    bar.set_length(migration.memory_bytes);
    bar.set_position(migration.memory_bytes.saturating_sub(migration.left_bytes));
    bar.set_message(format!("{} MiB sent", migration.sent_bytes >> 20));
}

/// The report, and whether the VM was stopped for as long as was asked for.
fn for_people(report: &MigrationReport, downtime_ms: u32) -> String {
    let MigrationReport {
        destination, who, ..
    } = report;
    let mut lines = match report.outcome {
        Outcome::Accepted => vec![format!("{destination} ({who}) would take the VM.")],
        Outcome::Refused => {
            let mut lines = vec![format!(
                "{destination} ({who}) does not take the VM, which runs on here:"
            )];
            lines.extend(report.refusals.iter().map(|it| format!("  {it}")));
            lines
        }
        Outcome::Moved => vec![format!("The VM is at {destination} ({who}).")],
    };
    lines.push(clocks(report));
    let transferred = report.transfer.as_ref();
    lines.extend(transferred.map(|it| transfer(it, downtime_ms)));
    lines.extend(time(report));
    let lines: Vec<_> = lines.iter().map(|it| printable(it)).collect();
    lines.join("\n")
}

fn clocks(report: &MigrationReport) -> String {
    let clocks = &report.clocks;
    let frequencies = if clocks.source_frequency_hz == clocks.destination_frequency_hz {
        format!("counters: both at {} Hz", clocks.source_frequency_hz)
    } else {
        format!(
            "counters: {} Hz here, {} Hz there",
            clocks.source_frequency_hz, clocks.destination_frequency_hz
        )
    };
    format!(
        "{frequencies}; wall clocks: right to {} here, {} there",
        bound(clocks.source_error_ns),
        bound(clocks.destination_error_ns)
    )
}

fn bound(error_ns: Option<u64>) -> String {
    error_ns.map_or_else(
        || "an unknown bound".into(),
        |ns| format!("{} ms", microseconds(ns)),
    )
}

/// ns as ms with three decimals.
fn microseconds(ns: u64) -> String {
    format!("{}.{:03}", ns / 1_000_000, ns / 1_000 % 1_000)
}

fn transfer(transfer: &Transfer, asked_ms: u32) -> String {
    let mut parts = vec![format!(
        "sent {} MiB for {} MiB of memory in {} rounds and {} ms; the VM was stopped for at most \
         {} ms",
        transfer.sent_bytes >> 20,
        transfer.memory_bytes >> 20,
        transfer.rounds,
        transfer.total_ms,
        transfer.downtime_ms,
    )];
    if transfer.downtime_ms > asked_ms.into() {
        parts.push(format!(", and {asked_ms} ms were asked for"));
    }
    if !transfer.converged {
        parts.push("; its guest wrote as fast as memory was sent while it ran".into());
    }
    parts.concat()
}

/// What was done to the VM's time.
fn time(report: &MigrationReport) -> Option<String> {
    let record = report.record.as_ref()?;
    let policy = record.policy.as_deref().unwrap_or("no policy");
    let mut parts = vec![format!("time: {policy}")];
    parts.extend(record.gap.as_ref().map(|gap| {
        format!(
            "away for {} ms by {} (right to {})",
            gap.ns / 1_000_000,
            gap.source,
            bound(gap.error_ns)
        )
    }));
    parts.push(format!(
        "its counters hide {} ms",
        microseconds(record.hidden_ns)
    ));
    parts.extend(record.shown_ticks.map(|it| format!("and show {it} ticks")));
    if record.clamped {
        parts.push(
            "the clocks said that it arrived before it left, which was taken for none".into(),
        );
    }
    parts.extend(record.live.as_ref().map(|live| {
        format!(
            "live physical time is {} PV ticks from the ideal",
            live.distance
        )
    }));
    Some(parts.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moved(downtime_ms: u64, converged: bool) -> String {
        let transfer = Transfer {
            rounds: 3,
            memory_bytes: 256 << 20,
            sent_bytes: 91 << 20,
            stopped_bytes: 1 << 20,
            total_ms: 1_500,
            downtime_ms,
            converged,
        };
        super::transfer(&transfer, 300)
    }

    #[test]
    fn what_was_measured_is_held_against_what_was_asked_for() {
        let stopped = "the VM was stopped for at most";
        let written = "its guest wrote as fast as memory was sent while it ran";
        for (downtime_ms, converged, end) in [
            (300, true, format!("{stopped} 300 ms")),
            (
                301,
                true,
                format!("{stopped} 301 ms, and 300 ms were asked for"),
            ),
            (40, false, format!("{stopped} 40 ms; {written}")),
            (
                9_000,
                false,
                format!("{stopped} 9000 ms, and 300 ms were asked for; {written}"),
            ),
        ] {
            let said = moved(downtime_ms, converged);
            assert!(said.ends_with(&end), "{said}");
        }
    }
}
