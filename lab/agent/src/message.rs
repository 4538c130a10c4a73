//! What the lab asks of an agent, and what it answers.

use serde::{Deserialize, Serialize};
use std::net::Ipv4Addr;

/// One request. The type of its answer stands with each.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
pub enum Request {
    /// Who are you: [`Hello`].
    Hello,
    /// Make a folder and its parents: `()`.
    MakeDirs {
        /// Absolute path.
        path: String,
    },
    /// Write the payload to a file: `()`.
    PutFile {
        /// Absolute path; its folder exists.
        path: String,
        /// Permission bits of a new file.
        mode: u32,
        /// Add to what is there. Otherwise the file starts empty.
        append: bool,
    },
    /// Read a piece of a file: its bytes are the payload, none at the end. `()`.
    ReadFile {
        /// Absolute path.
        path: String,
        /// Where the piece starts, in bytes.
        offset: u64,
        /// Longest piece, in bytes; at most [`crate::frame::PAYLOAD_MAX`].
        limit: u32,
    },
    /// Remove a file or a device node: `()`.
    RemoveFile {
        /// Absolute path.
        path: String,
    },
    /// Start a child: [`Spawned`].
    Spawn(Spawn),
    /// Write the payload to a child's standard input: `()`.
    WriteStdin {
        /// The child.
        child: ChildId,
    },
    /// Close a child's standard input: `()`.
    CloseStdin {
        /// The child.
        child: ChildId,
    },
    /// Wait for a child's end: `Option<`[`Exit`]`>`, null when the time is over before.
    Wait {
        /// The child.
        child: ChildId,
        /// Longest wait, in ms.
        timeout_ms: u64,
    },
    /// Wait until a file holds a text: `Option<`[`Found`]`>`, null when the time is over before.
    WaitForText {
        /// Absolute path; the file need not exist yet.
        path: String,
        /// The text.
        text: String,
        /// Longest wait, in ms.
        timeout_ms: u64,
    },
    /// Send a signal to a child's process group: `()`.
    Signal {
        /// The child.
        child: ChildId,
        /// Number of the signal.
        signal: i32,
    },
    /// Kill every child that still runs, with its process group, and forget all: `()`.
    KillAll,
    /// What the scheduler counted for each thread of a process: [`Threads`].
    Threads {
        /// Process id, from [`Spawned`].
        pid: u32,
    },
    /// Every process that has a program, by id: `Vec<`[`Process`]`>`.
    Processes,
    /// Memory of a process by mapping: `Vec<`[`Mapping`]`>`.
    Mappings {
        /// Process id, from [`Spawned`].
        pid: u32,
    },
    /// Let the agent itself run on these CPUs only: `()`.
    PinAgent {
        /// CPU numbers.
        cpus: Vec<usize>,
    },
    /// Let a thread of any process run on these CPUs only: `()`.
    PinThread {
        /// Thread id.
        tid: u32,
        /// CPU numbers.
        cpus: Vec<usize>,
    },
    /// Read the clocks: [`Clocks`].
    Clocks,
    /// How long a system call takes that does nothing, in ns: `f64`.
    SystemCall,
    /// Step the wall clock and state the bound of its error, as a time daemon does: `()`.
    StepClock {
        /// By this much, in ns.
        by_ns: i64,
        /// Bound on what its error is then, in us.
        error_us: u32,
    },
    /// Have the host sleep until its RTC wakes it, by s2idle: [`Stopped`]. Refused on a host that
    /// is not the lab's own.
    Sleep {
        /// Until the RTC has counted so many seconds, of which the first is shorter.
        seconds: u32,
    },
    /// Stop a process through the cgroup freezer, all of its threads, and let it go on:
    /// [`Stopped`]. It stays in its cgroup.
    Freeze {
        /// Process id, from [`Spawned`].
        pid: u32,
        /// For this long.
        ms: u64,
    },
    /// Give a network device an address: `()`.
    JoinNetwork {
        /// Ethernet address by which it is found, as the kernel writes it.
        mac: String,
        /// Its class tells how long the network's part is.
        address: Ipv4Addr,
        /// Paths of kernel modules that it needs, each after those that it needs itself.
        modules: Vec<String>,
    },
    /// Kill all and end: an emulated host powers off. `()`.
    PowerOff,
}

