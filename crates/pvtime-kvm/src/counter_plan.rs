//! How a guest's counters are set, and what the way that is left on an old host cannot do.

use pvtime::host::timeline::CounterScope;

use crate::{HostTime, Support};

/// How the guest's counters are set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CounterChoice {
    /// By one VM-wide offset where KVM has it (Linux 6.4), else by registers.
    #[default]
    Auto,
    /// By the virtual counter's register, with the [limits](REGISTER_LIMITS) of that.
    Registers,
}

/// What counters that are set by registers cannot do, as the end of a sentence.
pub const REGISTER_LIMITS: &str = "the guest's physical counter and its timers stay the host's, \
     show its uptime, run on over every pause and may step back on another host; the virtual \
     counter loses some microseconds at each start and resumption; a snapshot goes to hosts without \
     the offset alone; and there is no live physical time";

/// How the counters of a VM are set on one host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CounterPlan {
    /// Which counters follow the VM's offset.
    pub scope: CounterScope,
    /// Why not both, and what is lost, for the operator; `None` where both do.
    pub limits: Option<String>,
}

impl CounterChoice {
    /// The way on this host.
    #[must_use]
    pub fn plan(self, host: &HostTime) -> CounterPlan {
        let reason = match (self, &host.counter_offset) {
            (Self::Auto, Support::Yes) => {
                return CounterPlan {
                    scope: CounterScope::Both,
                    limits: None,
                };
            }
            (Self::Auto, Support::No { reason }) => reason,
            (Self::Registers, _) => "the VM's counters are to be set by registers",
        };
        CounterPlan {
            scope: CounterScope::VirtualOnly,
            limits: Some(format!("{reason}: {REGISTER_LIMITS}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe;

    fn host(counter_offset: Support) -> HostTime {
        HostTime {
            counter_offset,
            ..probe::tests::host(Support::Yes, Support::Yes)
        }
    }

    #[test]
    fn g1_one_offset_is_for_both_counters_and_has_no_limits() {
        let plan = CounterChoice::Auto.plan(&host(Support::Yes));
        assert_eq!(plan.scope, CounterScope::Both);
        assert_eq!(plan.limits, None);
    }

    #[test]
    fn a_host_without_the_offset_says_so_and_what_is_lost() {
        let old = host(Support::no("this kernel's KVM does not offer it"));
        for (choice, host, reason) in [
            (
                CounterChoice::Auto,
                &old,
                "this kernel's KVM does not offer it: ",
            ),
            (
                CounterChoice::Registers,
                &old,
                "the VM's counters are to be",
            ),
            (
                CounterChoice::Registers,
                &host(Support::Yes),
                "the VM's counters are to be",
            ),
        ] {
            let plan = choice.plan(host);
            assert_eq!(plan.scope, CounterScope::VirtualOnly);
            let limits = plan.limits.unwrap();
            assert!(limits.starts_with(reason), "{limits}");
            assert!(limits.ends_with(REGISTER_LIMITS), "{limits}");
        }
    }

    #[test]
    fn the_probe_says_the_same() {
        let old = host(Support::no("too old"));
        let lines = old.capabilities();
        let line = lines.iter().find(|it| it.name == "VM-wide counter offset");
        let line = line.unwrap();
        assert_eq!(line.support, Support::no("too old"));
        assert_eq!(line.without_it, REGISTER_LIMITS);
    }
}
