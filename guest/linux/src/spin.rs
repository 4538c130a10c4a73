//! Reading the counter without end, beside other CPUs that do the same.

use std::sync::atomic::{AtomicU64, Ordering};

use guest_protocol::spin::Account;

use crate::counter;

/// The highest count that any spinning CPU has read.
#[derive(Debug, Default)]
pub struct Highest(AtomicU64);

impl Highest {
    /// Reads the counter once and enters it in the account.
    ///
    /// What other CPUs had read is loaded before the counter is, and `counter::read` waits for
    /// that load: a lower count is then a step backwards, however the two CPUs raced.
    pub fn read_into(&self, account: &mut Account) {
        // Pairs with the release below: a count is seen here only after it was read there.
        let seen = self.0.load(Ordering::Acquire);
        let count = counter::read();
        account.enter(count, seen, 0);
        self.0.fetch_max(count, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use guest_protocol::report::SpinClock;

    use super::*;

    #[test]
    fn a_cpu_sees_what_another_read() {
        let highest = Highest::default();
        let (mut one, mut other) = (
            Account::new(0, SpinClock::Virtual),
            Account::new(1, SpinClock::Virtual),
        );
        highest.read_into(&mut one);
        let read = one.take().last_counter;
        assert_eq!(highest.0.load(Ordering::Relaxed), read);
        // A count that this machine will not reach: every read is now below it.
        highest.0.store(u64::MAX, Ordering::Relaxed);
        highest.read_into(&mut other);
        assert_eq!(other.take().cross_backwards_steps, 1);
    }
}
