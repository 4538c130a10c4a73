//! QEMU on a host, as another VMM to measure beside, and a Linux guest under it.

use crate::assets::Assets;
use crate::dialogue::Dialogue;
use crate::host::Host;
use crate::interrupt;
use crate::machine::HostFile;
use crate::wire::WireEnd;
use anyhow::{Context, Result, bail};
use lab_agent::TALK;
use lab_agent::message::Spawn;
use rustix::process::Signal;
use serde_json::{Value, json};
use std::fs;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

/// QEMU's program among the peer's files.
const QEMU: &str = "qemu-system-aarch64";

/// The loader for it.
const LOADER: &str = "ld-linux-aarch64.so.1";

const PORT: u16 = 4444;

const LOOK_EVERY: Duration = Duration::from_millis(100);
const MIGRATION_LIMIT: Duration = Duration::from_secs(120);

/// No bandwidth that it could reach, in bytes a second.
const NO_LIMIT: u64 = 1 << 40;

/// QEMU and all it needs, for a host.
///
/// # Errors
/// When no folder with it was named.
pub fn files(assets: &Assets) -> Result<Vec<HostFile>> {
    let peer = assets.peer.as_ref().context(
        "no QEMU for the host: run `cargo xtask bench`, which fetches one, or name a folder with an \
         arm64 QEMU and its libraries with --peer",
    )?;
    let files = fs::read_dir(peer).with_context(|| format!("cannot list {}", peer.display()))?;
    let files = files.flatten().map(|file| HostFile {
        name: file.file_name().to_string_lossy().into_owned(),
        from: file.path(),
    });
    Ok(files.collect())
}

/// QEMU's program as an argument of its own loader, which finds the libraries beside it.
///
/// # Errors
/// When the host was made without it.
pub fn qemu(host: &Host) -> Result<Vec<String>> {
    let loader = host.path_of(LOADER)?;
    let folder = loader.strip_suffix(LOADER).unwrap_or_default().to_owned();
    Ok(vec![
        loader,
        "--library-path".to_owned(),
        folder,
        host.path_of(QEMU)?,
    ])
}

/// What it says of itself.
///
/// # Errors
/// When it says nothing.
pub fn version(host: &mut Host) -> Result<String> {
    let mut argv = qemu(host)?;
    argv.push("--version".into());
    let argv: Vec<_> = argv.iter().map(String::as_str).collect();
    let finished = host.run(&argv, Duration::from_secs(60))?;
    let version = finished.stdout.lines().next();
    Ok(version.context("QEMU tells no version")?.into())
}

/// A Linux guest under QEMU with KVM, whose port is QEMU's standard input and output.
pub struct PeerGuest {
    /// With the guest program.
    pub dialogue: Dialogue,
    /// With QEMU.
    monitor: Dialogue,
    last_id: u64,
}

/// What QEMU says of a migration that is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Migrated {
    /// `downtime` of `query-migrate`.
    pub downtime_ms: u64,
    /// `total-time` of `query-migrate`.
    pub total_ms: u64,
}

impl PeerGuest {
    /// Options of its machine, apart from what it boots.
    #[must_use]
    pub fn options(cpus: u32, memory_mib: u32) -> String {
        format!(
            "-M virt,gic-version=3 -accel kvm -cpu host -smp {cpus} -m {memory_mib} -nodefaults \
             -no-user-config -display none -chardev stdio,signal=off,id=port -serial chardev:port"
        )
    }

    /// Starts one that boots, or with `more` options one that does not.
    ///
    /// # Errors
    /// When QEMU does not start.
    pub fn start(
        name: &str,
        host: &mut Host,
        cpus: u32,
        memory_mib: u32,
        more: &[&str],
    ) -> Result<Self> {
        let (kernel, initramfs) = (host.path_of("Image")?, host.path_of("guest.cpio")?);
        let workload = vec!["idle"; cpus as usize].join(",");
        // Whatever else the kernel says would be between the guest program's lines.
        let cmdline = format!(
            "console=ttyAMA0 quiet loglevel=0 panic=-1 -- --port ttyAMA0 --workload {workload} \
             --sample-ms 0"
        );
        let socket = host.file(&format!("{name}-qmp.sock"));
        let qmp = format!("unix:{socket},server=on,wait=off");
        let options = Self::options(cpus, memory_mib);
        let mut argv = qemu(host)?;
        argv.extend(options.split_ascii_whitespace().map(str::to_owned));
        let boot = [
            "-kernel", &kernel, "-initrd", &initramfs, "-append", &cmdline, "-qmp", &qmp,
        ];
        argv.extend(
            boot.into_iter()
                .chain(more.iter().copied())
                .map(str::to_owned),
        );
        let (output, errors) = (format!("{name}-reports.log"), format!("{name}-vmm.log"));
        let program = host.spawn(Spawn {
            argv,
            stdin: true,
            stdout: Some(host.file(&output)),
            stderr: Some(host.file(&errors)),
            ..Spawn::default()
        })?;
        host.keep_log(&output);
        host.keep_log(&errors);
        let mut guest = Self {
            dialogue: Dialogue::attach(program, host.file(&output)),
            monitor: talk(name, &socket, host)?,
            last_id: 0,
        };
        guest.execute(host, "qmp_capabilities", &json!({}))?;
        Ok(guest)
    }

