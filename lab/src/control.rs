//! What `pvtime ctl` does to a guest's time and tells of it.

use crate::guest::Guest;
use crate::host::Host;
use anyhow::{Context, Result, bail};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// The record of one intervention in a VM's time, as far as the lab judges it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Adjustment {
    /// Counts from 1.
    pub sequence: u64,
    /// The host's wall clock, in ns.
    pub wall_ns: u64,
    /// `start`, `pause`, `resume` and others.
    pub event: String,
    /// `freeze` or `advance`; none where the event does not decide it.
    pub policy: Option<String>,
    /// For how long the VM did not run; none where that is not over.
    pub gap: Option<Gap>,
    /// How much of it the guest's counters do not show.
    pub hidden_ns: u64,
    /// By how much they moved over it.
    pub shown_ticks: Option<u64>,
    /// The counters before.
    pub before: Counters,
    /// The counters after.
    pub after: Counters,
    /// Live physical time; none where the guest does not have it.
    pub live: Option<Live>,
    /// For how long its guest was asked in vain to suspend itself, before the VM was paused.
    pub unanswered_ms: Option<u64>,
    /// For how long nobody said that an announced sleep was over, until the VM went on by itself.
    pub unfinished_ms: Option<u64>,
}

/// Live physical time at one intervention.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Live {
    /// What the guest computed when it stopped, in PV ticks.
    pub pv_before: u64,
    /// What it computes when it goes on, in PV ticks.
    pub pv_after: u64,
    /// How far that is ahead of the ideal: signed PV ticks with six decimals.
    pub distance: String,
}

/// Physical time in which a VM did not run.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Gap {
    /// In ns.
    pub ns: i128,
    /// Bound on its error; none where nothing bounds it.
    pub error_ns: Option<u64>,
}

/// Counters at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct Counters {
    /// The host's.
    pub host: u64,
    /// The guest's.
    pub guest: u64,
    /// Rate of both.
    pub frequency_hz: u64,
}

/// Where the physical time of one vCPU went.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Accounts {
    /// All of it.
    pub physical_ns: u64,
    /// On a CPU.
    pub run_ns: u64,
    /// With nothing to do.
    pub idle_ns: u64,
    /// Without a CPU.
    pub stolen_ns: u64,
    /// While the VM was stopped, by cause.
    pub paused_ns: Paused,
    /// What no account has; negative where they have more than there was.
    pub residual_ns: i128,
}

/// Paused time by cause.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct Paused {
    /// `pvtime ctl pause`.
    pub operator_ns: u64,
    /// A snapshot, from the stop to the resumption wherever that is.
    pub snapshot_ns: u64,
    /// A migration.
    pub migration_ns: u64,
    /// A sleep of the host, or a stall.
    pub host_suspend_ns: u64,
}

impl Paused {
    /// All of it.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.operator_ns + self.snapshot_ns + self.migration_ns + self.host_suspend_ns
    }
}

impl Guest {
    /// Stops the guest and returns the record.
    ///
    /// # Errors
    /// When the VMM refuses, or does not record exactly this.
    pub fn pause(&self, host: &mut Host) -> Result<Adjustment> {
        self.change_state(host, "pause")
    }

    /// Lets the guest go on and returns the record.
    ///
    /// # Errors
    /// As [`Self::pause`].
    pub fn resume(&self, host: &mut Host) -> Result<Adjustment> {
        self.change_state(host, "resume")
    }

    /// Announces a sleep of the host, which stops the guest, and returns the record.
    ///
    /// # Errors
    /// As [`Self::pause`].
    pub fn prepare_sleep(&self, host: &mut Host) -> Result<Adjustment> {
        self.change(host, "prepare-sleep", "pause")
    }

    /// Announces a sleep of the host to a guest that suspends itself, and returns the record.
    ///
    /// # Errors
    /// As [`Self::pause`].
    pub fn prepare_suspend(&self, host: &mut Host) -> Result<Adjustment> {
        self.change(host, "prepare-sleep", "guest suspend")
    }

    /// Announces that it is over, which lets the guest go on, and returns the record.
    ///
    /// # Errors
    /// As [`Self::pause`].
    pub fn finish_sleep(&self, host: &mut Host) -> Result<Adjustment> {
        self.change(host, "finish-sleep", "resume")
    }

    fn change_state(&self, host: &mut Host, change: &str) -> Result<Adjustment> {
        self.change(host, change, change)
    }

    fn change(&self, host: &mut Host, command: &str, event: &str) -> Result<Adjustment> {
        let said = self.ctl(host, &[command, "--json"])?;
        let adjustment: Adjustment = understand(&said)?;
        if adjustment.event != event {
            bail!("{command} was recorded as {:?}", adjustment.event);
        }
        Ok(adjustment)
    }

    /// Every record so far, as the VMM wrote it.
    ///
    /// # Errors
    /// When `pvtime ctl` fails.
    pub fn adjustments(&self, host: &mut Host) -> Result<Vec<Value>> {
        let said = self.ctl(host, &["events", "--json"])?;
        said.lines().map(understand).collect()
    }

    /// Where a vCPU's time went up to now, as the VMM draws it.
    ///
    /// # Errors
    /// When `pvtime ctl` fails.
    pub fn figure(&self, host: &mut Host, vcpu: usize) -> Result<Vec<u8>> {
        let file = host.file("figure.svg");
        self.ctl(host, &["figure", &file, "--vcpu", &vcpu.to_string()])?;
        let drawn = host.read_from(&file, 0)?;
        host.remove_file(&file)?;
        Ok(drawn)
    }

    /// Where each vCPU's time went, up to now.
    ///
    /// # Errors
    /// When `pvtime ctl` fails.
    pub fn ledger(&self, host: &mut Host) -> Result<Vec<Accounts>> {
        #[derive(Deserialize)]
        struct Ledger {
            vcpus: Vec<Accounts>,
        }
        let said = self.ctl(host, &["ledger", "--json"])?;
        Ok(understand::<Ledger>(&said)?.vcpus)
    }
}

fn understand<T: DeserializeOwned>(said: &str) -> Result<T> {
    serde_json::from_str(said).with_context(|| format!("cannot understand {said:?}"))
}
