//! Which threads can be on a CPU at this moment.

use std::fs;

use rustix::thread::{Pid, sched_getcpu};

/// Whether a thread of this process may be running while the caller looks. One that sleeps is not, nor
/// one that waits for the very CPU that the caller has. Of others nobody can tell.
pub(super) fn may_run(thread: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/self/task/{thread}/stat"));
    let last_run = stat.ok().as_deref().and_then(LastRun::parse);
    last_run.is_none_or(|it| it.wants_cpu && it.cpu != sched_getcpu())
}

/// What `/proc/PID/task/TID/stat` says of a thread (`man 5 proc_pid_stat`).
#[derive(Debug, PartialEq, Eq)]
struct LastRun {
    /// It runs, or is ready to.
    wants_cpu: bool,
    /// Where it runs, or ran last.
    cpu: usize,
}

impl LastRun {
    /// Fields 3 and 39. Field 2 is a name in parentheses that may hold anything.
    fn parse(stat: &str) -> Option<Self> {
        let (_, fields) = stat.rsplit_once(')')?;
        let mut fields = fields.split_ascii_whitespace();
        let state = fields.next()?;
        let cpu = fields.nth(35)?.parse().ok()?;
        Some(Self {
            wants_cpu: state == "R",
            cpu,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Duration;
    use std::{sync::Arc, thread};

    use rustix::thread::gettid;

    use super::*;

    #[test]
    fn the_state_follows_a_name_that_may_look_like_one() {
        let rest = "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31 \
                    32 33 34 35 7 0 0";
        let parse = |text: String| LastRun::parse(&text);
        let stat = |wants_cpu| Some(LastRun { wants_cpu, cpu: 7 });
        assert_eq!(parse(format!("12 (vcpu 0) R {rest}")), stat(true));
        assert_eq!(parse(format!("12 (a) S (b) S {rest}")), stat(false));
        assert_eq!(parse("12 (vcpu 0) R 1 2 3".to_owned()), None);
        assert_eq!(parse(String::new()), None);
    }

    #[test]
    fn a_thread_that_sleeps_does_not_run_and_one_that_ended_is_not_known() {
        assert!(!may_run(gettid()), "it waits for this CPU at most");
        let (sender, thread_of) = std::sync::mpsc::channel();
        let ends = Arc::new(AtomicBool::new(false));
        let spins = Arc::clone(&ends);
        let spinning = thread::spawn(move || {
            sender.send(gettid()).unwrap();
            thread::park();
            while !spins.load(Ordering::Relaxed) {}
        });
        let id = thread_of.recv().unwrap();
        let becomes = |want| {
            let mut looks = 0..10_000;
            looks.any(|_| {
                thread::sleep(Duration::from_millis(1));
                may_run(id) == want
            })
        };
        assert!(becomes(false), "it is parked");
        spinning.thread().unpark();
        assert!(becomes(true), "it spins, on another CPU sooner or later");
        ends.store(true, Ordering::Relaxed);
        spinning.join().unwrap();
        assert!(may_run(id));
    }
}
