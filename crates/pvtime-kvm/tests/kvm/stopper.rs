//! Stops this process, all of its threads, from outside, and says for how long.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStderr, ChildStdin, Command, Stdio};
use std::time::Duration;
use std::{env, fs, thread};

use pvtime_kvm::clock::boottime_ns;
use rustix::process::{Pid, Signal, getppid, kill_process};

/// Where the other process begins.
const CHILD: &str = "stopper::stops_its_parent";

/// A process that stops this one when it is told to, and lets it go on. It ends with it.
pub struct Stopper {
    child: Child,
    lengths: Option<ChildStdin>,
    stops: BufReader<ChildStderr>,
}

/// A stop that is over; both by `CLOCK_BOOTTIME`.
#[derive(Clone, Copy, Debug)]
pub struct Stop {
    /// For this long at least no thread ran.
    pub whole_ns: u64,
    /// It was asked for at this time.
    pub asked_ns: u64,
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
        let asked_ns = boottime_ns();
        let mut lengths = self.lengths.as_ref().expect("it is taken when this ends");
        writeln!(lengths, "{}", length.as_nanos()).unwrap();
        let mut said = String::new();
        self.stops.read_line(&mut said).unwrap();
        let whole_ns = said.trim().parse();
        Stop {
            whole_ns: whole_ns.unwrap_or_else(|_| panic!("nobody stopped this process: {said}")),
            asked_ns,
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
        let length = Duration::from_nanos(line.unwrap().parse().unwrap());
        kill_process(parent, Signal::STOP).unwrap();
        while !is_stopped(parent) {
            thread::yield_now();
        }
        let start_ns = boottime_ns();
        thread::sleep(length);
        // It is there when the other goes on.
        eprintln!("{}", boottime_ns() - start_ns);
        kill_process(parent, Signal::CONT).unwrap();
    }
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
