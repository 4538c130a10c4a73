//! Which fault, and where in a migration.

use super::sides::Side;
use anyhow::{Context, Result, bail};
use fastrand::Rng;
use lab_agent::relay::{Act, Fault, Passed};
use std::fmt;

/// Longest time from a point to its fault, in us.
const LONGEST_DELAY_US: u64 = 30_000;

/// How far before the end of the destination's word its fault is armed, in bytes: what certificates
/// sign is some bytes longer or shorter each time, and that word is longer than this.
const SPREAD: u64 = 12;

/// What passes in a migration that is not disturbed, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lengths {
    /// From the source, in all.
    forward: u64,
    /// From the destination, in all.
    backward: u64,
    /// From the destination until it says that it is ready.
    ready: u64,
    /// From the source since then.
    commit: u64,
}

impl Lengths {
    /// The least of several migrations.
    pub fn of(passed: &[Passed]) -> Result<Self> {
        let one = |passed: &Passed| {
            let turns = &passed.turns;
            // The source begins and the destination ends, after `Ready`, `Commit` and `Started`.
            let [.., commit, started] = turns[..] else {
                bail!("a migration with the turns {turns:?}");
            };
            if !turns.len().is_multiple_of(2) || turns.len() < 4 {
                bail!("a migration with the turns {turns:?}");
            }
            let backward = turns.iter().skip(1).step_by(2).sum();
            Ok(Self {
                forward: turns.iter().step_by(2).sum(),
                backward,
                ready: (backward - started).saturating_sub(SPREAD),
                commit,
            })
        };
        let lengths: Vec<_> = passed.iter().map(one).collect::<Result<_>>()?;
        let least = |length: fn(&Self) -> u64| {
            let least = lengths.iter().map(length).min();
            least.context("no migration was measured")
        };
        Ok(Self {
            forward: least(|it| it.forward)?,
            backward: least(|it| it.backward)?,
            ready: least(|it| it.ready)?,
            commit: least(|it| it.commit)?,
        })
    }
}

/// One of each for migrations in the clear and over TLS.
#[derive(Debug, Clone, Copy)]
pub struct Ways<T> {
    pub clear: T,
    pub secured: T,
}

impl<T> Ways<T> {
    pub fn of(&self, is_secured: bool) -> &T {
        if is_secured {
            &self.secured
        } else {
            &self.clear
        }
    }
}

/// What breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Cut,
    KillSource,
    KillDestination,
}

impl Kind {
    /// Whether a VM may end with it, where this is left: with the VMM that had all of it alone.
    pub fn may_end(self, sides: [Side; 2]) -> bool {
        match self {
            Self::Cut => false,
            // The destination had said nothing of a machine that is ready.
            Self::KillSource => sides == [Side::Ended, Side::Waiting],
            // The source had ended, since it knew that the VM was there.
            Self::KillDestination => sides == [Side::Ended, Side::Ended],
        }
    }
}

/// A fault that is to be tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Planned {
    pub kind: Kind,
    backward_bytes: u64,
    forward_bytes: u64,
    delay_us: u64,
    /// Whether the VM is paused meanwhile.
    pub is_paused: bool,
    /// Whether it goes over TLS.
    pub is_secured: bool,
}

impl Planned {
    /// The kinds take turns, and so do the parts of a migration: half of the points are anywhere on
    /// the way, a quarter in what the destination says, and a quarter where the VM is given away.
    /// Half of each come later than their byte. Every fifth is of a VM that is paused, and every seventh
    /// goes over TLS: a twelfth of these is of each kind in each part.
    pub fn choose(random: &mut Rng, lengths: &Ways<Lengths>, number: usize) -> Self {
        let is_secured = number.is_multiple_of(7);
        let lengths = lengths.of(is_secured);
        let kind = [Kind::Cut, Kind::KillSource, Kind::KillDestination][number % 3];
        let (backward_bytes, forward_bytes) = match number / 3 % 4 {
            1 => (random.u64(1..=lengths.backward), 0),
            2 => (lengths.ready, random.u64(1..=lengths.commit)),
            _ => (0, random.u64(1..=lengths.forward)),
        };
        let delay_us = random.u64(0..=LONGEST_DELAY_US) * u64::from(random.bool());
        Self {
            kind,
            backward_bytes,
            forward_bytes,
            delay_us,
            is_paused: number.is_multiple_of(5),
            is_secured,
        }
    }

