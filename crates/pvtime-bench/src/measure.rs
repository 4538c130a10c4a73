//! Measuring short operations on a machine that does other things too.

use std::hint::black_box;
use std::time::Instant;

/// What one operation costs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cost {
    /// Nanoseconds in the median batch.
    pub median_ns: f64,
    /// Nanoseconds in the batch that was disturbed least.
    pub least_ns: f64,
}

/// Operations to compare, each run in turn so that what slows the machine slows all of them.
#[derive(Default)]
pub struct Round<'a> {
    batches: Vec<Box<dyn FnMut(u32) + 'a>>,
}

impl<'a> Round<'a> {
    /// Adds an operation.
    pub fn add<T>(&mut self, mut operation: impl FnMut() -> T + 'a) {
        self.batches.push(Box::new(move |times| {
            for _ in 0..times {
                black_box(operation());
            }
        }));
    }

    /// Runs `rounds` batches of `times` of each operation, and tells the cost of each in the order
    /// in which they were added.
    pub fn run(mut self, rounds: usize, times: u32) -> Vec<Cost> {
        let mut spans_ns = vec![Vec::with_capacity(rounds); self.batches.len()];
        for _ in 0..rounds {
            for (batch, spans_ns) in self.batches.iter_mut().zip(&mut spans_ns) {
                let start = Instant::now();
                batch(times);
                spans_ns.push(start.elapsed().as_secs_f64() * 1e9 / f64::from(times));
            }
        }
        spans_ns.into_iter().map(cost).collect()
    }
}

fn cost(mut spans_ns: Vec<f64>) -> Cost {
    spans_ns.sort_by(f64::total_cmp);
    Cost {
        median_ns: spans_ns[spans_ns.len() / 2],
        least_ns: spans_ns[0],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[test]
    fn the_median_and_the_least_are_told() {
        let cost = cost(vec![5.0, 1.0, 9.0, 4.0, 7.0]);
        assert_eq!(
            cost,
            Cost {
                median_ns: 5.0,
                least_ns: 1.0
            }
        );
    }

    #[test]
    fn each_operation_runs_as_often_as_asked() {
        let (first, second) = (Cell::new(0), Cell::new(0));
        let mut round = Round::default();
        round.add(|| first.set(first.get() + 1));
        round.add(|| second.set(second.get() + 1));
        assert_eq!(round.run(3, 7).len(), 2);
        assert_eq!((first.get(), second.get()), (21, 21));
    }
}