    /// Moves to another host, and returns it there.
    ///
    /// # Errors
    /// When it does not move.
    pub fn move_to(
        &mut self,
        host: &mut Host,
        mut there: Self,
        to: &mut Host,
        end: WireEnd,
    ) -> Result<(Self, Migrated)> {
        let address: Ipv4Addr = to.address_at(end)?;
        let uri = json!({ "uri": format!("tcp:{address}:{PORT}") });
        there.execute(to, "migrate-incoming", &uri)?;
        let limit = json!({ "max-bandwidth": NO_LIMIT });
        self.execute(host, "migrate-set-parameters", &limit)?;
        self.execute(host, "migrate", &uri)?;
        let start = Instant::now();
        loop {
            let said = self.execute(host, "query-migrate", &json!({}))?;
            if let Some(migrated) = judge(&said)? {
                there.await_running(to)?;
                return Ok((there, migrated));
            }
            if start.elapsed() > MIGRATION_LIMIT {
                bail!("QEMU has not moved the guest: {said}");
            }
            interrupt::sleep(LOOK_EVERY)?;
        }
    }

    /// Waits until the guest runs that was received. What is written to its port before then is lost: the
    /// port's state is yet to come, up to a second after the source's QEMU says that it is done.
    fn await_running(&mut self, host: &mut Host) -> Result<()> {
        let start = Instant::now();
        loop {
            let said = self.execute(host, "query-status", &json!({}))?;
            if said["running"] == json!(true) {
                return Ok(());
            }
            if start.elapsed() > MIGRATION_LIMIT {
                bail!("QEMU has received the guest and does not run it: {said}");
            }
            interrupt::sleep(LOOK_EVERY)?;
        }
    }

    /// Ends its QEMU.
    ///
    /// # Errors
    /// When it has ended already.
    pub fn kill(self, host: &mut Host) -> Result<()> {
        let child = self.dialogue.program().child;
        host.signal(child, Signal::KILL.as_raw())?;
        host.wait(child, MIGRATION_LIMIT).map(drop)
    }

    /// Has its QEMU carry out a command of QMP.
    fn execute(&mut self, host: &mut Host, command: &str, arguments: &Value) -> Result<Value> {
        self.last_id += 1;
        let id = self.last_id;
        let order = json!({ "execute": command, "arguments": arguments, "id": id });
        self.monitor.write(host, format!("{order}\n").as_bytes())?;
        let (mut said, _) = self.monitor.await_line(host, |line| {
            let said: Value = serde_json::from_slice(line).ok()?;
            (said["id"] == json!(id)).then_some(said)
        })?;
        if let Some(error) = said["error"]["desc"].as_str() {
            bail!("QEMU refused {command}: {error}");
        }
        Ok(said["return"].take())
    }
}

/// A dialogue with whoever listens at a socket of the host's.
fn talk(name: &str, socket: &str, host: &mut Host) -> Result<Dialogue> {
    let output = format!("{name}-qmp.log");
    let agent = host.facts().agent_program.clone();
    let program = host.spawn(Spawn {
        argv: vec![agent, TALK.into(), socket.to_owned()],
        stdin: true,
        stdout: Some(host.file(&output)),
        ..Spawn::default()
    })?;
    host.keep_log(&output);
    Ok(Dialogue::attach(program, host.file(&output)))
}

/// What `query-migrate` says, if it is over.
fn judge(said: &Value) -> Result<Option<Migrated>> {
    match said["status"].as_str() {
        Some("completed") => {
            let figure = |name: &str| {
                let figure = said[name].as_u64();
                figure.with_context(|| format!("QEMU tells no {name}: {said}"))
            };
            Ok(Some(Migrated {
                downtime_ms: figure("downtime")?,
                total_ms: figure("total-time")?,
            }))
        }
        Some("failed" | "cancelled") => bail!("QEMU's migration failed: {said}"),
        _ => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_completed_migration_has_figures() {
        let over = json!({ "status": "completed", "downtime": 71, "total-time": 912 });
        let migrated = Migrated {
            downtime_ms: 71,
            total_ms: 912,
        };
        assert_eq!(judge(&over).unwrap(), Some(migrated));
        assert_eq!(judge(&json!({ "status": "active" })).unwrap(), None);
        assert!(judge(&json!({ "status": "failed" })).is_err());
        let lacking = judge(&json!({ "status": "completed", "downtime": 71 })).unwrap_err();
        assert!(lacking.to_string().starts_with("QEMU tells no total-time"));
    }
}
