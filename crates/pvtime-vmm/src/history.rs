//! Where a VM's time went, over its life: a bounded number of samples, fewer and fewer for each
//! second as the VM grows older.
//!
//! Sampling leaves the guest alone. What the scheduler counts as a vCPU's waiting it counts when the
//! wait ends; so where the count would take virtual time back, the wait began earlier.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result};
use pvtime_kvm::record::Records;
use time_figure::Sample;

/// What is sampled of a VM, cumulative, in ns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accounts {
    /// Physical time.
    pub physical_ns: u64,
    /// As much of it as the VM was paused for.
    pub paused_ns: u64,
    /// Stolen time of each vCPU.
    pub stolen_ns: Vec<u64>,
}

/// Most samples that are kept.
pub const CAPACITY: usize = 1024;

/// From one sample to the next, while the VM is young.
const PERIOD: Duration = Duration::from_millis(250);

/// The samples of a VM, taken by a thread of their own until this is dropped.
#[derive(Debug)]
pub struct History {
    samples: Arc<Mutex<Samples>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// Something that has records of interventions and can be sampled.
pub trait Sampled: Send + Sync + 'static {
    /// What was done to its time.
    fn records(&self) -> &Records;

    /// Its accounts; `None` where they cannot be had now.
    fn accounts(&self) -> Option<Accounts>;
}

impl History {
    /// Samples from the VM's start or restoration on: once in a period, and at each intervention.
    ///
    /// # Errors
    ///
    /// Where no thread can be started.
    pub fn start(vm: impl Sampled) -> Result<Self> {
        let samples = Arc::new(Mutex::new(Samples::default()));
        let stop = Arc::new(AtomicBool::new(false));
        let (its_samples, its_stop) = (Arc::clone(&samples), Arc::clone(&stop));
        let thread = Builder::new()
            .name("history".into())
            .spawn(move || sample_until(&its_stop, &vm, &its_samples))
            .context("cannot start the thread that samples the VM's time")?;
        Ok(Self {
            samples,
            stop,
            thread: Some(thread),
        })
    }

    /// One vCPU's times, the last as it is `now`; `None` where there is no such vCPU.
    pub fn of_vcpu(
        &self,
        index: usize,
        now: impl FnOnce() -> Option<Accounts>,
    ) -> Option<Vec<Sample>> {
        let kept = |samples: &Samples| samples.kept.iter().map(|it| it.accounts.clone()).collect();
        let mut samples: Vec<Accounts> = kept(&lock(&self.samples));
        // Asked for after those that are kept, so that it is the latest.
        samples.extend(now());
        of_vcpu(index, &samples)
    }
}

impl Drop for History {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn lock(samples: &Mutex<Samples>) -> MutexGuard<'_, Samples> {
    samples.lock().unwrap_or_else(PoisonError::into_inner)
}

fn sample_until(stop: &AtomicBool, vm: &impl Sampled, samples: &Mutex<Samples>) {
    let records = vm.records();
    let mut seen = 0;
    let mut since_sample = Duration::ZERO;
    while !stop.load(Ordering::Acquire) && !records.is_finished() {
        // Looks at `stop` at least once in a young VM's period.
        let last = records.last_after(seen, PERIOD);
        let added = last > seen;
        seen = last;
        since_sample += PERIOD;
        let is_due = since_sample >= lock(samples).period();
        if seen == 0 || !(added || is_due) {
            continue;
        }
        since_sample = Duration::ZERO;
        if let Some(accounts) = vm.accounts() {
            lock(samples).push(accounts, added);
        }
    }
}

/// Samples in order.
#[derive(Debug, Default)]
struct Samples {
    kept: Vec<Kept>,
    /// How often every other one was dropped.
    thinned: u32,
}

#[derive(Debug)]
struct Kept {
    accounts: Accounts,
    /// Taken because something was done to the VM's time.
    is_event: bool,
}

impl Samples {
    fn period(&self) -> Duration {
        PERIOD.saturating_mul(1 << self.thinned.min(31))
    }