/// A stop of a host or of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stopped {
    /// `CLOCK_BOOTTIME` from just before it was asked for to just after it was over.
    pub boottime_ns: u64,
    /// The same on `CLOCK_MONOTONIC`: less where the kernel's clocks stopped.
    pub monotonic_ns: u64,
}

/// The agent's number for a child.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ChildId(pub u32);

/// Clocks of a host at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Clocks {
    /// `CNTVCT_EL0`; `None` on machines that are not arm64.
    pub counter: Option<u64>,
    /// `CLOCK_REALTIME`, in ns.
    pub realtime_ns: u64,
}

/// Facts of a host that do not change.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Hello {
    /// [`crate::PROTOCOL`] of the agent.
    pub protocol: u32,
    /// Machine name of `uname`: `aarch64`.
    pub machine: String,
    /// Release of the kernel.
    pub kernel: String,
    /// `CNTFRQ_EL0`; `None` on machines that are not arm64.
    pub counter_frequency_hz: Option<u64>,
    /// `FEAT_ECV`: 0 without it, 1 with it, 2 with `CNTPOFF_EL2` too; `None` on machines that are not
    /// arm64.
    pub enhanced_counter: Option<u64>,
    /// CPUs online.
    pub cpus: usize,
    /// `/dev/kvm` exists.
    pub kvm: bool,
    /// Path of the agent's own program.
    pub agent_program: String,
    /// Process id of the agent.
    pub agent_pid: u32,
}

/// A program to start.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Spawn {
    /// Program, as a path, and its arguments.
    pub argv: Vec<String>,
    /// The whole environment.
    pub env: Vec<(String, String)>,
    /// CPUs it may run on; empty for all.
    pub cpus: Vec<usize>,
    /// Working folder.
    pub cwd: Option<String>,
    /// Runs with this user id, and a group of the same number and no others.
    pub user: Option<u32>,
    /// Standard input is a pipe for [`Request::WriteStdin`]. Otherwise it is empty.
    pub stdin: bool,
    /// File for standard output; `None` discards it.
    pub stdout: Option<String>,
    /// File for standard error; `None` discards it.
    pub stderr: Option<String>,
}

/// A child that was started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spawned {
    /// The agent's number for it.
    pub child: ChildId,
    /// Process id on the host.
    pub pid: u32,
    /// `CLOCK_MONOTONIC` of the host just before the start.
    pub started_ns: u64,
}

/// How a child ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Exit {
    /// It ended by itself with this status.
    Status(i32),
    /// This signal ended it.
    Signal(i32),
}

/// A text was found in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    /// `CLOCK_MONOTONIC` of the host when it was seen; the agent looks every 2 ms.
    pub at_ns: u64,
    /// Where the text starts in the file, in bytes.
    pub offset: u64,
}

/// The threads of a process at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Threads {
    /// `CLOCK_MONOTONIC` before the first was read.
    pub before_ns: u64,
    /// `CLOCK_MONOTONIC` after the last was read.
    pub after_ns: u64,
    /// By thread id.
    pub threads: Vec<Thread>,
}

/// What the host's scheduler counted for one thread: `/proc/PID/task/TID/schedstat`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Thread {
    /// Thread id.
    pub tid: u32,
    /// Name, at most 15 bytes.
    pub name: String,
    /// Time it ran.
    pub run_ns: u64,
    /// Time it was runnable and did not run.
    pub run_delay_ns: u64,
}

/// A process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Process id.
    pub pid: u32,
    /// Name, at most 15 bytes.
    pub name: String,
}

/// One mapping of a process: a part of `/proc/PID/smaps`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mapping {
    /// Length of the range of addresses.
    pub size_bytes: u64,
    /// Of it, in memory now.
    pub resident_bytes: u64,
    /// File or name behind it; empty for plain anonymous memory.
    pub name: String,
}

/// An answer: the value that the request documents, or one line on what went wrong.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer<T> {
    /// It was done.
    Done(T),
    /// It was not, and why.
    Failed(String),
}
