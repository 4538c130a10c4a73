//! What a guest reads of its counters between two records, held against these.

use super::super::pauses::median;
use super::super::watch::worst;
use super::{PAUSE, PAUSES, none};
use crate::bare::{Bare, OnHost};
use crate::control::Adjustment;
use crate::guest::Guest;
use crate::host::Host;
use crate::report::{Check, Limit};
use anyhow::Result;
use guest_protocol::report::Clocks;

/// Most that the virtual counter may lose each time that it is set, in us, at the median and at worst:
/// it is microseconds, and more where the VMM's thread loses its CPU meanwhile.
const LOSS_LIMITS_US: [f64; 2] = [2_000.0, 20_000.0];
const READINGS: usize = 10;

/// The VM between two records, by what its guest read.
pub(super) struct Stretch {
    event: &'static str,
    /// What let it go on, and what stopped it.
    records: [Adjustment; 2],
    readings: Vec<Clocks>,
}

impl Stretch {
    /// Reads the counters of a guest that a record let go on, and stops it.
    pub(super) fn read(
        event: &'static str,
        began: Adjustment,
        guest: &mut Guest,
        host: &mut Host,
    ) -> Result<Self> {
        let mut asked = OnHost { guest, host };
        let readings = (0..READINGS).map(|_| asked.clocks());
        let readings = readings.collect::<Result<_>>()?;
        Ok(Self {
            event,
            records: [began, guest.pause(host)?],
            readings,
        })
    }

    /// By how much the virtual counter is at most behind the host's less the record's offset, in
    /// ticks; negative where it is ahead for certain.
    ///
    /// The guest's physical counter is the host's own, and was read after a virtual one.
    fn lost_ticks(&self) -> i64 {
        let [began, _] = &self.records;
        let offset = began.after.host.wrapping_sub(began.after.guest);
        let lost = |it: &Clocks| {
            it.physical
                .wrapping_sub(it.virtual_before)
                .wrapping_sub(offset)
        };
        let lost = self.readings.iter().map(|it| lost(it).cast_signed());
        lost.min().unwrap_or(i64::MIN)
    }

    #[expect(clippy::cast_precision_loss, reason = "for people")]
    fn lost_us(&self) -> f64 {
        let hz = self.records[0].after.frequency_hz;
        self.lost_ticks() as f64 / hz as f64 * 1e6
    }

    /// Readings whose physical count is not the host's at some moment of the stretch.
    fn not_the_hosts(&self) -> usize {
        let [began, ended] = &self.records;
        let is_within =
            |it: &&Clocks| (began.after.host..=ended.before.host).contains(&it.physical);
        self.readings.len() - self.readings.iter().filter(is_within).count()
    }
}

/// The virtual counter is the record's, less what setting it lost, and the physical one the host's.
pub(super) fn judge(stretches: &[Stretch], guests: &str) -> Vec<Check> {
    let [most_at_median, most] = LOSS_LIMITS_US;
    let losses: Vec<_> = stretches.iter().map(Stretch::lost_us).collect();
    let events: Vec<_> = stretches.iter().map(|it| it.event).collect();
    let detail = format!("{guests}: {losses:.0?} us after {events:?}");
    let ahead = losses.iter().filter(|us| **us < 0.0).count();
    let not_the_hosts = stretches.iter().map(Stretch::not_the_hosts).sum();
    vec![
        Check::new(
            "lost_us_median",
            median(losses.clone()),
            Limit::AtMost(most_at_median),
            "us",
        )
        .with_detail(&detail),
        Check::new(
            "lost_us_worst",
            worst(losses.into_iter()),
            Limit::AtMost(most),
            "us",
        )
        .with_detail(&detail),
        none("ahead_of_the_record", ahead, "events").with_detail(&detail),
        none("physical_not_the_hosts", not_the_hosts, "readings").with_detail(guests),
    ]
}

/// Every record of a resumption hides all of its gap.
pub(super) fn frozen(stretches: &[Stretch]) -> Check {
    let resumed = stretches.iter().map(|it| &it.records[0]);
    let resumed = resumed.filter(|it| it.event == "resume");
    let is_frozen = |it: &&Adjustment| {
        let gap_ns = it.gap.as_ref().map_or(0, |gap| gap.ns);
        it.shown_ticks == Some(0)
            && i128::from(it.hidden_ns) == gap_ns
            && gap_ns >= PAUSE.as_nanos().cast_signed()
    };
    let count = resumed.filter(is_frozen).count();
    let expected = f64::from(u32::try_from(PAUSES).unwrap_or(u32::MAX)) + 1.0;
    let count = f64::from(u32::try_from(count).unwrap_or(u32::MAX));
    Check::new("wholly_hidden", count, Limit::Equals(expected), "pauses")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;
    use serde_json::json;

    fn record(host: u64, guest: u64) -> Adjustment {
        let counters = json!({ "host": host, "guest": guest, "frequency_hz": 1_000_000 });
        let record = json!({
            "sequence": 1, "wall_ns": 0, "event": "resume", "policy": "freeze",
            "gap": { "ns": 500_000_000, "error_ns": 0 }, "hidden_ns": 500_000_000, "shown_ticks": 0,
            "before": counters, "after": counters, "live": null,
            "unanswered_ms": null, "unfinished_ms": null,
        });
        Adjustment::deserialize(record).unwrap()
    }

    /// From 1000 by the host's counter, 100 by the guest's, to 2000, with such readings.
    fn stretch(readings: &[[u64; 2]]) -> Stretch {
        let clocks = |[virtual_before, physical]: &[u64; 2]| Clocks {
            cpu: 0,
            virtual_before: *virtual_before,
            physical: *physical,
            live: None,
            virtual_after: virtual_before + 20,
            stolen_ns: None,
        };
        Stretch {
            event: "pause",
            records: [record(1000, 100), record(2000, 1100)],
            readings: readings.iter().map(clocks).collect(),
        }
    }

    #[test]
    fn a_loss_is_bounded_by_the_narrowest_reading_and_a_gain_is_none() {
        assert_eq!(stretch(&[[290, 1210], [595, 1500]]).lost_ticks(), 5);
        assert_eq!(stretch(&[[290, 1210], [601, 1500]]).lost_ticks(), -1);
        let passes = |readings: &[[u64; 2]]| {
            let checks = judge(&[stretch(readings)], "").into_iter();
            checks.map(|check| check.pass).collect::<Vec<_>>()
        };
        assert_eq!(passes(&[[595, 1500]]), [true; 4]);
        assert_eq!(passes(&[[601, 1500]]), [true, true, false, true]);
        assert_eq!(passes(&[[595, 4000]]), [false, true, true, false]);
        assert_eq!(passes(&[]), [true, true, false, true], "nothing is known");
    }

    #[test]
    fn a_gap_is_hidden_wholly_or_does_not_count() {
        let stretches = |last: Stretch| {
            let mut stretches: Vec<_> = (0..PAUSES).map(|_| stretch(&[])).collect();
            stretches.push(last);
            frozen(&stretches).pass
        };
        assert!(stretches(stretch(&[])));
        let mut shown = stretch(&[]);
        shown.records[0].shown_ticks = Some(1);
        assert!(!stretches(shown));
        let mut short = stretch(&[]);
        short.records[0].hidden_ns -= 1;
        assert!(!stretches(short));
    }
}
