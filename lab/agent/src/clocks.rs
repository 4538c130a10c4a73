//! The host's clocks, read and set as a time daemon would.
#![expect(unsafe_code, reason = "adjtimex has no safe wrapper")]

use crate::register;
use anyhow::{Context, Result, bail};
use lab_agent::message::Clocks;
use rustix::time::{ClockId, clock_gettime};
use std::{io, mem};

const NS_PER_S: i64 = 1_000_000_000;

/// Counter and wall clock, one right after the other.
pub fn read() -> Clocks {
    let counter = register::counter();
    let wall = clock_gettime(ClockId::Realtime);
    let (seconds, ns) = (wall.tv_sec.unsigned_abs(), wall.tv_nsec.unsigned_abs());
    let realtime_ns = seconds * NS_PER_S.unsigned_abs() + ns;
    Clocks {
        counter,
        realtime_ns,
    }
}

/// Steps the wall clock, and has the kernel take it for synchronized within this bound.
pub fn step(by_ns: i64, error_us: u32) -> Result<()> {
    // SAFETY: timex is integers alone, for which zero is a value.
    let mut change: libc::timex = unsafe { mem::zeroed() };
    change.modes = libc::ADJ_SETOFFSET | libc::ADJ_NANO | libc::ADJ_MAXERROR | libc::ADJ_STATUS;
    change.time.tv_sec = by_ns.div_euclid(NS_PER_S);
    // In ns, by ADJ_NANO.
    change.time.tv_usec = by_ns.rem_euclid(NS_PER_S);
    change.maxerror = error_us.into();
    // SAFETY: the pointer is to a timex, which the call reads and fills in.
    if unsafe { libc::adjtimex(&raw mut change) } < 0 {
        return Err(io::Error::last_os_error()).context("cannot step the clock");
    }
    if change.status & libc::STA_UNSYNC != 0 {
        bail!("the clock was stepped and does not count as synchronized");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wall_clock_is_that_of_the_machine() {
        let before = std::time::SystemTime::now();
        let read = read();
        let since = before.duration_since(std::time::UNIX_EPOCH).unwrap();
        let later_ns = u128::from(read.realtime_ns).checked_sub(since.as_nanos());
        assert!(later_ns.is_some_and(|ns| ns < 1_000_000_000), "{read:?}");
    }
}
