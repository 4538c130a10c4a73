//! Takes requests from the channel and answers them, one after the other.

use crate::children::{Children, pin};
use crate::{clocks, files, network, processes, register, stop};
use anyhow::{Context, Result};
use lab_agent::message::{Answer, Hello, Request};
use lab_agent::{PROTOCOL, frame, system_call};
use serde::Serialize;
use serde_json::{Value, to_value};
use std::fs::File;
use std::path::Path;
use std::time::Duration;

/// The agent's whole state.
pub struct Service {
    children: Children,
}

impl Service {
    pub fn new() -> Self {
        Self {
            children: Children::default(),
        }
    }

    /// Serves until the channel ends or the lab asks for the end; then nothing it started is left.
    pub fn serve(&mut self, mut channel: File) -> Result<()> {
        let mut buffer = Vec::new();
        while let Some((request, payload)) = frame::read::<Request>(&mut channel, &mut buffer)? {
            let last = request == Request::PowerOff;
            let (answer, bytes) = match self.answer(request, &payload) {
                Ok((value, bytes)) => (Answer::Done(value), bytes),
                Err(error) => (Answer::Failed(format!("{error:#}")), Vec::new()),
            };
            frame::write(&mut channel, &answer, &bytes)?;
            if last {
                break;
            }
        }
        Ok(())
    }

    fn answer(&mut self, request: Request, payload: &[u8]) -> Result<(Value, Vec<u8>)> {
        let children = &mut self.children;
        let value = match request {
            Request::ReadFile {
                path,
                offset,
                limit,
            } => {
                return Ok((Value::Null, files::read(&path, offset, limit)?));
            }
            Request::Hello => json(hello()?),
            Request::MakeDirs { path } => json(files::make_dirs(&path)?),
            Request::PutFile { path, mode, append } => {
                json(files::put(&path, mode, append, payload)?)
            }
            Request::RemoveFile { path } => json(files::remove(&path)?),
            Request::Spawn(spawn) => json(children.spawn(&spawn)?),
            Request::WriteStdin { child } => json(children.write_stdin(child, payload)?),
            Request::CloseStdin { child } => json(children.close_stdin(child)?),
            Request::Wait { child, timeout_ms } => json(children.wait(child, ms(timeout_ms))?),
            Request::WaitForText {
                path,
                text,
                timeout_ms,
            } => json(files::wait_for_text(&path, &text, ms(timeout_ms))?),
            Request::Signal { child, signal } => json(children.signal(child, signal)?),
            Request::KillAll | Request::PowerOff => {
                children.kill_all();
                json(())
            }
            Request::Threads { pid } => json(processes::threads(pid)?),
            Request::Processes => json(processes::processes()?),
            Request::Mappings { pid } => json(processes::mappings(pid)?),
            Request::PinAgent { cpus } => json(pin(None, &cpus)?),
            Request::Clocks => json(clocks::read()),
            Request::SystemCall => json(system_call::duration_ns()),
            Request::StepClock { by_ns, error_us } => json(clocks::step(by_ns, error_us)?),
            Request::JoinNetwork {
                mac,
                address,
                modules,
            } => json(network::join(&mac, address, &modules)?),
            Request::PinThread { tid, cpus } => json(pin(Some(tid), &cpus)?),
            Request::Sleep { seconds } => json(stop::sleep(seconds)?),
            Request::Freeze { pid, ms: length } => json(stop::freeze(pid, ms(length))?),
        };
        Ok((value?, Vec::new()))
    }
}

fn json(value: impl Serialize) -> Result<Value> {
    to_value(value).context("cannot answer in JSON")
}

fn ms(timeout_ms: u64) -> Duration {
    Duration::from_millis(timeout_ms)
}

fn hello() -> Result<Hello> {
    let names = rustix::system::uname();
    Ok(Hello {
        protocol: PROTOCOL,
        machine: names.machine().to_string_lossy().into_owned(),
        kernel: names.release().to_string_lossy().into_owned(),
        counter_frequency_hz: register::counter_frequency_hz(),
        enhanced_counter: register::enhanced_counter(),
        cpus: std::thread::available_parallelism()?.get(),
        kvm: Path::new("/dev/kvm").exists(),
        agent_program: std::env::current_exe()?.to_string_lossy().into_owned(),
        agent_pid: std::process::id(),
    })
}