    fn push(&mut self, accounts: Accounts, is_event: bool) {
        if self.kept.len() >= CAPACITY {
            self.thin();
        }
        self.kept.push(Kept { accounts, is_event });
    }

    /// Drops every other sample; those of events only where they alone are too many.
    fn thin(&mut self) {
        let events = self.kept.iter().filter(|it| it.is_event).count();
        let spares_events = events <= CAPACITY / 2;
        let mut index = 0usize;
        self.kept.retain(|sample| {
            if spares_events && sample.is_event {
                return true;
            }
            index += 1;
            index % 2 == 1
        });
        self.thinned += 1;
    }
}

fn of_vcpu(index: usize, samples: &[Accounts]) -> Option<Vec<Sample>> {
    let Some(first) = samples.first() else {
        return Some(Vec::new());
    };
    first.stolen_ns.get(index)?;
    let line = |accounts: &Accounts| {
        let physical_ns = accounts.physical_ns.saturating_sub(first.physical_ns);
        let paused_ns = accounts.paused_ns.saturating_sub(first.paused_ns);
        let stolen_ns = accounts.stolen_ns[index].saturating_sub(first.stolen_ns[index]);
        let live_ns = physical_ns.saturating_sub(paused_ns);
        Sample {
            physical_ns,
            live_ns,
            virtual_ns: live_ns.saturating_sub(stolen_ns),
        }
    };
    let mut lines: Vec<Sample> = samples.iter().map(line).collect();
    let mut most_ns = u64::MAX;
    for line in lines.iter_mut().rev() {
        most_ns = line.virtual_ns.min(most_ns);
        line.virtual_ns = most_ns;
    }
    Some(lines)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::fake::record;
    use proptest::prelude::*;
    use std::sync::atomic::AtomicU64;
    use std::time::Instant;

    fn accounts(physical_ns: u64, paused_ns: u64, stolen_ns: &[u64]) -> Accounts {
        Accounts {
            physical_ns,
            paused_ns,
            stolen_ns: stolen_ns.into(),
        }
    }

    fn lines(index: usize, samples: &[Accounts]) -> Vec<(u64, u64, u64)> {
        of_vcpu(index, samples)
            .unwrap()
            .iter()
            .map(|it| (it.physical_ns, it.live_ns, it.virtual_ns))
            .collect()
    }

    #[test]
    fn pauses_leave_live_time_and_waits_leave_virtual_time() {
        let samples = [
            accounts(100, 10, &[5, 70]),
            accounts(200, 10, &[5, 90]),
            accounts(300, 110, &[5, 90]),
            accounts(400, 130, &[25, 90]),
        ];
        let expected = [(0, 0, 0), (100, 100, 100), (200, 100, 100), (300, 180, 160)];
        assert_eq!(lines(0, &samples), expected);
        let expected = [(0, 0, 0), (100, 100, 80), (200, 100, 80), (300, 180, 160)];
        assert_eq!(lines(1, &samples), expected);
        assert_eq!(of_vcpu(2, &samples), None);
        assert_eq!(of_vcpu(2, &[]), Some(Vec::new()));
    }

    #[test]
    fn a_wait_that_is_counted_at_its_end_began_before() {
        let samples = [
            accounts(0, 0, &[0]),
            accounts(100, 0, &[0]),
            accounts(200, 0, &[0]),
            accounts(300, 0, &[250]),
        ];
        let expected = [(0, 0, 0), (100, 100, 50), (200, 200, 50), (300, 300, 50)];
        assert_eq!(lines(0, &samples), expected);
    }

    proptest! {
        #[test]
        fn law_1_no_line_goes_back(
            steps in proptest::collection::vec((0u64..100, 0u64..100, 0u64..300), 0..60)
        ) {
            let mut now = accounts(0, 0, &[0]);
            let mut samples = vec![now.clone()];
            for (live_ns, paused_ns, delay_ns) in steps {
                now.physical_ns += live_ns + paused_ns;
                now.paused_ns += paused_ns;
                now.stolen_ns[0] += delay_ns;
                samples.push(now.clone());
            }
            let lines = lines(0, &samples);
            for pair in lines.windows(2) {
                prop_assert!(pair[0] <= pair[1]);
                prop_assert!(pair[0].1 <= pair[1].1 && pair[0].2 <= pair[1].2);
            }
            for (physical_ns, live_ns, virtual_ns) in lines {
                prop_assert!(virtual_ns <= live_ns && live_ns <= physical_ns);
            }
        }

        #[test]
        fn a_long_life_is_covered_evenly_and_keeps_its_events(
            count in 1..20 * CAPACITY,
            events in proptest::collection::btree_set(0..20 * CAPACITY, 0..CAPACITY / 2),
        ) {
            let mut samples = Samples::default();
            let mut due = 0;
            for tick in 0..count {
                let is_event = events.contains(&tick);
                if is_event || tick >= due {
                    samples.push(accounts(tick as u64, 0, &[0]), is_event);
                    due = tick + (samples.period().as_nanos() / PERIOD.as_nanos()) as usize;
                }
            }
            prop_assert!(samples.kept.len() <= CAPACITY);
            let ticks: Vec<u64> = samples.kept.iter().map(|it| it.accounts.physical_ns).collect();
            prop_assert_eq!(ticks[0], 0);
            let period = 1u64 << samples.thinned;
            prop_assert!(ticks.windows(2).all(|pair| pair[1] - pair[0] <= 2 * period));
            prop_assert!(count as u64 - ticks.last().unwrap() <= period);
            for event in events.range(..count) {
                prop_assert!(ticks.contains(&(*event as u64)), "event {} is gone", event);
            }
        }
    }

    #[test]
    fn events_alone_are_thinned_too() {
        let mut samples = Samples::default();
        for tick in 0..10 * CAPACITY as u64 {
            samples.push(accounts(tick, 0, &[0]), true);
        }
        assert!(samples.kept.len() <= CAPACITY);
        assert_eq!(samples.kept[0].accounts.physical_ns, 0);
    }

    /// A VM whose physical time is the number of its samples.
    #[derive(Default)]
    struct Fake {
        records: Records,
        sampled: AtomicU64,
    }

    impl Sampled for Arc<Fake> {
        fn records(&self) -> &Records {
            &self.records
        }

        fn accounts(&self) -> Option<Accounts> {
            let sampled = self.sampled.fetch_add(1, Ordering::SeqCst);
            Some(accounts(sampled, 0, &[0]))
        }
    }

    #[test]
    fn sampling_begins_with_the_start_follows_events_and_ends() {
        const LONG: Duration = Duration::from_secs(60);
        let fake = Arc::new(Fake::default());
        let history = History::start(Arc::clone(&fake)).unwrap();
        let wait_for = |count: u64| {
            let start = Instant::now();
            while fake.sampled.load(Ordering::SeqCst) < count {
                assert!(start.elapsed() < LONG, "no sample {count}");
                std::thread::sleep(Duration::from_millis(1));
            }
        };
        std::thread::sleep(2 * PERIOD);
        assert_eq!(fake.sampled.load(Ordering::SeqCst), 0, "it was not started");
        fake.records.push(record("start"));
        wait_for(1);
        fake.records.push(record("pause"));
        wait_for(4);
        let events = || {
            lock(&history.samples)
                .kept
                .iter()
                .filter(|it| it.is_event)
                .count()
        };
        assert_eq!(events(), 2);
        let lines = history.of_vcpu(0, || {
            let now = fake.accounts();
            // What is sampled meanwhile is later than that.
            fake.records.push(record("resume"));
            wait_for(fake.sampled.load(Ordering::SeqCst) + 2);
            now
        });
        let lines = lines.unwrap();
        assert!(lines.len() >= 4, "{lines:?}");
        assert!(lines.is_sorted_by_key(|line| line.physical_ns), "{lines:?}");
        drop(history);
        let sampled = fake.sampled.load(Ordering::SeqCst);
        std::thread::sleep(2 * PERIOD);
        assert_eq!(fake.sampled.load(Ordering::SeqCst), sampled);
    }
}
