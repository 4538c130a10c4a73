//! Requests to a host's agent, as methods of the host.

use crate::host::{CALL_LIMIT, Host};
use anyhow::{Context, Result};
use lab_agent::frame::PAYLOAD_MAX;
use lab_agent::message::{
    ChildId, Exit, Found, Mapping, Process, Request, Spawn, Spawned, Stopped, Threads,
};
use rustix::process::Signal;
use serde::de::DeserializeOwned;
use std::time::{Duration, Instant};

/// A long wait is made of calls of this length, so that a signal does not wait with it.
const WAIT_SLICE: Duration = Duration::from_secs(1);

/// Every method fails with the agent's own line, or when the host answers no more.
impl Host {
    /// Makes a folder and its parents.
    ///
    /// # Errors
    /// As every request: the host's own line, or that the host answers no more.
    pub fn make_dirs(&mut self, path: &str) -> Result<()> {
        self.call(&Request::MakeDirs { path: path.into() }, &[], CALL_LIMIT)
    }

    /// Writes a file of any length.
    ///
    /// # Errors
    /// As [`Self::make_dirs`].
    pub fn put_file(&mut self, path: &str, mode: u32, contents: &[u8]) -> Result<()> {
        let put = |append| Request::PutFile {
            path: path.into(),
            mode,
            append,
        };
        let (first, rest) = contents.split_at(contents.len().min(PAYLOAD_MAX as usize));
        self.call::<()>(&put(false), first, CALL_LIMIT)?;
        for piece in rest.chunks(PAYLOAD_MAX as usize) {
            self.call::<()>(&put(true), piece, CALL_LIMIT)?;
        }
        Ok(())
    }

    /// Reads a file from an offset to its end.
    ///
    /// # Errors
    /// As [`Self::make_dirs`].
    pub fn read_from(&mut self, path: &str, offset: u64) -> Result<Vec<u8>> {
        let mut contents = Vec::new();
        loop {
            let at = offset + contents.len() as u64;
            let request = Request::ReadFile {
                path: path.into(),
                offset: at,
                limit: PAYLOAD_MAX,
            };
            let ((), piece) = self.call_with_payload(&request, &[], CALL_LIMIT)?;
            if piece.is_empty() {
                return Ok(contents);
            }
            contents.extend(piece);
        }
    }

    /// Removes a file or a device node.
    ///
    /// # Errors
    /// As [`Self::make_dirs`].
    pub fn remove_file(&mut self, path: &str) -> Result<()> {
        self.call(&Request::RemoveFile { path: path.into() }, &[], CALL_LIMIT)
    }

    /// Starts a child.
    ///
    /// # Errors
    /// As [`Self::make_dirs`].
    pub fn spawn(&mut self, spawn: Spawn) -> Result<Spawned> {
        self.call(&Request::Spawn(spawn), &[], CALL_LIMIT)
    }

    /// Writes to a child's standard input.
    ///
    /// # Errors
    /// As [`Self::make_dirs`].
    pub fn write_stdin(&mut self, child: ChildId, bytes: &[u8]) -> Result<()> {
        self.call(&Request::WriteStdin { child }, bytes, CALL_LIMIT)
    }

    /// Closes a child's standard input.
    ///
    /// # Errors
    /// As [`Self::make_dirs`].
    pub fn close_stdin(&mut self, child: ChildId) -> Result<()> {
        self.call(&Request::CloseStdin { child }, &[], CALL_LIMIT)
    }

    /// Waits for a child's end.
    ///
    /// # Errors
    /// When it does not end within the limit, and as [`Self::make_dirs`].
    pub fn wait(&mut self, child: ChildId, limit: Duration) -> Result<Exit> {
        self.wait_in_slices(limit, |timeout_ms| Request::Wait { child, timeout_ms })?
            .with_context(|| format!("a command did not end within {} s", limit.as_secs()))
    }

    /// How a child ended, if it has.
    ///
    /// # Errors
    /// As [`Self::make_dirs`].
    pub fn poll_end(&mut self, child: ChildId) -> Result<Option<Exit>> {
        self.call(
            &Request::Wait {
                child,
                timeout_ms: 0,
            },
            &[],
            CALL_LIMIT,
        )
    }

    /// Waits until a file holds a text.
    ///
    /// # Errors
    /// When it does not within the limit, and as [`Self::make_dirs`].
    pub fn wait_for_text(&mut self, path: &str, text: &str, limit: Duration) -> Result<Found> {
        self.wait_in_slices(limit, |timeout_ms| Request::WaitForText {
            path: path.into(),
            text: text.into(),
            timeout_ms,
        })?
        .with_context(|| format!("{path} did not say {text:?} within {} s", limit.as_secs()))
    }

