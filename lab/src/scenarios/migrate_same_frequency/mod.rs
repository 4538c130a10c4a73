//! A Linux guest moves between two hosts while it works and changes its memory, and sees nothing of it.

mod stolen;
mod unending;

use self::stolen::{Look, Over};
use self::unending::Unending;
use super::bare_checks::{at_least, count};
use super::pauses::backwards_steps;
use super::secured::Secured;
use crate::clocks::ClockSight;
use crate::guest::{Guest, GuestSpec, INSECURE, MigrationReport, Receiver, host_spec};
use crate::host::Host;
use crate::machine::HostSpec;
use crate::report::{Check, Limit};
use crate::scenario::{Scenario, Stage, Step, no_checks};
use crate::wire::{WireEnd, wire};
use anyhow::{Context, Result, bail};
use guest_protocol::report::{Memory, Sample};
use guest_protocol::request::Fill;
use guest_protocol::{Action, Body, Workload};

pub const SCENARIO: Scenario = Scenario {
    name: "migrate-same-frequency",
    about: "a Linux guest moves between two hosts while it works; clocks and stolen time go on",
    must_fail: None,
    play,
};

/// The guest, by the VMM that runs it: one for each move, and the first.
const NAMES: [&str; 4] = ["mover", "mover-1", "mover-2", "mover-3"];
const CPUS: u32 = 2;
const MOVES: usize = NAMES.len() - 1;

/// The move that goes over TLS; the others are in the clear.
const OVER_TLS: &str = NAMES[1];

/// Memory that changes all the way: while all of the VM's is sent, most of it does, and then about half
/// as much in each round.
const FILL: Fill = Fill {
    seed: 5,
    mib: 8,
    changes_per_s: 500,
};

/// Rounds that a move takes at least: all of the memory, what changed meanwhile, and the rest.
const LEAST_ROUNDS: usize = 3;

#[derive(Default)]
struct Scene {
    /// The one where the guest is comes first.
    hosts: Vec<(Host, WireEnd)>,
    guest: Option<Guest>,
    moves: Vec<Move>,
    over_tls: usize,
    /// Questions that were answered with yes, and moved nothing.
    accepted: usize,
    backwards_steps: u64,
    spinning: usize,
    unending: Option<Unending>,
}

/// One migration, with what the guest saw around it.
struct Move {
    report: MigrationReport,
    before: Sample,
    after: Sample,
    memory: Memory,
    /// Stolen time before and after.
    stolen: [Look; 2],
    /// Clocks of the host that it left, and of the one that it came to.
    clocks: [ClockSight; 2],
}

fn play(stage: &mut Stage) -> Result<()> {
    stage.play(
        Scene::default(),
        &[
            Step {
                name: "boot two hosts, and a guest that spins and changes its memory",
                act: boot,
                checks: no_checks,
            },
            Step {
                name: "move it from host to host",
                act: migrate,
                checks,
            },
            Step {
                name: "turn it off, and move one that changes its memory faster than it is sent",
                act: |scene, _| {
                    let guest = scene.guest.take().context("no guest")?;
                    guest.power_off(&mut scene.hosts[0].0)?;
                    let [(from, _), (to, end)] = &mut scene.hosts[..] else {
                        bail!("there are no two hosts");
                    };
                    scene.unending = Some(Unending::play([from, to], *end)?);
                    Ok(())
                },
                checks: |scene| {
                    let unending = scene.unending.as_ref();
                    unending.map(Unending::checks).unwrap_or_default()
                },
            },
            Step {
                name: "power the hosts off",
                act: |scene, _| {
                    let hosts = scene.hosts.drain(..);
                    hosts.map(|(host, _)| host).try_for_each(Host::power_off)
                },
                checks: no_checks,
            },
        ],
    )
}

