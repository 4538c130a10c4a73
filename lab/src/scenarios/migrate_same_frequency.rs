//! A Linux guest moves while its CPUs work, and sees nothing of it.

use super::pauses::backwards_steps;
use crate::guest::{Guest, GuestSpec, MigrationReport, Receiver, host_spec};
use crate::host::Host;
use crate::report::{Check, Limit};
use crate::scenario::{Scenario, Stage, Step, no_checks};
use anyhow::{Context, Result};
use guest_protocol::Workload;
use guest_protocol::report::Sample;
use lab_authority::{Authority, Request};

pub const SCENARIO: Scenario = Scenario {
    name: "migrate-same-frequency",
    about: "a Linux guest moves between VMMs while it works; clocks and stolen time go on",
    must_fail: None,
    play,
};

/// How often the guest moves.
const MOVES: usize = 5;

/// As many of them, the first, go over TCP and TLS; the others to a Unix socket.
const OVER_TLS: usize = 1;

/// Where a VMM waits for a guest that moves over TLS, and by what name its certificate has it.
const ADDRESS: &str = "tcp:127.0.0.1:7001";
const SOURCE: &str = "source.example";

#[derive(Default)]
struct Scene {
    host: Option<Host>,
    guest: Option<Guest>,
    moves: Vec<Move>,
    over_tls: usize,
    backwards_steps: u64,
    spinning: usize,
}

/// Files of a host, by which a source and a destination there know each other.
struct Certificates([String; 5]);

impl Certificates {
    /// Makes an authority and what it signs.
    fn put(host: &mut Host) -> Result<Self> {
        let authority = Authority::new("lab");
        let source = authority.sign(&Request::new(&[SOURCE]));
        let destination = authority.sign(&Request::new(&["127.0.0.1"]));
        let files = [
            ("ca.pem", &authority.certificate),
            ("source.pem", &source.certificate),
            ("source.key", &source.key),
            ("destination.pem", &destination.certificate),
            ("destination.key", &destination.key),
        ];
        for (name, text) in files {
            host.put_file(&host.file(name), 0o600, text.as_bytes())?;
        }
        Ok(Self(files.map(|(name, _)| host.file(name))))
    }

    fn of_source(&self) -> Vec<&str> {
        let Self([ca, cert, key, ..]) = self;
        vec!["--tls-ca", ca, "--tls-cert", cert, "--tls-key", key]
    }

    fn of_destination(&self) -> Vec<&str> {
        let Self([ca, _, _, cert, key]) = self;
        let files = ["--tls-ca", ca, "--tls-cert", cert, "--tls-key", key];
        [&files[..], &["--tls-name", SOURCE]].concat()
    }
}

/// One migration, with what the guest saw around it.
struct Move {
    report: MigrationReport,
    before: Sample,
    after: Sample,
}

fn play(stage: &mut Stage) -> Result<()> {
    stage.play(
        Scene::default(),
        &[
            Step {
                name: "boot a host and a guest with two vCPUs, one of which spins",
                act: boot,
                checks: no_checks,
            },
            Step {
                name: "move it from one VMM to the next",
                act: migrate,
                checks,
            },
            Step {
                name: "turn it off",
                act: |scene, _| {
                    let host = scene.host.as_mut().context("no host")?;
                    let guest = scene.guest.take().context("no guest")?;
                    guest.power_off(host)?;
                    scene.host.take().context("no host")?.power_off()
                },
                checks: no_checks,
            },
        ],
    )
}

fn boot(scene: &mut Scene, stage: &mut Stage) -> Result<()> {
    let spec = crate::machine::HostSpec {
        cpus: 3,
        ..host_spec("host", stage.assets, &stage.logs)?
    };
    let host = scene.host.insert(stage.boot(&spec)?);
    let mut guest = Guest::start(
        &GuestSpec {
            cpus: 2,
            workload: Workload::Spin,
            ..GuestSpec::new("mover")
        },
        host,
    )?;
    guest.await_hello(host)?;
    guest.set_workload(host, 1, Workload::Busy)?;
    scene.guest = Some(guest);
    Ok(())
}

fn migrate(scene: &mut Scene, stage: &mut Stage) -> Result<()> {
    let host = scene.host.as_mut().context("no host")?;
    let guest = scene.guest.as_mut().context("no guest")?;
    for number in 1..=MOVES {
        stage.step(&format!("move it: {number} of {MOVES}"));
        let name = format!("mover-{number}");
        let files = if number <= OVER_TLS {
            Some(Certificates::put(host)?)
        } else {
            None
        };
        let receiver = match &files {
            Some(files) => Receiver::start_at(&name, ADDRESS, host, &files.of_destination())?,
            None => Receiver::start(&name, host)?,
        };
        let options = files.as_ref().map_or(Vec::new(), Certificates::of_source);
        let before = guest.sample(host)?;
        let report = guest.move_to(host, &receiver, &options)?;
        let is_secured = receiver
            .said(host)?
            .contains(&format!("{ADDRESS} over TLS"));
        scene.over_tls += usize::from(is_secured);
        let after = guest.sample(host)?;
        let spins = guest.spins(host)?;
        scene.backwards_steps += backwards_steps(&spins);
        scene.spinning += spins.len();
        scene.moves.push(Move {
            report,
            before,
            after,
        });
        stage.report.adjustments.extend(guest.adjustments(host)?);
    }
    Ok(())
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

    /// By how much the guest's stolen time grew in all; none where it stepped back.
    fn steal_grew(&self) -> bool {
        self.before
            .steal_ns
            .iter()
            .zip(&self.after.steal_ns)
            .all(|(before, after)| after >= before)
    }

    fn facts(&self) -> String {
        self.report.transfer.map_or_else(
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
        )
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
    let count = |count: usize| u32::try_from(count).map_or(f64::NAN, f64::from);
    let facts: Vec<_> = scene.moves.iter().map(Move::facts).collect();
    let lost_steal = scene.moves.iter().filter(|it| !it.steal_grew()).count();
    let steps = u32::try_from(scene.backwards_steps).map_or(f64::NAN, f64::from);
    vec![
        Check::new(
            "moves",
            count(scene.moves.len()),
            Limit::Equals(count(MOVES)),
            "moves",
        ),
        Check::new(
            "moves_over_tls",
            count(scene.over_tls),
            Limit::Equals(count(OVER_TLS)),
            "moves",
        ),
        Check::new(
            "downtime_ms",
            worst(&Move::downtime_ms),
            Limit::AtMost(3_000.0),
            "ms",
        )
        .with_detail(facts.join("; ")),
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
        Check::new(
            "steal_steps_back",
            count(lost_steal),
            Limit::Equals(0.0),
            "moves",
        ),
        Check::new("backwards_steps", steps, Limit::Equals(0.0), "reads")
            .with_detail(format!("{} reports of spinning vCPUs", scene.spinning)),
        Check::new(
            "spin_reports",
            count(scene.spinning),
            Limit::Equals(count(MOVES)),
            "reports",
        ),
    ]
}
