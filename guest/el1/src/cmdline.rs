//! The program's options: on the command line of the device tree, after `--`.

use guest_protocol::heapless::Vec;
use guest_protocol::report::MAX_BARE_CPUS;
use guest_protocol::{UnknownWorkload, Workload};

/// What is on the command line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// What each CPU does, by number; CPUs not named are idle.
    pub workloads: Vec<Workload, MAX_BARE_CPUS>,
}

/// A command line that cannot be followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OptionError {
    /// There is no such option.
    #[error("an option after `--` is unknown; there is --workload WORK,…")]
    Unknown,
    /// The option has no value.
    #[error("--workload has no value; write --workload WORK,…")]
    NoValue,
    /// One of the words names no workload.
    #[error(transparent)]
    Workload(#[from] UnknownWorkload),
    /// There are more words than CPUs.
    #[error("--workload names more than {MAX_BARE_CPUS} CPUs, the most of this guest")]
    TooMany,
}

impl Options {
    /// Reads a command line. Words before `--` are for a kernel and not looked at.
    ///
    /// # Errors
    /// [`OptionError`] for a word after `--` that is not understood.
    pub fn parse(line: &str) -> Result<Self, OptionError> {
        let mut options = Self::default();
        let mut words = line
            .split_ascii_whitespace()
            .skip_while(|word| *word != "--");
        words.next();
        while let Some(word) = words.next() {
            if word != "--workload" {
                return Err(OptionError::Unknown);
            }
            for name in words.next().ok_or(OptionError::NoValue)?.split(',') {
                let workload = name.parse()?;
                options
                    .workloads
                    .push(workload)
                    .map_err(|_| OptionError::TooMany)?;
            }
        }
        Ok(options)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_before_the_dashes_are_for_a_kernel() {
        let options = Options::parse("console=ttyS0 --workload quiet");
        assert_eq!(options, Ok(Options::default()));
        assert_eq!(Options::parse(""), Ok(Options::default()));
    }

    #[test]
    fn each_cpu_has_its_workload() {
        let options = Options::parse("quiet -- --workload spin_live,idle,change").unwrap();
        let expected = [Workload::SpinLive, Workload::Idle, Workload::Change];
        assert_eq!(options.workloads, expected);
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        for (line, error) in [
            ("-- --sample-ms 0", OptionError::Unknown),
            ("-- --workload", OptionError::NoValue),
            (
                "-- --workload spin,",
                OptionError::Workload(UnknownWorkload),
            ),
            ("-- --workload i,i", OptionError::Workload(UnknownWorkload)),
        ] {
            assert_eq!(Options::parse(line), Err(error), "{line}");
        }
        let many = ["-- --workload idle", &",idle".repeat(MAX_BARE_CPUS)].concat();
        assert_eq!(Options::parse(&many), Err(OptionError::TooMany));
    }
}
