//! Stolen time by CPU, as Linux accounts for it in `/proc/stat`.

use guest_protocol::{MAX_CPUS, heapless};
use rustix::param::clock_ticks_per_second;

/// Where the steal column stands after the name of a CPU: user, nice, system, idle, iowait, irq,
/// softirq, steal (`proc_stat(5)`).
const STEAL_COLUMN: usize = 7;

/// Stolen time by CPU number, none where a CPU is offline, in nanoseconds.
pub type StealNs = heapless::Vec<Option<u64>, MAX_CPUS>;

/// Why `/proc/stat` cannot be made sense of.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProcStatError {
    /// A CPU's line is not as `proc_stat(5)` has it.
    #[error("/proc/stat line `{line}` gives no stolen time")]
    Line {
        /// The line.
        line: String,
    },
    /// A CPU has a number that a report cannot hold.
    #[error("CPU {cpu} is online and reports hold {MAX_CPUS}; give the guest fewer CPUs")]
    TooManyCpus {
        /// Its number.
        cpu: usize,
    },
}

/// The step in which `/proc/stat` counts (`USER_HZ`), in nanoseconds.
pub fn unit_ns() -> u64 {
    1_000_000_000 / clock_ticks_per_second()
}

/// Reads the text of `/proc/stat`, which counts in steps of `unit_ns`.
pub fn parse_steal(text: &str, unit_ns: u64) -> Result<StealNs, ProcStatError> {
    let mut steal = StealNs::new();
    for line in text.lines() {
        // The first line, `cpu`, is the sum of the others.
        let Some((name, columns)) = line.split_once(' ') else {
            continue;
        };
        let Some(number) = name.strip_prefix("cpu").filter(|number| !number.is_empty()) else {
            continue;
        };
        let wrong = || ProcStatError::Line {
            line: line.to_owned(),
        };
        let cpu: usize = number.parse().map_err(|_| wrong())?;
        let ticks = columns
            .split_ascii_whitespace()
            .nth(STEAL_COLUMN)
            .ok_or_else(wrong)?;
        let ticks: u64 = ticks.parse().map_err(|_| wrong())?;
        let stolen_ns = ticks.checked_mul(unit_ns).ok_or_else(wrong)?;
        if cpu >= steal.len() {
            steal
                .resize(cpu + 1, None)
                .map_err(|_| ProcStatError::TooManyCpus { cpu })?;
        }
        steal[cpu] = Some(stolen_ns);
    }
    Ok(steal)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
cpu  101 2 303 4004 5 6 7 35 0 0
cpu0 50 1 150 2000 2 3 3 12 0 0
cpu2 51 1 153 2004 3 3 4 23 0 0
intr 1 2 3 4 5 6 7 8 9
ctxt 12345
btime 1700000000
";

    #[test]
    fn steal_is_read_by_cpu_number() {
        let steal = parse_steal(TEXT, 10_000_000).unwrap();
        assert_eq!(steal, [Some(120_000_000), None, Some(230_000_000)]);
    }

    #[test]
    fn a_line_without_steal_is_refused() {
        for line in [
            "cpu0 1 2 3 4 5 6 7",
            "cpu0 1 2 3 4 5 6 7 x",
            "cpux 1 2 3 4 5 6 7 8 9 10",
            "cpu0 1 2 3 4 5 6 7 18446744073709551615",
        ] {
            let error = parse_steal(line, 10_000_000).unwrap_err();
            assert_eq!(
                error.to_string(),
                format!("/proc/stat line `{line}` gives no stolen time")
            );
        }
    }

    #[test]
    fn cpus_beyond_a_report_are_refused() {
        let line = |cpu: usize| format!("cpu{cpu} 1 2 3 4 5 6 7 8 9 10");
        assert_eq!(parse_steal(&line(MAX_CPUS - 1), 1).unwrap().len(), MAX_CPUS);
        let error = parse_steal(&line(MAX_CPUS), 1).unwrap_err();
        assert_eq!(error, ProcStatError::TooManyCpus { cpu: MAX_CPUS });
    }

    #[test]
    fn this_machine_accounts_for_steal() {
        let text = std::fs::read_to_string("/proc/stat").unwrap();
        let first_cpu = text.lines().nth(1).unwrap();
        let steal = parse_steal(first_cpu, unit_ns()).unwrap();
        assert_eq!(steal.iter().flatten().count(), 1, "{first_cpu}");
        assert_eq!(unit_ns(), 10_000_000, "USER_HZ is 100 wherever this runs");
    }
}
