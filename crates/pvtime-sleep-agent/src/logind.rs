//! logind's inhibitor of sleeps (`org.freedesktop.login1(5)`).

use std::convert::Infallible;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::{self, sleep};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use zbus::blocking::Connection;
use zbus::proxy::CacheProperties;

use crate::Sleepers;

/// What is left of logind's delay when the VMs have to be done: for the lock's way back.
const RESERVE: Duration = Duration::from_millis(250);

/// At how many looks, one after the other, logind has to know of neither the lock nor a sleep. The end of
/// a sleep may have been announced an instant ago.
const LOOKS: u32 = 2;

#[zbus::proxy(
    interface = "org.freedesktop.login1.Manager",
    default_service = "org.freedesktop.login1",
    default_path = "/org/freedesktop/login1",
    gen_async = false,
    blocking_name = "Manager"
)]
trait Manager {
    fn inhibit(
        &self,
        what: &str,
        who: &str,
        why: &str,
        mode: &str,
    ) -> zbus::Result<zbus::zvariant::OwnedFd>;

    #[zbus(signal)]
    fn prepare_for_sleep(&self, start: bool) -> zbus::Result<()>;

    #[zbus(property)]
    fn preparing_for_sleep(&self) -> zbus::Result<bool>;

    #[zbus(property, name = "InhibitDelayMaxUSec")]
    fn inhibit_delay_max_usec(&self) -> zbus::Result<u64>;
}

/// logind is not there, or no more.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be asked.
    #[error(transparent)]
    Bus(#[from] zbus::Error),
    /// The connection or the lock has ended.
    #[error("the connection to it has ended")]
    Lost,
}

/// Tells of every sleep, holding a lock that delays it. Calls `begun` with the longest delay when it
/// listens. It is looked every `look_every` whether logind still knows of the lock or of the sleep.
///
/// # Errors
///
/// [`Error`]; whoever was told that the host is about to sleep is told the end by the next call.
pub fn follow(
    connection: &Connection,
    sleepers: &impl Sleepers,
    look_every: Duration,
    begun: impl FnOnce(Duration),
) -> Result<Infallible, Error> {
    let logind = Manager::builder(connection)
        .cache_properties(CacheProperties::No)
        .build()?;
    let announcements = Announcements::of(&logind)?;
    let lock = Lock::default();
    // logind gives none in the middle of a sleep.
    lock.take(&logind)?;
    let delay = Duration::from_micros(logind.inhibit_delay_max_usec()?);
    let limit = delay.saturating_sub(RESERVE);
    lock.watch(connection, logind.clone(), look_every);
    begun(limit);
    // The end of a sleep may have been announced while nobody listened.
    sleepers.finish();
    while let Some(start) = announcements.next() {
        if start {
            sleepers.prepare(limit, &|| announcements.has_ended());
            lock.release();
        } else {
            // First, so that the next sleep waits too while a slow VM is told of this one's end.
            let taken = lock.take(&logind);
            sleepers.finish();
            taken?;
        }
    }
    Err(Error::Lost)
}

/// What logind announces, heard while something else is being done.
struct Announcements {
    heard: Receiver<bool>,
    /// Ends that were heard and not taken; that of the connection is one.
    ends: Arc<AtomicU32>,
}

impl Announcements {
    fn of(logind: &Manager<'static>) -> zbus::Result<Self> {
        let signals = logind.receive_prepare_for_sleep()?;
        let (tell, heard) = channel();
        let ends = Arc::new(AtomicU32::new(0));
        let its_ends = Arc::clone(&ends);
        // Ends with the connection.
        thread::spawn(move || {
            for signal in signals {
                let Ok(announcement) = signal.args() else {
                    break;
                };
                if !announcement.start {
                    its_ends.fetch_add(1, Ordering::SeqCst);
                }
                if tell.send(announcement.start).is_err() {
                    return;
                }
            }
            its_ends.fetch_add(1, Ordering::SeqCst);
        });
        Ok(Self { heard, ends })
    }

    /// Whether a sleep begins, or its end; `None` when the connection has ended.
    fn next(&self) -> Option<bool> {
        let start = self.heard.recv().ok()?;
        if !start {
            self.ends.fetch_sub(1, Ordering::SeqCst);
        }
        Some(start)
    }

    /// Whether the end was announced of the sleep whose beginning was taken last.
    fn has_ended(&self) -> bool {
        self.ends.load(Ordering::SeqCst) > 0
    }
}

/// What delays a sleep for as long as it is held.
#[derive(Default)]
struct Lock(Arc<Mutex<Option<OwnedFd>>>);

impl Lock {
    fn take(&self, logind: &Manager<'_>) -> zbus::Result<()> {
        let fd = logind.inhibit("sleep", "pvtime", "VMs are told of the sleep", "delay")?;
        *locked(&self.0) = Some(fd.into());
        Ok(())
    }

    fn release(&self) {
        *locked(&self.0) = None;
    }

    /// Ends the connection when logind was started anew: it let go of its end of the lock, or knows
    /// nothing of the sleep for which the lock was given back, and will not announce the end.
    fn watch(&self, connection: &Connection, logind: Manager<'static>, look_every: Duration) {
        let (lock, connection) = (Arc::downgrade(&self.0), connection.clone());
        thread::spawn(move || {
            let mut looks = 0;
            while let Some(lock) = Weak::upgrade(&lock) {
                looks = if is_forgotten(&lock, &logind) {
                    looks + 1
                } else {
                    0
                };
                if looks == LOOKS {
                    let _ = connection.close();
                    return;
                }
                drop(lock);
                sleep(look_every);
            }
        });
    }
}

fn is_forgotten(lock: &Mutex<Option<OwnedFd>>, logind: &Manager<'_>) -> bool {
    let is_dead = locked(lock).as_ref().map(is_dead);
    is_dead.unwrap_or_else(|| !logind.preparing_for_sleep().unwrap_or(false))
}

fn locked(lock: &Mutex<Option<OwnedFd>>) -> MutexGuard<'_, Option<OwnedFd>> {
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether nobody has the other end of a pipe.
fn is_dead(fd: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(fd, PollFlags::empty())];
    let now = Timespec::default();
    poll(&mut fds, Some(&now)).is_ok()
        && fds[0].revents().intersects(PollFlags::ERR | PollFlags::HUP)
}

#[cfg(test)]
mod tests;
