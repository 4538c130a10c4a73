//! A timer that sends a signal to one thread.
#![expect(unsafe_code, reason = "POSIX timers have no safe wrapper")]

use std::{io, mem, ptr};

use libc::{c_int, itimerspec, sigevent, timer_t, timespec};
use rustix::thread::gettid;

const NS_PER_S: u64 = 1_000_000_000;

/// A timer on `CLOCK_BOOTTIME`. It can be armed from any thread of the process.
#[derive(Debug)]
pub struct ThreadTimer(timer_t);

// SAFETY: the kernel's id of a timer, which the C library keeps in a pointer, is of the process.
unsafe impl Send for ThreadTimer {}

impl ThreadTimer {
    /// Sends `signal` to the calling thread, once it is armed.
    ///
    /// # Errors
    ///
    /// What the kernel says; it has a limit on timers, `RLIMIT_SIGPENDING`.
    pub fn for_this_thread(signal: c_int) -> io::Result<Self> {
        // SAFETY: a sigevent is integers and pointers, for all of which zero is a value.
        let mut event: sigevent = unsafe { mem::zeroed() };
        event.sigev_notify = libc::SIGEV_THREAD_ID;
        event.sigev_signo = signal;
        event.sigev_notify_thread_id = gettid().as_raw_nonzero().get();
        let mut timer: timer_t = ptr::null_mut();
        // SAFETY: both pointers are to what the call reads and writes.
        match unsafe { libc::timer_create(libc::CLOCK_BOOTTIME, &raw mut event, &raw mut timer) } {
            0 => Ok(Self(timer)),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Fires when `CLOCK_BOOTTIME` is at `at_ns`, and no earlier if it was armed before.
    ///
    /// # Panics
    ///
    /// Never: a timer that exists can be armed.
    pub fn arm(&self, at_ns: u64) {
        let never = timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let once = itimerspec {
            it_interval: never,
            it_value: timespec {
                tv_sec: (at_ns / NS_PER_S).try_into().expect("34 bits"),
                tv_nsec: (at_ns % NS_PER_S).try_into().expect("30 bits"),
            },
        };
        let (timer, absolute) = (self.0, libc::TIMER_ABSTIME);
        // SAFETY: the timer was created and not deleted; the call reads one itimerspec.
        let armed =
            unsafe { libc::timer_settime(timer, absolute, &raw const once, ptr::null_mut()) };
        assert_eq!(armed, 0, "a timer that exists can be armed");
    }
}

impl Drop for ThreadTimer {
    fn drop(&mut self) {
        // SAFETY: it was created, and nobody uses it after this.
        unsafe { libc::timer_delete(self.0) };
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicI32, Ordering};
    use std::thread;
    use std::time::{Duration, Instant};

    use libc::{c_void, siginfo_t};
    use vmm_sys_util::signal::register_signal_handler;

    use super::*;
    use crate::clock::boottime_ns;

    const SIGNAL: c_int = libc::SIGALRM;
    static FIRED_IN: AtomicI32 = AtomicI32::new(0);

    extern "C" fn fired(_: c_int, _: *mut siginfo_t, _: *mut c_void) {
        FIRED_IN.store(gettid().as_raw_nonzero().get(), Ordering::SeqCst);
    }

    #[test]
    fn it_fires_in_its_thread_and_when_it_was_armed_last() {
        register_signal_handler(SIGNAL, fired).unwrap();
        let (made, timer) = std::sync::mpsc::channel();
        let (done, is_done) = std::sync::mpsc::channel::<()>();
        let other = thread::spawn(move || {
            let timer = ThreadTimer::for_this_thread(SIGNAL).unwrap();
            made.send((timer, gettid())).unwrap();
            let _ = is_done.recv();
        });
        let (timer, thread_id) = timer.recv().unwrap();
        let start_ns = boottime_ns();
        timer.arm(start_ns + 20_000_000);
        timer.arm(start_ns + 60_000_000);
        let limit = Instant::now() + Duration::from_secs(10);
        while FIRED_IN.load(Ordering::SeqCst) == 0 {
            assert!(Instant::now() < limit, "it never fired");
            thread::sleep(Duration::from_millis(1));
        }
        assert!(boottime_ns() >= start_ns + 60_000_000);
        let fired_in = FIRED_IN.swap(0, Ordering::SeqCst);
        assert_eq!(fired_in, thread_id.as_raw_nonzero().get());

        // What is past already fires at once; what was deleted never.
        timer.arm(start_ns);
        while FIRED_IN.load(Ordering::SeqCst) == 0 {
            assert!(Instant::now() < limit, "it did not fire again");
            thread::yield_now();
        }
        FIRED_IN.store(0, Ordering::SeqCst);
        timer.arm(boottime_ns() + 20_000_000);
        drop(timer);
        thread::sleep(Duration::from_millis(40));
        assert_eq!(FIRED_IN.load(Ordering::SeqCst), 0);
        drop(done);
        other.join().unwrap();
    }
}
