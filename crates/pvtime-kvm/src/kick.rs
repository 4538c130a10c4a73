//! The signal that takes a vCPU thread out of `KVM_RUN`, or keeps it from entering.
//!
//! A signal interrupts `KVM_RUN` only while the thread is in it; one that comes just before would
//! be lost. So its handler also sets `immediate_exit` in the vCPU's `kvm_run`, and KVM looks at
//! that when it is entered. One signal is enough, whenever it comes.
#![expect(
    unsafe_code,
    reason = "a signal handler writes to memory shared with KVM"
)]

use std::io;
use std::marker::PhantomData;
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering, compiler_fence};

use libc::{c_int, c_void, siginfo_t};
use rustix::thread::Pid;
use vmm_sys_util::signal::register_signal_handler;

thread_local! {
    /// `immediate_exit` of the vCPU that this thread is about to run; null where it is not.
    static FLAG: AtomicPtr<u8> = const { AtomicPtr::new(ptr::null_mut()) };
}

/// Makes the signal a kick for every thread of this process. Nothing else may handle it.
pub fn install(signal: c_int) -> io::Result<()> {
    extern "C" fn kicked(_: c_int, _: *mut siginfo_t, _: *mut c_void) {
        let flag = FLAG.with(|it| it.load(Ordering::Relaxed));
        if !flag.is_null() {
            // SAFETY: `FLAG` is not null only while an `Armed` of this thread lives, and `arm`
            // was promised a byte that outlives it.
            unsafe { ptr::write_volatile(flag, 1) };
        }
    }
    register_signal_handler(signal, kicked).map_err(io::Error::from)
}

/// Sends the signal to a thread of this process; a thread that has ended is no error.
pub fn kick(thread: Pid, signal: c_int) -> io::Result<()> {
    // SAFETY: tgkill takes three integers and touches no memory.
    let result = unsafe {
        libc::syscall(
            libc::SYS_tgkill,
            std::process::id(),
            thread.as_raw_nonzero().get(),
            signal,
        )
    };
    match (result, io::Error::last_os_error()) {
        (0, _) => Ok(()),
        (_, error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
        (_, error) => Err(error),
    }
}

/// While this lives, a kick of this thread sets the flag.
#[derive(Debug)]
pub struct Armed {
    not_send: PhantomData<*mut u8>,
}

impl Armed {
    /// Clears the flag and lets kicks set it from now on.
    ///
    /// Whoever kicks must first have changed what the thread looks at between this and entering
    /// the guest; then a kick before this is seen there, and one after this in the flag.
    ///
    /// # Safety
    ///
    /// `flag` is valid for writes until the result is dropped, which happens on this thread.
    pub unsafe fn arm(flag: *mut u8) -> Self {
        // SAFETY: the caller promises that the flag is valid.
        unsafe { ptr::write_volatile(flag, 0) };
        point_at(flag);
        Self {
            not_send: PhantomData,
        }
    }
}

impl Drop for Armed {
    fn drop(&mut self) {
        point_at(ptr::null_mut());
    }
}

/// Tells this thread's handler, for which the order of the program is the compiler's affair: what
/// follows here happens after it, and what came before did.
fn point_at(flag: *mut u8) {
    compiler_fence(Ordering::SeqCst);
    FLAG.with(|it| it.store(flag, Ordering::Relaxed));
    compiler_fence(Ordering::SeqCst);
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use rustix::thread::gettid;

    use super::*;

    const SIGNAL: c_int = libc::SIGUSR1;

    #[test]
    fn a_kick_sets_the_flag_only_while_it_is_armed() {
        install(SIGNAL).unwrap();
        let mut flag = 0xa5;
        let pointer = &raw mut flag;
        let read = || {
            // SAFETY: the flag lives to the end of this test.
            unsafe { ptr::read_volatile(pointer) }
        };
        kick(gettid(), SIGNAL).unwrap();
        assert_eq!(read(), 0xa5);
        // SAFETY: as above.
        let armed = unsafe { Armed::arm(pointer) };
        assert_eq!(read(), 0);
        kick(gettid(), SIGNAL).unwrap();
        assert_eq!(read(), 1);
        drop(armed);
        // SAFETY: as above.
        unsafe { ptr::write_volatile(pointer, 0) };
        kick(gettid(), SIGNAL).unwrap();
        assert_eq!(read(), 0);
    }

    #[test]
    fn only_the_thread_that_is_meant_is_kicked() {
        static ARMED: AtomicBool = AtomicBool::new(false);
        static DONE: AtomicBool = AtomicBool::new(false);
        install(SIGNAL).unwrap();
        let other = std::thread::spawn(|| {
            let mut flag = 0;
            // SAFETY: the flag outlives the guard.
            let armed = unsafe { Armed::arm(&raw mut flag) };
            ARMED.store(true, Ordering::SeqCst);
            while !DONE.load(Ordering::SeqCst) {
                std::thread::yield_now();
            }
            drop(armed);
            // SAFETY: a local variable.
            unsafe { ptr::read_volatile(&raw const flag) }
        });
        while !ARMED.load(Ordering::SeqCst) {
            std::thread::yield_now();
        }
        kick(gettid(), SIGNAL).unwrap();
        DONE.store(true, Ordering::SeqCst);
        assert_eq!(other.join().unwrap(), 0);
    }

    #[test]
    fn a_thread_that_has_ended_is_no_error() {
        let ended = std::thread::spawn(gettid).join().unwrap();
        kick(ended, SIGNAL).unwrap();
    }
}
