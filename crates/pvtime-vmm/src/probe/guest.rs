//! What a guest can see of its time, from user space.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;

/// What reached this machine from a hypervisor above it.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub struct Guest {
    /// What the kernel takes time from.
    clocksource: Option<String>,
    /// How firmware is called: `hvc` goes to a hypervisor, `smc` to firmware.
    psci_method: Option<String>,
    /// Whether the kernel uses stolen time; absent where its log no longer or not yet says so and
    /// nothing was stolen.
    stolen_time: Option<bool>,
    /// Stolen so far by `/proc/stat`, over all CPUs, in ns.
    stolen_ns: Option<u64>,
    /// Time interfaces in the device tree's reserved memory.
    reserved_memory: Vec<String>,
    /// Clocks of a hypervisor that can be read through `/dev/ptp*`.
    ptp_clocks: Vec<String>,
    /// Whether there is a `VMClock` device.
    vmclock: bool,
}

impl Guest {
    /// Looks at this machine.
    pub fn look() -> Self {
        Self::look_below(Path::new("/"), &kernel_log())
    }

    /// Looks at the files below `root`.
    fn look_below(root: &Path, log: &str) -> Self {
        let read = |path: &str| Some(trim(&fs::read_to_string(root.join(path)).ok()?));
        let stolen_ns = read("proc/stat").as_deref().and_then(stolen_ns);
        let uses_stolen_time = log.contains("using stolen time PV") || stolen_ns > Some(0);
        Self {
            clocksource: read("sys/devices/system/clocksource/clocksource0/current_clocksource"),
            psci_method: read("proc/device-tree/psci/method"),
            stolen_time: if uses_stolen_time {
                Some(true)
            } else {
                // The line would stand near the start of the log.
                log.contains("Booting Linux").then_some(false)
            },
            stolen_ns,
            reserved_memory: names(&root.join("proc/device-tree/reserved-memory"))
                .into_iter()
                .filter(|name| name.contains("-time@"))
                .collect(),
            ptp_clocks: entries(&root.join("sys/class/ptp"))
                .into_iter()
                .filter_map(|clock| Some(trim(&fs::read_to_string(clock.join("clock_name")).ok()?)))
                .collect(),
            vmclock: root.join("dev/vmclock0").exists(),
        }
    }

    /// Lines for people.
    pub fn for_people(&self) -> String {
        let stolen_time = match self.stolen_time {
            Some(true) => format!(
                "used; {} ms so far",
                self.stolen_ns.unwrap_or(0) / 1_000_000
            ),
            Some(false) => {
                "not used: the hypervisor offers none, or the kernel lacks CONFIG_PARAVIRT".into()
            }
            None => "not known: the kernel's log cannot be read or no longer says".into(),
        };
        let or_none = |list: &[String]| match list {
            [] => "none".into(),
            list => list.join(", "),
        };
        let word = |word: &Option<String>| word.clone().unwrap_or_else(|| "not known".into());
        format!(
            "  clock source: {}\n  firmware is called by: {}\n  stolen time: {stolen_time}\n  \
             time memory in the device tree: {}\n  PTP clocks: {}\n  VMClock: {}\n",
            word(&self.clocksource),
            word(&self.psci_method),
            or_none(&self.reserved_memory),
            or_none(&self.ptp_clocks),
            if self.vmclock { "there" } else { "none" },
        )
    }
}

fn trim(text: &str) -> String {
    text.trim_end_matches(['\n', '\0']).to_owned()
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect();
    paths.sort();
    paths
}

fn names(folder: &Path) -> Vec<String> {
    let name = |path: PathBuf| Some(path.file_name()?.to_str()?.to_owned());
    entries(folder).into_iter().filter_map(name).collect()
}

/// The eighth figure of the line for all CPUs, from ticks of `USER_HZ`, which is 100 on every
/// architecture that has stolen time.
fn stolen_ns(stat: &str) -> Option<u64> {
    const TICK_NS: u64 = 10_000_000;
    let all = stat.lines().next()?.strip_prefix("cpu ")?;
    all.split_ascii_whitespace()
        .nth(7)?
        .parse::<u64>()
        .ok()?
        .checked_mul(TICK_NS)
}

/// What can be read of the kernel's log without waiting; empty without the right to it.
fn kernel_log() -> String {
    use rustix::fs::{Mode, OFlags, open};
    let mut log = String::new();
    let Ok(device) = open(
        "/dev/kmsg",
        OFlags::RDONLY | OFlags::NONBLOCK,
        Mode::empty(),
    ) else {
        return log;
    };
    let mut record = [0; 8192];
    loop {
        match rustix::io::read(&device, &mut record) {
            // A record that was overwritten while it was being read.
            Err(rustix::io::Errno::PIPE) => {}
            Ok(0) | Err(_) => return log,
            Ok(count) => log.push_str(&String::from_utf8_lossy(&record[..count])),
        }
    }
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    fn root(files: &[(&str, &str)]) -> TempDir {
        let root = TempDir::new().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    #[test]
    fn a_guest_with_everything_is_described() {
        let root = root(&[
            (
                "proc/stat",
                "cpu  1 2 3 4 5 6 7 250 0 0\ncpu0 1 2 3 4 5 6 7 250 0 0\n",
            ),
            ("proc/device-tree/psci/method", "hvc\0"),
            (
                "proc/device-tree/reserved-memory/stolen-time@a000000/reg",
                "",
            ),
            ("proc/device-tree/reserved-memory/other@1/reg", ""),
            (
                "sys/devices/system/clocksource/clocksource0/current_clocksource",
                "arch_sys_counter\n",
            ),
            ("sys/class/ptp/ptp0/clock_name", "KVM virtual PTP\n"),
            ("dev/vmclock0", ""),
        ]);
        let guest = Guest::look_below(root.path(), "");
        assert_eq!(
            guest,
            Guest {
                clocksource: Some("arch_sys_counter".into()),
                psci_method: Some("hvc".into()),
                stolen_time: Some(true),
                stolen_ns: Some(2_500_000_000),
                reserved_memory: vec!["stolen-time@a000000".into()],
                ptp_clocks: vec!["KVM virtual PTP".into()],
                vmclock: true,
            }
        );
        assert!(
            guest
                .for_people()
                .contains("stolen time: used; 2500 ms so far")
        );
    }

    #[test]
    fn absence_and_ignorance_are_told_apart() {
        let root = root(&[("proc/stat", "cpu  1 2 3 4 5 6 7 0 0 0\n")]);
        let look = |log| Guest::look_below(root.path(), log).stolen_time;
        assert_eq!(look("Booting Linux on physical CPU 0x0"), Some(false));
        assert_eq!(
            look("Booting Linux; arm-pv: using stolen time PV"),
            Some(true)
        );
        assert_eq!(look(""), None);
        assert!(
            Guest::look_below(root.path(), "")
                .for_people()
                .contains("stolen time: not known")
        );
    }

    #[test]
    fn a_stat_that_is_not_understood_says_nothing() {
        for text in ["", "cpu 1 2", "cpu a b c d e f g h", "intr 1 2 3 4 5 6 7 8"] {
            assert_eq!(stolen_ns(text), None, "{text:?}");
        }
    }
}
