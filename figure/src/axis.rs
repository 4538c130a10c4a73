//! An axis: what it shows, and where its ticks are.

/// From the least to the most that an axis shows, both on ticks.
#[derive(Clone, Debug, PartialEq)]
pub struct Axis {
    /// Distance of two ticks: 1, 2 or 5 times a power of 10.
    step: f64,
    /// First tick, in steps.
    first: i32,
    /// Last tick, in steps.
    last: i32,
}

/// Intervals between ticks that are aimed at.
const INTERVALS: f64 = 8.0;

impl Axis {
    /// Holds all that lies between the two, of which `to` is the larger.
    pub fn covering(from: f64, to: f64) -> Self {
        let rough = (to - from) / INTERVALS;
        let power = 10f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0]
            .map(|factor| factor * power)
            .into_iter()
            .find(|step| *step >= rough)
            .unwrap_or(10.0 * power);
        #[expect(
            clippy::cast_possible_truncation,
            reason = "a few steps, unless zero is far away, where the cast saturates"
        )]
        let steps = |value: f64| value as i32;
        Self {
            step,
            // What rounding adds is no reason for another step.
            first: steps((from / step + 1e-9).floor()),
            last: steps((to / step - 1e-9).ceil()),
        }
    }

    /// Where a value lies: 0 at the first tick, 1 at the last.
    pub fn position(&self, value: f64) -> f64 {
        let (first, last) = self.ends();
        (value - first) / (last - first)
    }

    /// The ticks with their labels.
    pub fn ticks(&self) -> impl Iterator<Item = (f64, String)> {
        let decimals = self.decimals();
        (self.first..=self.last).map(move |number| {
            let value = f64::from(number) * self.step;
            (value, format!("{value:.decimals$}"))
        })
    }

    fn ends(&self) -> (f64, f64) {
        (
            f64::from(self.first) * self.step,
            f64::from(self.last) * self.step,
        )
    }

    fn decimals(&self) -> usize {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "0 or a few"
        )]
        let decimals = (-self.step.log10().floor()).max(0.0) as usize;
        decimals
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn labels(from: f64, to: f64) -> Vec<String> {
        Axis::covering(from, to)
            .ticks()
            .map(|(_, label)| label)
            .collect()
    }

    #[test]
    fn ticks_are_round_numbers() {
        assert_eq!(
            labels(0.0, 8.0),
            ["0", "1", "2", "3", "4", "5", "6", "7", "8"]
        );
        assert_eq!(labels(0.0, 23.5), ["0", "5", "10", "15", "20", "25"]);
        assert_eq!(
            labels(0.0, 0.25),
            ["0.00", "0.05", "0.10", "0.15", "0.20", "0.25"]
        );
        assert_eq!(labels(0.0, 86_400.0)[..3], ["0", "20000", "40000"]);
        assert_eq!(labels(-1.0, 4.0)[0], "-1");
    }

    proptest! {
        #[test]
        fn an_axis_holds_what_it_covers(from in -1e3..0.0, length in 1e-6..1e9) {
            let to = from + length;
            let axis = Axis::covering(from, to);
            prop_assert!(axis.position(from) >= -1e-6 && axis.position(to) <= 1.0 + 1e-6);
            prop_assert!((0.0..=1.0).contains(&axis.position(f64::midpoint(from, to))));
            let count = axis.ticks().count();
            prop_assert!((3..=12).contains(&count), "{count} ticks");
            let labels: Vec<_> = axis.ticks().map(|(_, label)| label).collect();
            let mut unique = labels.clone();
            unique.dedup();
            prop_assert_eq!(labels, unique);
        }
    }
}
