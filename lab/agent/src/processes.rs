//! Requests about processes and their threads, from `/proc`.

use anyhow::{Context, Result};
use lab_agent::message::{Mapping, Process, Thread, Threads};
use rustix::time::{ClockId, clock_gettime};
use std::fs;

/// `CLOCK_MONOTONIC` in ns.
pub fn monotonic_ns() -> u64 {
    clock_ns(ClockId::Monotonic)
}

/// A clock in ns.
pub fn clock_ns(clock: ClockId) -> u64 {
    let now = clock_gettime(clock);
    let (s, ns) = (u64::try_from(now.tv_sec), u64::try_from(now.tv_nsec));
    s.and_then(|s| ns.map(|ns| s * 1_000_000_000 + ns))
        .expect("the clock starts at zero")
}

/// What the scheduler counted for each thread of the process.
pub fn threads(pid: u32) -> Result<Threads> {
    let before_ns = monotonic_ns();
    let mut threads = Vec::new();
    for tid in numbered(&format!("/proc/{pid}/task"))? {
        // A thread may end between the listing and the reading.
        if let Ok(thread) = thread(pid, tid) {
            threads.push(thread);
        }
    }
    Ok(Threads {
        before_ns,
        after_ns: monotonic_ns(),
        threads,
    })
}

fn thread(pid: u32, tid: u32) -> Result<Thread> {
    let folder = format!("/proc/{pid}/task/{tid}");
    let counts = fs::read_to_string(format!("{folder}/schedstat"))?;
    let (run_ns, run_delay_ns) = parse_schedstat(&counts)
        .with_context(|| format!("{folder}/schedstat holds {counts:?}, not three numbers"))?;
    let name = fs::read_to_string(format!("{folder}/comm"))?
        .trim_end()
        .to_owned();
    Ok(Thread {
        tid,
        name,
        run_ns,
        run_delay_ns,
    })
}

fn parse_schedstat(counts: &str) -> Option<(u64, u64)> {
    let mut numbers = counts.split_ascii_whitespace().map(str::parse);
    match (numbers.next()?, numbers.next()?, numbers.next()?) {
        (Ok(run_ns), Ok(run_delay_ns), Ok(_slices)) => Some((run_ns, run_delay_ns)),
        _ => None,
    }
}

/// Every process that has a program; not the kernel's threads, and not the dead.
pub fn processes() -> Result<Vec<Process>> {
    let mut processes = Vec::new();
    for pid in numbered("/proc")? {
        let folder = format!("/proc/{pid}");
        let has_program = fs::read(format!("{folder}/cmdline")).is_ok_and(|line| !line.is_empty());
        if let (true, Ok(name)) = (has_program, fs::read_to_string(format!("{folder}/comm"))) {
            processes.push(Process {
                pid,
                name: name.trim_end().to_owned(),
            });
        }
    }
    Ok(processes)
}

/// The memory of the process by mapping.
pub fn mappings(pid: u32) -> Result<Vec<Mapping>> {
    let path = format!("/proc/{pid}/smaps");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    Ok(parse_smaps(&text))
}

fn parse_smaps(text: &str) -> Vec<Mapping> {
    let mut mappings: Vec<Mapping> = Vec::new();
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        let first = words.next().unwrap_or_default();
        if let Some(key) = first.strip_suffix(':') {
            let kib = words.next().and_then(|word| word.parse::<u64>().ok());
            if let (Some(kib), Some(last)) = (kib, mappings.last_mut()) {
                match key {
                    "Size" => last.size_bytes = kib * 1024,
                    "Rss" => last.resident_bytes = kib * 1024,
                    _ => {}
                }
            }
        } else {
            // Range, rights, offset, device, inode, name.
            let name = words.skip(4).collect::<Vec<_>>().join(" ");
            mappings.push(Mapping {
                size_bytes: 0,
                resident_bytes: 0,
                name,
            });
        }
    }
    mappings
}

fn numbered(folder: &str) -> Result<Vec<u32>> {
    let entries = fs::read_dir(folder).with_context(|| format!("cannot list {folder}"))?;
    let mut numbers: Vec<u32> = entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect();
    numbers.sort_unstable();
    Ok(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedstat_is_three_numbers() {
        assert_eq!(parse_schedstat("12 345 6\n"), Some((12, 345)));
        for bad in ["", "1 2", "1 x 3", "-1 2 3"] {
            assert_eq!(parse_schedstat(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn smaps_gives_size_and_resident_part_of_each_mapping() {
        let text = "aaaa0000-aaaa2000 r-xp 00000000 08:01 7   /bin/a b (deleted)\n\
                    Size:                  8 kB\nKernelPageSize:        4 kB\n\
                    Rss:                   4 kB\nVmFlags: rd ex mr\n\
                    ffff0000-ffff4000 rw-p 00000000 00:00 0 \n\
                    Size:                 16 kB\nRss:                   0 kB\n";
        let mapping = |size_bytes, resident_bytes, name: &str| Mapping {
            size_bytes,
            resident_bytes,
            name: name.into(),
        };
        let want = [
            mapping(8192, 4096, "/bin/a b (deleted)"),
            mapping(16384, 0, ""),
        ];
        assert_eq!(parse_smaps(text), want);
    }

    #[test]
    fn a_process_finds_its_own_threads_in_order_of_time() {
        let me = std::process::id();
        let threads = threads(me).unwrap();
        assert!(threads.before_ns <= threads.after_ns);
        assert!(threads.threads.iter().any(|thread| thread.tid == me));
        assert!(processes().unwrap().iter().any(|process| process.pid == me));
    }
}
