//! A vCPU's stolen time, counted from how long its thread waited for a CPU.
//!
//! The scheduler's *run delay* of the thread that runs the vCPU grows exactly while the thread
//! could run and did not: `/proc/<tid>/schedstat`, second field, on Linux. A vCPU in `WFI`, a
//! paused VM and a sleeping host leave it as it is; the waits of a thread that does something else
//! than run the vCPU are left out with [`skip`](StolenAccount::skip).
//!
//! The account here is what counts. Guest memory is written from it and never read, so a guest
//! that scribbles on its structure misleads itself until the next publication.
//!
//! ```
//! use pvtime::host::stolen::StolenAccount;
//!
//! let mut memory = None;
//! let mut account = StolenAccount::attach(5_000);
//! account.count(7_500)?;
//! account.publish(|value| Ok::<_, ()>(memory = Some(value))).unwrap();
//! assert_eq!(memory.unwrap().stolen_ns, 2_500);
//! # Ok::<(), pvtime::host::stolen::StolenError>(())
//! ```

use crate::abi::stolen_time::StolenTime;

/// Why a sample of the run delay was not counted. The account is as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StolenError {
    /// The run delay is below the last one.
    #[error(
        "the run delay went from {last_ns} ns back to {sample_ns} ns: if another thread runs \
         the vCPU now, change to it first"
    )]
    Backwards {
        /// The last sample.
        last_ns: u64,
        /// This sample.
        sample_ns: u64,
    },
    /// The stolen time would pass 2^64 ns.
    #[error("{stolen_ns} ns stolen and {more_ns} ns more are past 2^64: check the samples' unit")]
    TooLong {
        /// What was stolen so far.
        stolen_ns: u64,
        /// What this sample would add.
        more_ns: u64,
    },
}

/// One vCPU's stolen time: 24 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(clippy::struct_field_names, reason = "units stand last in names")]
pub struct StolenAccount {
    stolen_ns: u64,
    published_ns: u64,
    run_delay_ns: u64,
}

const _: () = assert!(size_of::<StolenAccount>() <= 64);

impl StolenAccount {
    /// A vCPU from which nothing was stolen yet, run by a thread whose run delay is `run_delay_ns`.
    #[must_use]
    pub const fn attach(run_delay_ns: u64) -> Self {
        Self {
            stolen_ns: 0,
            published_ns: 0,
            run_delay_ns,
        }
    }

    /// A vCPU that was saved with `stolen_ns`, run by a thread whose run delay is `run_delay_ns`.
    ///
    /// What that thread waited before is not the guest's loss, so the value continues exactly
    /// where it was saved.
    #[must_use]
    pub const fn restore(stolen_ns: u64, run_delay_ns: u64) -> Self {
        Self {
            stolen_ns,
            published_ns: stolen_ns,
            run_delay_ns,
        }
    }

    /// Counts what was waited since the last sample as stolen.
    ///
    /// # Errors
    ///
    /// [`StolenError::Backwards`], [`StolenError::TooLong`].
    pub fn count(&mut self, run_delay_ns: u64) -> Result<(), StolenError> {
        let (stolen_ns, more_ns) = (self.stolen_ns, self.waited_ns(run_delay_ns)?);
        self.stolen_ns = stolen_ns
            .checked_add(more_ns)
            .ok_or(StolenError::TooLong { stolen_ns, more_ns })?;
        self.run_delay_ns = run_delay_ns;
        Ok(())
    }

    /// Leaves out what was waited since the last sample: the VM was paused, or the thread was not
    /// about to run the vCPU.
    ///
    /// # Errors
    ///
    /// [`StolenError::Backwards`].
    pub fn skip(&mut self, run_delay_ns: u64) -> Result<(), StolenError> {
        self.waited_ns(run_delay_ns)?;
        self.run_delay_ns = run_delay_ns;
        Ok(())
    }

    /// Starts again at 0 because the guest called `PV_TIME_ST` on this vCPU; to be followed by a
    /// publication of the whole structure. Other vCPUs go on.
    ///
    /// # Errors
    ///
    /// [`StolenError::Backwards`].
    pub fn restart(&mut self, run_delay_ns: u64) -> Result<(), StolenError> {
        self.waited_ns(run_delay_ns)?;
        *self = Self::attach(run_delay_ns);
        Ok(())
    }

    /// Goes on with another thread, whose run delay so far is not counted.
    pub fn change_thread(&mut self, run_delay_ns: u64) {
        self.run_delay_ns = run_delay_ns;
    }

    /// Hands the value to `store`, which writes it to the guest's memory.
    ///
    /// # Errors
    ///
    /// What `store` fails with, for example because the memory is not there at the moment; nothing
    /// is lost, the next publication has it.
    pub fn publish<E>(&mut self, store: impl FnOnce(StolenTime) -> Result<(), E>) -> Result<(), E> {
        store(self.value())?;
        self.published_ns = self.stolen_ns;
        Ok(())
    }

    /// The value that the guest ought to read.
    #[must_use]
    pub const fn value(&self) -> StolenTime {
        StolenTime {
            stolen_ns: self.stolen_ns,
        }
    }

    /// Counted and not yet published, in nanoseconds.
    #[must_use]
    pub const fn unpublished_ns(&self) -> u64 {
        self.stolen_ns - self.published_ns
    }

