//! What the host counted for the thread of a vCPU.
//!
//! | account | from | counts |
//! |---|---|---|
//! | run | the thread's CPU clock | ns on a CPU: in the guest, in KVM, in the VMM |
//! | stolen | `/proc/self/task/TID/schedstat`, second field | ns runnable without a CPU |
//! | idle | KVM's `halt_wait_ns` and the two above | ns in which the vCPU had nothing to do |
//!
//! Nobody counts idle time exactly. KVM's `halt_wait_ns` lasts until the thread runs again, so it
//! includes the wait for a CPU after the wake-up, which is stolen time already. What a thread did
//! not run and did not wait includes sleep outside the guest. Idle time is in both, so the lesser
//! of the two, over each stretch between two samples, is taken.
//!
//! Stretches that are under way are in no account but `run`: a sample is whole only while the
//! thread is out of the guest.
#![expect(unsafe_code, reason = "clocks of other threads have no safe wrapper")]

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use pvtime::host::ledger::ThreadSample;
use rustix::thread::Pid;

use crate::clock;
use last_look::{Counted, LastLook, Run};

mod halt;
mod last_look;

pub use halt::HaltTime;

/// A thread's accounts could not be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The thread has ended, or the kernel does not count.
    #[error(
        "cannot read {path}: {source}; the thread has ended, or the kernel lacks CONFIG_SCHED_INFO"
    )]
    Schedstat {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The file does not hold three decimal numbers.
    #[error("{path} holds {text:?}, not three decimal numbers; this kernel is not understood")]
    SchedstatFormat {
        /// The file.
        path: PathBuf,
        /// What it holds.
        text: String,
    },
    /// The thread's clock cannot be read.
    #[error("cannot read the CPU clock of thread {thread}: {source}; the thread has ended")]
    Clock {
        /// The thread.
        thread: i32,
        /// What the kernel said.
        source: io::Error,
    },
    /// KVM's statistics of the vCPU cannot be read.
    #[error("cannot read KVM's statistics of a vCPU: {source}; Linux 5.14 or newer has them")]
    KvmStatistics {
        /// What the kernel said.
        source: io::Error,
    },
    /// The statistics do not have the one that is needed.
    #[error("KVM's statistics of a vCPU have no {name}; this kernel is not understood")]
    NoStatistic {
        /// Its name.
        name: &'static str,
    },
}

/// The run delay of a thread of this process: what KVM publishes as stolen time.
///
/// It grows when a wait ends, not while it lasts.
///
/// # Errors
///
/// [`Error::Schedstat`] and [`Error::SchedstatFormat`].
pub fn run_delay_ns(thread: Pid) -> Result<u64, Error> {
    RunDelay::of(thread)?.read_ns()
}

/// The run delay of a thread that is asked for often: finding the file takes longer than reading it.
#[derive(Debug)]
struct RunDelay {
    path: PathBuf,
    schedstat: File,
}

impl RunDelay {
    fn of(thread: Pid) -> Result<Self, Error> {
        let path = PathBuf::from(format!("/proc/self/task/{thread}/schedstat"));
        match File::open(&path) {
            Ok(schedstat) => Ok(Self { path, schedstat }),
            Err(source) => Err(Error::Schedstat { path, source }),
        }
    }

    fn read_ns(&self) -> Result<u64, Error> {
        // Three decimal numbers of 64 bits.
        let mut bytes = [0; 64];
        let length = self.schedstat.read_at(&mut bytes, 0);
        let path = || self.path.clone();
        let length = length.map_err(|source| Error::Schedstat {
            path: path(),
            source,
        })?;
        let text = String::from_utf8_lossy(&bytes[..length]);
        parse_run_delay(&text).ok_or_else(|| Error::SchedstatFormat {
            path: path(),
            text: text.into_owned(),
        })
    }
}

fn parse_run_delay(text: &str) -> Option<u64> {
    let mut numbers = text.split_ascii_whitespace().map(str::parse::<u64>);
    let mut next = || numbers.next()?.ok();
    let (_run_ns, run_delay_ns, _turns) = (next()?, next()?, next()?);
    numbers.next().is_none().then_some(run_delay_ns)
}

