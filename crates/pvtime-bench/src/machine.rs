//! What the figures hold for.

use crate::report::Machine;
use std::fs;

/// Reads what the kernel says of the machine.
pub fn describe() -> Machine {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let processor = ["model name", "CPU part"].into_iter().find_map(|key| {
        let line = cpuinfo.lines().find(|line| line.starts_with(key))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    });
    Machine {
        processor: processor.unwrap_or_else(unknown),
        kernel: line_of("/proc/sys/kernel/osrelease"),
        clocksource: line_of("/sys/devices/system/clocksource/clocksource0/current_clocksource"),
    }
}

fn line_of(path: &str) -> String {
    fs::read_to_string(path).map_or_else(|_| unknown(), |text| text.trim().to_owned())
}

fn unknown() -> String {
    "unknown".into()
}
