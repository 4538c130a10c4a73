//! Two busy guests that share one host CPU, and an idle one.

use super::watch::{Figures, Watch, worst};
use crate::guest::{Guest, GuestSpec, host_spec};
use crate::host::Host;
use crate::machine::HostSpec;
use crate::report::{Check, Limit};
use crate::scenario::Stage;
use anyhow::{Context, Result, bail};
use guest_protocol::{Action, Workload};
use std::time::Duration;

/// Most that a guest's own figure may differ: it is a multiple of 10 ms, and one tick behind.
pub const PROC_STAT_LIMIT_MS: f64 = 20.0;

/// What an emulator may wait for CPUs, all its threads together, as a part of the time.
const HELD_UP_MAX: f64 = 0.02;

/// What an idle guest may lose while it is watched: the share that 50 ms are of 12 s. One whose idle time
/// were taken for stolen would lose nearly all.
const IDLE_STOLEN_LIMIT_MS: f64 = 20.0;

/// The guests on their host.
pub struct ThreeGuests {
    pub host: Host,
    /// The busy ones first.
    guests: Vec<Guest>,
    watches: Vec<Watch>,
    /// What the emulator's threads waited for a CPU of this machine while the guests were watched.
    held_up: Duration,
    /// How far each guest's own figure was from its structure at the end.
    proc_stat_ms: Vec<f64>,
}

impl ThreeGuests {
    /// Boots a host and the guests, each where it is to run.
    pub fn start(stage: &mut Stage) -> Result<Self> {
        // One CPU for the busy guests, one for the idle one, and one for everything that measures.
        let spec = HostSpec {
            cpus: 3,
            ..host_spec("host", stage.assets, &stage.logs)?
        };
        let mut host = stage.boot(&spec)?;
        host.pin_agent(&[2])?;
        stage.step("boot the guests");
        let busy = |name| GuestSpec {
            workload: Workload::Busy,
            ..GuestSpec::new(name)
        };
        let mut guests = Vec::new();
        for spec in [busy("busy-1"), busy("busy-2"), GuestSpec::new("idle")] {
            guests.push(Guest::start(&spec, &mut host)?);
        }
        for guest in &mut guests {
            guest.await_hello(&mut host)?;
        }
        for (guest, cpu) in guests.iter().zip([0, 0, 1]) {
            guest.pin(&mut host, &[cpu], &[2])?;
        }
        Ok(Self {
            host,
            guests,
            watches: Vec::new(),
            held_up: Duration::ZERO,
            proc_stat_ms: Vec::new(),
        })
    }

    /// Watches the guests for a time; `show` gets what was seen so far after each look at all.
    ///
    /// What an emulator waits for this machine's CPUs is no time that a guest lost, but is in the
    /// figures: if it was much, the guests are watched again, `attempts` times at most, and the time
    /// with the shortest waits is judged.
    pub fn watch(
        &mut self,
        time: Duration,
        attempts: u32,
        stage: &Stage,
        mut show: impl FnMut(&[Watch]),
    ) -> Result<()> {
        for attempt in 1..=attempts {
            let before = self.host.held_up()?;
            let watches = Watch::all(&mut self.guests, &mut self.host, time, &mut show)?;
            let held_up = self.host.held_up()?.saturating_sub(before);
            if attempt == 1 || held_up < self.held_up {
                (self.watches, self.held_up) = (watches, held_up);
            }
            if held_up < time.mul_f64(HELD_UP_MAX) {
                break;
            }
            let held_up = held_up.as_secs_f64();
            stage.note(&format!(
                "attempt {attempt}: the emulator waited {held_up:.1} s for a CPU"
            ));
        }
        Ok(())
    }

    pub fn check_watched(&self) -> Vec<Check> {
        let [first, second, idle] = &self.watches[..] else {
            return Vec::new();
        };
        let share = |watch: &Watch| {
            let limit = Limit::Range {
                from: 45.0,
                to: 55.0,
            };
            let measured = watch.stolen_share_percent();
            Check::new("stolen_share_percent", measured, limit, "%").with_detail(watch.name)
        };
        let differences = worst(self.watches.iter().map(Watch::structure_vs_run_delay_ms));
        let backwards: u32 = self.watches.iter().map(Watch::backwards_steps).sum();
        let at_most = Limit::AtMost;
        let held_up = format!("emulator waited {} ms for CPUs", self.held_up.as_millis());
        vec![
            share(first),
            share(second),
            Check::new(
                "structure_vs_run_delay_ms",
                differences,
                at_most(10.0),
                "ms",
            ),
            Check::new(
                "idle_guest_stolen_ms",
                idle.stolen_ms(),
                at_most(IDLE_STOLEN_LIMIT_MS),
                "ms",
            )
            .with_detail(held_up),
            Check::new(
                "stolen_monotonic",
                backwards.into(),
                Limit::Equals(0.0),
                "steps",
            ),
        ]
    }

    /// The first busy guest, and the host.
    pub fn first(&mut self) -> Result<(&mut Guest, &mut Host)> {
        let guest = self.guests.first_mut().context("no guests")?;
        Ok((guest, &mut self.host))
    }

    /// Lets all guests rest, compares each one's own figure with its structure, and ends it.
    pub fn compare(&mut self, stage: &mut Stage) -> Result<()> {
        let rest = Action::SetWorkload {
            cpu: 0,
            workload: Workload::Idle,
        };
        for guest in &mut self.guests {
            guest.ask(&mut self.host, rest)?;
        }
        for mut guest in self.guests.drain(..) {
            let figures = Figures::take(&mut guest, &mut self.host, 0)?;
            self.proc_stat_ms.push(figures.difference_ms(0, 0)?);
            stage.keep_time(&mut guest, &mut self.host)?;
            guest.power_off(&mut self.host)?;
        }
        if self.proc_stat_ms.len() != self.watches.len() {
            bail!("{} guests were compared, not all", self.proc_stat_ms.len());
        }
        Ok(())
    }

    pub fn check_compared(&self) -> Check {
        let measured = worst(self.proc_stat_ms.iter().copied());
        let limit = Limit::AtMost(PROC_STAT_LIMIT_MS);
        Check::new("proc_stat_vs_structure_ms", measured, limit, "ms")
    }
}
