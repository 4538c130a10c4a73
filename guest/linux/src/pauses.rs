//! The VM's pauses, followed from user space: what can be done about them without a driver.
//!
//! The structure that the device tree names is read through `/dev/mem`, which Linux opens for what is
//! no RAM. Its interrupt is a driver's, so the program looks again and again instead. It then steps
//! `CLOCK_REALTIME` by what the counters did not show; nothing in user space can do that to
//! `CLOCK_BOOTTIME`, which stays behind by as much until a driver tells the kernel that it slept.
#![expect(
    unsafe_code,
    reason = "device memory is mapped, and adjtimex has no safe wrapper"
)]

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::ptr::{self, NonNull};
use std::time::Instant;
use std::{io, mem};

use anyhow::{Context, Result, anyhow, ensure};
use pvtime::abi::paused_time::{PausedTime, SIZE_BYTES};
use pvtime::guest::{PauseTracker, PausedTimeReader};
use pvtime::seqlock::MappedWords;
use rustix::mm::{MapFlags, ProtFlags, mmap};

use crate::schedule::Schedule;

const DEVICE_TREE: &str = "/proc/device-tree";
const COMPATIBLE: &[u8] = b"pvtime,paused-time";
const NS_PER_S: u64 = 1_000_000_000;

/// The pauses that the program knows of, and when it looks for others.
#[derive(Debug)]
pub struct Pauses {
    reader: PausedTimeReader<MappedWords<u32>>,
    tracker: PauseTracker,
    pub looks: Schedule,
}

impl Pauses {
    /// Finds the structure; pauses up to now are no news.
    ///
    /// # Errors
    /// When the machine has none, or it cannot be read.
    pub fn find(period_ms: u32) -> Result<Self> {
        let node = find_node(Path::new(DEVICE_TREE)).ok_or_else(|| {
            anyhow!(
                "the device tree names no paused time: give the VM --paused-time on, or leave \
                 --wall-clock-ms out"
            )
        })?;
        let reg = node.join("reg");
        let reg = fs::read(&reg).with_context(|| format!("cannot read {}", reg.display()))?;
        let reader = PausedTimeReader::attach(map(parse_reg(&reg)?)?)?;
        Ok(Self {
            tracker: PauseTracker::start(&reader.read()?),
            reader,
            looks: Schedule::start(Instant::now(), period_ms),
        })
    }

    /// All pauses that the counters did not show, in ns.
    pub fn paused_ns(&self) -> Result<u64> {
        Ok(self.reader.read()?.paused_ns)
    }

    /// If it is time to look: steps the wall clock by what is new.
    pub fn follow_if_due(&mut self) -> Result<()> {
        if self.looks.take_due(Instant::now()) {
            let now = self.reader.read()?;
            if let Some(behind_ns) = behind_ns(&mut self.tracker, &now) {
                step_wall_clock(behind_ns)?;
            }
        }
        Ok(())
    }
}

/// By how much the wall clock lags behind for pauses that are news now; `None` where it does not.
fn behind_ns(tracker: &mut PauseTracker, now: &PausedTime) -> Option<u64> {
    let unseen = tracker.step(now)?;
    Some(unseen.paused_ns).filter(|ns| *ns > 0)
}

/// The node of paused time, at any depth.
fn find_node(folder: &Path) -> Option<PathBuf> {
    let names = fs::read(folder.join("compatible")).unwrap_or_default();
    if names.split(|byte| *byte == 0).any(|it| it == COMPATIBLE) {
        return Some(folder.to_owned());
    }
    let below = fs::read_dir(folder).ok()?.flatten();
    let folders = below.filter(|it| it.file_type().is_ok_and(|kind| kind.is_dir()));
    folders.into_iter().find_map(|it| find_node(&it.path()))
}

/// Where the structure begins: two cells of address, two of size.
fn parse_reg(reg: &[u8]) -> Result<u64> {
    let cells: Option<&[u8; 16]> = reg.try_into().ok();
    let cells = cells.with_context(|| format!("paused time has a reg of {} bytes", reg.len()))?;
    let (address, size) = cells.split_at(8);
    let number = |bytes: &[u8]| {
        bytes
            .iter()
            .fold(0, |sum, byte| sum << 8 | u64::from(*byte))
    };
    ensure!(
        number(size) >= SIZE_BYTES as u64,
        "paused time has {} bytes and not {SIZE_BYTES}",
        number(size)
    );
    Ok(number(address))
}

