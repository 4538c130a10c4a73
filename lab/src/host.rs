//! A host that guests run on: requests to its agent as methods.

use crate::assets::Assets;
use crate::channel::Channel;
use crate::clocks::ClockSight;
use crate::machine::{FILES, HostSpec, Machine, Place, modules_of};
use crate::wire::WireEnd;
use anyhow::{Context, Result, bail};
use lab_agent::PROTOCOL;
use lab_agent::message::{Exit, Hello, Request};
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Longest time from the start of a host to its first answer.
pub const BOOT_LIMIT: Duration = Duration::from_secs(90);

/// Longest answer to a request that waits for nothing.
pub(crate) const CALL_LIMIT: Duration = Duration::from_secs(30);

/// A host with an agent on it. Everything on it ends when it is dropped.
pub struct Host {
    channel: Channel,
    machine: Machine,
    facts: Hello,
    name: &'static str,
    /// Folder on the host for the files of a run.
    work: String,
    /// Paths of its files by name.
    files: BTreeMap<String, String>,
    /// Networks that it is in.
    wires: Vec<WireEnd>,
    /// Folder on this machine for logs.
    logs: PathBuf,
    /// Files of the run that become logs at its end.
    kept: Vec<String>,
    /// Its clocks, as they were seen last.
    pub(crate) seen: Option<ClockSight>,
}

impl Host {
    /// Starts a host where the assets say, and waits for its agent.
    ///
    /// # Errors
    /// When QEMU, the kernel or the agent does not come up; with the last words of each.
    pub fn boot(spec: &HostSpec, assets: &Assets, logs: &Path) -> Result<Self> {
        if assets.place == Place::Local && spec.virtualization {
            return Self::local(spec, &assets.program("lab-agent")?, logs);
        }
        let (machine, stream) = Machine::emulate(spec, assets, logs)?;
        let paths = spec
            .files
            .iter()
            .map(|file| (file.name.clone(), format!("/{FILES}/{}", file.name)));
        let console = logs.join(format!("{}-console.log", spec.name));
        let mut host = Self::greet(
            spec,
            machine,
            stream,
            "/run/lab".into(),
            paths.collect(),
            logs,
        )
        .with_context(|| format!("host {} did not boot{}", spec.name, last_line(&console)))?;
        let modules = modules_of(spec, assets)?.into_iter();
        let modules: Vec<_> = modules.map(|it| format!("/{}", it.name)).collect();
        spec.wires
            .iter()
            .try_for_each(|&end| host.join(end, &modules))?;
        Ok(host)
    }

    /// Starts the agent on this machine.
    ///
    /// # Errors
    /// When it does not start.
    pub fn local(spec: &HostSpec, agent: &Path, logs: &Path) -> Result<Self> {
        let (machine, stream) = Machine::local(spec, agent, logs)?;
        let work = utf8(&logs.join(format!("{}-files", spec.name)))?;
        let paths = spec
            .files
            .iter()
            .map(|file| Ok((file.name.clone(), utf8(&file.from)?)));
        let paths = paths.collect::<Result<_>>()?;
        Self::greet(spec, machine, stream, work, paths, logs)
            .with_context(|| format!("the agent of host {} did not start", spec.name))
    }

    fn greet(
        spec: &HostSpec,
        machine: Machine,
        stream: UnixStream,
        work: String,
        files: BTreeMap<String, String>,
        logs: &Path,
    ) -> Result<Self> {
        let mut channel = Channel::attach(stream)?;
        let greeting = channel.call::<Hello>(&Request::Hello, &[], BOOT_LIMIT);
        let (facts, _) = greeting.with_context(|| format!("no agent{}", machine.last_words()))?;
        if facts.protocol != PROTOCOL {
            bail!(
                "the agent speaks version {}, not {PROTOCOL}: build it anew",
                facts.protocol
            );
        }
        let (name, wires, logs, kept) =
            (spec.name, spec.wires.clone(), logs.to_owned(), Vec::new());
        let mut host = Self {
            channel,
            machine,
            facts,
            name,
            work,
            files,
            wires,
            logs,
            kept,
            seen: None,
        };
        host.make_dirs(&host.work.clone())?;
        Ok(host)
    }

