//! A VMM on a host, driven by its command line and its control socket alone, whatever its guest is.

use crate::host::Host;
use anyhow::{Context, Result, bail};
use lab_agent::message::{ChildId, Exit, Spawn};
use serde::de::DeserializeOwned;
use std::time::Duration;

/// Longest time for an answer, and for the end.
const LIMIT: Duration = Duration::from_secs(60);

/// The files of a snapshot.
const SNAPSHOT: [&str; 5] = [
    "snapshot.json",
    "machine.json",
    "time.bin",
    "memory.json",
    "memory",
];

/// A snapshot on its way from host to host: its files.
pub struct Snapshot(Vec<(&'static str, Vec<u8>)>);

/// A VMM that was started. It ends with its host at the latest.
pub struct Vmm {
    name: &'static str,
    child: ChildId,
}

impl Vmm {
    /// Starts `pvtime` with these arguments. Its console, its second port and what it says are files
    /// of the host, and logs.
    ///
    /// # Errors
    /// When the host refuses.
    pub fn start(host: &mut Host, name: &'static str, arguments: &[&str]) -> Result<Self> {
        let file = |kind: &str| host.file(&format!("{name}.{kind}"));
        let (console, serial, socket) = (file("console"), file("serial"), file("sock"));
        let (log, pvtime) = (file("log"), host.path_of("pvtime")?);
        let to = [
            "--console",
            &console,
            "--serial",
            &serial,
            "--api-socket",
            &socket,
        ];
        let argv = [&[pvtime.as_str()], arguments, &to].concat();
        let spawned = host.spawn(Spawn {
            argv: argv.into_iter().map(str::to_owned).collect(),
            stderr: Some(log),
            ..Spawn::default()
        })?;
        for kind in ["console", "serial", "log"] {
            host.keep_log(&format!("{name}.{kind}"));
        }
        let child = spawned.child;
        Ok(Self { name, child })
    }

    /// What is in one of its files: `console`, `serial` or `log`.
    ///
    /// # Errors
    /// When the host does not answer.
    pub fn read(&self, host: &mut Host, kind: &str) -> Result<Vec<u8>> {
        host.read_from(&self.file(host, kind), 0)
    }

    /// Waits until one of its files holds a text.
    ///
    /// # Errors
    /// When it does not within the limit.
    pub fn await_text(
        &self,
        host: &mut Host,
        kind: &str,
        text: &str,
        limit: Duration,
    ) -> Result<()> {
        let file = self.file(host, kind);
        host.wait_for_text(&file, text, limit).map(drop)
    }

    /// Runs `pvtime ctl` and returns what it prints.
    ///
    /// # Errors
    /// When it fails, with what it says.
    pub fn ctl(&self, host: &mut Host, arguments: &[&str]) -> Result<String> {
        let (pvtime, socket) = (host.path_of("pvtime")?, self.file(host, "sock"));
        let argv = [&[pvtime.as_str(), "ctl", &socket], arguments].concat();
        let finished = host.run(&argv, LIMIT)?;
        if finished.exit != Exit::Status(0) {
            bail!("{}: {}", arguments.join(" "), finished.stderr.trim());
        }
        Ok(finished.stdout)
    }

    /// What it says of its VM.
    ///
    /// # Errors
    /// When `pvtime ctl` fails.
    pub fn status<T: DeserializeOwned>(&self, host: &mut Host) -> Result<T> {
        let said = self.ctl(host, &["status", "--json"])?;
        serde_json::from_str(&said).with_context(|| format!("cannot understand {said:?}"))
    }

    /// What it is called on its host.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Where the time of its first vCPU went up to now, as it draws it.
    ///
    /// # Errors
    /// When `pvtime ctl` fails.
    pub fn figure(&self, host: &mut Host) -> Result<Vec<u8>> {
        let file = self.file(host, "svg");
        self.ctl(host, &["figure", &file])?;
        let drawn = host.read_from(&file, 0)?;
        host.remove_file(&file)?;
        Ok(drawn)
    }

    /// Saves a paused VM, and takes the files along.
    ///
    /// # Errors
    /// When it is refused.
    pub fn snapshot(&self, host: &mut Host) -> Result<Snapshot> {
        let folder = self.file(host, "snapshot");
        self.ctl(host, &["snapshot", &folder])?;
        Snapshot::take(host, &folder)
    }

    /// Ends it.
    ///
    /// # Errors
    /// When it does not end with status 0.
    pub fn stop(self, host: &mut Host) -> Result<()> {
        self.ctl(host, &["stop"])?;
        match host.wait(self.child, LIMIT)? {
            Exit::Status(0) => Ok(()),
            exit => bail!("the VMM {} ended with {exit:?}", self.name),
        }
    }

    fn file(&self, host: &Host, kind: &str) -> String {
        host.file(&format!("{}.{kind}", self.name))
    }
}

impl Snapshot {
    /// Takes along what was saved in a folder of a host.
    ///
    /// # Errors
    /// When a file of it is missing.
    pub fn take(host: &mut Host, folder: &str) -> Result<Self> {
        let files =
            SNAPSHOT.map(|file| Ok((file, host.read_from(&format!("{folder}/{file}"), 0)?)));
        Ok(Self(files.into_iter().collect::<Result<_>>()?))
    }

    /// Removes what was saved in a folder of a host.
    ///
    /// # Errors
    /// When a file of it is missing.
    pub fn remove(host: &mut Host, folder: &str) -> Result<()> {
        let mut files = SNAPSHOT.iter();
        files.try_for_each(|file| host.remove_file(&format!("{folder}/{file}")))
    }

    /// Writes it into a folder of a host and returns its path.
    ///
    /// # Errors
    /// When the host refuses.
    pub fn put(&self, host: &mut Host, name: &str) -> Result<String> {
        let folder = host.file(name);
        host.make_dirs(&folder)?;
        for (file, contents) in &self.0 {
            host.put_file(&format!("{folder}/{file}"), 0o600, contents)?;
        }
        Ok(folder)
    }
}
