//! Where a vCPU's physical time went.
//!
//! `physical = run + idle + stolen + paused`, where virtual time is `run + idle` and live time is
//! `virtual + stolen`. The five are measured by different clocks of the host, so they add up only
//! nearly; the [residual](Accounts::residual_ns) is what is missing, and it is shown.
//!
//! Only `paused` and `physical` are the VM's; run, idle and stolen come from the statistics of the
//! thread that runs the vCPU, as cumulative values whose start does not matter. While the VM is
//! stopped that thread works for the VMM, and what it runs, idles or waits is nobody's.

use super::{Cause, PausedNs};
use core::fmt;

/// Cumulative statistics of one vCPU's thread and the time they were taken, all in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ThreadSample {
    /// Physical time of this host, sleep included (`CLOCK_BOOTTIME`).
    pub physical_ns: u64,
    /// Time on a CPU, in the guest or for it.
    pub run_ns: u64,
    /// Time in which the vCPU had nothing to do.
    pub idle_ns: u64,
    /// Time in which the vCPU could run and did not get a CPU.
    pub stolen_ns: u64,
}

/// One of the values of a [`ThreadSample`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Account {
    /// Physical time.
    Physical,
    /// Time on a CPU.
    Run,
    /// Time with nothing to do.
    Idle,
    /// Time without a CPU.
    Stolen,
    /// Time in which the whole VM was stopped.
    Paused,
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Physical => "physical time",
            Self::Run => "run time",
            Self::Idle => "idle time",
            Self::Stolen => "stolen time",
            Self::Paused => "paused time",
        })
    }
}

/// Why a sample was not entered. The ledger is as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LedgerError {
    /// A cumulative value went back.
    #[error(
        "the thread's {account} went from {last_ns} ns back to {sample_ns} ns: if another thread \
         runs the vCPU now, change to it first"
    )]
    Backwards {
        /// Which value.
        account: Account,
        /// Its last sample.
        last_ns: u64,
        /// This sample.
        sample_ns: u64,
    },
    /// An account would pass 2^64 ns.
    #[error("{account} would pass 2^64 ns with {more_ns} ns more: check the samples' unit")]
    TooLong {
        /// Which account.
        account: Account,
        /// What this sample would add.
        more_ns: u64,
    },
    /// A sample for a stopped vCPU, or a second stop.
    #[error("the VM is stopped: resume the ledger before the next sample")]
    Stopped,
    /// A resumption of a vCPU that was not stopped.
    #[error("the VM runs: stop the ledger before it is resumed")]
    Running,
}

/// What the ledger says, in nanoseconds since the VM's first start, across all its hosts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Accounts {
    /// All of it.
    pub physical_ns: u64,
    /// On a CPU.
    pub run_ns: u64,
    /// Nothing to do.
    pub idle_ns: u64,
    /// Could run, and did not get a CPU.
    pub stolen_ns: u64,
    /// The whole VM was stopped, by cause.
    pub paused: PausedNs,
}

impl Accounts {
    /// Virtual time: run and idle.
    #[must_use]
    pub const fn virtual_ns(&self) -> u128 {
        self.run_ns as u128 + self.idle_ns as u128
    }

    /// Live physical time: virtual and stolen.
    #[must_use]
    pub const fn live_ns(&self) -> u128 {
        self.virtual_ns() + self.stolen_ns as u128
    }

    /// Physical time that no account has; negative where the accounts have more than there was.
    #[must_use]
    pub fn residual_ns(&self) -> i128 {
        let accounted = self.live_ns() + self.paused.total_ns();
        i128::from(self.physical_ns) - accounted.cast_signed()
    }
}

/// One vCPU's ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ledger {
    accounts: Accounts,
    last: ThreadSample,
    stopped: bool,
    /// The accounts when the vCPU went on last.
    resumed: Accounts,
}

impl Ledger {
    /// A vCPU that runs from `now` on.
    #[must_use]
    pub fn start(now: ThreadSample) -> Self {
        Self {
            accounts: Accounts::default(),
            last: now,
            stopped: false,
            resumed: Accounts::default(),
        }
    }

