//! What both sides of a broken migration have, and what an operator does about it.

use crate::guest::{Guest, Receiver};
use crate::host::Host;
use crate::interrupt::sleep;
use anyhow::{Context, Result, bail};
use serde::Deserialize;
use std::fmt;
use std::time::{Duration, Instant};

/// How often both sides are looked at until they say what they have.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// What a VMM has of the VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// It runs it.
    Running,
    /// It has it, as an operator paused it before.
    Paused,
    /// It has it, stopped, and does not know whether the other side does.
    InDoubt,
    /// Nothing: it waits for the next.
    Waiting,
    /// Nothing: it has ended.
    Ended,
}

/// What source and destination have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    pub sides: [Side; 2],
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [source, destination] = self.sides;
        write!(f, "source {source:?}, destination {destination:?}")
    }
}

impl Found {
    /// Waits until both sides have come to something that lasts.
    pub fn settle(
        host: &mut Host,
        guest: &Guest,
        receiver: &Receiver,
        limit: Duration,
    ) -> Result<Self> {
        let start = Instant::now();
        loop {
            let found = (source(host, guest)?, destination(host, receiver)?);
            if let (Some(source), Some(destination)) = found {
                return Ok(Self {
                    sides: [source, destination],
                });
            }
            if start.elapsed() > limit {
                let said = receiver.said(host)?;
                bail!("the sides come to nothing, {found:?}; the destination said {said:?}");
            }
            sleep(LOOK_EVERY)?;
        }
    }
}

/// What `pvtime ctl status --json` says of a VM's state.
#[derive(Deserialize)]
struct Status {
    state: String,
}

/// A state that lasts, if it is one.
fn lasting(said: &str) -> Result<Option<Side>> {
    let status: Status =
        serde_json::from_str(said).with_context(|| format!("cannot understand {said:?}"))?;
    Ok(match status.state.as_str() {
        "Running" => Some(Side::Running),
        "Paused" => Some(Side::Paused),
        "In doubt" => Some(Side::InDoubt),
        _ => None,
    })
}

/// Of a source whose migration is over.
fn source(host: &mut Host, guest: &Guest) -> Result<Option<Side>> {
    if host.poll_end(guest.vmm().child)?.is_some() {
        return Ok(Some(Side::Ended));
    }
    // It may end just now.
    match guest.ctl(host, &["status", "--json"]) {
        Ok(said) => lasting(&said),
        Err(_) => Ok(None),
    }
}

fn destination(host: &mut Host, receiver: &Receiver) -> Result<Option<Side>> {
    if host.poll_end(receiver.vmm.child)?.is_some() {
        return Ok(Some(Side::Ended));
    }
    match receiver.ctl(host, &["status", "--json"])? {
        Some(said) => lasting(&said),
        None if receiver.said(host)?.contains("waiting for the next") => Ok(Some(Side::Waiting)),
        None => Ok(None),
    }
}

/// Which side is to have the VM, as the manual says; none where neither has anything of it. Where
/// both are in doubt, either may.
pub fn decide(sides: [Side; 2], prefers_there: bool) -> Option<usize> {
    let of = |wanted| sides.iter().position(|side| *side == wanted);
    let both_in_doubt = sides == [Side::InDoubt; 2];
    if both_in_doubt {
        return Some(usize::from(prefers_there));
    }
    let has = of(Side::Running).or_else(|| of(Side::Paused));
    has.or_else(|| of(Side::InDoubt))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_runs_it_keeps_it_and_who_doubts_may_take_it() {
        use Side::{Ended, InDoubt, Paused, Running, Waiting};
        for (sides, expected) in [
            ([Running, InDoubt], Some(0)),
            ([InDoubt, Running], Some(1)),
            ([Paused, Waiting], Some(0)),
            ([InDoubt, Paused], Some(1)),
            ([Running, Waiting], Some(0)),
            ([Ended, Running], Some(1)),
            ([InDoubt, Ended], Some(0)),
            ([Ended, InDoubt], Some(1)),
            ([Ended, Waiting], None),
            ([Ended, Ended], None),
        ] {
            assert_eq!(decide(sides, false), expected, "{sides:?}");
            assert_eq!(decide(sides, true), expected, "{sides:?}");
        }
        assert_eq!(decide([InDoubt, InDoubt], false), Some(0));
        assert_eq!(decide([InDoubt, InDoubt], true), Some(1));
    }

    #[test]
    fn only_states_that_last_count() {
        let of = |state: &str| lasting(&format!(r#"{{"state":"{state}","id":"x"}}"#)).unwrap();
        assert_eq!(of("Running"), Some(Side::Running));
        assert_eq!(of("Paused"), Some(Side::Paused));
        assert_eq!(of("In doubt"), Some(Side::InDoubt));
        assert_eq!(of("Not started"), None);
        assert_eq!(of("Moved"), None);
    }
}
