//! Stops: of the whole host, and of one process.

use crate::processes::clock_ns;
use anyhow::{Context, Result, bail};
use lab_agent::message::Stopped;
use rustix::time::ClockId;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

/// Where the kernel's control groups are.
pub const CGROUPS: &str = "/sys/fs/cgroup";

/// Longest time that all threads of a process take to stop.
const FREEZE_LIMIT: Duration = Duration::from_secs(10);

/// Has the host sleep until the RTC wakes it.
pub fn sleep(seconds: u32) -> Result<Stopped> {
    if std::process::id() != 1 {
        bail!("this host is not the lab's own, and is not put to sleep: use --host qemu");
    }
    // An alarm that is set already is refused; 0 takes it back.
    write("/sys/class/rtc/rtc0/wakealarm", "0")?;
    write("/sys/class/rtc/rtc0/wakealarm", &format!("+{seconds}"))?;
    timed(|| write("/sys/power/state", "freeze"))
}

/// Stops a process for a while.
pub fn freeze(pid: u32, length: Duration) -> Result<Stopped> {
    let group = format!("{CGROUPS}/lab-{pid}");
    fs::create_dir_all(&group).with_context(|| format!("cannot make {group}"))?;
    write(&format!("{group}/cgroup.procs"), &pid.to_string())?;
    let switch = format!("{group}/cgroup.freeze");
    timed(|| {
        write(&switch, "1")?;
        let stopped = await_frozen(&group);
        std::thread::sleep(length);
        write(&switch, "0")?;
        stopped
    })
}

fn await_frozen(group: &str) -> Result<()> {
    let events = format!("{group}/cgroup.events");
    let start = Instant::now();
    loop {
        let said = fs::read_to_string(&events).with_context(|| format!("cannot read {events}"))?;
        if said.lines().any(|line| line == "frozen 1") {
            return Ok(());
        }
        if start.elapsed() > FREEZE_LIMIT {
            bail!("not all of {group} stopped within {FREEZE_LIMIT:?}");
        }
        std::thread::sleep(Duration::from_micros(200));
    }
}

fn timed(stop: impl FnOnce() -> Result<()>) -> Result<Stopped> {
    let clocks = || [ClockId::Boottime, ClockId::Monotonic].map(clock_ns);
    let [boottime_ns, monotonic_ns] = clocks();
    stop()?;
    let [boottime_after_ns, monotonic_after_ns] = clocks();
    Ok(Stopped {
        boottime_ns: boottime_after_ns - boottime_ns,
        monotonic_ns: monotonic_after_ns - monotonic_ns,
    })
}

fn write(path: &str, text: &str) -> Result<()> {
    fs::write(Path::new(path), text).with_context(|| format!("cannot write {text:?} to {path}"))
}