    /// A stopped vCPU with the accounts that it was saved with.
    ///
    /// `away_ns` of physical time passed since then up to `now`, as both hosts' wall clocks say.
    ///
    /// # Errors
    ///
    /// [`LedgerError::TooLong`].
    pub fn restore(
        mut accounts: Accounts,
        now: ThreadSample,
        cause: Cause,
        away_ns: u64,
    ) -> Result<Self, LedgerError> {
        add(Account::Physical, &mut accounts.physical_ns, away_ns)?;
        accounts.paused = pause(accounts.paused, cause, away_ns)?;
        Ok(Self {
            accounts,
            last: now,
            stopped: true,
            resumed: accounts,
        })
    }

    /// The accounts up to the last sample.
    #[must_use]
    pub const fn accounts(&self) -> &Accounts {
        &self.accounts
    }

    /// Enters what passed since the last sample of a running vCPU.
    ///
    /// # Errors
    ///
    /// [`LedgerError`], and nothing was entered.
    pub fn enter(&mut self, now: ThreadSample) -> Result<(), LedgerError> {
        if self.stopped {
            return Err(LedgerError::Stopped);
        }
        let (last, mut accounts) = (self.last, self.accounts);
        for (account, total_ns, last_ns, now_ns) in [
            (
                Account::Physical,
                &mut accounts.physical_ns,
                last.physical_ns,
                now.physical_ns,
            ),
            (Account::Run, &mut accounts.run_ns, last.run_ns, now.run_ns),
            (
                Account::Idle,
                &mut accounts.idle_ns,
                last.idle_ns,
                now.idle_ns,
            ),
            (
                Account::Stolen,
                &mut accounts.stolen_ns,
                last.stolen_ns,
                now.stolen_ns,
            ),
        ] {
            add(account, total_ns, since(account, last_ns, now_ns)?)?;
        }
        *self = Self {
            accounts,
            last: now,
            ..*self
        };
        Ok(())
    }

    /// Enters what passed up to the moment when the VM was stopped.
    ///
    /// # Errors
    ///
    /// As [`enter`](Self::enter).
    pub fn stop(&mut self, now: ThreadSample) -> Result<(), LedgerError> {
        self.enter(now)?;
        self.stopped = true;
        Ok(())
    }

    /// Enters the time since [`stop`](Self::stop) as paused; the thread's own statistics start
    /// anew from `now`.
    ///
    /// # Errors
    ///
    /// [`LedgerError`], and nothing was entered.
    pub fn resume(&mut self, now: ThreadSample, cause: Cause) -> Result<(), LedgerError> {
        if !self.stopped {
            return Err(LedgerError::Running);
        }
        let paused_ns = since(Account::Physical, self.last.physical_ns, now.physical_ns)?;
        let mut accounts = self.accounts;
        add(Account::Physical, &mut accounts.physical_ns, paused_ns)?;
        accounts.paused = pause(accounts.paused, cause, paused_ns)?;
        *self = Self {
            accounts,
            last: now,
            stopped: false,
            resumed: accounts,
        };
        Ok(())
    }

    /// Enters what passed since [`resume`](Self::resume) as paused too: the VM went on at `at_ns` of
    /// physical time only, for which the thread waited. Nothing where it did not, or the vCPU was stopped
    /// again since. What the thread ran meanwhile is in its own statistics, and so in both accounts.
    ///
    /// # Errors
    ///
    /// [`LedgerError::TooLong`], and nothing was entered.
    pub fn went_on(&mut self, at_ns: u64, cause: Cause) -> Result<(), LedgerError> {
        let more_ns = at_ns.saturating_sub(self.last.physical_ns);
        if self.stopped || more_ns == 0 {
            return Ok(());
        }
        let mut accounts = self.accounts;
        add(Account::Physical, &mut accounts.physical_ns, more_ns)?;
        accounts.paused = pause(accounts.paused, cause, more_ns)?;
        self.accounts = accounts;
        self.last.physical_ns = at_ns;
        self.resumed = accounts;
        Ok(())
    }

    /// Goes on with another thread, whose statistics so far are not the vCPU's. The physical time
    /// since the last sample is entered, and is in the residual.
    ///
    /// # Errors
    ///
    /// [`LedgerError`] for the physical time, and nothing was entered.
    pub fn change_thread(&mut self, now: ThreadSample) -> Result<(), LedgerError> {
        let passed_ns = since(Account::Physical, self.last.physical_ns, now.physical_ns)?;
        add(Account::Physical, &mut self.accounts.physical_ns, passed_ns)?;
        self.last = now;
        Ok(())
    }

