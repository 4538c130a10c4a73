//! Stops this process, all of its threads, from outside.
#![expect(
    unsafe_code,
    reason = "a process that outlives its parent's stop is forked"
)]

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

use pvtime_kvm::clock::boottime_ns;

/// A child that stops its parent when it is told to, and lets it go on. It ends with it.
pub struct Stopper {
    lengths: File,
}

impl Stopper {
    pub fn start() -> Self {
        let mut ends = [0; 2];
        // SAFETY: the call writes two descriptors.
        let made = unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) };
        assert_eq!(made, 0, "no pipe");
        // SAFETY: the descriptors are new and nobody else's.
        let [reading, writing] = ends.map(|end| unsafe { OwnedFd::from_raw_fd(end) });
        // SAFETY: the child calls nothing but what may be called between fork and exec.
        match unsafe { libc::fork() } {
            0 => {
                drop(writing);
                stop_parent(reading.as_raw_fd());
            }
            child => assert!(child > 0, "no child"),
        }
        Self {
            lengths: writing.into(),
        }
    }

    /// Has this process stopped for that long, and returns when it goes on.
    pub fn stop_for(&mut self, length: Duration) {
        let ns = u64::try_from(length.as_nanos()).unwrap();
        let mut last_ns = boottime_ns();
        let limit_ns = last_ns + 20_000_000_000;
        self.lengths.write_all(&ns.to_ne_bytes()).unwrap();
        loop {
            let now_ns = boottime_ns();
            if now_ns - last_ns > ns - ns / 4 {
                return;
            }
            assert!(now_ns < limit_ns, "nobody stopped this process");
            last_ns = now_ns;
        }
    }
}

/// The child's whole life. It allocates nothing and locks nothing, as its parent had threads.
fn stop_parent(lengths: libc::c_int) -> ! {
    loop {
        let mut ns = 0_i64;
        let bytes = size_of::<i64>();
        // SAFETY: plain system calls; the buffer has as many bytes as are read.
        unsafe {
            if libc::read(lengths, (&raw mut ns).cast(), bytes) != bytes.cast_signed() {
                libc::_exit(0);
            }
            let parent = libc::getppid();
            let length = libc::timespec {
                tv_sec: ns / 1_000_000_000,
                tv_nsec: ns % 1_000_000_000,
            };
            libc::kill(parent, libc::SIGSTOP);
            libc::nanosleep(&raw const length, std::ptr::null_mut());
            libc::kill(parent, libc::SIGCONT);
        }
    }
}