/// Time that a thread of this process was on a CPU, to the moment.
///
/// # Errors
///
/// [`Error::Clock`].
pub fn run_ns(thread: Pid) -> Result<u64, Error> {
    let thread = thread.as_raw_nonzero().get();
    // The kernel's encoding of a thread's scheduler clock (include/linux/posix-timers_types.h).
    let clock = (!thread << 3) | 0b110;
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the pointer is to a timespec, which the call fills in.
    if unsafe { libc::clock_gettime(clock, &raw mut time) } != 0 {
        return Err(Error::Clock {
            thread,
            source: io::Error::last_os_error(),
        });
    }
    let time = rustix::time::Timespec {
        tv_sec: time.tv_sec,
        tv_nsec: time.tv_nsec,
    };
    Ok(clock::nanoseconds(time))
}

/// The cumulative accounts of one vCPU's thread.
#[derive(Debug)]
pub struct ThreadAccounts {
    thread: Pid,
    run_delay: RunDelay,
    halt: HaltTime,
    last_look: LastLook,
    idle_ns: u64,
    last: Raw,
    was_off: bool,
}

/// What the kernel counts, at one moment.
#[expect(clippy::struct_field_names, reason = "units last")]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Raw {
    physical_ns: u64,
    run_ns: u64,
    run_delay_ns: u64,
    halt_ns: u64,
}

impl ThreadAccounts {
    /// For the calling thread, which runs the vCPU whose halts are given.
    ///
    /// # Errors
    ///
    /// [`Error`].
    pub fn of_this_thread(halt: HaltTime) -> Result<Self, Error> {
        let thread = rustix::thread::gettid();
        let mut accounts = Self {
            thread,
            run_delay: RunDelay::of(thread)?,
            halt,
            last_look: LastLook::default(),
            idle_ns: 0,
            last: Raw::default(),
            was_off: true,
        };
        accounts.last = accounts.read()?;
        Ok(accounts)
    }

    /// The thread.
    pub fn thread(&self) -> Pid {
        self.thread
    }

    /// Reads the accounts of a vCPU that is off or on; idle time is taken over the stretch since the
    /// last call.
    ///
    /// # Errors
    ///
    /// [`Error`].
    pub fn sample(&mut self, is_off: bool) -> Result<ThreadSample, Error> {
        let now = self.read()?;
        let was_off = std::mem::replace(&mut self.was_off, is_off);
        self.idle_ns += now.idle_ns_since(&self.last, is_off || was_off);
        self.last = now;
        Ok(self.at(now))
    }

    /// The accounts now, for a thread that waits outside the guest: no idle time is added, and the
    /// next [`sample`](Self::sample) reaches back to the last one.
    ///
    /// # Errors
    ///
    /// [`Error`].
    pub fn peek(&self) -> Result<ThreadSample, Error> {
        Ok(self.at(self.read()?))
    }

    /// Time in which the thread ran, waited for a CPU, or had its vCPU halted, in ns since it
    /// began: its guest ran in no other time. For a thread that is outside the guest.
    ///
    /// # Errors
    ///
    /// [`Error`].
    pub fn busy_ns(&self) -> Result<u64, Error> {
        let now = self.read()?;
        Ok(now.run_ns + now.run_delay_ns + now.halt_ns)
    }

    /// The same for a thread that may be in the guest, with as much of a halt that is under way as was
    /// seen of it at earlier calls: KVM counts that halt as a whole when it ends. Three system calls, and
    /// one from the third look on at a thread that does not run.
    ///
    /// # Errors
    ///
    /// [`Error`].
    pub fn busy_so_far_ns(&mut self) -> Result<u64, Error> {
        if self.last_look.may_last()
            && let Some(busy_ns) = self.last_look.unchanged(self.run()?)
        {
            return Ok(busy_ns);
        }
        let (halt_ns, is_halted) = self.halt.read_with_under_way()?;
        let counted = Counted {
            ns: halt_ns + self.run_delay.read_ns()?,
            is_halted,
        };
        let run = self.run()?;
        Ok(self.last_look.see(counted, run))
    }

