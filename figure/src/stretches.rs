//! When the VM was paused, and when the vCPU was kept waiting.

use crate::Point;

/// What happened to a vCPU for some time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The VM was paused for more than half of it.
    Paused,
    /// More than [`STOLEN_SHARE`] of the live time was stolen.
    Stolen,
}

/// From this share on a stretch is shown as stolen.
pub const STOLEN_SHARE: f64 = 0.1;

/// Neighbouring intervals of one kind.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Stretch {
    /// What happened.
    pub kind: Kind,
    /// Physical time at its beginning, in seconds.
    pub from: f64,
    /// At its end.
    pub to: f64,
    /// Seconds that were paused or stolen within it.
    pub lost: f64,
}

/// All stretches, in order.
pub fn find(points: &[Point]) -> Vec<Stretch> {
    let mut stretches: Vec<Stretch> = Vec::new();
    for pair in points.windows(2) {
        let Some((kind, lost)) = judge(&pair[0], &pair[1]) else {
            continue;
        };
        let (from, to) = (pair[0].physical, pair[1].physical);
        match stretches.last_mut() {
            #[expect(
                clippy::float_cmp,
                reason = "the end of one interval is the next's beginning"
            )]
            Some(previous) if previous.kind == kind && previous.to == from => {
                previous.to = to;
                previous.lost += lost;
            }
            _ => stretches.push(Stretch {
                kind,
                from,
                to,
                lost,
            }),
        }
    }
    stretches
}

fn judge(from: &Point, to: &Point) -> Option<(Kind, f64)> {
    let physical = to.physical - from.physical;
    let live = to.live - from.live;
    let paused = physical - live;
    let stolen = live - (to.virtual_ - from.virtual_);
    if physical > 0.0 && paused > physical / 2.0 {
        Some((Kind::Paused, paused))
    } else if live > 0.0 && stolen > STOLEN_SHARE * live {
        Some((Kind::Stolen, stolen))
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn points(values: &[(f64, f64, f64)]) -> Vec<Point> {
        let point = |&(physical, live, virtual_): &(f64, f64, f64)| Point {
            physical,
            live,
            virtual_,
        };
        values.iter().map(point).collect()
    }

    #[test]
    fn neighbours_of_one_kind_are_one_stretch() {
        let found = find(&points(&[
            (0.0, 0.0, 0.0),
            (1.0, 1.0, 1.0),
            (2.0, 1.0, 1.0),
            (4.0, 1.0, 1.0),
            (5.0, 2.0, 1.5),
            (6.0, 3.0, 2.5),
            (8.0, 3.0, 2.5),
        ]));
        let expected = [
            (Kind::Paused, 1.0, 4.0, 3.0),
            (Kind::Stolen, 4.0, 5.0, 0.5),
            (Kind::Paused, 6.0, 8.0, 2.0),
        ];
        let stretch = |&(kind, from, to, lost)| Stretch {
            kind,
            from,
            to,
            lost,
        };
        assert_eq!(found, expected.iter().map(stretch).collect::<Vec<_>>());
    }

    #[test]
    fn little_is_nothing() {
        assert_eq!(find(&points(&[(0.0, 0.0, 0.0), (1.0, 0.6, 0.55)])), []);
        assert_eq!(find(&points(&[(0.0, 0.0, 0.0), (0.0, 0.0, 0.0)])), []);
        // A counter that ran ahead is neither.
        assert_eq!(find(&points(&[(0.0, 0.0, 0.0), (1.0, 1.1, 1.2)])), []);
    }
}