/// Maps the structure, for as long as the machine runs.
fn map(address: u64) -> Result<MappedWords<u32>> {
    let memory = File::open("/dev/mem").context("cannot open /dev/mem")?;
    // SAFETY: a new mapping, at an address that the kernel chooses.
    let base = unsafe {
        mmap(
            ptr::null_mut(),
            SIZE_BYTES,
            ProtFlags::READ,
            MapFlags::SHARED,
            &memory,
            address,
        )
    };
    let base = base.with_context(|| format!("cannot map paused time at {address:#x}"))?;
    let base = NonNull::new(base.cast()).context("paused time was mapped at 0")?;
    // SAFETY: a mapping begins with a page, so it is aligned; it is never taken away, and nothing
    // else in this program knows of it.
    Ok(unsafe { MappedWords::new(base, SIZE_BYTES) })
}

/// Sets `CLOCK_REALTIME` forward, without a moment between reading and setting it.
fn step_wall_clock(by_ns: u64) -> Result<()> {
    let mut step = forward(by_ns)?;
    // SAFETY: the pointer is to a timex, which the call reads and fills in.
    if unsafe { libc::adjtimex(&raw mut step) } < 0 {
        return Err(io::Error::last_os_error()).context("cannot step the wall clock");
    }
    Ok(())
}

fn forward(by_ns: u64) -> Result<libc::timex> {
    // SAFETY: timex is integers alone, for which zero is a value.
    let mut step: libc::timex = unsafe { mem::zeroed() };
    step.modes = libc::ADJ_SETOFFSET | libc::ADJ_NANO;
    step.time.tv_sec = (by_ns / NS_PER_S).try_into()?;
    // In ns, by ADJ_NANO.
    step.time.tv_usec = (by_ns % NS_PER_S).try_into()?;
    Ok(step)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_node_is_found_by_what_it_is_compatible_with() {
        let tree = tempfile::tempdir().unwrap();
        assert_eq!(find_node(tree.path()), None);
        let node = tree.path().join("bus/paused-time@a020000");
        fs::create_dir_all(&node).unwrap();
        fs::write(tree.path().join("compatible"), "linux,dummy-virt\0").unwrap();
        fs::write(node.join("compatible"), "pvtime,paused-time-2\0").unwrap();
        assert_eq!(find_node(tree.path()), None, "the whole name counts");
        fs::write(
            node.join("compatible"),
            "vendor,other\0pvtime,paused-time\0",
        )
        .unwrap();
        assert_eq!(find_node(tree.path()), Some(node));
    }

    #[test]
    fn the_address_is_in_the_first_two_cells() {
        let reg = |size: u8| [0, 0, 0, 1, 0xa, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, size];
        assert_eq!(parse_reg(&reg(64)).unwrap(), 0x1_0a02_0000);
        let short = parse_reg(&reg(63)).unwrap_err().to_string();
        assert_eq!(short, "paused time has 63 bytes and not 64");
        assert!(parse_reg(&reg(64)[..8]).is_err());
    }

    #[test]
    fn the_clock_is_stepped_by_seconds_and_nanoseconds() {
        let step = forward(62_000_000_007).unwrap();
        assert_eq!((step.time.tv_sec, step.time.tv_usec), (62, 7));
        assert_eq!(step.modes, libc::ADJ_SETOFFSET | libc::ADJ_NANO);
    }

    #[test]
    fn s4_each_pause_is_made_up_for_once() {
        let paused = |events, paused_ns| PausedTime {
            events,
            paused_ns,
            ..PausedTime::default()
        };
        let mut tracker = PauseTracker::start(&paused(1, 500));
        let mut behind_ns = |events, ns| behind_ns(&mut tracker, &paused(events, ns));
        assert_eq!(behind_ns(1, 500), None);
        assert_eq!(behind_ns(3, 900), Some(400));
        assert_eq!(behind_ns(3, 900), None);
        assert_eq!(behind_ns(4, 900), None, "the counters showed that one");
    }
}
