//! Something to wait for with `poll`.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::event::{EventfdFlags, eventfd};

/// An event that stays until it is cleared, however often it was raised. Clones are the same event.
#[derive(Clone, Debug)]
pub struct Event(Arc<OwnedFd>);

impl Event {
    /// An event that was not raised.
    ///
    /// # Errors
    ///
    /// Where the process has no file descriptor left.
    pub fn new() -> io::Result<Self> {
        Ok(Self(Arc::new(eventfd(
            0,
            EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC,
        )?)))
    }

    /// Raises the event.
    pub fn raise(&self) {
        // The only failure is a counter that is full, and then the event is raised already.
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }

    /// Clears the event and says whether it was raised.
    pub fn clear(&self) -> bool {
        rustix::io::read(&self.0, &mut [0; 8]).is_ok()
    }
}

impl AsFd for Event {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_stays_until_it_is_cleared() {
        let event = Event::new().unwrap();
        assert!(!event.clear());
        event.clone().raise();
        event.raise();
        assert!(event.clear());
        assert!(!event.clear());
    }
}
