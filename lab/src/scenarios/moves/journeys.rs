//! Guests that are taken between two hosts, one after the other.

use super::{Journey, Traveller};
use crate::guest::{boot_host_of, host_spec};
use crate::host::Host;
use crate::interrupt::sleep;
use crate::machine::HostSpec;
use crate::report::Check;
use crate::scenario::{Stage, Step, no_checks};
use anyhow::{Context, Result};
use std::time::Duration;

/// The second host is started when the first has run for this long.
const UPTIME: Duration = Duration::from_secs(122);

/// Who travels, and how it is judged.
pub struct Plan {
    /// Linux with one vCPU and with four, then the bare-metal guest.
    pub travellers: [Traveller; 4],
    /// What holds of each journey besides what always does.
    pub of_policy: fn(&Journey) -> Vec<Check>,
}

impl Plan {
    /// Takes each guest on its way, between hosts that are minutes apart in uptime.
    pub fn play(&'static self, stage: &mut Stage) -> Result<()> {
        stage.play(
            Journeys {
                plan: self,
                hosts: Hosts::default(),
                all: Vec::new(),
            },
            &[
                Step {
                    name: "boot a host, and a second one when it has run for minutes",
                    act: Journeys::boot,
                    checks: no_checks,
                },
                Step {
                    name: "take Linux with one vCPU to and fro",
                    act: Journeys::take_next,
                    checks: Journeys::last_checks,
                },
                Step {
                    name: "take Linux with four vCPUs to and fro",
                    act: Journeys::take_next,
                    checks: Journeys::last_checks,
                },
                Step {
                    name: "take the bare-metal guest with one vCPU to and fro",
                    act: Journeys::take_next,
                    checks: Journeys::last_checks,
                },
                Step {
                    name: "take the bare-metal guest with four vCPUs to and fro",
                    act: Journeys::take_next,
                    checks: Journeys::last_checks,
                },
                Step {
                    name: "power the hosts off",
                    act: |journeys, _| journeys.hosts.power_off(),
                    checks: no_checks,
                },
            ],
        )
    }
}

/// Guests that went between two hosts.
struct Journeys {
    plan: &'static Plan,
    hosts: Hosts,
    all: Vec<Journey>,
}

impl Journeys {
    /// Starts the hosts, the second when the first has run for minutes.
    fn boot(&mut self, stage: &mut Stage) -> Result<()> {
        self.hosts = Hosts::boot(stage)?;
        self.hosts.add_younger(stage)
    }

    /// Takes the next guest on its way, to the end.
    fn take_next(&mut self, stage: &mut Stage) -> Result<()> {
        let next = self.plan.travellers.get(self.all.len());
        let who = next.context("nobody is left to travel")?;
        let hosts = &mut self.hosts;
        let mut journey = Journey::start(*who, hosts)?;
        for _ in 0..who.in_place {
            journey.go(journey.at, hosts, stage)?;
        }
        journey.go_to_and_fro(hosts, stage)?;
        if who.at_once > 0 {
            journey.begin_anew(hosts, stage)?;
        }
        journey.end(hosts, stage)?;
        self.all.push(journey);
        Ok(())
    }

    /// What holds of the last, this among it.
    fn last_checks(&self) -> Vec<Check> {
        let Some(journey) = self.all.last() else {
            return Vec::new();
        };
        let mut checks = (self.plan.of_policy)(journey);
        checks.extend(journey.checks());
        checks
    }
}

/// Two hosts; the counter of the first is minutes ahead.
#[derive(Default)]
pub(super) struct Hosts(pub(super) Vec<Host>);

impl Hosts {
    /// Starts the first host.
    fn boot(stage: &mut Stage) -> Result<Self> {
        let mut hosts = Self::default();
        hosts.add("host-0", stage)?;
        Ok(hosts)
    }

    /// Starts the second, when the first has run for minutes.
    fn add_younger(&mut self, stage: &mut Stage) -> Result<()> {
        let up_ns = self.get(0)?.clocks()?.uptime_ns();
        let up = Duration::from_nanos(u64::try_from(up_ns)?);
        sleep(UPTIME.saturating_sub(up))?;
        self.add("host-1", stage)
    }

    fn add(&mut self, name: &'static str, stage: &mut Stage) -> Result<()> {
        let spec = HostSpec {
            memory_mib: 1536,
            ..host_spec(name, stage.assets, &stage.logs)?
        };
        self.0.push(boot_host_of(&spec, stage)?);
        Ok(())
    }

    pub(super) fn get(&mut self, index: usize) -> Result<&mut Host> {
        self.0.get_mut(index).context("no such host")
    }

    fn power_off(&mut self) -> Result<()> {
        self.0.drain(..).try_for_each(Host::power_off)
    }
}
