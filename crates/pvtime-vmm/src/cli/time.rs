//! How a VM's time is kept, on the command line.

use std::ops::RangeInclusive;

use anyhow::Result;
use clap::{Args, ValueEnum, value_parser};
use pvtime::host::timeline::{Policy, StallPolicy};
use pvtime::scale::Frequency;
use pvtime_kvm::{PV_FREQUENCY_HZ, SavedTime, StolenTimeChoice};
use serde::{Deserialize, Serialize};

/// How a VM's time is kept. It goes with the VM to another host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Args, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[command(next_help_heading = "Time")]
pub struct TimeArgs {
    /// Whether the guest is told the time that the host's scheduler withheld: auto is on where the
    /// host can; user keeps it in user space even where the kernel can
    #[arg(long, value_enum, default_value_t)]
    pub stolen_time: StolenTimeArg,

    /// How often stolen time is brought up to date where user space keeps it, in ms
    #[arg(long, value_name = "MS", default_value_t = 100, allow_negative_numbers = true,
          value_parser = value_parser!(u64).range(STOLEN_TIME_PERIOD_MS))]
    pub stolen_time_period: u64,

    /// The rate of a counter that is the same on every host, for a guest that has a driver for it:
    /// 1000000 to 4294967295, or off; a VM keeps what it was started with
    #[arg(long, value_name = "HZ|off", allow_negative_numbers = true,
          value_parser = live_physical_time)]
    pub live_physical_time: Option<LivePhysicalTimeArg>,

    /// Whether the guest is told that it was paused and for how long, in memory and by an interrupt;
    /// off for a new VM, and as it was for one that is restored
    #[arg(long, value_enum, value_name = "on|off")]
    pub paused_time: Option<SwitchArg>,

    /// What the guest's counters do while the VM is paused
    #[arg(long, value_enum, value_name = "POLICY", default_value_t)]
    pub on_pause: PolicyArg,

    /// What they do between a snapshot and its restoration
    #[arg(long, value_enum, value_name = "POLICY", default_value_t)]
    pub on_restore: PolicyArg,

    /// What they do while the VM is on its way to another host
    #[arg(long, value_enum, value_name = "POLICY", default_value_t)]
    pub on_migrate: PolicyArg,

    /// What they do while the host sleeps, as far as its clocks or an announcement tell
    #[arg(long, value_enum, value_name = "POLICY", default_value_t)]
    pub on_suspend: PolicyArg,

    /// What is done about a time in which this process did not run and the host's clocks did: a
    /// sleep that they do not show, SIGSTOP, a frozen cgroup
    #[arg(long, value_enum, value_name = "POLICY", default_value_t)]
    pub on_stall: StallArg,

    /// Whether this process watches for sleeps that nobody announces, and for stalls
    #[arg(long, value_enum, value_name = "SWITCH", default_value = "off")]
    pub watch_host: SwitchArg,

    /// Whether the guest has a sleep key and PSCI `SYSTEM_SUSPEND`, and is asked to suspend itself
    /// before the host sleeps; off for a new VM, and as it was for one that is restored
    #[arg(long, value_enum, value_name = "on|off")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suspend_guest: Option<SwitchArg>,

    /// How long it may take for that, in ms; one that takes longer is paused
    #[arg(long, value_name = "MS", default_value_t = DEFAULT_SUSPEND_LIMIT_MS,
          allow_negative_numbers = true, value_parser = value_parser!(u64).range(SUSPEND_LIMIT_MS))]
    #[serde(
        default = "default_suspend_limit_ms",
        skip_serializing_if = "is_default_suspend_limit_ms"
    )]
    pub suspend_limit: u64,

    /// How long a VM that `prepare-sleep` stopped waits for `finish-sleep` while its host is awake, in ms; then
    /// it goes on by itself
    #[arg(long, value_name = "MS", default_value_t = DEFAULT_SLEEP_LIMIT_MS,
          allow_negative_numbers = true, value_parser = value_parser!(u64).range(SLEEP_LIMIT_MS))]
    #[serde(
        default = "default_sleep_limit_ms",
        skip_serializing_if = "is_default_sleep_limit_ms"
    )]
    pub sleep_limit: u64,
}

/// What `--stolen-time-period`, `--suspend-limit` and `--sleep-limit` may be.
const STOLEN_TIME_PERIOD_MS: RangeInclusive<u64> = 1..=10_000;
const SUSPEND_LIMIT_MS: RangeInclusive<u64> = 100..=600_000;
const SLEEP_LIMIT_MS: RangeInclusive<u64> = 1_000..=86_400_000;

/// What is left of the 5 s for which logind delays a sleep by default.
const DEFAULT_SUSPEND_LIMIT_MS: u64 = 4_000;

