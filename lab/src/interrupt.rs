//! Ctrl-C and SIGTERM: the run ends at its next wait, and everything it started ends with it.

use anyhow::{Context, Result, bail};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::flag;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// Longest time between a signal and its effect.
pub const LOOK_EVERY: Duration = Duration::from_millis(100);

static SIGNALLED: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// Takes the signals over. The second one ends the process at once; its children die with it.
///
/// # Errors
/// When the system refuses the handlers.
pub fn watch() -> Result<()> {
    let signalled = SIGNALLED.get_or_init(Arc::default);
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(signalled))
            .and_then(|_| flag::register(signal, Arc::clone(signalled)))
            .context("cannot watch for signals")?;
    }
    Ok(())
}

/// Whether a signal has come.
#[must_use]
pub fn signalled() -> bool {
    SIGNALLED
        .get()
        .is_some_and(|signalled| signalled.load(Ordering::Relaxed))
}

/// Fails once a signal has come.
///
/// # Errors
/// That the run was interrupted.
pub fn check() -> Result<()> {
    if signalled() {
        bail!("interrupted; everything that was started has been stopped");
    }
    Ok(())
}

/// Sleeps, unless a signal comes.
///
/// # Errors
/// As [`check`].
pub fn sleep(duration: Duration) -> Result<()> {
    let start = Instant::now();
    loop {
        check()?;
        let left = duration.saturating_sub(start.elapsed());
        if left.is_zero() {
            return Ok(());
        }
        std::thread::sleep(left.min(LOOK_EVERY));
    }
}
