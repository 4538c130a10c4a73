//! Where a label goes: where none of the lines is.

/// A line as it lies on the page, from left to right.
pub type Curve = Vec<(f64, f64)>;

/// The room that a label takes: from left to right, and half its height.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    /// Left edge.
    pub from: f64,
    /// Right edge.
    pub to: f64,
    /// From its middle to its upper edge.
    pub half_height: f64,
}

/// Distance to a line that is enough.
const CLEARANCE: f64 = 6.0;

impl Room {
    /// The first of the heights, for its middle, at which no line is near; else the one at which
    /// the nearest is farthest.
    pub fn place(&self, heights: &[f64], curves: &[Curve]) -> f64 {
        let clearance = |y: &f64| {
            let distances = curves.iter().map(|curve| self.distance(*y, curve));
            distances.fold(f64::INFINITY, f64::min).min(CLEARANCE)
        };
        let farther = |best: f64, it: f64| {
            if clearance(&it) > clearance(&best) {
                it
            } else {
                best
            }
        };
        heights.iter().copied().reduce(farther).unwrap_or(f64::NAN)
    }

    /// From the label's nearer edge to the line; negative where the line runs through it.
    fn distance(&self, y: f64, curve: &Curve) -> f64 {
        let within = curve.iter().filter(|(x, _)| self.from < *x && *x < self.to);
        let ends = [self.from, self.to].map(|x| at(curve, x));
        let heights = within.map(|(_, y)| *y).chain(ends.into_iter().flatten());
        let (top, bottom) = heights
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(top, bottom), it| {
                (top.min(it), bottom.max(it))
            });
        (top - y).max(y - bottom) - self.half_height
    }
}

/// The height of a line over `x`; none where the line is not there.
fn at(curve: &Curve, x: f64) -> Option<f64> {
    let after = curve.partition_point(|point| point.0 < x);
    let (x1, y1) = *curve.get(after)?;
    let (x0, y0) = *curve.get(after.saturating_sub(1))?;
    if x1 <= x0 {
        return (x1 <= x).then_some(y1);
    }
    Some(y0 + (y1 - y0) * (x - x0) / (x1 - x0))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOM: Room = Room {
        from: 40.0,
        to: 60.0,
        half_height: 5.0,
    };

    fn place(heights: &[f64], lines: &[&[(f64, f64)]]) -> String {
        let curves: Vec<Curve> = lines.iter().map(|line| line.to_vec()).collect();
        format!("{}", ROOM.place(heights, &curves))
    }

    #[test]
    fn the_first_free_height_is_taken() {
        let rising: &[(f64, f64)] = &[(0.0, 100.0), (100.0, 0.0)];
        assert_eq!(place(&[10.0, 90.0], &[rising]), "10");
        assert_eq!(place(&[50.0, 90.0], &[rising]), "90");
        // From 60 to 40 it runs; the label is 5 to each side, and wants 6 to spare.
        assert_eq!(place(&[72.0, 28.0], &[rising]), "72");
        assert_eq!(place(&[70.0, 28.0], &[rising]), "28");
    }

    #[test]
    fn without_a_free_height_the_farthest_is_taken() {
        let low: &[(f64, f64)] = &[(0.0, 88.0), (100.0, 88.0)];
        let high: &[(f64, f64)] = &[(0.0, 20.0), (50.0, 20.0), (100.0, 20.0)];
        assert_eq!(place(&[90.0, 30.0, 20.0], &[low, high]), "30");
    }

    #[test]
    fn a_step_within_the_label_counts_and_an_absent_line_does_not() {
        let step: &[(f64, f64)] = &[(0.0, 100.0), (50.0, 100.0), (50.0, 0.0), (100.0, 0.0)];
        assert_eq!(place(&[50.0, 150.0], &[step]), "150");
        let elsewhere: &[(f64, f64)] = &[(0.0, 50.0), (10.0, 50.0)];
        assert_eq!(place(&[50.0, 150.0], &[elsewhere]), "50");
        assert_eq!(place(&[50.0], &[]), "50");
    }
}
