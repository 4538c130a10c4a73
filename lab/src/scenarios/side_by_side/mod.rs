//! The same Linux guest with the same work, moved from host to host by us and by QEMU.

mod figures;

use super::bare_checks::count;
use super::pauses::backwards_steps;
use crate::dialogue::Dialogue;
use crate::guest::{Guest, GuestSpec, INSECURE, Receiver, host_spec};
use crate::host::Host;
use crate::interrupt::sleep;
use crate::machine::HostSpec;
use crate::peer::{self, Migrated, PeerGuest};
use crate::report::{Check, Limit};
use crate::scenario::{Scenario, Stage, Step, no_checks};
use crate::sightings::Sighting;
use crate::wire::{WireEnd, wire};
use anyhow::{Context, Result, bail};
use figures::{Figures, Move, Said, table};
use guest_protocol::report::{Memory, Spin};
use guest_protocol::request::Fill;
use guest_protocol::{Action, Body, Workload};
use std::fs;
use std::time::Duration;

pub const SCENARIO: Scenario = Scenario {
    name: "side-by-side",
    about: "a Linux guest moved by us and by QEMU: downtime, clock error and total time of both",
    must_fail: None,
    play,
};

/// What it came to, in the folder of the logs.
const TABLE: &str = "side-by-side.md";

/// Each VMM's guest, by where it is: one for each move, and the first. An odd number of moves, so
/// that one of them is the median.
const OURS: [&str; 6] = ["ours", "ours-1", "ours-2", "ours-3", "ours-4", "ours-5"];
const THEIRS: [&str; 6] = [
    "theirs", "theirs-1", "theirs-2", "theirs-3", "theirs-4", "theirs-5",
];
const MOVES: usize = OURS.len() - 1;

/// Samples before a move, and after it: the more, the narrower the bound.
const SAMPLES: usize = 25;

/// From the start of the work to the move.
const WARM_UP: Duration = Duration::from_secs(1);

const CPUS: u32 = 2;
const MEMORY_MIB: u32 = 128;

/// Memory that changes all the way.
const FILL: Fill = Fill {
    seed: 5,
    mib: 16,
    changes_per_s: 500,
};

#[derive(Default)]
struct Scene {
    /// The one where the guest is comes first.
    hosts: Vec<(Host, WireEnd)>,
    ours: Moves,
    theirs: Moves,
    damaged: u64,
}

/// Moves by one VMM.
#[derive(Default)]
struct Moves {
    figures: Vec<Figures>,
    backwards_steps: u64,
}

fn play(stage: &mut Stage) -> Result<()> {
    stage.play(
        Scene::default(),
        &[
            Step {
                name: "boot two hosts with both VMMs",
                act: boot,
                checks: no_checks,
            },
            Step {
                name: "move a guest of ours from host to host",
                act: move_ours,
                checks: no_checks,
            },
            Step {
                name: "move QEMU's from host to host",
                act: move_theirs,
                checks,
            },
            Step {
                name: "write the table, and power the hosts off",
                act: finish,
                checks: no_checks,
            },
        ],
    )
}

fn boot(scene: &mut Scene, stage: &mut Stage) -> Result<()> {
    let peer = peer::files(stage.assets)?;
    for (name, end) in ["host-0", "host-1"].into_iter().zip(wire(0)) {
        let mut spec = HostSpec {
            memory_mib: 2560,
            wires: vec![end],
            ..host_spec(name, stage.assets, &stage.logs)?
        };
        spec.files.extend(peer.iter().cloned());
        scene.hosts.push((stage.boot(&spec)?, end));
    }
    Ok(())
}

/// What the vCPUs do while the guest moves, by number.
const WORK: [Workload; CPUS as usize] = [Workload::Spin, Workload::Change];

fn set_work(dialogue: &mut Dialogue, host: &mut Host, work: &[Workload]) -> Result<()> {
    for (cpu, &workload) in (0..).zip(work) {
        dialogue.ask(host, Action::SetWorkload { cpu, workload })?;
    }
    Ok(())
}

