//! The program's options: on the kernel command line, after `--`.

use std::ffi::OsString;

use anyhow::{Result, anyhow};
use clap::Parser;
use guest_protocol::Workload;

/// Init program of a Linux test guest: keeps its CPUs at work, samples its clocks, reports them.
#[derive(Clone, Debug, PartialEq, Eq, Parser)]
#[command(name = "init", version)]
pub struct Options {
    /// What each CPU does, by number: idle, busy, spin or change; CPUs not named are idle
    #[arg(long, value_name = "WORK,…", value_delimiter = ',')]
    pub workload: Vec<Workload>,

    /// Milliseconds between samples; 0 samples on request only
    #[arg(long, value_name = "N", default_value_t = 1000)]
    pub sample_ms: u32,

    /// Milliseconds between looks for pauses of the VM that its counters did not show, by which the
    /// wall clock is then set forward; 0 leaves it alone
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub wall_clock_ms: u32,

    /// Device in /dev to talk on [default: ttyS1 if the machine has it, else the console]
    #[arg(long, value_name = "NAME")]
    pub port: Option<String>,
}

impl Options {
    /// Reads the arguments that the kernel gave to process 1.
    ///
    /// # Errors
    /// In one line: nobody is there to read more.
    pub fn of_process_one(arguments: impl IntoIterator<Item = OsString>) -> Result<Self> {
        Self::try_parse_from(arguments).map_err(|error| {
            let text = error.to_string();
            let first = text.lines().next().unwrap_or_default();
            anyhow!(
                "{}; options stand after `--` on the kernel command line, and a word before it \
                 that the kernel does not know counts as one",
                first.trim_start_matches("error: ")
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use guest_protocol::clip;

    use super::*;

    fn parse(line: &str) -> Result<Options, String> {
        let words = line.split_whitespace().map(OsString::from);
        Options::of_process_one(words).map_err(|error| error.to_string())
    }

    #[test]
    fn options_have_defaults() {
        let expected = Options {
            workload: Vec::new(),
            sample_ms: 1000,
            wall_clock_ms: 0,
            port: None,
        };
        assert_eq!(parse("/init"), Ok(expected));
    }

    #[test]
    fn options_are_read() {
        let expected = Options {
            workload: vec![Workload::Busy, Workload::Idle, Workload::Spin],
            sample_ms: 0,
            wall_clock_ms: 200,
            port: Some("ttyS0".to_owned()),
        };
        assert_eq!(
            parse("/init --workload busy,idle,spin --sample-ms 0 --wall-clock-ms 200 --port ttyS0"),
            Ok(expected)
        );
    }

    #[test]
    fn wrong_options_are_named_in_one_line() {
        let hint = "; options stand after `--` on the kernel command line, and a word before it \
                    that the kernel does not know counts as one";
        for (line, first) in [
            (
                "/init --workload busy,lazy",
                "invalid value 'lazy' for '--workload <WORK,…>': not a workload; write idle, busy, \
                 spin, spin_physical, spin_live, events or change",
            ),
            ("/init nosmp", "unexpected argument 'nosmp' found"),
            ("/init --sample-ms -1", "unexpected argument '-1' found"),
        ] {
            let message = parse(line).unwrap_err();
            assert_eq!(message, format!("{first}{hint}"));
            assert_eq!(clip::<256>(&message), message.as_str(), "it fits a report");
        }
    }
}
