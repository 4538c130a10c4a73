//! What is seen of a vCPU's thread that may be in the guest, from one look to the next.
//!
//! A thread that was on no CPU from one look to another is as it was: nothing of it was counted, and where it
//! is halted it was so all that time.

/// What the kernel has counted of a thread, and whether its vCPU is halted, in that order or at once.
#[derive(Clone, Copy, Debug)]
pub struct Counted {
    /// Its waits for a CPU and its vCPU's halts that have ended, in ns.
    pub ns: u64,
    /// A halt is under way: it will be counted as a whole when it ends.
    pub is_halted: bool,
}

/// For how long a thread has run, in ns, read between two moments and after the former.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    pub ns: u64,
    pub before_ns: u64,
    pub after_ns: u64,
}

/// The last look at a thread.
#[derive(Debug, Default)]
pub struct LastLook(Option<Found>);

#[derive(Clone, Copy, Debug)]
struct Found {
    run_ns: u64,
    counted_ns: u64,
    halted_since_ns: Option<u64>,
    /// The thread did not run while it was looked at, so that what was found is of one moment.
    is_of_one_moment: bool,
}

impl LastLook {
    /// Whether [`unchanged`](Self::unchanged) may know the answer.
    pub fn may_last(&self) -> bool {
        self.0.is_some_and(|found| found.is_of_one_moment)
    }

    /// For how long the thread was busy up to a moment, in ns, if it has not run since it was looked at.
    pub fn unchanged(&self, run: Run) -> Option<u64> {
        let found = self.0.filter(|it| it.is_of_one_moment)?;
        (found.run_ns == run.ns).then(|| found.busy_ns(run))
    }

    /// The same of what is found now: what was counted was read before.
    pub fn see(&mut self, counted: Counted, run: Run) -> u64 {
        let last = self.0.filter(|last| last.run_ns == run.ns);
        let since_ns = last.and_then(|last| last.halted_since_ns);
        let found = Found {
            run_ns: run.ns,
            counted_ns: counted.ns,
            halted_since_ns: counted
                .is_halted
                .then_some(since_ns.unwrap_or(run.after_ns)),
            is_of_one_moment: last.is_some(),
        };
        self.0 = Some(found);
        found.busy_ns(run)
    }
}

impl Found {
    fn busy_ns(&self, run: Run) -> u64 {
        let halted_ns = self.halted_since_ns;
        let halted_ns = halted_ns.map_or(0, |since_ns| run.before_ns.saturating_sub(since_ns));
        run.ns + self.counted_ns + halted_ns
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(ns: u64, before_ns: u64, after_ns: u64) -> Run {
        Run {
            ns,
            before_ns,
            after_ns,
        }
    }

    fn counted(is_halted: bool) -> Counted {
        Counted { ns: 0, is_halted }
    }

    #[test]
    fn a_halt_is_as_long_as_its_thread_was_not_seen_to_run() {
        let mut last = LastLook::default();
        let mut halted_ns = |is_halted, at: Run| last.see(counted(is_halted), at) - at.ns;
        assert_eq!(halted_ns(false, run(70, 100, 101)), 0);
        // It began at some time between two looks.
        assert_eq!(halted_ns(true, run(80, 120, 121)), 0);
        assert_eq!(halted_ns(true, run(80, 140, 142)), 19);
        assert_eq!(halted_ns(true, run(80, 160, 161)), 39);
        // It ran meanwhile, and halted once more.
        assert_eq!(halted_ns(true, run(83, 180, 181)), 0);
        assert_eq!(halted_ns(true, run(83, 200, 201)), 19);
        // It sleeps elsewhere.
        assert_eq!(halted_ns(false, run(83, 220, 221)), 0);
        assert_eq!(halted_ns(true, run(83, 240, 241)), 0);
    }

    #[test]
    fn a_thread_that_did_not_run_is_as_it_was_found_twice() {
        let mut last = LastLook::default();
        assert!(!last.may_last());
        let found = |ns| Counted {
            ns,
            is_halted: true,
        };
        assert_eq!(last.see(found(5), run(80, 100, 101)), 85);
        // The halt before this one may have ended after it was looked at how long that was.
        assert!(!last.may_last());
        assert_eq!(last.unchanged(run(80, 120, 121)), None);
        assert_eq!(last.see(found(7), run(80, 120, 121)), 80 + 7 + 19);
        assert!(last.may_last());
        assert_eq!(last.unchanged(run(80, 150, 151)), Some(80 + 7 + 49));
        assert_eq!(last.unchanged(run(81, 150, 151)), None, "it ran");
        assert_eq!(last.see(found(60), run(81, 160, 161)), 141);
        assert!(!last.may_last());
    }

    #[test]
    fn a_thread_that_sleeps_elsewhere_is_not_busy() {
        let mut last = LastLook::default();
        for at_ns in [100, 120] {
            last.see(counted(false), run(80, at_ns, at_ns + 1));
        }
        assert_eq!(last.unchanged(run(80, 150, 151)), Some(80));
    }
}