    /// Enters a sleep of the host that was noticed afterwards: one that lasted to the last sample
    /// or longer, began at `since_ns` of physical time at the earliest, and at `certain_ns` at the
    /// latest.
    ///
    /// Paused is what no account has since the vCPU went on, but at least what is certain. Where
    /// that is missing it was taken for idle time, which includes waits for a CPU, and is so no
    /// more. What was entered of the same stretch before is not entered again.
    ///
    /// # Errors
    ///
    /// [`LedgerError::TooLong`], and nothing was entered.
    pub fn slept(
        &mut self,
        cause: Cause,
        since_ns: u64,
        certain_ns: u64,
    ) -> Result<(), LedgerError> {
        let (mut accounts, resumed) = (self.accounts, &self.resumed);
        let entered_ns = accounts.paused.total_ns() - resumed.paused.total_ns();
        let missing_ns = accounts.residual_ns() - resumed.residual_ns();
        let before = |from_ns| self.last.physical_ns.saturating_sub(from_ns);
        let slept_ns = at_least_0(missing_ns + entered_ns.cast_signed());
        let slept_ns = slept_ns.min(before(since_ns)).max(before(certain_ns));
        let more_ns = slept_ns.saturating_sub(at_least_0(entered_ns.cast_signed()));
        let not_idle_ns = more_ns.saturating_sub(at_least_0(missing_ns));
        accounts.idle_ns -= not_idle_ns.min(accounts.idle_ns - resumed.idle_ns);
        accounts.paused = pause(accounts.paused, cause, more_ns)?;
        self.accounts = accounts;
        Ok(())
    }
}

fn at_least_0(ns: i128) -> u64 {
    u64::try_from(ns.max(0)).unwrap_or(u64::MAX)
}

fn since(account: Account, last_ns: u64, sample_ns: u64) -> Result<u64, LedgerError> {
    let error = LedgerError::Backwards {
        account,
        last_ns,
        sample_ns,
    };
    sample_ns.checked_sub(last_ns).ok_or(error)
}

fn add(account: Account, total_ns: &mut u64, more_ns: u64) -> Result<(), LedgerError> {
    let error = LedgerError::TooLong { account, more_ns };
    *total_ns = total_ns.checked_add(more_ns).ok_or(error)?;
    Ok(())
}

