//! Stops this process, all of its threads, from outside, and says for how long.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStderr, ChildStdin, Command, Stdio};
use std::time::Duration;
use std::{env, fs, thread};

use pvtime_kvm::clock::boottime_ns;
use pvtime_kvm::sleep::TERM;
use rustix::process::{Pid, Signal, getppid, kill_process};
use rustix::thread::gettid;
use vmm_sys_util::signal::SIGRTMIN;

/// Where the other process begins.
const CHILD: &str = "stopper::stops_its_parent";

/// A process that stops this one when it is told to, and lets it go on. It ends with it.
pub struct Stopper {
    child: Child,
    lengths: Option<ChildStdin>,
    stops: BufReader<ChildStderr>,
}

/// A stop that is over; times by `CLOCK_BOOTTIME`.
#[derive(Clone, Copy, Debug)]
pub struct Stop {
    /// For this long at least no thread ran.
    pub whole_ns: u64,
    /// It was asked for at this time.
    pub asked_ns: u64,
    /// The signal of the lease's timer was not there at its end for the thread that was asked about,
    /// although it was due: the CPU whose interrupt it is did not run, which only happens to a host
    /// that is a VM itself.
    pub timer_was_late: bool,
}

impl Stop {
    /// Whether any lease ended in it, whenever that was renewed before.
    pub fn outlasts_lease(&self) -> bool {
        Duration::from_nanos(self.whole_ns) >= TERM
    }
}

impl Stopper {
    pub fn start() -> Self {
        let mut child = Command::new(env::current_exe().unwrap())
            .args([CHILD, "--exact", "--ignored", "--nocapture"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        Self {
            lengths: child.stdin.take(),
            stops: BufReader::new(child.stderr.take().unwrap()),
            child,
        }
    }

    /// Has this process stopped for that long, and returns when it goes on: the first thing that
    /// the calling thread does then.
    pub fn stop_for(&mut self, length: Duration) -> Stop {
        self.stop(&length.as_nanos().to_string())
    }

    /// The same, and tells whether the timer of the calling thread's lease was late.
    pub fn stop_for_lease(&mut self, length: Duration) -> Stop {
        let thread = gettid().as_raw_nonzero();
        self.stop(&format!("{} {thread}", length.as_nanos()))
    }

    fn stop(&mut self, order: &str) -> Stop {
        let asked_ns = boottime_ns();
        let mut lengths = self.lengths.as_ref().expect("it is taken when this ends");
        writeln!(lengths, "{order}").unwrap();
        let mut said = String::new();
        self.stops.read_line(&mut said).unwrap();
        let (whole_ns, late) = said
            .trim()
            .split_once(' ')
            .unwrap_or_else(|| panic!("nobody stopped this process: {said}"));
        Stop {
            whole_ns: whole_ns.parse().unwrap(),
            asked_ns,
            timer_was_late: late == "late",
        }
    }
}

impl Drop for Stopper {
    fn drop(&mut self) {
        drop(self.lengths.take());
        let _ = self.child.wait();
    }
}

#[test]
#[ignore = "the other half of a Stopper, which runs it"]
fn stops_its_parent() {
    let parent = getppid().expect("the test that runs this");
    for line in std::io::stdin().lines() {
        let line = line.unwrap();
        let (length, thread) = line.split_once(' ').unwrap_or((&line, ""));
        let length = Duration::from_nanos(length.parse().unwrap());
        kill_process(parent, Signal::STOP).unwrap();
        while !is_stopped(parent) {
            thread::yield_now();
        }
        let start_ns = boottime_ns();
        thread::sleep(length);
        let whole_ns = boottime_ns() - start_ns;
        // A lease that was renewed before it has ended then.
        let is_due = Duration::from_nanos(whole_ns) >= TERM && !thread.is_empty();
        let late = is_due && !has_signal(parent, thread);
        // It is there when the other goes on.
        eprintln!("{whole_ns} {}", if late { "late" } else { "in-time" });
        kill_process(parent, Signal::CONT).unwrap();
    }
}

fn has_signal(process: Pid, thread: &str) -> bool {
    let status = fs::read_to_string(format!("/proc/{process}/task/{thread}/status")).unwrap();
    let pending = status.lines().find_map(|it| it.strip_prefix("SigPnd:"));
    let pending = u64::from_str_radix(pending.unwrap().trim(), 16).unwrap();
    pending >> (SIGRTMIN() - 1) & 1 == 1
}

/// Whether every thread is: one after the other takes the signal.
fn is_stopped(process: Pid) -> bool {
    let tasks = fs::read_dir(format!("/proc/{process}/task")).unwrap();
    tasks.flatten().all(|task| {
        let stat = fs::read_to_string(task.path().join("stat")).unwrap_or_default();
        // The state follows the name, which is in parentheses.
        stat.rsplit(')')
            .next()
            .is_some_and(|rest| rest.trim_start().starts_with('T'))
    })
}