    /// Facts of the host.
    #[must_use]
    pub fn facts(&self) -> &Hello {
        &self.facts
    }

    /// Name in logs.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Networks that it was made with.
    #[must_use]
    pub fn wires(&self) -> &[WireEnd] {
        &self.wires
    }

    /// Process id, on this machine, of QEMU or of the agent.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.machine.pid()
    }

    /// Whether QEMU emulates it, so that its clocks are its own.
    #[must_use]
    pub fn is_emulated(&self) -> bool {
        self.machine.is_emulated()
    }

    /// What QEMU's threads have waited for a CPU of this machine so far; nothing for a local host.
    ///
    /// # Errors
    /// When QEMU has ended.
    pub fn held_up(&self) -> Result<Duration> {
        self.machine.held_up()
    }

    /// Where what an emulated host's kernel prints is on this machine.
    pub(crate) fn console(&self) -> PathBuf {
        self.logs.join(format!("{}-console.log", self.name))
    }

    /// Path on the host of a file of this run.
    #[must_use]
    pub fn file(&self, name: &str) -> String {
        format!("{}/{name}", self.work)
    }

    /// Path on the host of a file of its spec.
    ///
    /// # Errors
    /// When the spec has no such file.
    pub fn path_of(&self, name: &str) -> Result<String> {
        let path = self.files.get(name);
        path.cloned()
            .with_context(|| format!("host {} was made without {name}", self.name))
    }

    /// Copies a file of this run to the logs when the host ends, however it ends.
    pub fn keep_log(&mut self, name: &str) {
        if !self.kept.iter().any(|kept| kept == name) {
            self.kept.push(name.to_owned());
        }
    }

    fn save_logs(&mut self) -> Result<()> {
        for name in std::mem::take(&mut self.kept) {
            let contents = self.read_from(&self.file(&name), 0)?;
            let to = self.logs.join(&name);
            fs::write(&to, contents).with_context(|| format!("cannot write {}", to.display()))?;
        }
        Ok(())
    }

    /// The first line that a program prints about its version.
    ///
    /// # Errors
    /// When it fails, and as [`Self::make_dirs`].
    pub fn version_of(&mut self, program: &str) -> Result<String> {
        let finished = self.run(&[program, "--version"], CALL_LIMIT)?;
        if finished.exit != Exit::Status(0) {
            bail!(
                "{program} --version: {:?}, {}",
                finished.exit,
                finished.stderr.trim()
            );
        }
        Ok(finished
            .stdout
            .lines()
            .next()
            .unwrap_or_default()
            .to_owned())
    }

    /// Powers the host off and waits for its end.
    ///
    /// # Errors
    /// When it does not end.
    pub fn power_off(mut self) -> Result<()> {
        self.save_logs()?;
        self.call::<()>(&Request::PowerOff, &[], CALL_LIMIT)?;
        self.machine.await_end(CALL_LIMIT)
    }

    pub(crate) fn call<T: DeserializeOwned>(
        &mut self,
        request: &Request,
        payload: &[u8],
        limit: Duration,
    ) -> Result<T> {
        Ok(self.call_with_payload(request, payload, limit)?.0)
    }

    pub(crate) fn call_with_payload<T: DeserializeOwned>(
        &mut self,
        request: &Request,
        payload: &[u8],
        limit: Duration,
    ) -> Result<(T, Vec<u8>)> {
        let answer = self.channel.call(request, payload, limit);
        answer.with_context(|| format!("host {}{}", self.name, self.machine.last_words()))
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if !self.channel.is_usable() {
            return;
        }
        if let Err(error) = self.save_logs() {
            eprintln!(
                "lab: logs of host {} are not complete: {error:#}",
                self.name
            );
        }
    }
}

fn last_line(log: &Path) -> String {
    let said = fs::read(log).unwrap_or_default();
    let said = String::from_utf8_lossy(&said);
    match said.trim().lines().last() {
        Some(line) => format!(
            "; its console ends with {line:?}, the rest is in {}",
            log.display()
        ),
        None => String::new(),
    }
}

fn utf8(path: &Path) -> Result<String> {
    let path = std::path::absolute(path)?;
    let text = path
        .to_str()
        .with_context(|| format!("{} is no UTF-8", path.display()))?;
    Ok(text.to_owned())
}