fn pause(paused: PausedNs, cause: Cause, more_ns: u64) -> Result<PausedNs, LedgerError> {
    let error = LedgerError::TooLong {
        account: Account::Paused,
        more_ns,
    };
    paused.plus(cause, more_ns).ok_or(error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::string::ToString;

    fn sample(physical_ns: u64, run_ns: u64, idle_ns: u64, stolen_ns: u64) -> ThreadSample {
        ThreadSample {
            physical_ns,
            run_ns,
            idle_ns,
            stolen_ns,
        }
    }

    #[test]
    fn the_accounts_add_up_and_the_rest_is_shown() {
        let mut ledger = Ledger::start(sample(1_000, 10, 20, 30));
        ledger.enter(sample(1_100, 60, 40, 55)).unwrap();
        let accounts = *ledger.accounts();
        assert_eq!(
            (
                accounts.physical_ns,
                accounts.virtual_ns(),
                accounts.live_ns()
            ),
            (100, 70, 95)
        );
        assert_eq!(accounts.residual_ns(), 5);
        ledger.enter(sample(1_110, 80, 40, 55)).unwrap();
        assert_eq!(
            ledger.accounts().residual_ns(),
            -5,
            "more was run than passed"
        );
    }

    #[test]
    fn what_a_thread_does_while_the_vm_is_stopped_is_nobodys() {
        let mut ledger = Ledger::start(sample(0, 0, 0, 0));
        ledger.stop(sample(100, 100, 0, 0)).unwrap();
        assert_eq!(
            ledger.enter(sample(101, 101, 0, 0)),
            Err(LedgerError::Stopped)
        );
        assert_eq!(
            ledger.stop(sample(101, 101, 0, 0)),
            Err(LedgerError::Stopped)
        );
        ledger
            .resume(sample(400, 150, 200, 50), Cause::Operator)
            .unwrap();
        assert_eq!(
            ledger.resume(sample(400, 150, 200, 50), Cause::Operator),
            Err(LedgerError::Running)
        );
        ledger.enter(sample(410, 155, 205, 50)).unwrap();
        let accounts = ledger.accounts();
        assert_eq!(
            (accounts.physical_ns, accounts.run_ns, accounts.idle_ns),
            (410, 105, 5)
        );
        assert_eq!(accounts.paused, PausedNs::new([300, 0, 0, 0]));
        assert_eq!((accounts.stolen_ns, accounts.residual_ns()), (0, 0));
    }

    #[test]
    fn r3_time_away_is_paused_and_not_stolen() {
        let mut ledger = Ledger::start(sample(0, 0, 0, 0));
        ledger.stop(sample(50, 30, 0, 20)).unwrap();
        let saved = *ledger.accounts();
        let there = sample(9_000_000, 7, 7, 7);
        let mut ledger = Ledger::restore(saved, there, Cause::Migration, 1_000).unwrap();
        ledger
            .resume(sample(9_000_010, 9, 9, 9), Cause::Migration)
            .unwrap();
        let accounts = ledger.accounts();
        assert_eq!((accounts.physical_ns, accounts.stolen_ns), (1_060, 20));
        assert_eq!(accounts.paused.of(Cause::Migration), 1_010);
        assert_eq!(accounts.residual_ns(), 0);
    }

    #[test]
    fn what_a_vcpu_waits_until_its_vm_goes_on_is_paused() {
        let mut ledger = Ledger::start(sample(0, 0, 0, 0));
        ledger.stop(sample(100, 100, 0, 0)).unwrap();
        ledger
            .resume(sample(500, 100, 0, 0), Cause::Operator)
            .unwrap();
        ledger.went_on(530, Cause::Operator).unwrap();
        assert_eq!(ledger.accounts().paused.of(Cause::Operator), 430);
        // It was ready later than that, and ran on.
        ledger.went_on(520, Cause::Operator).unwrap();
        ledger.enter(sample(600, 165, 5, 0)).unwrap();
        let accounts = *ledger.accounts();
        assert_eq!((accounts.physical_ns, accounts.run_ns), (600, 165));
        assert_eq!(accounts.paused.of(Cause::Operator), 430);
        assert_eq!(accounts.residual_ns(), 0);
        // A sleep is of the time since, and of one that stopped again nothing is known any more.
        ledger.stop(sample(700, 265, 5, 0)).unwrap();
        ledger.slept(Cause::HostSuspend, 0, 700).unwrap();
        ledger.went_on(900, Cause::Operator).unwrap();
        assert_eq!(
            *ledger.accounts(),
            Accounts {
                physical_ns: 700,
                run_ns: 265,
                ..accounts
            }
        );
    }

    #[test]
    fn a_sleep_noticed_afterwards_is_paused() {
        let mut ledger = Ledger::start(sample(0, 0, 0, 0));
        ledger.stop(sample(5_000, 1_000, 0, 0)).unwrap();
        // Of what is missing, no more than the sleep can have lasted.
        ledger.slept(Cause::HostSuspend, 2_000, 4_000).unwrap();
        assert_eq!(ledger.accounts().paused.of(Cause::HostSuspend), 3_000);
        ledger.slept(Cause::HostSuspend, 1_000, 4_000).unwrap();
        assert_eq!(ledger.accounts().paused.of(Cause::HostSuspend), 4_000);
        assert_eq!(ledger.accounts().residual_ns(), 0);
        // It lasted into the stop, which is paused by itself.
        ledger
            .resume(sample(9_000, 1_000, 0, 0), Cause::HostSuspend)
            .unwrap();
        ledger.stop(sample(9_100, 1_100, 0, 0)).unwrap();
        ledger.slept(Cause::HostSuspend, 1_000, 9_100).unwrap();
        assert_eq!(ledger.accounts().paused.of(Cause::HostSuspend), 8_000);
    }

    #[test]
    fn what_is_certain_of_a_sleep_is_not_idle() {
        let mut ledger = Ledger::start(sample(0, 0, 0, 0));
        ledger.stop(sample(100, 0, 100, 0)).unwrap();
        ledger
            .resume(sample(100, 0, 100, 0), Cause::Operator)
            .unwrap();
        // It was idle for 1000, waited for 700, which is in its idle time too, and slept for 4000.
        ledger.stop(sample(8_100, 2_300, 1_800, 700)).unwrap();
        assert_eq!(ledger.accounts().residual_ns(), 4_000 - 700);
        let accounts = |ledger: &Ledger| {
            let it = ledger.accounts();
            (
                it.idle_ns,
                it.paused.of(Cause::HostSuspend),
                it.residual_ns(),
            )
        };
        for _ in 0..2 {
            ledger.slept(Cause::HostSuspend, 4_000, 4_200).unwrap();
            assert_eq!(accounts(&ledger), (1_200, 3_900, 0));
        }
        // No more than was idle since the vCPU went on; the rest is shown.
        ledger.slept(Cause::HostSuspend, 0, 100).unwrap();
        assert_eq!(accounts(&ledger), (100, 8_000, -3_000));
    }

    #[test]
    fn bad_samples_change_nothing() {
        let mut ledger = Ledger::start(sample(10, 10, 10, 10));
        let before = ledger;
        for (account, now) in [
            (Account::Physical, sample(9, 10, 10, 10)),
            (Account::Run, sample(10, 9, 10, 10)),
            (Account::Idle, sample(10, 10, 9, 10)),
            (Account::Stolen, sample(10, 10, 10, 9)),
        ] {
            let error = LedgerError::Backwards {
                account,
                last_ns: 10,
                sample_ns: 9,
            };
            assert_eq!(ledger.enter(now), Err(error));
            assert_eq!(ledger, before);
        }
        let full = Accounts {
            run_ns: u64::MAX,
            paused: PausedNs::new([0, 0, 0, 1]),
            ..Accounts::default()
        };
        let mut ledger = Ledger::restore(full, sample(0, 0, 0, 0), Cause::Snapshot, 0).unwrap();
        ledger.resume(sample(0, 0, 0, 0), Cause::Snapshot).unwrap();
        let before = ledger;
        let error = LedgerError::TooLong {
            account: Account::Run,
            more_ns: 1,
        };
        assert_eq!(ledger.enter(sample(1, 1, 0, 0)), Err(error));
        assert_eq!(ledger, before);
        let error = LedgerError::TooLong {
            account: Account::Paused,
            more_ns: u64::MAX,
        };
        ledger.enter(sample(u64::MAX, 0, 0, 0)).unwrap();
        let before = ledger;
        assert_eq!(ledger.slept(Cause::HostSuspend, 0, 0), Err(error));
        assert_eq!(ledger, before);
        assert_eq!(
            Ledger::restore(
                Accounts {
                    physical_ns: 1,
                    ..full
                },
                sample(0, 0, 0, 0),
                Cause::Snapshot,
                u64::MAX
            ),
            Err(LedgerError::TooLong {
                account: Account::Physical,
                more_ns: u64::MAX
            })
        );
    }

    #[test]
    fn another_thread_starts_anew() {
        let mut ledger = Ledger::start(sample(0, 500, 0, 0));
        ledger.enter(sample(10, 510, 0, 0)).unwrap();
        ledger.change_thread(sample(13, 7, 0, 0)).unwrap();
        ledger.enter(sample(20, 14, 0, 0)).unwrap();
        let accounts = ledger.accounts();
        assert_eq!((accounts.physical_ns, accounts.run_ns), (20, 17));
        assert_eq!(accounts.residual_ns(), 3);
        assert!(ledger.change_thread(sample(19, 0, 0, 0)).is_err());
    }

    #[test]
    fn each_error_says_what_was_wrong_and_what_to_do() {
        let backwards = |account| LedgerError::Backwards {
            account,
            last_ns: 9,
            sample_ns: 8,
        };
        assert_eq!(
            backwards(Account::Idle).to_string(),
            "the thread's idle time went from 9 ns back to 8 ns: if another thread runs the vCPU \
             now, change to it first"
        );
        let more_ns = 7;
        assert_eq!(
            LedgerError::TooLong {
                account: Account::Paused,
                more_ns
            }
            .to_string(),
            "paused time would pass 2^64 ns with 7 ns more: check the samples' unit"
        );
        assert_eq!(
            LedgerError::Stopped.to_string(),
            "the VM is stopped: resume the ledger before the next sample"
        );
        assert_eq!(
            LedgerError::Running.to_string(),
            "the VM runs: stop the ledger before it is resumed"
        );
        let others = [Account::Physical, Account::Run, Account::Stolen].map(|it| it.to_string());
        assert_eq!(others, ["physical time", "run time", "stolen time"]);
    }

    /// What the vCPU does for some nanoseconds.
    #[derive(Clone, Copy, Debug)]
    enum Doing {
        Run(u32),
        Idle(u32),
        Wait(u32),
        /// So much of a sleep was taken for idle time, and so much of it is not certain.
        Sleep(u32, u32, u32),
        Pause(Cause, u32),
        Move(u32),
    }

    fn doing() -> impl Strategy<Value = Doing> {
        prop_oneof![
            4 => any::<u32>().prop_map(Doing::Run),
            4 => any::<u32>().prop_map(Doing::Idle),
            4 => any::<u32>().prop_map(Doing::Wait),
            1 => any::<[u32; 3]>().prop_map(|[ns, idle_ns, uncertain_ns]| {
                Doing::Sleep(ns, idle_ns.min(ns), uncertain_ns.min(ns))
            }),
            2 => (proptest::sample::select(Cause::ALL.to_vec()), any::<u32>())
                .prop_map(|(cause, ns)| Doing::Pause(cause, ns)),
            1 => any::<u32>().prop_map(Doing::Move),
        ]
    }

    proptest! {
        #[test]
        fn law_3_the_ledger_balances(history in proptest::collection::vec(doing(), 0..80)) {
            let mut now = ThreadSample::default();
            let mut ledger = Ledger::start(now);
            let mut physical = 0;
            for doing in history {
                match doing {
                    Doing::Run(ns) => now.run_ns += u64::from(ns),
                    Doing::Idle(ns) => now.idle_ns += u64::from(ns),
                    Doing::Wait(ns) => now.stolen_ns += u64::from(ns),
                    Doing::Sleep(_, idle_ns, _) => now.idle_ns += u64::from(idle_ns),
                    Doing::Pause(_, ns) | Doing::Move(ns) => {
                        ledger.stop(now)?;
                        // The thread works for the VMM meanwhile.
                        now.run_ns += u64::from(ns) / 2;
                        now.stolen_ns += u64::from(ns) / 2;
                    }
                }
                let (Doing::Run(ns) | Doing::Idle(ns) | Doing::Wait(ns) | Doing::Sleep(ns, ..)
                    | Doing::Pause(_, ns) | Doing::Move(ns)) = doing;
                physical += u64::from(ns);
                match doing {
                    Doing::Pause(cause, ns) => {
                        now.physical_ns += u64::from(ns);
                        ledger.resume(now, cause)?;
                    }
                    Doing::Move(ns) => {
                        // To a host whose clocks started at other times.
                        now = sample(7, u64::from(ns), 3, 5);
                        ledger =
                            Ledger::restore(*ledger.accounts(), now, Cause::Migration, ns.into())?;
                        ledger.resume(now, Cause::Migration)?;
                    }
                    Doing::Sleep(_, idle_ns, uncertain_ns) => {
                        let (since_ns, before) = (now.physical_ns, *ledger.accounts());
                        now.physical_ns += u64::from(ns);
                        ledger.stop(now)?;
                        let certain_ns = since_ns + u64::from(uncertain_ns);
                        ledger.slept(Cause::HostSuspend, since_ns, certain_ns)?;
                        ledger.resume(now, Cause::Operator)?;
                        let paused_ns = ledger.accounts().paused.of(Cause::HostSuspend)
                            - before.paused.of(Cause::HostSuspend);
                        prop_assert_eq!(paused_ns, u64::from(ns - idle_ns.min(uncertain_ns)));
                    }
                    _ => {
                        now.physical_ns += u64::from(ns);
                        ledger.enter(now)?;
                    }
                }
                prop_assert_eq!(ledger.accounts().residual_ns(), 0);
                prop_assert_eq!(ledger.accounts().physical_ns, physical);
            }
        }
    }
}