fn boot(scene: &mut Scene, stage: &mut Stage) -> Result<()> {
    for (name, end) in ["host-0", "host-1"].into_iter().zip(wire(0)) {
        let spec = HostSpec {
            memory_mib: 1024,
            wires: vec![end],
            ..host_spec(name, stage.assets, &stage.logs)?
        };
        scene.hosts.push((stage.boot(&spec)?, end));
    }
    let host = &mut scene.hosts[0].0;
    let spec = GuestSpec {
        cpus: CPUS,
        ..GuestSpec::new(NAMES[0])
    };
    let mut guest = Guest::start(&spec, host)?;
    guest.await_hello(host)?;
    guest.ask(host, Action::Fill(FILL))?;
    guest.set_workload(host, 0, Workload::Spin)?;
    guest.set_workload(host, 1, Workload::Change)?;
    scene.guest = Some(guest);
    Ok(())
}

fn migrate(scene: &mut Scene, stage: &mut Stage) -> Result<()> {
    for name in &NAMES[1..] {
        stage.step(&format!("move it to {name}"));
        let made = one(scene, stage, name)?;
        scene.moves.push(made);
        scene.hosts.swap(0, 1);
    }
    Ok(())
}

fn one(scene: &mut Scene, stage: &mut Stage, name: &'static str) -> Result<Move> {
    let [(from, _), (to, end)] = &mut scene.hosts[..] else {
        bail!("there are no two hosts");
    };
    let guest = scene.guest.as_mut().context("no guest")?;
    for host in [&mut *from, to] {
        // The clock of a local host is not the lab's to set, and is one for both.
        if host.is_emulated() {
            host.set_clock()?;
        }
    }
    // By the address, as an operator does who names nothing.
    let secured = if name == OVER_TLS {
        let address = to.address_at(*end)?.to_string();
        Some(Secured::new(&address, from, to)?)
    } else {
        None
    };
    let clear = vec![INSECURE];
    let [at_source, at_destination] = match &secured {
        Some(secured) => [secured.at_source(), secured.at_destination()],
        None => [clear.clone(), clear],
    };
    let receiver = Receiver::start_on(name, to, *end, &at_destination)?;
    let question = [&at_source[..], &["--dry-run"]].concat();
    let answer = guest.ask_to_move(from, &receiver.address, &question)?;
    scene.accepted += usize::from(is_yes(&answer));
    let stolen_before = Look::before(guest, from)?;
    let before = guest.sample(from)?;
    let report = guest.move_to(from, &receiver, &at_source)?;
    scene.over_tls += usize::from(receiver.said(to)?.contains("over TLS"));
    let after = guest.sample(to)?;
    let stolen = [stolen_before, Look::after(guest, to)?];
    let clocks = [from.clocks()?, to.clocks()?];
    let spins = guest.spins(to)?;
    scene.backwards_steps += backwards_steps(&spins);
    scene.spinning += spins.len();
    let memory = match guest.ask(to, Action::Verify)? {
        Body::Memory(memory) => memory,
        other => bail!("the guest sent {other:?} for its memory"),
    };
    stage.keep_time(guest, to)?;
    Ok(Move {
        report,
        before,
        after,
        memory,
        stolen,
        clocks,
    })
}

/// The guest could go there, and nothing of it did.
fn is_yes(answer: &MigrationReport) -> bool {
    answer.outcome == "Accepted"
        && answer.refusals.is_empty()
        && answer.transfer.is_none()
        && answer.record.is_none()
}

impl Move {
    /// What Linux's monotonic clock gained beyond the time that the VM ran.
    fn monotonic_excess_ms(&self) -> Option<f64> {
        let record = self.report.record.as_ref()?;
        let gained_ns = self
            .after
            .monotonic_ns
            .checked_sub(self.before.monotonic_ns)?;
        let to_stop = record
            .before
            .guest
            .checked_sub(self.before.counter_before)?;
        let from_resume = self.after.counter_before.checked_sub(record.after.guest)?;
        let ran_ns = u128::from(to_stop + from_resume) * 1_000_000_000
            / u128::from(record.after.frequency_hz);
        let excess_ns = u128::from(gained_ns).abs_diff(ran_ns);
        Some(u32::try_from(excess_ns / 1_000).map_or(f64::NAN, f64::from) / 1e3)
    }

    fn downtime_ms(&self) -> f64 {
        let downtime_ms = self.report.transfer.map(|it| it.downtime_ms);
        downtime_ms
            .and_then(|it| u32::try_from(it).ok())
            .map_or(f64::NAN, f64::from)
    }

