//! What a VM's owner decides about its time.

use super::TimelineError;
use crate::scale::Frequency;
use core::fmt;

/// What the guest's counters do over a pause.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Policy {
    /// They do not move.
    #[default]
    Freeze,
    /// They move with physical time.
    Advance,
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Freeze => "freeze",
            Self::Advance => "advance",
        })
    }
}

/// What to do about a stall: the VMM did not run for a while, and the host's clocks did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum StallPolicy {
    /// Leave a record.
    #[default]
    Report,
    /// Take what is certain out of the guest's counters, and leave a record.
    Freeze,
}

/// The policy for each event.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Policies {
    /// For a VM that goes on where it was paused, by the operator or for a snapshot.
    pub pause: Policy,
    /// For a VM that comes out of a snapshot.
    pub restore: Policy,
    /// For a VM that moved to another host, or that stayed because the move failed.
    pub migrate: Policy,
    /// For a sleep of the host.
    pub suspend: Policy,
    /// For a stall.
    pub stall: StallPolicy,
}

impl Policies {
    /// The first event, by its option's name, that has this policy.
    fn event_with(self, policy: Policy) -> Option<&'static str> {
        let Self {
            pause,
            restore,
            migrate,
            suspend,
            stall: _,
        } = self;
        let events = [
            ("pause", pause),
            ("restore", restore),
            ("migrate", migrate),
            ("suspend", suspend),
        ];
        let found = events.into_iter().find(|(_, its)| *its == policy);
        found.map(|(event, _)| event)
    }
}

/// What to do when advancing a VM that comes from another host, and by the two hosts' wall clocks
/// it arrived before it left, by more than their error.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum NegativeElapsed {
    /// Refuse to resume.
    #[default]
    Refuse,
    /// Resume as if no time had passed, and say so in the record.
    Clamp,
}

/// Which of the guest's counters the VM's offset applies to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum CounterScope {
    /// The virtual and the physical one.
    #[default]
    Both,
    /// The virtual one; the guest reads the host's physical counter (KVM before Linux 6.4).
    VirtualOnly,
}

impl fmt::Display for CounterScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Both => "the virtual and the physical counter",
            Self::VirtualOnly => "the virtual counter alone",
        })
    }
}

/// How a VM's time is to be kept. Everything is off, and freezes, by default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// The policies.
    pub policies: Policies,
    /// What a negative elapsed time does.
    pub negative_elapsed: NegativeElapsed,
    /// What the offset applies to.
    pub counters: CounterScope,
    /// The PV frequency, if the VM has live physical time.
    pub live_physical_time: Option<Frequency>,
    /// Whether paused time is published.
    pub paused_time: bool,
    /// Whether the guest may run guests of its own at EL2.
    pub nested_virtualization: bool,
    /// Whether the CPUs have `FEAT_ECV`.
    pub has_ecv: bool,
}

impl Config {
    /// Refuses what contradicts itself.
    pub(super) fn check(&self) -> Result<(), TimelineError> {
        self.check_live()?;
        if self.nested_virtualization {
            self.check_nothing_hidden()?;
        }
        Ok(())
    }

    fn check_live(&self) -> Result<(), TimelineError> {
        let Some(pv) = self.live_physical_time else {
            return Ok(());
        };
        pv.cntfrq().map_err(crate::host::live::LiveError::from)?;
        if self.nested_virtualization {
            return Err(TimelineError::LiveWithNested);
        }
        if self.counters == CounterScope::VirtualOnly {
            return Err(TimelineError::LiveWithVirtualOnly);
        }
        match self.policies.event_with(Policy::Advance) {
            Some(event) => Err(TimelineError::LiveWithAdvance { event }),
            None => Ok(()),
        }
    }

    /// With nested virtualization a guest has four counters, of which two are its own guests'.
    fn check_nothing_hidden(&self) -> Result<(), TimelineError> {
        let policies = self.policies;
        let frozen = policies
            .event_with(Policy::Freeze)
            .map(|it| (it, "advance"));
        let stalls = policies.stall == StallPolicy::Freeze;
        match frozen.or(stalls.then_some(("stall", "report"))) {
            Some((event, instead)) => Err(TimelineError::FreezeWithNested { event, instead }),
            None => Ok(()),
        }
    }
}
