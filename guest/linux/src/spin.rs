//! What a CPU that reads its counter without end finds out: gaps, and steps backwards.

use std::mem;
use std::sync::atomic::{AtomicU64, Ordering};

use guest_protocol::report::{Spin, SpinGap};

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
        account.enter(count, seen);
        self.0.fetch_max(count, Ordering::Release);
    }
}

/// One CPU's reads since its last report.
#[derive(Debug)]
pub struct Account {
    /// The last read, kept from one report to the next so that no gap falls between two.
    previous: Option<u64>,
    report: Spin,
}

impl Account {
    /// An account with no reads.
    pub fn new(cpu: u32) -> Self {
        Self {
            previous: None,
            report: Spin {
                cpu,
                ..Spin::default()
            },
        }
    }

    /// Enters one read; `seen` is the highest count that was known when it began.
    fn enter(&mut self, count: u64, seen: u64) {
        let report = &mut self.report;
        if report.reads == 0 {
            report.first_counter = count;
        }
        report.reads += 1;
        report.last_counter = count;
        let previous = self.previous.replace(count).unwrap_or(count);
        if let Some(ticks) = count.checked_sub(previous) {
            let gap = SpinGap {
                start: previous,
                ticks,
            };
            keep_largest(&mut report.largest_gaps, gap);
        } else {
            report.backwards_steps += 1;
            report.largest_backwards_ticks = report.largest_backwards_ticks.max(previous - count);
        }
        if count < seen {
            report.cross_backwards_steps += 1;
            report.largest_cross_backwards_ticks =
                report.largest_cross_backwards_ticks.max(seen - count);
        }
    }

    /// The report so far; the account starts afresh.
    pub fn take(&mut self) -> Spin {
        let cpu = self.report.cpu;
        mem::replace(
            &mut self.report,
            Spin {
                cpu,
                ..Spin::default()
            },
        )
    }
}

/// Puts a gap in its place among the largest; of equals the earliest stays.
fn keep_largest(largest: &mut [SpinGap], gap: SpinGap) {
    // Most gaps are smaller than any of them, and this is all that is done about those.
    if largest.last().is_none_or(|least| gap.ticks <= least.ticks) {
        return;
    }
    let place = largest.partition_point(|kept| kept.ticks >= gap.ticks);
    largest[place..].rotate_right(1);
    largest[place] = gap;
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The gaps of a report: where each began, and how far it went.
    fn gaps(report: &Spin) -> Vec<(u64, u64)> {
        let gaps = report.largest_gaps.iter().map(|gap| (gap.start, gap.ticks));
        gaps.filter(|(_, ticks)| *ticks > 0).collect()
    }

    #[test]
    fn largest_gaps_are_kept_with_where_they_began() {
        let mut account = Account::new(0);
        let steps = [3, 1, 7, 2, 7, 5, 9, 4, 6, 8, 1];
        let mut count = 0;
        account.enter(count, 0);
        for step in steps {
            count += step;
            account.enter(count, 0);
        }
        let report = account.take();
        let largest = [(25, 9), (44, 8), (4, 7), (13, 7), (38, 6), (20, 5)];
        assert_eq!(gaps(&report)[..6], largest);
        assert_eq!(gaps(&report).len(), report.largest_gaps.len());
        assert!(gaps(&report).is_sorted_by(|a, b| a.1 >= b.1));
    }

    #[test]
    fn a_report_has_reads_and_gaps() {
        let mut account = Account::new(3);
        for count in [100, 110, 150, 155, 190] {
            account.enter(count, 0);
        }
        let report = account.take();
        assert_eq!((report.cpu, report.reads), (3, 5));
        assert_eq!((report.first_counter, report.last_counter), (100, 190));
        assert_eq!(gaps(&report), [(110, 40), (155, 35), (100, 10), (150, 5)]);
    }

    #[test]
    fn no_gap_falls_between_two_reports() {
        let mut account = Account::new(0);
        account.enter(100, 0);
        let first = account.take();
        assert_eq!((first.reads, gaps(&first)), (1, vec![]));
        assert_eq!(
            account.take(),
            Spin::default(),
            "nothing was read meanwhile"
        );
        account.enter(1100, 100);
        account.enter(1101, 1100);
        let second = account.take();
        assert_eq!((second.reads, second.first_counter), (2, 1100));
        assert_eq!(gaps(&second), [(100, 1000), (1100, 1)]);
    }

    #[test]
    fn steps_backwards_are_told_from_those_across_cpus() {
        let mut account = Account::new(0);
        account.enter(100, 0);
        account.enter(100, 100);
        // Another CPU was ahead, by 7 and by 2.
        account.enter(103, 110);
        account.enter(110, 112);
        // This CPU itself went back, by 1 and by 60.
        account.enter(109, 109);
        account.enter(49, 0);
        let report = account.take();
        assert_eq!(
            (
                report.cross_backwards_steps,
                report.largest_cross_backwards_ticks
            ),
            (2, 7)
        );
        assert_eq!(
            (report.backwards_steps, report.largest_backwards_ticks),
            (2, 60)
        );
        assert_eq!((report.reads, gaps(&report)), (6, vec![(103, 7), (100, 3)]));
    }

    #[test]
    fn a_cpu_sees_what_another_read() {
        let highest = Highest::default();
        let (mut one, mut other) = (Account::new(0), Account::new(1));
        highest.read_into(&mut one);
        let read = one.take().last_counter;
        assert_eq!(highest.0.load(Ordering::Relaxed), read);
        // A count that this machine will not reach: every read is now below it.
        highest.0.store(u64::MAX, Ordering::Relaxed);
        highest.read_into(&mut other);
        assert_eq!(other.take().cross_backwards_steps, 1);
    }
}