fn sights(dialogue: &mut Dialogue, host: &mut Host) -> Result<Vec<Sighting>> {
    (0..SAMPLES).map(|_| dialogue.sight(host)).collect()
}

/// What the one spinning vCPU saw since this was asked last.
fn spin(dialogue: &mut Dialogue, host: &mut Host) -> Result<Spin> {
    match dialogue.ask(host, Action::Spin)? {
        Body::Spin(spin) => Ok(spin),
        other => bail!("the guest sent {other:?} for what it saw"),
    }
}

fn memory(dialogue: &mut Dialogue, host: &mut Host) -> Result<Memory> {
    match dialogue.ask(host, Action::Verify)? {
        Body::Memory(memory) => Ok(memory),
        other => bail!("the guest sent {other:?} for its memory"),
    }
}

/// A migration on its way: what was seen of the guest before it.
struct Begun {
    before: Vec<Sighting>,
    counter_hz: u64,
}

impl Begun {
    /// Looks at a guest that has nothing to do, and so answers at once; then it has.
    fn look(dialogue: &mut Dialogue, host: &mut Host) -> Result<Self> {
        let before = sights(dialogue, host)?;
        set_work(dialogue, host, &WORK)?;
        sleep(WARM_UP)?;
        // The account starts afresh.
        spin(dialogue, host)?;
        let counter_hz = host.facts().counter_frequency_hz;
        Ok(Self {
            before,
            counter_hz: counter_hz.context("the host has no counter")?,
        })
    }

    /// Looks again at the guest where it is now. Returns how much of its memory is damaged.
    fn end(
        self,
        dialogue: &mut Dialogue,
        host: &mut Host,
        said: Said,
        moves: &mut Moves,
    ) -> Result<u64> {
        let spin = spin(dialogue, host)?;
        set_work(dialogue, host, &[Workload::Idle; CPUS as usize])?;
        let made = Move {
            before: self.before,
            after: sights(dialogue, host)?,
            said,
            spin,
            counter_hz: self.counter_hz,
        };
        moves.backwards_steps += backwards_steps(&[made.spin]);
        moves.figures.push(made.figures()?);
        Ok(memory(dialogue, host)?.damaged)
    }
}

fn move_ours(scene: &mut Scene, stage: &mut Stage) -> Result<()> {
    let host = &mut scene.hosts[0].0;
    let spec = GuestSpec {
        cpus: CPUS,
        memory_mib: MEMORY_MIB,
        kernel_options: "quiet loglevel=0",
        ..GuestSpec::new(OURS[0])
    };
    let mut guest = Guest::start(&spec, host)?;
    guest.await_hello(host)?;
    let mut dialogue = guest.dialogue();
    dialogue.ask(host, Action::Fill(FILL))?;
    for name in &OURS[1..] {
        let [(from, _), (to, end)] = &mut scene.hosts[..] else {
            bail!("there are no two hosts");
        };
        for host in [&mut *from, to] {
            // The gap in the record is by both wall clocks. A local host's is one for both.
            if host.is_emulated() {
                host.set_clock()?;
            }
        }
        let receiver = Receiver::start_on(name, to, *end, &[INSECURE])?;
        guest.sample(from)?;
        let begun = Begun::look(&mut dialogue, from)?;
        let report = guest.move_to(from, &receiver, &[INSECURE])?;
        let transfer = report.transfer.context("nothing was sent")?;
        let gap = report.record.and_then(|it| it.gap).context("no gap")?;
        let said = Said {
            downtime_ms: ms(transfer.downtime_ms.into()),
            stopped_ms: ms(gap.ns) / 1e6,
            total_ms: ms(transfer.total_ms.into()),
        };
        dialogue = guest.dialogue();
        scene.damaged += begun.end(&mut dialogue, to, said, &mut scene.ours)?;
        stage.note(&format!("{name}: {:?}", scene.ours.figures.last()));
        stage.keep_time(&mut guest, to)?;
        scene.hosts.swap(0, 1);
    }
    guest.power_off(&mut scene.hosts[0].0)
}

