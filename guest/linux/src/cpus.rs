//! The guest's CPUs, from the lists that Linux keeps in `/sys/devices/system/cpu`.

use std::fs;
use std::ops::RangeInclusive;
use std::str::FromStr;

use anyhow::{Context, Result, ensure};
use guest_protocol::MAX_CPUS;

const POSSIBLE: &str = "/sys/devices/system/cpu/possible";
const ONLINE: &str = "/sys/devices/system/cpu/online";

/// A set of CPUs as the kernel prints it: `0-3,6`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuList {
    ranges: Vec<RangeInclusive<u32>>,
}

/// Text that is no list of CPUs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is no list of CPUs such as 0-3,6")]
pub struct CpuListError {
    /// The text.
    pub text: String,
}

/// Takes a CPU off or brings it back.
///
/// # Errors
/// Names the CPU, and says what the kernel says.
pub fn set_online(cpu: u32, online: bool) -> Result<()> {
    let file = format!("/sys/devices/system/cpu/cpu{cpu}/online");
    let (digit, done) = if online {
        ("1", "brought back")
    } else {
        ("0", "taken off")
    };
    fs::write(file, digit).with_context(|| {
        format!("CPU {cpu} cannot be {done}; is it there, and does the kernel have HOTPLUG_CPU?")
    })
}

impl CpuList {
    /// CPUs that may ever come online.
    pub fn possible() -> Result<Self> {
        read(POSSIBLE)
    }

    /// CPUs online now.
    ///
    /// # Errors
    /// Also when one has a number that a report cannot hold.
    pub fn online() -> Result<Self> {
        let online = read(ONLINE)?;
        let beyond = online.iter().find(|&cpu| cpu as usize >= MAX_CPUS);
        ensure!(
            beyond.is_none(),
            "CPUs {online} are online and reports hold {MAX_CPUS}; give the guest fewer"
        );
        Ok(online)
    }

    /// Number of CPUs.
    pub fn count(&self) -> u32 {
        self.ranges
            .iter()
            .map(|range| range.end() - range.start() + 1)
            .sum()
    }

    /// Whether a CPU is in the list.
    pub fn contains(&self, cpu: u32) -> bool {
        self.ranges.iter().any(|range| range.contains(&cpu))
    }

    /// The CPUs by number.
    pub fn iter(&self) -> impl Iterator<Item = u32> {
        self.ranges.iter().cloned().flatten()
    }
}

impl std::fmt::Display for CpuList {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (index, range) in self.ranges.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            match (range.start(), range.end()) {
                (first, last) if first == last => write!(f, "{comma}{first}")?,
                (first, last) => write!(f, "{comma}{first}-{last}")?,
            }
        }
        Ok(())
    }
}

impl FromStr for CpuList {
    type Err = CpuListError;

    /// Reads what the kernel prints: numbers and ranges that ascend, separated by commas.
    fn from_str(text: &str) -> Result<Self, CpuListError> {
        let wrong = || CpuListError {
            text: text.trim_end().to_owned(),
        };
        let mut ranges: Vec<RangeInclusive<u32>> = Vec::new();
        for part in text.trim_end().split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let first: u32 = first.parse().map_err(|_| wrong())?;
            let last: u32 = last.parse().map_err(|_| wrong())?;
            let ascends = ranges.last().is_none_or(|before| *before.end() < first);
            // The bound is far above any kernel's and keeps the count within its type.
            if first > last || !ascends || last > 0xffff {
                return Err(wrong());
            }
            ranges.push(first..=last);
        }
        Ok(Self { ranges })
    }
}

fn read(path: &str) -> Result<CpuList> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
    text.parse()
        .with_context(|| format!("cannot make sense of {path}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_lists_are_read() {
        for (text, count, cpus) in [
            ("0\n", 1, vec![0]),
            ("0-3\n", 4, vec![0, 1, 2, 3]),
            ("0-1,4,6-7", 5, vec![0, 1, 4, 6, 7]),
        ] {
            let list: CpuList = text.parse().unwrap();
            assert_eq!(
                (list.count(), list.iter().collect()),
                (count, cpus),
                "{text}"
            );
            assert_eq!(list.to_string(), text.trim_end());
        }
        let list: CpuList = "0-1,4".parse().unwrap();
        assert_eq!(
            [1, 2, 4, 5].map(|cpu| list.contains(cpu)),
            [true, false, true, false]
        );
    }

    #[test]
    fn other_text_is_refused() {
        for text in [
            "", "\n", "a", "1-", "-1", "2-1", "1,1", "3,0", "0,,1", "0-65536", "0 1",
        ] {
            let error = text.parse::<CpuList>().unwrap_err();
            assert_eq!(
                error.to_string(),
                format!("`{}` is no list of CPUs such as 0-3,6", text.trim_end())
            );
        }
    }

    #[test]
    fn this_machine_has_cpus() {
        let (possible, online) = (read(POSSIBLE).unwrap(), read(ONLINE).unwrap());
        assert!(online.count() >= 1);
        assert!(online.iter().all(|cpu| possible.contains(cpu)));
    }
}
