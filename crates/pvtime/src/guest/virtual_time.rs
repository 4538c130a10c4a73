//! Elapsed time without the part that was stolen.

/// What became of a span of a CPU's time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Elapsed {
    /// Nanoseconds in which the CPU ran or was idle by its own choice.
    pub virtual_ns: u64,
    /// Nanoseconds in which the host let it wait.
    pub stolen_ns: u64,
}

/// Divides one CPU's elapsed time into what it had and what was stolen from it.
///
/// The two clocks are read one after the other and the host writes the stolen one late, so more
/// may have been stolen since the last look than has elapsed. What exceeds the elapsed time is
/// charged to the spans that follow: no span is ever negative, and nothing is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VirtualTime {
    seen_ns: u64,
    owed_ns: u64,
}

impl VirtualTime {
    /// Begins at a reading of the CPU's stolen time, in nanoseconds.
    #[must_use]
    pub const fn start(stolen_ns: u64) -> Self {
        Self {
            seen_ns: stolen_ns,
            owed_ns: 0,
        }
    }

    /// Divides the `elapsed_ns` since the last call; `stolen_ns` is the CPU's stolen time now.
    ///
    /// A reading below the last one means that `PV_TIME_ST` was called in between, which makes the
    /// counter start again at 0: all of the reading is then new.
    pub fn step(&mut self, elapsed_ns: u64, stolen_ns: u64) -> Elapsed {
        let delta_ns = stolen_ns.checked_sub(self.seen_ns).unwrap_or(stolen_ns);
        self.seen_ns = stolen_ns;
        // A sum past 2^64 ns takes 584 years of waiting, or a host that writes nonsense.
        self.owed_ns = self.owed_ns.saturating_add(delta_ns);
        let charged_ns = self.owed_ns.min(elapsed_ns);
        self.owed_ns -= charged_ns;
        Elapsed {
            virtual_ns: elapsed_ns - charged_ns,
            stolen_ns: charged_ns,
        }
    }

    /// Nanoseconds that were stolen and that no span could be charged with yet.
    #[must_use]
    pub const fn owed_ns(&self) -> u64 {
        self.owed_ns
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn m14_what_exceeds_the_elapsed_time_is_carried() {
        let mut time = VirtualTime::start(1000);
        assert_eq!(
            time.step(10, 1004),
            Elapsed {
                virtual_ns: 6,
                stolen_ns: 4
            }
        );
        assert_eq!(
            time.step(10, 1034),
            Elapsed {
                virtual_ns: 0,
                stolen_ns: 10
            }
        );
        assert_eq!(time.owed_ns(), 20);
        assert_eq!(
            time.step(15, 1034),
            Elapsed {
                virtual_ns: 0,
                stolen_ns: 15
            }
        );
        assert_eq!(
            time.step(15, 1034),
            Elapsed {
                virtual_ns: 10,
                stolen_ns: 5
            }
        );
        assert_eq!(time.owed_ns(), 0);
    }

    #[test]
    fn m7_a_counter_that_started_again_is_new_time() {
        let mut time = VirtualTime::start(1000);
        assert_eq!(
            time.step(100, 30),
            Elapsed {
                virtual_ns: 70,
                stolen_ns: 30
            }
        );
        assert_eq!(
            time.step(100, 31),
            Elapsed {
                virtual_ns: 99,
                stolen_ns: 1
            }
        );
    }

    #[test]
    fn a_host_that_writes_nonsense_does_not_break_the_guest() {
        let mut time = VirtualTime::start(0);
        time.step(1, u64::MAX);
        time.step(1, 7);
        assert_eq!(
            time.owed_ns(),
            u64::MAX - 1,
            "what does not fit is not turned over"
        );
        assert_eq!(
            time.step(5, u64::MAX),
            Elapsed {
                virtual_ns: 0,
                stolen_ns: 5
            }
        );
    }

    proptest! {
        #[test]
        fn m14_nothing_is_negative_and_nothing_is_lost(
            spans in proptest::collection::vec((0..1u64 << 40, 0..1u64 << 40), 1..50),
        ) {
            let (mut stolen_ns, mut charged_ns) = (7, 0);
            let mut time = VirtualTime::start(stolen_ns);
            for (elapsed_ns, delta_ns) in spans {
                stolen_ns += delta_ns;
                let owed_ns = time.owed_ns() + delta_ns;
                let elapsed = time.step(elapsed_ns, stolen_ns);
                prop_assert_eq!(elapsed.stolen_ns, owed_ns.min(elapsed_ns));
                prop_assert_eq!(elapsed.virtual_ns + elapsed.stolen_ns, elapsed_ns);
                charged_ns += elapsed.stolen_ns;
            }
            prop_assert_eq!(charged_ns + time.owed_ns(), stolen_ns - 7);
        }
    }
}