    const fn waited_ns(&self, sample_ns: u64) -> Result<u64, StolenError> {
        match sample_ns.checked_sub(self.run_delay_ns) {
            Some(waited_ns) => Ok(waited_ns),
            None => Err(StolenError::Backwards {
                last_ns: self.run_delay_ns,
                sample_ns,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::string::ToString;
    use std::vec::Vec;

    fn value(account: &StolenAccount) -> u64 {
        account.value().stolen_ns
    }

    #[test]
    fn m6_only_the_wait_of_a_running_vm_counts() {
        let mut account = StolenAccount::attach(1_000);
        account.count(1_500).unwrap();
        account.skip(9_000).unwrap();
        account.count(9_001).unwrap();
        assert_eq!(value(&account), 501);
    }

    #[test]
    fn m7_the_guests_call_restarts_the_counter() {
        let mut account = StolenAccount::attach(0);
        account.count(500).unwrap();
        account.restart(700).unwrap();
        assert_eq!((value(&account), account.unpublished_ns()), (0, 0));
        account.restart(800).unwrap();
        account.count(803).unwrap();
        assert_eq!(value(&account), 3);
    }

    #[test]
    fn m9_a_scribble_is_overwritten() {
        let mut memory = StolenTime::default();
        let mut account = StolenAccount::attach(0);
        account.count(5).unwrap();
        account
            .publish(|value| {
                memory = value;
                Ok::<_, ()>(())
            })
            .unwrap();
        memory.stolen_ns = u64::MAX;
        account.count(6).unwrap();
        account
            .publish(|value| {
                memory = value;
                Ok::<_, ()>(())
            })
            .unwrap();
        assert_eq!(memory.stolen_ns, 6);
    }

    #[test]
    fn m16_missing_memory_loses_nothing() {
        let mut account = StolenAccount::attach(0);
        account.count(10).unwrap();
        assert_eq!(account.publish(|_| Err("no memory")), Err("no memory"));
        assert_eq!(account.unpublished_ns(), 10);
        account.count(30).unwrap();
        let mut memory = None;
        account
            .publish(|value| {
                memory = Some(value.stolen_ns);
                Ok::<_, ()>(())
            })
            .unwrap();
        assert_eq!((memory, account.unpublished_ns()), (Some(30), 0));
    }

    #[test]
    fn backward_samples_change_nothing() {
        let mut account = StolenAccount::attach(0);
        account.count(10).unwrap();
        let before = account;
        let error = Err(StolenError::Backwards {
            last_ns: 10,
            sample_ns: 9,
        });
        assert_eq!(account.count(9), error);
        assert_eq!(account.skip(9), error);
        assert_eq!(account.restart(9), error);
        assert_eq!(account, before);
        account.change_thread(2);
        account.count(3).unwrap();
        assert_eq!(value(&account), 11, "another thread has another run delay");
    }

    #[test]
    fn r2_a_saved_value_continues() {
        let mut account = StolenAccount::restore(7_000, 123);
        assert_eq!((value(&account), account.unpublished_ns()), (7_000, 0));
        account.count(125).unwrap();
        assert_eq!(value(&account), 7_002);
    }

    #[test]
    fn a_value_past_64_bits_is_refused() {
        let mut account = StolenAccount::restore(u64::MAX - 1, 0);
        account.count(1).unwrap();
        let before = account;
        let error = StolenError::TooLong {
            stolen_ns: u64::MAX,
            more_ns: 2,
        };
        assert_eq!(account.count(3), Err(error));
        assert_eq!(account, before);
    }

    #[test]
    fn each_error_says_what_was_wrong_and_what_to_do() {
        assert_eq!(
            StolenError::Backwards {
                last_ns: 9,
                sample_ns: 8
            }
            .to_string(),
            "the run delay went from 9 ns back to 8 ns: if another thread runs the vCPU now, \
             change to it first"
        );
        assert_eq!(
            StolenError::TooLong {
                stolen_ns: 9,
                more_ns: 8
            }
            .to_string(),
            "9 ns stolen and 8 ns more are past 2^64: check the samples' unit"
        );
    }

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Count(u32),
        Skip(u32),
        Restart(u32),
        Thread(u32),
        Save(u32),
        Back(u32),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            8 => any::<u32>().prop_map(Step::Count),
            2 => any::<u32>().prop_map(Step::Skip),
            1 => any::<u32>().prop_map(Step::Restart),
            1 => any::<u32>().prop_map(Step::Thread),
            1 => any::<u32>().prop_map(Step::Save),
            1 => any::<u32>().prop_map(Step::Back),
        ]
    }

    proptest! {
        #[test]
        fn m4_never_decreases_between_restarts_and_sums_exactly(
            steps in proptest::collection::vec(step(), 0..60),
        ) {
            let mut account = StolenAccount::attach(0);
            let (mut run_delay, mut expected, mut published) = (0, 0, Vec::new());
            for step in steps {
                match step {
                    Step::Count(ns) => {
                        run_delay += u64::from(ns);
                        expected += u64::from(ns);
                        account.count(run_delay)?;
                    }
                    Step::Skip(ns) => {
                        run_delay += u64::from(ns);
                        account.skip(run_delay)?;
                    }
                    Step::Restart(ns) => {
                        run_delay += u64::from(ns);
                        account.restart(run_delay)?;
                        expected = 0;
                        published.clear();
                    }
                    Step::Thread(ns) => {
                        run_delay = u64::from(ns);
                        account.change_thread(run_delay);
                    }
                    Step::Save(ns) => {
                        run_delay = u64::from(ns);
                        account = StolenAccount::restore(account.value().stolen_ns, run_delay);
                    }
                    Step::Back(ns) => {
                        let back = run_delay.checked_sub(u64::from(ns) + 1);
                        prop_assert!(back.is_none_or(|back| account.count(back).is_err()));
                    }
                }
                prop_assert_eq!(value(&account), expected);
                account.publish(|value| { published.push(value); Ok::<_, TestCaseError>(()) })?;
                prop_assert!(published.is_sorted());
            }
        }
    }
}