    fn shown_ticks(&self) -> f64 {
        let shown = self.report.record.as_ref().and_then(|it| it.shown_ticks);
        shown
            .and_then(|it| u32::try_from(it).ok())
            .map_or(f64::NAN, f64::from)
    }

    fn stolen(&self) -> Vec<Over> {
        let gap = self.report.record.as_ref().and_then(|it| it.gap.as_ref());
        // A gap that nothing is known of is in no account.
        let gap = gap.map_or((i128::MAX >> 1, 0), |gap| {
            (gap.ns, gap.error_ns.unwrap_or(0))
        });
        let [before, after] = &self.stolen;
        Over::of([before, after], [&self.before, &self.after], gap)
    }

    fn facts(&self) -> String {
        let gap = self.report.record.as_ref().and_then(|it| it.gap.as_ref());
        let away = gap.map_or_else(
            || "nothing".into(),
            |gap| {
                let error_us = gap.error_ns.map(|ns| ns / 1000);
                format!("away for {} us, right to {error_us:?} us", gap.ns / 1000)
            },
        );
        let sent = self.report.transfer.map_or_else(
            || "nothing".into(),
            |it| {
                format!(
                    "{} rounds, {} KiB, {} KiB of them stopped, {} ms in all",
                    it.rounds,
                    it.sent_bytes >> 10,
                    it.stopped_bytes >> 10,
                    it.total_ms
                )
            },
        );
        format!("{sent}; {away}")
    }
}

fn checks(scene: &Scene) -> Vec<Check> {
    let worst = |figure: &dyn Fn(&Move) -> f64| {
        let figures = scene.moves.iter().map(figure);
        figures.fold(
            0.0,
            |worst, it| if it > worst || it.is_nan() { it } else { worst },
        )
    };
    let number = |count: usize| u32::try_from(count).map_or(f64::NAN, f64::from);
    let facts: Vec<_> = scene.moves.iter().map(Move::facts).collect();
    let stolen: Vec<_> = scene.moves.iter().flat_map(Move::stolen).collect();
    let rounds = scene.moves.iter().filter_map(|it| it.report.transfer);
    let rounds = rounds.map(|it| it.rounds as usize).min().unwrap_or(0);
    let damaged = scene.moves.iter().map(|it| it.memory.damaged).sum();
    let changes = scene.moves.last().map_or(0, |it| it.memory.changes);
    let moves = Limit::Equals(number(MOVES));
    let mut checks = vec![
        Check::new("moves", number(scene.moves.len()), moves, "moves"),
        Check::new(
            "moves_over_tls",
            number(scene.over_tls),
            Limit::Equals(1.0),
            "moves",
        ),
        Check::new(
            "dry_runs_accepted",
            number(scene.accepted),
            Limit::Equals(number(MOVES)),
            "answers",
        ),
        Check::new(
            "downtime_ms",
            worst(&Move::downtime_ms),
            Limit::AtMost(5_000.0),
            "ms",
        )
        .with_detail(facts.join("; ")),
        Check::new(
            "blackout_beyond_error_us",
            worst(&|it| {
                let error_us = it.report.blackout_error_us(it.clocks.each_ref());
                error_us.unwrap_or(f64::NAN)
            }),
            Limit::Equals(0.0),
            "us",
        ),
        Check::new(
            "monotonic_excess_ms",
            worst(&|it| it.monotonic_excess_ms().unwrap_or(f64::NAN)),
            Limit::AtMost(5.0),
            "ms",
        ),
        Check::new(
            "shown_ticks",
            worst(&Move::shown_ticks),
            Limit::Equals(0.0),
            "ticks",
        ),
        count("backwards_steps", scene.backwards_steps, "reads")
            .with_detail(format!("{} reports of spinning vCPUs", scene.spinning)),
        Check::new("spin_reports", number(scene.spinning), moves, "reports"),
        count("damaged_pages", damaged, "pages")
            .with_detail(format!("{changes} changes, {} MiB", FILL.mib)),
        at_least("rounds", rounds, LEAST_ROUNDS, "rounds"),
    ];
    checks.extend(stolen::checks(&stolen, MOVES * CPUS as usize));
    checks
}