    fn wait_in_slices<T: DeserializeOwned>(
        &mut self,
        limit: Duration,
        request: impl Fn(u64) -> Request,
    ) -> Result<Option<T>> {
        let start = Instant::now();
        loop {
            let slice = limit.saturating_sub(start.elapsed()).min(WAIT_SLICE);
            let timeout_ms = u64::try_from(slice.as_millis()).expect("a slice is short");
            let answer: Option<T> = self.call(&request(timeout_ms), &[], CALL_LIMIT + slice)?;
            if answer.is_some() || start.elapsed() >= limit {
                return Ok(answer);
            }
        }
    }

    /// Sends a signal to a child's process group.
    ///
    /// # Errors
    /// When the child has ended, and as [`Self::make_dirs`].
    pub fn signal(&mut self, child: ChildId, signal: i32) -> Result<()> {
        self.call(&Request::Signal { child, signal }, &[], CALL_LIMIT)
    }

    /// Kills every child.
    ///
    /// # Errors
    /// As [`Self::make_dirs`].
    pub fn kill_all(&mut self) -> Result<()> {
        self.call(&Request::KillAll, &[], CALL_LIMIT)
    }

    /// What the scheduler counted for each thread of a process.
    ///
    /// # Errors
    /// When the process has ended, and as [`Self::make_dirs`].
    pub fn threads(&mut self, pid: u32) -> Result<Threads> {
        self.call(&Request::Threads { pid }, &[], CALL_LIMIT)
    }

    /// Every process that has a program.
    ///
    /// # Errors
    /// As [`Self::make_dirs`].
    pub fn processes(&mut self) -> Result<Vec<Process>> {
        self.call(&Request::Processes, &[], CALL_LIMIT)
    }

    /// Memory of a process by mapping.
    ///
    /// # Errors
    /// When the process has ended, and as [`Self::make_dirs`].
    pub fn mappings(&mut self, pid: u32) -> Result<Vec<Mapping>> {
        self.call(&Request::Mappings { pid }, &[], CALL_LIMIT)
    }

    /// Lets the agent run on these CPUs only, away from what is measured.
    ///
    /// # Errors
    /// As [`Self::make_dirs`].
    pub fn pin_agent(&mut self, cpus: &[usize]) -> Result<()> {
        self.call(
            &Request::PinAgent {
                cpus: cpus.to_vec(),
            },
            &[],
            CALL_LIMIT,
        )
    }

    /// Lets a thread run on these CPUs only.
    ///
    /// # Errors
    /// When there is no such thread or CPU, and as [`Self::make_dirs`].
    pub fn pin_thread(&mut self, tid: u32, cpus: &[usize]) -> Result<()> {
        self.call(
            &Request::PinThread {
                tid,
                cpus: cpus.to_vec(),
            },
            &[],
            CALL_LIMIT,
        )
    }

    /// Has the host sleep for so many seconds of its RTC, of which the first is shorter.
    ///
    /// # Errors
    /// When it is not the lab's own, and as [`Self::make_dirs`].
    pub fn sleep(&mut self, seconds: u32) -> Result<Stopped> {
        let limit = CALL_LIMIT + Duration::from_secs(seconds.into());
        self.call(&Request::Sleep { seconds }, &[], limit)
    }

    /// Stops all threads of a process for a while, through the cgroup freezer.
    ///
    /// # Errors
    /// When there is no such process, and as [`Self::make_dirs`].
    pub fn freeze(&mut self, pid: u32, length: Duration) -> Result<Stopped> {
        let ms = u64::try_from(length.as_millis())?;
        self.call(&Request::Freeze { pid, ms }, &[], CALL_LIMIT + length)
    }

    /// Runs a command to its end: how it ended, what it printed, and what it said on standard error.
    ///
    /// # Errors
    /// When it does not end within the limit, and as [`Self::make_dirs`].
    pub fn run(&mut self, argv: &[&str], limit: Duration) -> Result<Finished> {
        self.run_with(argv, limit, |_| {})
    }

    /// As [`Self::run`], with changes to how the command is started.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub fn run_with(
        &mut self,
        argv: &[&str],
        limit: Duration,
        change: impl FnOnce(&mut Spawn),
    ) -> Result<Finished> {
        let (stdout, stderr) = (self.file("command.out"), self.file("command.err"));
        let mut spawn = Spawn {
            argv: argv.iter().map(|&argument| argument.into()).collect(),
            stdout: Some(stdout.clone()),
            stderr: Some(stderr.clone()),
            ..Spawn::default()
        };
        change(&mut spawn);
        let child = self.spawn(spawn)?.child;
        let exit = match self.wait(child, limit) {
            Ok(exit) => exit,
            Err(error) => {
                self.signal(child, Signal::KILL.as_raw())?;
                return Err(error.context(format!("{argv:?}")));
            }
        };
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Ok(Finished {
            exit,
            stdout: text(self.read_from(&stdout, 0)?),
            stderr: text(self.read_from(&stderr, 0)?),
        })
    }
}

/// A command that ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finished {
    /// How it ended.
    pub exit: Exit,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}
