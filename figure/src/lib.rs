//! Draws where a vCPU's time went, as the first figure of Arm DEN0057 does: physical, live physical
//! and virtual time over physical time, from samples that somebody measured.
//!
//! What was measured is drawn as it is: a line that steps back steps back in the figure. Times in
//! which the VM was paused, and those in which the vCPU was kept waiting, are shaded with patterns,
//! and the lines differ by more than their colours.
//!
//! ```
//! use time_figure::{Figure, Sample};
//!
//! const SECOND_NS: u64 = 1_000_000_000;
//! let at = |physical, live| Sample {
//!     physical_ns: physical * SECOND_NS,
//!     live_ns: live * SECOND_NS,
//!     virtual_ns: live * SECOND_NS,
//! };
//! let figure = Figure {
//!     title: "A pause of three seconds",
//!     about: "from a test",
//!     samples: &[at(0, 0), at(2, 2), at(5, 2), at(8, 5)],
//! };
//! assert!(figure.draw()?.contains("paused 3.00 s"));
//! # Ok::<(), time_figure::Error>(())
//! ```

mod axis;
mod draw;
mod labels;
mod stretches;

use serde::{Deserialize, Serialize};

/// A vCPU's three times at one moment, in ns, each from a moment of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    /// Physical time.
    pub physical_ns: u64,
    /// Physical time less the time that the VM was paused.
    pub live_ns: u64,
    /// Live physical time less what was stolen from the vCPU.
    pub virtual_ns: u64,
}

/// A figure to be.
#[derive(Clone, Copy, Debug)]
pub struct Figure<'a> {
    /// Over it.
    pub title: &'a str,
    /// Under the title: whose time it is and who measured it.
    pub about: &'a str,
    /// In order of physical time.
    pub samples: &'a [Sample],
}

/// Samples that make no figure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A line needs two points.
    #[error("{count} sample(s) make no line; wait for a second one")]
    TooFew {
        /// How many there are.
        count: usize,
    },
    /// No time passed between the first and the last.
    #[error("no physical time passes from the first sample to the last; wait for another")]
    NoTime,
    /// A sample lies before the one before it.
    #[error(
        "physical time goes back from {before_ns} ns to {after_ns} ns at sample {index}; order the \
         samples by it"
    )]
    Unordered {
        /// Which, from 0.
        index: usize,
        /// Physical time of the sample before.
        before_ns: u64,
        /// Its own.
        after_ns: u64,
    },
}

impl Figure<'_> {
    /// The figure as an SVG document.
    ///
    /// # Errors
    ///
    /// [`Error`].
    pub fn draw(&self) -> Result<String, Error> {
        Ok(draw::document(self, &points(self.samples)?))
    }
}

/// A sample in seconds since the first.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Point {
    physical: f64,
    live: f64,
    virtual_: f64,
}

fn points(samples: &[Sample]) -> Result<Vec<Point>, Error> {
    let (Some(first), Some(last)) = (samples.first(), samples.last()) else {
        return Err(Error::TooFew { count: 0 });
    };
    if samples.len() == 1 {
        return Err(Error::TooFew { count: 1 });
    }
    for (index, pair) in samples.windows(2).enumerate() {
        let (before_ns, after_ns) = (pair[0].physical_ns, pair[1].physical_ns);
        if after_ns < before_ns {
            return Err(Error::Unordered {
                index: index + 1,
                before_ns,
                after_ns,
            });
        }
    }
    if first.physical_ns == last.physical_ns {
        return Err(Error::NoTime);
    }
    let point = |sample: &Sample| Point {
        physical: seconds(first.physical_ns, sample.physical_ns),
        live: seconds(first.live_ns, sample.live_ns),
        virtual_: seconds(first.virtual_ns, sample.virtual_ns),
    };
    Ok(samples.iter().map(point).collect())
}

/// From one to the other; negative where the other is the smaller.
#[expect(
    clippy::cast_precision_loss,
    reason = "a pixel is far longer than what is lost"
)]
fn seconds(from_ns: u64, to_ns: u64) -> f64 {
    let distance = to_ns.abs_diff(from_ns) as f64 / 1e9;
    if to_ns < from_ns { -distance } else { distance }
}

#[cfg(test)]
mod tests;
