//! Memory with a pattern in it, which a worker changes.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};

use guest_protocol::pattern::{PAGE_WORDS, Page, Pattern};
use guest_protocol::report;
use guest_protocol::request::Fill;

const PAGES_PER_MIB: usize = (1 << 20) / size_of::<Page>();

/// Longest sleep between two changes, so that a worker that is told to stop does.
const LONGEST_REST: Duration = Duration::from_millis(20);

/// The guest has not so much memory.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("no {mib} MiB of memory can be had; fill 1 MiB or more, and less than the guest has free")]
pub struct DoesNotFit {
    mib: u32,
}

/// There is nothing to compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no memory was filled: send fill first")]
pub struct NothingFilled;

/// Memory that was filled, or none.
#[derive(Debug, Default)]
pub struct Memory(Mutex<Option<Filled>>);

#[derive(Debug)]
struct Filled {
    pattern: Pattern<Vec<Page>, Vec<u32>>,
    /// Between two changes; none for as many as there can be.
    period: Option<Duration>,
    next: Instant,
}

impl Memory {
    /// Fills memory with a pattern, in place of one that was there.
    ///
    /// # Errors
    /// [`DoesNotFit`].
    pub fn fill(&self, order: &Fill) -> Result<(), DoesNotFit> {
        let does_not_fit = || DoesNotFit { mib: order.mib };
        let mut filled = self.lock();
        *filled = None;
        let count = order.mib as usize * PAGES_PER_MIB;
        if count == 0 || order.mib >= free_mib().unwrap_or(u32::MAX) {
            return Err(does_not_fit());
        }
        let mut pages = Vec::new();
        pages.try_reserve_exact(count).map_err(|_| does_not_fit())?;
        pages.resize(count, [0; PAGE_WORDS]);
        *filled = Some(Filled {
            pattern: Pattern::fill(pages, vec![0; count], order.seed),
            period: Duration::from_secs(1).checked_div(order.changes_per_s),
            next: Instant::now(),
        });
        Ok(())
    }

    /// Changes a page if it is time, or waits a while.
    pub fn change(&self) {
        let rest = self.lock().as_mut().map_or(LONGEST_REST, Filled::change);
        if !rest.is_zero() {
            sleep(rest.min(LONGEST_REST));
        }
    }

    /// Compares the memory with what was last written.
    ///
    /// # Errors
    /// [`NothingFilled`].
    pub fn verify(&self) -> Result<report::Memory, NothingFilled> {
        let filled = self.lock();
        let pattern = &filled.as_ref().ok_or(NothingFilled)?.pattern;
        let damage = pattern.verify();
        Ok(report::Memory {
            pages: pattern.pages() as u64,
            changes: pattern.changes(),
            damaged: damage.pages,
            // Of a process, an address says nothing to who asks; the page's place does.
            first_damaged: damage.first.map(|page| (page * size_of::<Page>()) as u64),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Option<Filled>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Filled {
    /// Changes a page if it is time, and returns how long the next one has time.
    fn change(&mut self) -> Duration {
        let now = Instant::now();
        let rest = self.next.saturating_duration_since(now);
        if rest.is_zero() {
            self.pattern.change();
            // What was missed is not made up for.
            self.next = now + self.period.unwrap_or_default();
        }
        rest
    }
}

/// `MemAvailable`, where the kernel says it.
fn free_mib() -> Option<u32> {
    let info = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = info
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    u32::try_from(kib >> 10).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(mib: u32, changes_per_s: u32) -> Fill {
        Fill {
            seed: 3,
            mib,
            changes_per_s,
        }
    }

    #[test]
    fn memory_is_changed_at_its_pace_and_stays_intact() {
        let memory = Memory::default();
        assert_eq!(memory.verify(), Err(NothingFilled));
        memory.change();
        memory.fill(&fill(1, 0)).unwrap();
        for _ in 0..10 {
            memory.change();
        }
        let found = memory.verify().unwrap();
        assert_eq!((found.pages, found.changes, found.damaged), (256, 10, 0));
        // Afresh, and the next change is not due yet.
        memory.fill(&fill(1, 1)).unwrap();
        memory.change();
        memory.lock().as_mut().unwrap().next += Duration::from_secs(3600);
        memory.change();
        assert_eq!(memory.verify().unwrap().changes, 1);
    }

    #[test]
    fn damage_is_found() {
        let memory = Memory::default();
        memory.fill(&fill(1, 0)).unwrap();
        memory.lock().as_mut().unwrap().pattern.pages_mut()[2][0] ^= 1;
        let found = memory.verify().unwrap();
        assert_eq!((found.damaged, found.first_damaged), (1, Some(2 * 4096)));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let memory = Memory::default();
        assert!(memory.fill(&fill(0, 0)).is_err());
        let error = memory.fill(&fill(u32::MAX, 0)).unwrap_err();
        assert!(error.to_string().contains("4294967295 MiB"), "{error}");
        assert_eq!(memory.verify(), Err(NothingFilled));
    }
}
