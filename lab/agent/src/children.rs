//! The children that an agent started.

use crate::processes::monotonic_ns;
use anyhow::{Context, Result, bail};
use lab_agent::message::{ChildId, Exit, Spawn, Spawned};
use lab_agent::tether::tether;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Children by number. All are killed when it is dropped.
#[derive(Default)]
pub struct Children {
    started: BTreeMap<ChildId, Started>,
    last: u32,
}

struct Started {
    child: Child,
    /// Set once the child has been reaped; from then on its process id may be another's.
    exit: Option<Exit>,
}

impl Children {
    pub fn spawn(&mut self, spawn: &Spawn) -> Result<Spawned> {
        let [program, arguments @ ..] = &spawn.argv[..] else {
            bail!("nothing to spawn: give a program");
        };
        let mut command = Command::new(program);
        command
            .args(arguments)
            .env_clear()
            .envs(spawn.env.iter().map(|(k, v)| (k, v)));
        command.stdin(if spawn.stdin {
            Stdio::piped()
        } else {
            Stdio::null()
        });
        command.stdout(output(spawn.stdout.as_deref())?);
        command.stderr(output(spawn.stderr.as_deref())?);
        if let Some(folder) = &spawn.cwd {
            command.current_dir(folder);
        }
        if let Some(user) = spawn.user {
            command.uid(user).gid(user);
        }
        let started_ns = monotonic_ns();
        let child = on_cpus(&spawn.cpus, || {
            tether(&mut command)
                .spawn()
                .with_context(|| format!("cannot start {program}"))
        })?;
        self.last += 1;
        let spawned = Spawned {
            child: ChildId(self.last),
            pid: child.id(),
            started_ns,
        };
        self.started
            .insert(spawned.child, Started { child, exit: None });
        Ok(spawned)
    }

    pub fn write_stdin(&mut self, child: ChildId, bytes: &[u8]) -> Result<()> {
        let Some(stdin) = self.find(child)?.child.stdin.as_mut() else {
            bail!("child {} has no open standard input", child.0);
        };
        stdin
            .write_all(bytes)
            .and_then(|()| stdin.flush())
            .with_context(|| format!("cannot write to child {}", child.0))
    }

    pub fn close_stdin(&mut self, child: ChildId) -> Result<()> {
        self.find(child)?.child.stdin = None;
        Ok(())
    }

    pub fn wait(&mut self, id: ChildId, timeout: Duration) -> Result<Option<Exit>> {
        self.find(id)?.wait(timeout)
    }

    pub fn signal(&mut self, id: ChildId, signal: i32) -> Result<()> {
        let started = self.find(id)?;
        let signal = Signal::from_named_raw(signal).context("no signal has this number")?;
        if started.wait(Duration::ZERO)?.is_some() {
            bail!("child {} has ended", id.0);
        }
        Ok(kill_process_group(started.pid()?, signal)?)
    }

    /// Kills every child with its process group and waits for their ends.
    pub fn kill_all(&mut self) {
        for (_, mut started) in std::mem::take(&mut self.started) {
            if let Err(error) = started.kill() {
                eprintln!(
                    "lab-agent: cannot kill child {}: {error:#}",
                    started.child.id()
                );
            }
        }
    }

    fn find(&mut self, id: ChildId) -> Result<&mut Started> {
        self.started
            .get_mut(&id)
            .with_context(|| format!("there is no child {}", id.0))
    }
}

impl Started {
    fn wait(&mut self, timeout: Duration) -> Result<Option<Exit>> {
        if self.exit.is_none() && has_ended(self.pid()?, timeout)? {
            self.kill()?;
        }
        Ok(self.exit)
    }

    /// Kills what is left of the child's process group, and reaps the child only then: until it is
    /// reaped, the group's number belongs to nobody else.
    fn kill(&mut self) -> Result<()> {
        if self.exit.is_some() {
            return Ok(());
        }
        match kill_process_group(self.pid()?, Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(error) => return Err(error.into()),
        }
        let status = self.child.wait()?;
        self.exit = Some(match (status.code(), status.signal()) {
            (Some(code), _) => Exit::Status(code),
            (None, signal) => Exit::Signal(signal.unwrap_or_default()),
        });
        Ok(())
    }

    fn pid(&self) -> Result<Pid> {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        pid.context("a process id beyond 2^31")
    }
}

impl Drop for Children {
    fn drop(&mut self) {
        self.kill_all();
    }
}

/// Runs `action` with the thread on these CPUs, which a child inherits, and then where it was.
fn on_cpus<T>(cpus: &[usize], action: impl FnOnce() -> Result<T>) -> Result<T> {
    let before = sched_getaffinity(None)?;
    if !cpus.is_empty() {
        pin(None, cpus)?;
    }
    let done = action();
    sched_setaffinity(None, &before)?;
    done
}

/// Lets a thread run on these CPUs only; `None` is the calling one.
pub fn pin(tid: Option<u32>, cpus: &[usize]) -> Result<()> {
    let mut set = CpuSet::new();
    for &cpu in cpus {
        if cpu >= CpuSet::MAX_CPU {
            bail!("there is no CPU {cpu}");
        }
        set.set(cpu);
    }
    let thread = tid.map(|tid| Pid::from_raw(tid.cast_signed()).context("no thread id"));
    sched_setaffinity(thread.transpose()?, &set)
        .with_context(|| format!("cannot run on CPUs {cpus:?}"))
}

fn output(path: Option<&str>) -> Result<Stdio> {
    let Some(path) = path else {
        return Ok(Stdio::null());
    };
    let file = File::create(path).with_context(|| format!("cannot write {path}"))?;
    Ok(file.into())
}

/// Waits for the end of a child without reaping it.
fn has_ended(pid: Pid, timeout: Duration) -> Result<bool> {
    let ended = pidfd_open(pid, PidfdFlags::empty())?;
    let start = Instant::now();
    loop {
        let left = timeout.saturating_sub(start.elapsed());
        match poll(
            &mut [PollFd::new(&ended, PollFlags::IN)],
            Some(&Timespec::try_from(left)?),
        ) {
            Err(rustix::io::Errno::INTR) => {}
            other => return Ok(other? > 0),
        }
    }
}