fn move_theirs(scene: &mut Scene, stage: &mut Stage) -> Result<()> {
    let host = &mut scene.hosts[0].0;
    let mut guest = PeerGuest::start(THEIRS[0], host, CPUS, MEMORY_MIB, &[])?;
    guest.dialogue.await_hello(host)?;
    guest.dialogue.ask(host, Action::Fill(FILL))?;
    for name in &THEIRS[1..] {
        let [(from, _), (to, end)] = &mut scene.hosts[..] else {
            bail!("there are no two hosts");
        };
        let there = PeerGuest::start(name, to, CPUS, MEMORY_MIB, &["-incoming", "defer"])?;
        let begun = Begun::look(&mut guest.dialogue, from)?;
        let (mut there, migrated) = guest.move_to(from, there, to, *end)?;
        let said = said_by(migrated);
        scene.damaged += begun.end(&mut there.dialogue, to, said, &mut scene.theirs)?;
        stage.note(&format!("{name}: {:?}", scene.theirs.figures.last()));
        std::mem::replace(&mut guest, there).kill(from)?;
        scene.hosts.swap(0, 1);
    }
    guest.kill(&mut scene.hosts[0].0)
}

/// QEMU has one word for how long the guest is down and for how long it did not run.
fn said_by(migrated: Migrated) -> Said {
    let downtime_ms = ms(migrated.downtime_ms.into());
    Said {
        downtime_ms,
        stopped_ms: downtime_ms,
        total_ms: ms(migrated.total_ms.into()),
    }
}

#[expect(clippy::cast_precision_loss, reason = "exact up to 100 days of ns")]
fn ms(figure: i128) -> f64 {
    figure as f64
}

fn checks(scene: &Scene) -> Vec<Check> {
    let (ours, theirs) = (&scene.ours, &scene.theirs);
    let medians = [ours, theirs].map(|it| Figures::medians(&it.figures));
    let ratio = |name, figure: fn(&Figures) -> f64, aim| {
        let [of_ours, of_theirs] = medians.map(|it| figure(&it));
        let bounds = medians.map(|it| it.error_bound_ms);
        Check::new(name, of_ours / of_theirs, Limit::AtMost(aim), "of QEMU's").with_detail(format!(
            "{of_ours:.2} ms, right to {:.2}, and {of_theirs:.2} ms, right to {:.2}",
            bounds[0], bounds[1]
        ))
    };
    let number = |count: usize| u32::try_from(count).map_or(f64::NAN, f64::from);
    let moves = number(ours.figures.len() + theirs.figures.len());
    vec![
        Check::new("moves", moves, Limit::Equals(number(2 * MOVES)), "moves"),
        ratio("downtime_ratio", |it| it.downtime_ms, 0.5),
        ratio("clock_error_ratio", |it| it.clock_error_ms, 0.1),
        count("backwards_steps", ours.backwards_steps, "reads"),
        count("backwards_steps_qemu", theirs.backwards_steps, "reads"),
        count("damaged_pages", scene.damaged, "pages"),
    ]
}

fn finish(scene: &mut Scene, stage: &mut Stage) -> Result<()> {
    let version = peer::version(&mut scene.hosts[0].0)?;
    let [ours, theirs] = [&scene.ours, &scene.theirs].map(|it| Figures::medians(&it.figures));
    let table = format!(
        "{}\nMedians of {MOVES} moves each; {version}, `{}`.\n",
        table(&ours, &theirs),
        PeerGuest::options(CPUS, MEMORY_MIB)
    );
    let path = stage.logs.join(TABLE);
    fs::write(&path, &table).with_context(|| format!("cannot write {}", path.display()))?;
    let hosts = scene.hosts.drain(..);
    hosts.map(|(host, _)| host).try_for_each(Host::power_off)
}
