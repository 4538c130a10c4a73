//! What a CPU that reads a counter without end enters in its report: gaps, and steps backwards.

use core::mem;

use crate::report::{Spin, SpinClock, SpinGap};

/// One CPU's reads since its last report.
#[derive(Debug)]
pub struct Account {
    /// The last read, kept from one report to the next so that no gap falls between two.
    previous: Option<Read>,
    report: Spin,
}

#[derive(Clone, Copy, Debug)]
struct Read {
    count: u64,
    stolen_ns: u64,
}

impl Account {
    /// An account with no reads of this counter.
    #[must_use]
    pub fn new(cpu: u32, clock: SpinClock) -> Self {
        Self {
            previous: None,
            report: empty(cpu, clock),
        }
    }

    /// The counter that is read.
    #[must_use]
    pub const fn clock(&self) -> SpinClock {
        self.report.clock
    }

    /// Enters one read: `seen` is the highest count that was known when it began, `stolen_ns` the
    /// CPU's stolen time after it, or 0 where nobody looks.
    #[inline]
    pub fn enter(&mut self, count: u64, seen: u64, stolen_ns: u64) {
        let report = &mut self.report;
        if report.reads == 0 {
            report.first_counter = count;
        }
        report.reads += 1;
        report.last_counter = count;
        let read = Read { count, stolen_ns };
        let before = self.previous.replace(read).unwrap_or(read);
        let previous = before.count;
        if let Some(ticks) = count.checked_sub(previous) {
            let gap = SpinGap {
                start: previous,
                ticks,
                // A stolen time that was restarted is below what it was.
                stolen_ns: stolen_ns.saturating_sub(before.stolen_ns),
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
    #[must_use]
    pub fn take(&mut self) -> Spin {
        let afresh = empty(self.report.cpu, self.report.clock);
        mem::replace(&mut self.report, afresh)
    }
}

fn empty(cpu: u32, clock: SpinClock) -> Spin {
    Spin {
        cpu,
        clock,
        ..Spin::default()
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
    use std::vec;
    use std::vec::Vec;

    /// The gaps of a report: where each began, and how far it went.
    fn gaps(report: &Spin) -> Vec<(u64, u64)> {
        let gaps = report.largest_gaps.iter().map(|gap| (gap.start, gap.ticks));
        gaps.filter(|(_, ticks)| *ticks > 0).collect()
    }

    #[test]
    fn largest_gaps_are_kept_with_where_they_began() {
        let mut account = Account::new(0, SpinClock::Virtual);
        let steps = [3, 1, 7, 2, 7, 5, 9, 4, 6, 8, 1];
        let mut count = 0;
        account.enter(count, 0, 0);
        for step in steps {
            count += step;
            account.enter(count, 0, 0);
        }
        let report = account.take();
        let largest = [(25, 9), (44, 8), (4, 7), (13, 7), (38, 6), (20, 5)];
        assert_eq!(gaps(&report)[..6], largest);
        assert_eq!(gaps(&report).len(), report.largest_gaps.len());
        assert!(gaps(&report).is_sorted_by(|a, b| a.1 >= b.1));
    }

    #[test]
    fn a_report_has_reads_and_gaps() {
        let mut account = Account::new(3, SpinClock::Physical);
        for count in [100, 110, 150, 155, 190] {
            account.enter(count, 0, 0);
        }
        let report = account.take();
        assert_eq!((report.cpu, report.reads), (3, 5));
        assert_eq!((report.first_counter, report.last_counter), (100, 190));
        assert_eq!(gaps(&report), [(110, 40), (155, 35), (100, 10), (150, 5)]);
    }

    #[test]
    fn no_gap_falls_between_two_reports() {
        let mut account = Account::new(0, SpinClock::Virtual);
        account.enter(100, 0, 0);
        let first = account.take();
        assert_eq!((first.reads, gaps(&first)), (1, vec![]));
        assert_eq!(
            account.take(),
            Spin::default(),
            "nothing was read meanwhile"
        );
        account.enter(1100, 100, 0);
        account.enter(1101, 1100, 0);
        let second = account.take();
        assert_eq!((second.reads, second.first_counter), (2, 1100));
        assert_eq!(gaps(&second), [(100, 1000), (1100, 1)]);
    }

    #[test]
    fn steps_backwards_are_told_from_those_across_cpus() {
        let mut account = Account::new(0, SpinClock::Virtual);
        account.enter(100, 0, 0);
        account.enter(100, 100, 0);
        // Another CPU was ahead, by 7 and by 2.
        account.enter(103, 110, 0);
        account.enter(110, 112, 0);
        // This CPU itself went back, by 1 and by 60.
        account.enter(109, 109, 0);
        account.enter(49, 0, 0);
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
    fn a_gap_has_what_was_stolen_in_it() {
        let mut account = Account::new(0, SpinClock::Live);
        for (count, stolen_ns) in [(100, 7), (150, 7), (250, 40), (280, 5)] {
            account.enter(count, 0, stolen_ns);
        }
        let report = account.take();
        let stolen = report.largest_gaps.map(|gap| (gap.ticks, gap.stolen_ns));
        assert_eq!(stolen[..3], [(100, 33), (50, 0), (30, 0)]);
        assert_eq!(
            (report.clock, account.take().clock),
            (SpinClock::Live, SpinClock::Live)
        );
    }
}
