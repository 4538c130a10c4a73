//! Reading a counter without end.

use core::sync::atomic::{AtomicU64, Ordering};

use guest_protocol::report::{MAX_BARE_CPUS, Spin, SpinClock};
use guest_protocol::spin::Account;
use pvtime::guest::Counter;
use pvtime::guest::arm64::{PhysicalCounter, VirtualCounter};
use spin::mutex::TicketMutex;

use super::interfaces::{self, number};
use super::registers;

/// The highest count that any CPU has read, of each counter.
static HIGHEST: [AtomicU64; 3] = [const { AtomicU64::new(0) }; 3];

// Fair, so that who asks is not kept out by who spins.
static ACCOUNTS: [TicketMutex<Option<Account>>; MAX_BARE_CPUS] =
    [const { TicketMutex::new(None) }; MAX_BARE_CPUS];

/// Reads between two looks at what else there is to do.
const ROUND: u32 = 256;

/// Reads a counter for one round.
pub fn round(cpu: usize, clock: SpinClock) {
    let mut account = ACCOUNTS[cpu].lock();
    if account
        .as_ref()
        .is_none_or(|account| account.clock() != clock)
    {
        *account = Some(Account::new(number(cpu), clock));
    }
    let Some(account) = account.as_mut() else {
        return;
    };
    match clock {
        SpinClock::Virtual => read(cpu, account, 0, || Some(VirtualCounter.read_ordered())),
        SpinClock::Physical => read(cpu, account, 1, || Some(PhysicalCounter.read_ordered())),
        SpinClock::Live => {
            let live = interfaces::live();
            read(cpu, account, 2, || live.and_then(|live| live.now().ok()));
        }
    }
}

#[inline]
fn read(cpu: usize, account: &mut Account, highest: usize, now: impl Fn() -> Option<u64>) {
    let highest = &HIGHEST[highest];
    for _ in 0..ROUND {
        // Pairs with the release below: a count is seen here only after it was read there.
        let seen = highest.load(Ordering::Acquire);
        registers::wait_for_loads();
        let Some(count) = now() else { return };
        account.enter(count, seen, interfaces::stolen_ns(cpu));
        highest.fetch_max(count, Ordering::Release);
    }
}

/// Ends this CPU's account; for when it gets other work.
pub fn stop(cpu: usize) {
    *ACCOUNTS[cpu].lock() = None;
}

/// What a CPU that spins saw since it was last asked.
pub fn take(cpu: usize) -> Option<Spin> {
    ACCOUNTS[cpu].lock().as_mut().map(Account::take)
}