    /// For these processes.
    pub fn fault(&self, source: u32, destination: u32) -> Fault {
        Fault {
            backward_bytes: self.backward_bytes,
            forward_bytes: self.forward_bytes,
            delay_us: self.delay_us,
            act: match self.kind {
                Kind::Cut => Act::Cut,
                Kind::KillSource => Act::Kill(source),
                Kind::KillDestination => Act::Kill(destination),
            },
        }
    }
}

impl fmt::Display for Planned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.kind {
            Kind::Cut => "cut the connection",
            Kind::KillSource => "kill the source",
            Kind::KillDestination => "kill the destination",
        };
        let whose = if self.is_paused {
            " of a paused VM"
        } else {
            ""
        };
        let way = if self.is_secured { " over TLS" } else { "" };
        write!(f, "{what}{whose}{way} {} us after", self.delay_us)?;
        match (self.backward_bytes, self.forward_bytes) {
            (0, forward) => write!(f, " {forward} bytes"),
            (backward, 0) => write!(f, " {backward} bytes of answers"),
            (backward, forward) => write!(f, " {backward} bytes of answers and {forward} more"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passed(turns: &[u64]) -> Passed {
        Passed {
            turns: turns.into(),
            acted: false,
        }
    }

    #[test]
    fn lengths_are_the_least_of_what_passed() {
        let long = passed(&[8, 8, 1000, 300, 2_000_000, 24, 25, 501]);
        let short = passed(&[1010, 310, 1_900_000, 24, 24, 500]);
        let lengths = Lengths::of(&[long, short]).unwrap();
        assert_eq!(lengths.forward, 1_901_034);
        assert_eq!((lengths.ready, lengths.commit), (320, 24));
        assert!(Lengths::of(&[passed(&[8, 8, 8])]).is_err());
        assert!(Lengths::of(&[]).is_err());
    }

    #[test]
    fn points_lie_within_the_migration_and_in_each_part() {
        let clear = Lengths {
            forward: 1000,
            backward: 100,
            ready: 60,
            commit: 24,
        };
        let secured = Lengths {
            forward: 3000,
            backward: 900,
            ready: 860,
            commit: 46,
        };
        let lengths = Ways { clear, secured };
        let mut random = Rng::with_seed(1);
        let planned: Vec<_> = (0..300)
            .map(|number| Planned::choose(&mut random, &lengths, number))
            .collect();
        for it in &planned {
            assert!(it.backward_bytes + it.forward_bytes > 0, "{it}");
            let of = lengths.of(it.is_secured);
            assert!(it.forward_bytes <= of.forward, "{it}");
            assert!(it.backward_bytes <= of.backward, "{it}");
        }
        let of = |kind| planned.iter().filter(move |it| it.kind == kind);
        for kind in [Kind::Cut, Kind::KillSource, Kind::KillDestination] {
            assert_eq!(of(kind).count(), 100);
            assert!(of(kind).any(|it| it.backward_bytes == 60 && it.forward_bytes > 0));
            assert!(of(kind).any(|it| it.forward_bytes == 0));
            assert!(of(kind).any(|it| it.delay_us > 0));
            // Of the first hundred, which is what a run tries, over TLS in each part.
            let mut secured = planned[..100]
                .iter()
                .filter(|it| it.kind == kind && it.is_secured);
            assert!(secured.clone().any(|it| it.backward_bytes == 860));
            assert!(secured.clone().any(|it| it.forward_bytes == 0));
            assert!(secured.any(|it| it.backward_bytes == 0));
        }
    }
}