/// Longer than systemd's hooks and the freezing of user space take, before a sleep and after it.
const DEFAULT_SLEEP_LIMIT_MS: u64 = 60_000;

const fn default_sleep_limit_ms() -> u64 {
    DEFAULT_SLEEP_LIMIT_MS
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
const fn is_default_sleep_limit_ms(limit: &u64) -> bool {
    *limit == DEFAULT_SLEEP_LIMIT_MS
}

const fn default_suspend_limit_ms() -> u64 {
    DEFAULT_SUSPEND_LIMIT_MS
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
const fn is_default_suspend_limit_ms(limit: &u64) -> bool {
    *limit == DEFAULT_SUSPEND_LIMIT_MS
}

/// `--on-stall`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StallArg {
    /// Leave a record, and the counters alone
    #[default]
    Report,
    /// Take what is certain of it out of the counters
    Freeze,
}

impl From<StallArg> for StallPolicy {
    fn from(arg: StallArg) -> Self {
        match arg {
            StallArg::Report => Self::Report,
            StallArg::Freeze => Self::Freeze,
        }
    }
}

impl TimeArgs {
    /// Whether the command line would take them.
    ///
    /// # Errors
    ///
    /// What is out of its range.
    pub fn check(&self) -> Result<(), String> {
        for (name, ms, range) in [
            (
                "stolen-time-period",
                self.stolen_time_period,
                STOLEN_TIME_PERIOD_MS,
            ),
            ("suspend-limit", self.suspend_limit, SUSPEND_LIMIT_MS),
            ("sleep-limit", self.sleep_limit, SLEEP_LIMIT_MS),
        ] {
            if !range.contains(&ms) {
                let (least, most) = (range.start(), range.end());
                return Err(format!("--{name} is {least} to {most} ms, not {ms}"));
            }
        }
        Ok(())
    }

    /// The PV frequency: what was asked for, else what the VM was saved with, else none.
    pub fn live_physical_time(&self, saved: Option<&SavedTime>) -> Option<Frequency> {
        match self.live_physical_time {
            Some(LivePhysicalTimeArg::On(frequency)) => Some(frequency),
            Some(LivePhysicalTimeArg::Off) => None,
            None => saved.and_then(SavedTime::live_physical_time),
        }
    }

    /// Whether the guest is told of its pauses: as asked for, else as the VM was saved, else not.
    pub fn paused_time(&self, saved: Option<&SavedTime>) -> bool {
        match self.paused_time {
            Some(switch) => switch == SwitchArg::On,
            None => saved.is_some_and(SavedTime::has_paused_time),
        }
    }
}

/// `--live-physical-time`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum LivePhysicalTimeArg {
    /// Off
    Off,
    /// On, at this frequency
    On(Frequency),
}

impl TryFrom<String> for LivePhysicalTimeArg {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        live_physical_time(&text)
    }
}

impl From<LivePhysicalTimeArg> for String {
    fn from(arg: LivePhysicalTimeArg) -> Self {
        match arg {
            LivePhysicalTimeArg::Off => "off".into(),
            LivePhysicalTimeArg::On(frequency) => frequency.hz().to_string(),
        }
    }
}

fn live_physical_time(text: &str) -> Result<LivePhysicalTimeArg, String> {
    if text == "off" {
        return Ok(LivePhysicalTimeArg::Off);
    }
    let hz = text.parse().ok().filter(|hz| PV_FREQUENCY_HZ.contains(hz));
    match hz.map(Frequency::from_hz) {
        Some(Ok(frequency)) => Ok(LivePhysicalTimeArg::On(frequency)),
        _ => Err(format!(
            "give a frequency of {} to {} Hz, such as 1000000000, or off",
            PV_FREQUENCY_HZ.start(),
            PV_FREQUENCY_HZ.end()
        )),
    }
}

/// On or off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SwitchArg {
    /// On, or an error
    On,
    /// Off
    Off,
}

/// `--on-…`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PolicyArg {
    /// They do not move
    #[default]
    Freeze,
    /// They move with physical time
    Advance,
}

impl From<PolicyArg> for Policy {
    fn from(arg: PolicyArg) -> Self {
        match arg {
            PolicyArg::Freeze => Self::Freeze,
            PolicyArg::Advance => Self::Advance,
        }
    }
}

/// `--stolen-time`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StolenTimeArg {
    /// On where the host can
    #[default]
    Auto,
    /// On, or an error
    On,
    /// On and kept in user space, or an error
    User,
    /// Off
    Off,
}

impl From<StolenTimeArg> for StolenTimeChoice {
    fn from(arg: StolenTimeArg) -> Self {
        match arg {
            StolenTimeArg::Auto => Self::Auto,
            StolenTimeArg::On => Self::On,
            StolenTimeArg::User => Self::User,
            StolenTimeArg::Off => Self::Off,
        }
    }
}
