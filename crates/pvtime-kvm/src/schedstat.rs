//! What the host's scheduler counted for one thread.
//!
//! `/proc/<pid>/task/<tid>/schedstat` holds three decimal numbers: ns on a CPU, ns runnable but
//! waiting for one (the *run delay*), and the number of turns. The run delay is the figure that
//! KVM publishes as stolen time (arch/arm64/kvm/pvtime.c).

use std::fs;
use std::io;
use std::path::PathBuf;

use rustix::thread::Pid;
use serde::Serialize;

/// A thread's scheduler accounts since it was created.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct SchedStat {
    /// Time on a CPU, in ns; for a vCPU thread in the guest, in KVM and in the VMM together.
    pub run_ns: u64,
    /// Time runnable without a CPU, in ns. It grows when a wait ends, not while it lasts.
    pub run_delay_ns: u64,
    /// Number of times that the thread was put on a CPU.
    pub turns: u64,
}

/// Why a thread's accounts could not be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file is not there or not readable.
    #[error(
        "cannot read {path}: {source}; the thread has ended, or the kernel lacks CONFIG_SCHED_INFO"
    )]
    Read {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The file does not hold three decimal numbers.
    #[error(
        "{path} holds {text:?}, not three decimal numbers; this kernel's schedstat is not understood"
    )]
    Format {
        /// The file.
        path: PathBuf,
        /// What it holds.
        text: String,
    },
}

impl SchedStat {
    /// Reads the accounts of a thread of this process.
    ///
    /// # Errors
    ///
    /// [`Error`] where the thread does not exist or the kernel does not count.
    pub fn of_thread(thread: Pid) -> Result<Self, Error> {
        let path = PathBuf::from(format!("/proc/self/task/{thread}/schedstat"));
        match fs::read_to_string(&path) {
            Ok(text) => Self::parse(&text).ok_or(Error::Format { path, text }),
            Err(source) => Err(Error::Read { path, source }),
        }
    }

    fn parse(text: &str) -> Option<Self> {
        let mut numbers = text.split_ascii_whitespace().map(|word| word.parse().ok());
        let stat = Self {
            run_ns: numbers.next()??,
            run_delay_ns: numbers.next()??,
            turns: numbers.next()??,
        };
        numbers.next().is_none().then_some(stat)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_three_numbers_are_told_apart() {
        let stat = SchedStat {
            run_ns: 17,
            run_delay_ns: 2_000_000_003,
            turns: 4,
        };
        assert_eq!(SchedStat::parse("17 2000000003 4\n"), Some(stat));
    }

    #[test]
    fn anything_else_is_refused() {
        for text in [
            "",
            "1 2",
            "1 2 3 4",
            "1 2 x",
            "-1 2 3",
            "1 2 18446744073709551616",
        ] {
            assert_eq!(SchedStat::parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn a_thread_that_does_not_exist_is_an_error() {
        let nobody = Pid::from_raw(i32::MAX).unwrap();
        let error = SchedStat::of_thread(nobody).unwrap_err().to_string();
        assert!(error.contains("the thread has ended"), "{error}");
    }

    #[test]
    fn this_thread_has_run() {
        let stat = SchedStat::of_thread(rustix::thread::gettid()).unwrap();
        assert!(stat.run_ns > 0 && stat.turns > 0, "{stat:?}");
    }
}