    fn run(&self) -> Result<Run, Error> {
        let before_ns = clock::boottime_ns();
        let ns = run_ns(self.thread)?;
        let after_ns = clock::boottime_ns();
        Ok(Run {
            ns,
            before_ns,
            after_ns,
        })
    }

    fn at(&self, now: Raw) -> ThreadSample {
        ThreadSample {
            physical_ns: now.physical_ns,
            run_ns: now.run_ns,
            idle_ns: self.idle_ns,
            stolen_ns: now.run_delay_ns,
        }
    }

    fn read(&self) -> Result<Raw, Error> {
        Ok(Raw {
            physical_ns: clock::boottime_ns(),
            run_ns: run_ns(self.thread)?,
            run_delay_ns: self.run_delay.read_ns()?,
            halt_ns: self.halt.read_ns()?,
        })
    }
}

impl Raw {
    /// What the thread neither ran nor waited.
    fn slept_ns_since(&self, last: &Self) -> u64 {
        let physical_ns = self.physical_ns - last.physical_ns;
        let busy_ns = (self.run_ns - last.run_ns) + (self.run_delay_ns - last.run_delay_ns);
        physical_ns.saturating_sub(busy_ns)
    }

    /// Sleep in which the vCPU had nothing to do; `off` where it was off at one end.
    fn idle_ns_since(&self, last: &Self, off: bool) -> u64 {
        let slept_ns = self.slept_ns_since(last);
        let halt_ns = self.halt_ns - last.halt_ns;
        if off { slept_ns } else { slept_ns.min(halt_ns) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_run_delay_is_the_second_of_three_numbers() {
        assert_eq!(parse_run_delay("17 2000000003 4\n"), Some(2_000_000_003));
        for text in [
            "",
            "1 2",
            "1 2 3 4",
            "1 x 3",
            "1 -2 3",
            "1 18446744073709551616 3",
        ] {
            assert_eq!(parse_run_delay(text), None, "{text:?}");
        }
    }

    #[test]
    fn a_thread_that_does_not_exist_is_an_error() {
        let nobody = std::thread::spawn(rustix::thread::gettid).join().unwrap();
        let error = run_delay_ns(nobody).unwrap_err().to_string();
        assert!(error.contains("the thread has ended"), "{error}");
        let error = run_ns(nobody).unwrap_err().to_string();
        assert!(error.contains("the thread has ended"), "{error}");
    }

    #[test]
    fn this_threads_clock_runs_while_it_does() {
        let thread = rustix::thread::gettid();
        let start = clock::boottime_ns();
        let before = run_ns(thread).unwrap();
        while run_ns(thread).unwrap() < before + 1_000_000 {
            assert!(
                clock::boottime_ns() < start + 10_000_000_000,
                "the clock stands"
            );
        }
        assert!(clock::boottime_ns() - start >= 1_000_000);
    }

    #[test]
    fn idle_time_is_in_both_of_its_bounds() {
        let last = Raw {
            physical_ns: 1000,
            run_ns: 500,
            run_delay_ns: 50,
            halt_ns: 100,
        };
        let now = |run_ns: u64, run_delay_ns: u64, halt_ns: u64| Raw {
            physical_ns: 2000,
            run_ns: 500 + run_ns,
            run_delay_ns: 50 + run_delay_ns,
            halt_ns: 100 + halt_ns,
        };
        // Of 1000 ns the thread ran 300 and waited 100: it slept 600.
        assert_eq!(now(300, 100, 600).idle_ns_since(&last, false), 600);
        // The wait after a wake-up is in the halt as well.
        assert_eq!(now(300, 100, 650).idle_ns_since(&last, false), 600);
        // It slept outside the guest too.
        assert_eq!(now(300, 100, 400).idle_ns_since(&last, false), 400);
        // A vCPU that is off does not halt.
        assert_eq!(now(300, 100, 0).idle_ns_since(&last, true), 600);
        // Clocks that are read one after the other may claim a little too much.
        assert_eq!(now(990, 20, 5).idle_ns_since(&last, false), 0);
    }
}
