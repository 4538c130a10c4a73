//! Until when vCPU threads may enter the guest.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use libc::c_int;

use super::TERM_NS;
use super::timer::ThreadTimer;
use crate::clock;

/// Never ends.
const FOREVER: u64 = u64::MAX;

/// A time, on `CLOCK_BOOTTIME`, after which no thread enters the guest, and a timer for each thread
/// that may be about to.
#[derive(Debug)]
pub struct Lease {
    until_ns: AtomicU64,
    timers: Mutex<Vec<(usize, ThreadTimer)>>,
}

impl Lease {
    /// One that has ended and is to be renewed again and again.
    pub fn ended() -> Self {
        Self::until(0)
    }

    /// One that never ends, for a VMM that does not want its host's sleep watched.
    pub fn forever() -> Self {
        Self::until(FOREVER)
    }

    fn until(until_ns: u64) -> Self {
        Self {
            until_ns: until_ns.into(),
            timers: Mutex::default(),
        }
    }

    /// Whether nobody may enter. To be asked after the thread's flag was armed, so that a timer
    /// that fires from then on is seen there, and one before that here.
    pub fn has_ended(&self) -> bool {
        // The clock is read last.
        let until_ns = self.until_ns.load(Ordering::SeqCst);
        until_ns != FOREVER && clock::boottime_ns() >= until_ns
    }

    /// Whether it had, at a time on `CLOCK_BOOTTIME`.
    pub fn had_ended_at(&self, now_ns: u64) -> bool {
        let until_ns = self.until_ns.load(Ordering::SeqCst);
        until_ns != FOREVER && now_ns >= until_ns
    }

    /// Gives the calling thread a timer, which sends it `signal` when the lease ends.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub fn join(&self, index: usize, signal: c_int) -> io::Result<()> {
        let mut timers = self.lock();
        let until_ns = self.until_ns.load(Ordering::SeqCst);
        if until_ns != FOREVER {
            let timer = ThreadTimer::for_this_thread(signal)?;
            if until_ns > 0 {
                timer.arm(until_ns);
            }
            timers.push((index, timer));
        }
        Ok(())
    }

    /// Takes the timer of a thread away.
    pub fn leave(&self, index: usize) {
        self.lock().retain(|(owner, _)| *owner != index);
    }

    /// When it was renewed last and when it ends, on `CLOCK_BOOTTIME`.
    pub fn term_ns(&self) -> (u64, u64) {
        let until_ns = self.until_ns.load(Ordering::SeqCst);
        (until_ns.saturating_sub(TERM_NS), until_ns)
    }

    /// Lets it end a [`TERM`](super::TERM) after a time, on `CLOCK_BOOTTIME`, at which the VMM is
    /// known to have run. That time is the caller's to read, before it looked for a stop: one that
    /// comes between its look and this leaves a lease that has ended already.
    pub fn renew(&self, ran_ns: u64) {
        let timers = self.lock();
        let until_ns = ran_ns.saturating_add(TERM_NS);
        if until_ns > self.until_ns.load(Ordering::SeqCst) {
            self.extend(&timers, until_ns);
        }
    }

    /// The timers come first: whoever passes on the new lease has one that ends with it, and
    /// whoever passed on the old one has until then as well.
    ///
    /// No timer is armed for a time that is over, because the VMM was stopped meanwhile. It has
    /// fired then, and since Linux 6.13 arming it takes back a signal that its thread has not got
    /// yet: the thread could be in the guest before the next one. A stop between the look at the
    /// clock and the call leaves one timer for which that may be so, until it fires again at once.
    fn extend(&self, timers: &[(usize, ThreadTimer)], until_ns: u64) {
        for (_, timer) in timers {
            if clock::boottime_ns() >= until_ns {
                break;
            }
            timer.arm(until_ns);
        }
        self.until_ns.store(until_ns, Ordering::SeqCst);
    }

    #[cfg(test)]
    pub(crate) fn renew_until(&self, until_ns: u64) {
        self.extend(&self.lock(), until_ns);
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(usize, ThreadTimer)>> {
        self.timers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::thread::sleep;
    use std::time::{Duration, Instant};

    use vmm_sys_util::signal::{block_signal, clear_signal};

    #[test]
    fn it_ends_at_its_time_and_can_be_renewed() {
        let lease = Lease::ended();
        assert!(lease.has_ended());
        lease.renew_until(clock::boottime_ns() + 60_000_000_000);
        assert!(!lease.has_ended());
        lease.renew_until(clock::boottime_ns() + 2_000_000);
        sleep(Duration::from_millis(3));
        assert!(lease.has_ended());
        assert!(!Lease::forever().has_ended());
    }

    #[test]
    fn s2_no_timer_is_armed_for_what_is_over() {
        const SIGNAL: c_int = libc::SIGUSR2;
        block_signal(SIGNAL).unwrap();
        let is_pending = || {
            let status = fs::read_to_string("/proc/thread-self/status").unwrap();
            let pending = status.lines().find_map(|it| it.strip_prefix("SigPnd:"));
            let pending = u64::from_str_radix(pending.unwrap().trim(), 16).unwrap();
            pending >> (SIGNAL - 1) & 1 == 1
        };
        let lease = Lease::ended();
        lease.join(0, SIGNAL).unwrap();
        lease.renew_until(clock::boottime_ns() - 1);
        sleep(Duration::from_millis(20));
        assert!(!is_pending());
        assert!(lease.has_ended());
        lease.renew_until(clock::boottime_ns() + 1_000_000);
        let limit = Instant::now() + Duration::from_secs(10);
        while !is_pending() {
            assert!(Instant::now() < limit, "it never fired");
            sleep(Duration::from_millis(1));
        }
        clear_signal(SIGNAL).unwrap();
    }

    #[test]
    fn what_somebody_knew_before_a_stop_renews_nothing_after_it() {
        let lease = Lease::ended();
        let now_ns = clock::boottime_ns();
        assert!(lease.had_ended_at(now_ns));
        lease.renew(now_ns - TERM_NS);
        assert!(lease.has_ended());
        lease.renew(now_ns + 60_000_000_000);
        lease.renew(now_ns);
        assert!(!lease.has_ended(), "who comes late shortens nothing");
        assert!(lease.had_ended_at(now_ns + 60_000_000_000 + TERM_NS));
    }
}
