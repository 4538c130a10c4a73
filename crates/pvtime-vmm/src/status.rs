//! What a running VM says of itself.

use std::sync::Arc;

use anyhow::Result;
use pvtime::scale::Frequency;
use pvtime_kvm::{StolenTimeProvider, TimeSample, VmTime, counter};
use serde::Serialize;
use serde_json::Value;

use crate::api::Resources;

/// Answers questions about a VM, from any thread.
#[derive(Clone, Debug)]
pub struct Status {
    time: Arc<VmTime>,
}

/// The VM's time at one moment.
#[derive(Debug, Serialize)]
struct TimeReport {
    /// Rate of the host's counter, which is the guest's, in Hz.
    counter_frequency_hz: Option<u64>,
    /// Who keeps stolen time.
    stolen_time: StolenTimeProvider,
    /// Clocks and accounts.
    #[serde(flatten)]
    sample: TimeSample,
}

impl Resources for Status {
    fn time(&self) -> Result<Value> {
        Ok(serde_json::to_value(self.read()?)?)
    }
}

impl Status {
    /// For a VM with this time.
    pub fn new(time: Arc<VmTime>) -> Self {
        Self { time }
    }

    /// Reads clocks and accounts.
    fn read(&self) -> Result<TimeReport> {
        Ok(TimeReport {
            counter_frequency_hz: counter::frequency().map(Frequency::hz),
            stolen_time: self.time.stolen_time_provider(),
            sample: self.time.sample()?,
        })
    }
}
