//! `pvtime ctl`: asks a running VM, and tells it what to do.

mod events;
mod figure;
mod ledger;
mod snapshot;
mod status;

use std::io::{self, ErrorKind, Write};
use std::process::ExitCode;

use anyhow::Result;
use serde::Serialize;

use crate::api::answers::Events;
use crate::api::client::{self, Client};
use crate::api::requests::{Action, ActionType, ChangeState, HostSleep, SleepPhase, WantedState};
use crate::cli::{CtlArgs, CtlCommand};

/// Carries out the command.
///
/// # Errors
///
/// Where the VM cannot be reached or refuses.
pub fn ctl(args: &CtlArgs) -> Result<ExitCode> {
    let client = Client::new(&args.socket);
    match carry_out(&client, &args.command) {
        // Whoever read what is printed has enough of it.
        Err(error) if is_broken_pipe(&error) => Ok(ExitCode::SUCCESS),
        done => done.map(|()| ExitCode::SUCCESS),
    }
}

fn carry_out(client: &Client, command: &CtlCommand) -> Result<()> {
    match command {
        CtlCommand::Status { json } => status::show(client, *json),
        CtlCommand::Ledger { json } => ledger::show(client, *json),
        CtlCommand::Events {
            after,
            follow,
            json,
        } => events::show(client, *after, *follow, *json),
        CtlCommand::Pause { json } => change_state(client, WantedState::Paused, *json),
        CtlCommand::Resume {
            take_over: true,
            json,
        } => change_state(client, WantedState::TakenOver, *json),
        CtlCommand::Resume { json, .. } => change_state(client, WantedState::Resumed, *json),
        CtlCommand::PrepareSleep { json } => host_sleep(client, SleepPhase::Prepare, *json),
        CtlCommand::FinishSleep { json } => host_sleep(client, SleepPhase::Finish, *json),
        CtlCommand::Snapshot { folder, json } => snapshot::save(client, folder, *json),
        CtlCommand::Figure { file, vcpu } => figure::write(client, *vcpu, file),
        CtlCommand::Stop => {
            let action_type = ActionType::Stop;
            Ok(client.change("PUT", "/actions", &Action { action_type })?)
        }
    }
}

/// Changes the state and shows what that did.
fn change_state(client: &Client, state: WantedState, json: bool) -> Result<()> {
    let change = ChangeState { state };
    let is_event = change_and_show(client, ("PATCH", "/vm"), &change, json)?;
    if !is_event && !json {
        let state = match state {
            WantedState::Paused => "paused",
            WantedState::Resumed | WantedState::TakenOver => "running",
        };
        print(&format!("The VM is {state} already."))?;
    }
    Ok(())
}

/// Announces a sleep of the host, or its end, and shows what that did.
fn host_sleep(client: &Client, phase: SleepPhase, json: bool) -> Result<()> {
    let change = HostSleep { phase };
    let is_event = match change_and_show(client, ("PUT", "/time/host-sleep"), &change, json) {
        Err(error) if is_without_vm(&error) => {
            // The hooks that announce a sleep tell every VMM there is.
            eprintln!("pvtime: the VM has not arrived yet, and need not be told");
            return Ok(());
        }
        told => told?,
    };
    if !is_event && !json {
        print(match phase {
            SleepPhase::Prepare => "The VM is paused already.",
            SleepPhase::Finish => "The VM is not paused for a sleep of the host.",
        })?;
    }
    Ok(())
}

/// Asks for a change and shows the records of it, if there are any.
fn change_and_show(
    client: &Client,
    (method, path): (&str, &str),
    change: &impl Serialize,
    json: bool,
) -> Result<bool> {
    let before: Events = client.get(&format!("/time/events?after={}", u64::MAX))?;
    client.change(method, path, change)?;
    let shown = events::show_after(client, before.last, json)?;
    Ok(shown != before.last)
}

/// Prints a line, or some.
fn print(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{text}")?;
    stdout.flush()
}

fn is_without_vm(error: &anyhow::Error) -> bool {
    let error = error.downcast_ref::<client::Error>();
    error.is_some_and(client::Error::is_without_vm)
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<io::Error>()
        .is_some_and(|error| error.kind() == ErrorKind::BrokenPipe)
}
