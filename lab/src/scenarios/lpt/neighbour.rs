//! A guest beside one that does what it should not.

use super::Case;
use crate::bare::{Bare, OnHost};
use crate::guest::{Guest, GuestImage, GuestSpec};
use crate::host::Host;
use anyhow::Result;
use guest_protocol::report::{Clocks, Interfaces};

/// It, and what it was like before.
pub struct Neighbour {
    guest: Guest,
    before: Seen,
}

/// What it reads, and what its VMM did to its time.
#[derive(Debug)]
struct Seen {
    interfaces: Interfaces,
    clocks: Clocks,
    records: usize,
}

impl Neighbour {
    /// Starts it and looks at it.
    pub fn start(case: &Case, host: &mut Host) -> Result<Self> {
        let spec = GuestSpec {
            image: GuestImage::El1,
            memory_mib: 64,
            stolen_time: case.neighbour_stolen_time,
            vmm_options: case.vmm_options,
            ..GuestSpec::new(case.neighbour)
        };
        let mut guest = Guest::start(&spec, host)?;
        guest.await_hello(host)?;
        let before = Seen::look(&mut guest, host)?;
        Ok(Self { guest, before })
    }

    /// How many of its vCPUs have stolen time.
    pub fn stolen_times(&self) -> usize {
        self.before.interfaces.stolen_time.iter().flatten().count()
    }

    /// Looks again, ends it, and says what of it is not as it was.
    pub fn end(mut self, host: &mut Host) -> Result<Vec<String>> {
        let after = Seen::look(&mut self.guest, host)?;
        self.guest.power_off(host)?;
        Ok(self.before.differences(&after))
    }
}

impl Seen {
    fn look(guest: &mut Guest, host: &mut Host) -> Result<Self> {
        let records = guest.adjustments(host)?.len();
        let mut asked = OnHost { guest, host };
        Ok(Self {
            interfaces: asked.interfaces()?,
            clocks: asked.clocks()?,
            records,
        })
    }

    /// What it was told has not changed, and what grows has not shrunk.
    fn differences(&self, after: &Self) -> Vec<String> {
        let stolen = |seen: &Self| -> Vec<_> {
            let found = seen.interfaces.stolen_time.iter().flatten();
            found.map(|it| it.stolen_ns).collect()
        };
        let fixed = |seen: &Self| {
            let mut fixed = seen.interfaces.clone();
            // It counts.
            fixed.event_stream = None;
            for found in fixed.stolen_time.iter_mut().flatten() {
                found.stolen_ns = 0;
            }
            fixed
        };
        let (old, new) = (&self.clocks, &after.clocks);
        let kept = [
            ("interfaces", fixed(self) == fixed(after)),
            ("records", self.records == after.records),
            ("stolen time", stolen(self) <= stolen(after)),
            ("counter", old.virtual_after < new.virtual_before),
            (
                "live physical time",
                old.live.is_some() && old.live < new.live,
            ),
        ];
        let changed = kept.into_iter().filter(|(_, is_kept)| !is_kept);
        changed
            .map(|(name, _)| format!("{name}: {self:?}, then {after:?}"))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use guest_protocol::report::{Conduit, LiveTime, StolenTime};

    fn seen(stolen_ns: u64, count: u64, changes: u32, records: usize) -> Seen {
        let address = 0x900_0000;
        Seen {
            interfaces: Interfaces {
                conduit: Conduit::Hvc,
                smccc_version: Some(0x1_0001),
                stolen_time: [Some(StolenTime { address, stolen_ns })]
                    .into_iter()
                    .collect(),
                stolen_time_missing: None,
                live_time: Some(LiveTime {
                    address,
                    native_frequency_hz: 25_000_000,
                    pv_frequency_hz: 1_000_000_000,
                    changes,
                }),
                live_time_missing: None,
                paused_time: None,
                event_stream: None,
            },
            clocks: Clocks {
                cpu: 0,
                virtual_before: count,
                physical: count,
                live: Some(count * 40),
                virtual_after: count,
                stolen_ns: Some(stolen_ns),
            },
            records,
        }
    }

    #[test]
    fn each_difference_is_found() {
        let before = seen(5, 100, 0, 1);
        let found = |after: Seen| before.differences(&after).len();
        assert_eq!(found(seen(5, 101, 0, 1)), 0);
        assert_eq!(found(seen(6, 200, 0, 1)), 0);
        assert_eq!(found(seen(4, 101, 0, 1)), 1);
        assert_eq!(found(seen(5, 101, 1, 1)), 1);
        assert_eq!(found(seen(5, 101, 0, 2)), 1);
        // The counter and live physical time.
        assert_eq!(found(seen(5, 100, 0, 1)), 2);
    }
}
