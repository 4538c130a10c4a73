//! What a bare-metal guest with paused time and its VMM know at one moment.

use super::watch::ms;
use crate::bare::{Bare, OnHost};
use crate::control::{Accounts, Adjustment};
use crate::guest::Guest;
use crate::host::Host;
use anyhow::{Context, Result};
use guest_protocol::report::PausedTime;
use std::time::Instant;

/// All of it, and when it was asked for.
pub struct View {
    asked: Instant,
    answered: Instant,
    /// What the guest was told of its pauses.
    pub paused: PausedTime,
    /// Its counter, between the two moments.
    pub counter: u64,
    /// What was stolen from its first CPU.
    pub stolen_ns: u64,
    /// Each vCPU's accounts.
    pub accounts: Vec<Accounts>,
    frequency_hz: u64,
}

impl View {
    /// Asks for it.
    pub fn of(guest: &mut Guest, host: &mut Host) -> Result<Self> {
        let frequency_hz = host.facts().counter_frequency_hz.context("no frequency")?;
        let mut bare = OnHost { guest, host };
        let paused = bare.interfaces()?.paused_time;
        let asked = Instant::now();
        let clocks = bare.clocks()?;
        let answered = Instant::now();
        Ok(Self {
            asked,
            answered,
            counter: clocks.virtual_after,
            stolen_ns: clocks.stolen_ns.context("the guest finds no stolen time")?,
            paused: paused.context("the guest finds no paused time")?,
            accounts: guest.ledger(host)?,
            frequency_hz,
        })
    }

    /// What passed since another on the lab's clock: at least and at most.
    pub fn passed_ns(&self, before: &Self) -> [u128; 2] {
        let least = self.asked - before.answered;
        let most = self.answered - before.asked;
        [least.as_nanos(), most.as_nanos()]
    }

    /// How far what the counter showed since another, and so much besides, are from that.
    pub fn error_ms(&self, before: &Self, besides_ns: u64) -> f64 {
        let ticks = u128::from(self.counter.wrapping_sub(before.counter));
        let known_ns =
            ticks * 1_000_000_000 / u128::from(self.frequency_hz) + u128::from(besides_ns);
        let [least, most] = self.passed_ns(before);
        let beyond_ns = least.saturating_sub(known_ns) + known_ns.saturating_sub(most);
        ms(u64::try_from(beyond_ns).unwrap_or(u64::MAX))
    }
}

/// What was done to a guest's time by the VMM that it has.
pub fn records(guest: &Guest, host: &mut Host) -> Result<Vec<Adjustment>> {
    let records = guest.adjustments(host)?.into_iter();
    let records = records.map(|it| Ok(serde_json::from_value(it)?));
    records.collect()
}
