//! What one migration came to, by what the guest's clocks and the lab's say of it.

use crate::lost::Bounds;
use crate::scenarios::pauses::median;
use crate::sightings::Sighting;
use anyhow::Result;
use guest_protocol::report::Spin;
use std::fmt::Write as _;

/// One migration by one VMM.
pub struct Move {
    /// The guest's clocks, before it and after it.
    pub before: Vec<Sighting>,
    pub after: Vec<Sighting>,
    pub said: Said,
    /// What a spinning vCPU saw over it.
    pub spin: Spin,
    pub counter_hz: u64,
}

/// What the VMM says of it.
#[expect(clippy::struct_field_names, reason = "they end with their unit")]
#[derive(Debug, Clone, Copy)]
pub struct Said {
    /// Its downtime.
    pub downtime_ms: f64,
    /// What the guest's clock lost.
    pub lost_ms: f64,
    pub total_ms: f64,
}

#[expect(clippy::cast_precision_loss, reason = "exact up to 100 days")]
fn ms(ns: i128) -> f64 {
    ns as f64 / 1e6
}

impl Move {
    /// All figures of it.
    pub fn figures(&self) -> Result<Figures> {
        let lost = Bounds::lost(&self.before, &self.after, |sample| sample.monotonic_ns)?;
        let step = i128::from(self.spin.largest_gaps[0].ticks);
        Ok(Figures {
            clock_error_ms: lost.middle_ms().abs(),
            bound_ms: lost.error_ms(),
            untold_ms: (lost.middle_ms() - self.said.lost_ms).abs(),
            downtime_ms: self.said.downtime_ms,
            total_ms: self.said.total_ms,
            step_ms: ms(step * 1_000_000_000 / i128::from(self.counter_hz.max(1))),
        })
    }
}

/// Figures of one migration, or the medians of several.
#[expect(clippy::struct_field_names, reason = "they end with their unit")]
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Figures {
    /// How far the guest's `CLOCK_MONOTONIC` is from the lab's clock after it, if it was not before.
    pub clock_error_ms: f64,
    /// How far off that can be.
    pub bound_ms: f64,
    /// How far it is from what the VMM says that the guest's clock lost.
    pub untold_ms: f64,
    /// As the VMM says.
    pub downtime_ms: f64,
    /// As the VMM says.
    pub total_ms: f64,
    /// The largest step from one read of the counter to the next.
    pub step_ms: f64,
}

impl Figures {
    /// The median of each.
    pub fn medians(of: &[Self]) -> Self {
        let median = |figure: fn(&Self) -> f64| median(of.iter().map(figure).collect());
        Self {
            clock_error_ms: median(|it| it.clock_error_ms),
            bound_ms: median(|it| it.bound_ms),
            untold_ms: median(|it| it.untold_ms),
            downtime_ms: median(|it| it.downtime_ms),
            total_ms: median(|it| it.total_ms),
            step_ms: median(|it| it.step_ms),
        }
    }
}

/// The medians beside each other.
pub fn table([freeze, advance, qemu]: [&Figures; 3]) -> String {
    let mut table =
        String::from("| | pvtime, freeze | pvtime, advance | QEMU |\n|---|---|---|---|\n");
    let mut row = |name: &str, figure: fn(&Figures) -> f64| {
        let [freeze, advance, qemu] = [freeze, advance, qemu].map(figure);
        // Writing to a string cannot fail.
        let _ = writeln!(
            table,
            "| {name} | {freeze:.1} ms | {advance:.1} ms | {qemu:.1} ms |"
        );
    };
    row("guest clock error", |it| it.clock_error_ms);
    row("known to within", |it| it.bound_ms);
    row("of it not told by the VMM", |it| it.untold_ms);
    row("downtime, as the VMM says", |it| it.downtime_ms);
    row("total time, as the VMM says", |it| it.total_ms);
    row("largest step of a spinning vCPU's counter", |it| it.step_ms);
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sightings::made::sight;
    use std::time::Instant;

    fn moved(after: Vec<Sighting>, before: Vec<Sighting>) -> Move {
        let said = Said {
            downtime_ms: 60.0,
            lost_ms: 70.0,
            total_ms: 500.0,
        };
        let mut spin = Spin::default();
        spin.largest_gaps[0].ticks = 50_000;
        Move {
            before,
            after,
            said,
            spin,
            counter_hz: 25_000_000,
        }
    }

    #[test]
    fn figures_are_of_what_the_guest_saw_and_what_the_vmm_said() {
        let origin = Instant::now();
        // The guest's clock is 5000 ms ahead of the lab's, and 4900 after the migration.
        let before = vec![sight(origin, 0, 30, 5010), sight(origin, 100, 4, 5102)];
        let after = vec![sight(origin, 1000, 20, 5901), sight(origin, 1100, 10, 6009)];
        let figures = moved(after, before).figures().unwrap();
        assert!((figures.clock_error_ms - 100.0).abs() < 1e-9);
        assert!((figures.bound_ms - 3.0).abs() < 1e-9);
        assert!((figures.untold_ms - 30.0).abs() < 1e-9);
        assert!((figures.step_ms - 2.0).abs() < 1e-9);
        assert!(moved(Vec::new(), Vec::new()).figures().is_err());
    }
}
