//! What a guest said of its clocks and counters, and when it did.

use guest_protocol::report::{Sample, Spin};
use std::time::Instant;

/// A sample that a guest was asked for: its clocks were read between two moments of the lab's.
#[derive(Debug, Clone)]
pub struct Sighting {
    /// Before they were read.
    pub asked: Instant,
    /// After that.
    pub answered: Instant,
    /// What they said.
    pub sample: Sample,
}

/// Everything that one guest said when it was asked, in order.
#[derive(Debug, Clone, Default)]
pub struct Sightings {
    /// Its samples.
    pub samples: Vec<Sighting>,
    /// What its spinning vCPUs saw.
    pub spins: Vec<Spin>,
}
