//! A guest that changes its memory faster than it may be sent: it moves all the same, whole, and the
//! report says that it did not get there by itself.

use super::super::bare_checks::{at_least, count};
use crate::bare::{Bare, OnHost};
use crate::guest::{Guest, GuestImage, GuestSpec, INSECURE, MigrationReport, Receiver};
use crate::host::Host;
use crate::report::{Check, Limit};
use crate::wire::WireEnd;
use anyhow::Result;
use guest_protocol::Workload;
use guest_protocol::report::Memory;
use guest_protocol::request::Fill;

/// As much and as fast as the guest can.
const FILL: Fill = Fill {
    seed: 7,
    mib: 2,
    changes_per_s: 0,
};

/// A round takes two seconds, in which the guest changes every page more than once; what would fit into
/// the downtime is a twentieth of them.
const OPTIONS: [&str; 5] = [INSECURE, "--bandwidth", "1", "--downtime", "100"];

/// Rounds that are sent before it is clear that none leaves less.
const LEAST_ROUNDS: usize = 4;

/// What came of it.
pub struct Unending {
    report: MigrationReport,
    memory: Memory,
}

impl Unending {
    pub fn play([from, to]: [&mut Host; 2], end: WireEnd) -> Result<Self> {
        let spec = GuestSpec {
            image: GuestImage::El1,
            cpus: 2,
            memory_mib: 16,
            ..GuestSpec::new("unending")
        };
        let mut guest = Guest::start(&spec, from)?;
        guest.await_hello(from)?;
        let mut asked = OnHost {
            guest: &mut guest,
            host: from,
        };
        asked.fill(FILL)?;
        asked.give_work(1, Workload::Change)?;
        let receiver = Receiver::start_on("unending-1", to, end, &[INSECURE])?;
        let report = guest.move_to(from, &receiver, &OPTIONS)?;
        let memory = OnHost {
            guest: &mut guest,
            host: to,
        }
        .verify()?;
        guest.power_off(to)?;
        Ok(Self { report, memory })
    }

    pub fn checks(&self) -> Vec<Check> {
        let transfer = self.report.transfer;
        let ended_by_itself = transfer.is_none_or(|it| it.converged);
        let rounds = transfer.map_or(0, |it| it.rounds as usize);
        let detail = transfer.map_or_else(String::new, |it| {
            format!(
                "{} rounds, {} KiB, {} KiB of them stopped, away for {} ms, {} ms in all",
                it.rounds,
                it.sent_bytes >> 10,
                it.stopped_bytes >> 10,
                it.downtime_ms,
                it.total_ms
            )
        });
        vec![
            count("converged", ended_by_itself.into(), "moves").with_detail(detail),
            at_least("rounds", rounds, LEAST_ROUNDS, "rounds").with_detail("unending"),
            Check::new(
                "stopped_kib",
                transfer.map_or(f64::NAN, |it| kib(it.stopped_bytes)),
                // More than what would have fitted.
                Limit::AtLeast(110.0),
                "KiB",
            )
            .with_detail("unending"),
            count("damaged_pages", self.memory.damaged, "pages").with_detail(format!(
                "unending: {} pages, {} changes",
                self.memory.pages, self.memory.changes
            )),
        ]
    }
}

#[expect(clippy::cast_precision_loss, reason = "a few MiB")]
fn kib(bytes: u64) -> f64 {
    bytes as f64 / 1024.0
}
