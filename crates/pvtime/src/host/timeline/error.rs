//! Why an event does not change a VM's time.

use super::{CounterScope, WallStandard};
use crate::host::live::LiveError;
use crate::host::{Cause, GuestCount};
use crate::scale::{Frequency, ScaleError};

/// Why a step was refused. The timeline is as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TimelineError {
    /// An event that this phase does not have.
    #[error("a VM that {phase} cannot {event}: check the order of the calls")]
    OutOfOrder {
        /// What was asked.
        event: &'static str,
        /// What the VM does.
        phase: &'static str,
    },
    /// Live physical time excludes pauses, which advancing includes.
    #[error(
        "live physical time stands still over every pause and --on-{event} advance does not: \
         use freeze, or do without live physical time"
    )]
    LiveWithAdvance {
        /// The option's name.
        event: &'static str,
    },
    /// A guest hypervisor has counters of its own that no structure describes.
    #[error(
        "live physical time does not work with nested virtualization: do without one of the two"
    )]
    LiveWithNested,
    /// Time is hidden from a guest hypervisor's counters and not, for certain, from its guests'.
    #[error(
        "with nested virtualization a guest has four counters, and nobody has seen time hidden \
         from all of them: use --on-{event} {instead}, or do without nested virtualization"
    )]
    FreezeWithNested {
        /// The option's name.
        event: &'static str,
        /// What to give it.
        instead: &'static str,
    },
    /// A physical counter that follows the host cannot be re-based.
    #[error(
        "live physical time needs an offset for the physical counter too: use a host with \
         KVM_CAP_COUNTER_OFFSET (Linux 6.4), or do without live physical time"
    )]
    LiveWithVirtualOnly,
    /// The guest's own suspend lets its counters run.
    #[error(
        "live physical time stands still while the guest suspends itself and its counters must \
         not: pause it instead, or do without live physical time"
    )]
    LiveWithGuestSuspend,
    /// A host of another frequency, and a guest that would not notice.
    #[error(
        "the VM's counter runs at {vm} and this host's at {host}: {}",
        if *.has_live {
            "its guest did not ask for live physical time; choose a host of the same frequency"
        } else {
            "choose a host of the same frequency, or start the VM with live physical time"
        }
    )]
    FrequencyDiffers {
        /// The frequency that the guest runs with.
        vm: Frequency,
        /// The frequency of the host.
        host: Frequency,
        /// Whether the VM has live physical time that its guest did not ask for.
        has_live: bool,
    },
    /// The host's counter changed its frequency under a running VM.
    #[error("the host's counter changed from {before} to {now} while the VM ran: stop the VM")]
    FrequencyChanged {
        /// Frequency at the last sample.
        before: Frequency,
        /// Frequency now.
        now: Frequency,
    },
    /// The saved state's PV frequency is not the configured one.
    #[error(
        "the VM was saved {} and would be restored {}: the PV frequency is for the VM's life; \
         restore it as it was saved",
        DisplayPv(*.saved), DisplayPv(*.configured)
    )]
    PvFrequencyDiffers {
        /// In the saved state.
        saved: Option<Frequency>,
        /// In the configuration.
        configured: Option<Frequency>,
    },
    /// The saved state's offset applied to other counters.
    #[error(
        "the VM's offset was for {saved} and would be for {configured}: one of its counters \
         would jump; restore it on a host that can do the same"
    )]
    ScopeDiffers {
        /// In the saved state.
        saved: CounterScope,
        /// In the configuration.
        configured: CounterScope,
    },
    /// A restore for a reason that no restore has.
    #[error("a VM is not restored because of a pause by {cause}: say snapshot or migration")]
    NotARestore {
        /// The cause given.
        cause: Cause,
    },
    /// The VM left one host after it arrived at the other.
    #[error(
        "by the hosts' clocks {elapsed_ns} ns passed on the way, with an error of at most \
         {error_ns} ns: set the clocks, allow clamping, or use freeze"
    )]
    NegativeElapsed {
        /// Elapsed wall-clock time.
        elapsed_ns: i128,
        /// Bound on its error.
        error_ns: u64,
    },
    /// The two hosts' wall clocks count different things.
    #[error(
        "the VM's time was taken from {saved} and this host's from {host}: sample the same \
         clock on both, or use freeze"
    )]
    WallClocksDiffer {
        /// On the host before.
        saved: WallStandard,
        /// On this host.
        host: WallStandard,
    },
    /// A clock that cannot go back did.
    #[error("{clock} went from {before_ns} ns back to {now_ns} ns: sample the host's own clocks")]
    ClockWentBack {
        /// Which clock.
        clock: &'static str,
        /// Its last value.
        before_ns: u64,
        /// Its value now.
        now_ns: u64,
    },
    /// The host slept under the running VM, and that was not dealt with yet.
    #[error("the host slept for {slept_ns} ns: stop the vCPUs and step with Slept first")]
    UnhandledSleep {
        /// For how long.
        slept_ns: i128,
    },
    /// The host's counter restarted or stood still under the running VM.
    #[error(
        "the host's counter made {ticks} ticks in {boottime_ns} ns: it restarted or stood \
         still; stop the vCPUs and step with Slept first"
    )]
    UnhandledRestart {
        /// Ticks since the last sample, modulo 2^64.
        ticks: u64,
        /// Time since the last sample.
        boottime_ns: u64,
    },
    /// A sleep that is longer than the time in which it is said to have been.
    #[error(
        "{hidden_ns} ns of sleep would take the guest's counter from {now} to before {last}, \
         which it has shown: sample more often, or give a smaller certain length"
    )]
    SleepTooLong {
        /// What would be taken out.
        hidden_ns: u64,
        /// The guest's counter now.
        now: GuestCount,
        /// The guest's counter at the last sample.
        last: GuestCount,
    },
    /// A stall whose certain part is longer than its possible one.
    #[error("a stall of certainly {certain_ns} ns is at most {possible_ns} ns: swap the two")]
    StallBounds {
        /// What is certain.
        certain_ns: u64,
        /// What is possible.
        possible_ns: u64,
    },
    /// A guest counter past 2^64.
    #[error("{ticks} ticks more take the guest's counter {count} past 2^64: use freeze")]
    CounterTooLarge {
        /// The counter when the VM stopped.
        count: GuestCount,
        /// What it would advance.
        ticks: u64,
    },
    /// A sum of pauses past 2^64 ns.
    #[error("{more_ns} ns more take the paused time past 2^64 ns: check the hosts' clocks")]
    PausedTooLong {
        /// What this pause would add.
        more_ns: i128,
    },
    /// Live physical time has no value.
    #[error(transparent)]
    Live(#[from] LiveError),
    /// A span does not fit.
    #[error(transparent)]
    Scale(#[from] ScaleError),
}

struct DisplayPv(Option<Frequency>);

impl core::fmt::Display for DisplayPv {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self.0 {
            Some(pv) => write!(f, "with live physical time at {pv}"),
            None => f.write_str("without live physical time"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;

    fn hz(hz: u64) -> Frequency {
        Frequency::from_hz(hz).unwrap()
    }

    #[test]
    fn a_refused_configuration_says_what_to_do_without() {
        let cases = [
            (
                TimelineError::LiveWithAdvance { event: "pause" },
                "live physical time stands still over every pause and --on-pause advance does \
                 not: use freeze, or do without live physical time",
            ),
            (
                TimelineError::LiveWithNested,
                "live physical time does not work with nested virtualization: do without one of \
                 the two",
            ),
            (
                TimelineError::FreezeWithNested {
                    event: "stall",
                    instead: "report",
                },
                "with nested virtualization a guest has four counters, and nobody has seen time \
                 hidden from all of them: use --on-stall report, or do without nested \
                 virtualization",
            ),
            (
                TimelineError::LiveWithVirtualOnly,
                "live physical time needs an offset for the physical counter too: use a host \
                 with KVM_CAP_COUNTER_OFFSET (Linux 6.4), or do without live physical time",
            ),
            (
                TimelineError::LiveWithGuestSuspend,
                "live physical time stands still while the guest suspends itself and its \
                 counters must not: pause it instead, or do without live physical time",
            ),
            (
                TimelineError::PvFrequencyDiffers {
                    saved: Some(hz(24)),
                    configured: None,
                },
                "the VM was saved with live physical time at 24 Hz and would be restored without \
                 live physical time: the PV frequency is for the VM's life; restore it as it was \
                 saved",
            ),
            (
                TimelineError::ScopeDiffers {
                    saved: CounterScope::VirtualOnly,
                    configured: CounterScope::Both,
                },
                "the VM's offset was for the virtual counter alone and would be for the virtual \
                 and the physical counter: one of its counters would jump; restore it on a host \
                 that can do the same",
            ),
            (
                TimelineError::NotARestore {
                    cause: Cause::Operator,
                },
                "a VM is not restored because of a pause by operator: say snapshot or migration",
            ),
            (
                TimelineError::WallClocksDiffer {
                    saved: WallStandard::Tai,
                    host: WallStandard::Realtime,
                },
                "the VM's time was taken from TAI and this host's from REALTIME: sample the same \
                 clock on both, or use freeze",
            ),
        ];
        for (error, message) in cases {
            assert_eq!(error.to_string(), message);
        }
    }

    #[test]
    fn a_refused_sample_says_what_the_clocks_did() {
        let cases = [
            (
                TimelineError::FrequencyChanged {
                    before: hz(25),
                    now: hz(24),
                },
                "the host's counter changed from 25 Hz to 24 Hz while the VM ran: stop the VM",
            ),
            (
                TimelineError::ClockWentBack {
                    clock: "CLOCK_BOOTTIME",
                    before_ns: 9,
                    now_ns: 8,
                },
                "CLOCK_BOOTTIME went from 9 ns back to 8 ns: sample the host's own clocks",
            ),
            (
                TimelineError::UnhandledSleep { slept_ns: 7 },
                "the host slept for 7 ns: stop the vCPUs and step with Slept first",
            ),
            (
                TimelineError::UnhandledRestart {
                    ticks: 5,
                    boottime_ns: 900,
                },
                "the host's counter made 5 ticks in 900 ns: it restarted or stood still; stop \
                 the vCPUs and step with Slept first",
            ),
            (
                TimelineError::SleepTooLong {
                    hidden_ns: 70,
                    now: GuestCount(5),
                    last: GuestCount(4),
                },
                "70 ns of sleep would take the guest's counter from 5 to before 4, which it has \
                 shown: sample more often, or give a smaller certain length",
            ),
            (
                TimelineError::StallBounds {
                    certain_ns: 5,
                    possible_ns: 3,
                },
                "a stall of certainly 5 ns is at most 3 ns: swap the two",
            ),
            (
                TimelineError::CounterTooLarge {
                    count: GuestCount(9),
                    ticks: 7,
                },
                "7 ticks more take the guest's counter 9 past 2^64: use freeze",
            ),
            (
                TimelineError::PausedTooLong { more_ns: 7 },
                "7 ns more take the paused time past 2^64 ns: check the hosts' clocks",
            ),
            (
                TimelineError::Live(LiveError::BeforeBase {
                    count: GuestCount(3),
                    base: GuestCount(4),
                }),
                "guest count 3 is below 4, where this host began: its counter went back",
            ),
            (
                TimelineError::Live(LiveError::Inconsistent {
                    what: "the first count",
                }),
                "the first count of the saved live physical time contradicts the rest: the state \
                 is damaged",
            ),
            (
                TimelineError::Scale(ScaleError::ZeroFrequency),
                "a counter of 0 Hz measures nothing: give the rate of the host's counter",
            ),
        ];
        for (error, message) in cases {
            assert_eq!(error.to_string(), message);
        }
    }
}
