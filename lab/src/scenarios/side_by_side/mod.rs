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

/// Each guest, by where it is: one for each move, and the first. An odd number of moves, so that one
/// of them is the median.
const FREEZE: [&str; 8] = [
    "freeze", "freeze-1", "freeze-2", "freeze-3", "freeze-4", "freeze-5", "freeze-6", "freeze-7",
];
const ADVANCE: [&str; 8] = [
    "advance",
    "advance-1",
    "advance-2",
    "advance-3",
    "advance-4",
    "advance-5",
    "advance-6",
    "advance-7",
];
const QEMU: [&str; 8] = [
    "qemu", "qemu-1", "qemu-2", "qemu-3", "qemu-4", "qemu-5", "qemu-6", "qemu-7",
];
const MOVES: usize = QEMU.len() - 1;

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
    freeze: Moves,
    advance: Moves,
    qemu: Moves,
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
                name: "move a guest of ours from host to host, its clocks frozen",
                act: move_frozen,
                checks: no_checks,
            },
            Step {
                name: "the same with its clocks advanced",
                act: move_advanced,
                checks: no_checks,
            },
            Step {
                name: "move QEMU's from host to host",
                act: move_qemu,
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
        let before = dialogue.sights(host, SAMPLES)?;
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
            after: dialogue.sights(host, SAMPLES)?,
            said,
            spin,
            counter_hz: self.counter_hz,
        };
        moves.backwards_steps += backwards_steps(&[made.spin]);
        moves.figures.push(made.figures()?);
        Ok(memory(dialogue, host)?.damaged)
    }
}

fn move_frozen(scene: &mut Scene, stage: &mut Stage) -> Result<()> {
    let (moves, damaged) = move_ours(&FREEZE, &["--on-migrate", "freeze"], scene, stage)?;
    scene.damaged += damaged;
    scene.freeze = moves;
    Ok(())
}

fn move_advanced(scene: &mut Scene, stage: &mut Stage) -> Result<()> {
    let (moves, damaged) = move_ours(&ADVANCE, &["--on-migrate", "advance"], scene, stage)?;
    scene.damaged += damaged;
    scene.advance = moves;
    Ok(())
}

/// Moves a guest of ours; also how much of its memory is damaged.
fn move_ours(
    names: &[&'static str],
    policy: &'static [&'static str],
    scene: &mut Scene,
    stage: &mut Stage,
) -> Result<(Moves, u64)> {
    let (mut moves, mut damaged) = (Moves::default(), 0);
    let host = &mut scene.hosts[0].0;
    let spec = GuestSpec {
        cpus: CPUS,
        memory_mib: MEMORY_MIB,
        vmm_options: policy,
        kernel_options: "quiet loglevel=0",
        ..GuestSpec::new(names[0])
    };
    let mut guest = Guest::start(&spec, host)?;
    guest.await_hello(host)?;
    let mut dialogue = guest.dialogue();
    dialogue.ask(host, Action::Fill(FILL))?;
    for name in &names[1..] {
        let [(from, _), (to, end)] = &mut scene.hosts[..] else {
            bail!("there are no two hosts");
        };
        for host in [&mut *from, to] {
            // They go by both wall clocks. A local host's is one for both.
            if host.is_emulated() {
                host.set_clock()?;
            }
        }
        let receiver = Receiver::start_on(name, to, *end, &[INSECURE])?;
        guest.sample(from)?;
        let begun = Begun::look(&mut dialogue, from)?;
        let report = guest.move_to(from, &receiver, &[INSECURE])?;
        let transfer = report.transfer.context("nothing was sent")?;
        let record = report.record.context("there is no record")?;
        let said = Said {
            downtime_ms: number(transfer.downtime_ms),
            lost_ms: number(record.hidden_ns) / 1e6,
            total_ms: number(transfer.total_ms),
        };
        dialogue = guest.dialogue();
        damaged += begun.end(&mut dialogue, to, said, &mut moves)?;
        stage.note(&format!("{name}: {:?}, {transfer:?}", moves.figures.last()));
        stage.keep_time(&mut guest, to)?;
        scene.hosts.swap(0, 1);
    }
    guest.power_off(&mut scene.hosts[0].0)?;
    Ok((moves, damaged))
}

fn move_qemu(scene: &mut Scene, stage: &mut Stage) -> Result<()> {
    let host = &mut scene.hosts[0].0;
    let mut guest = PeerGuest::start(QEMU[0], host, CPUS, MEMORY_MIB, &[])?;
    guest.dialogue.await_hello(host)?;
    guest.dialogue.ask(host, Action::Fill(FILL))?;
    for name in &QEMU[1..] {
        let [(from, _), (to, end)] = &mut scene.hosts[..] else {
            bail!("there are no two hosts");
        };
        let there = PeerGuest::start(name, to, CPUS, MEMORY_MIB, &["-incoming", "defer"])?;
        let begun = Begun::look(&mut guest.dialogue, from)?;
        let (mut there, migrated) = guest.move_to(from, there, to, *end)?;
        let said = said_by(migrated);
        scene.damaged += begun.end(&mut there.dialogue, to, said, &mut scene.qemu)?;
        stage.note(&format!("{name}: {:?}", scene.qemu.figures.last()));
        std::mem::replace(&mut guest, there).kill(from)?;
        scene.hosts.swap(0, 1);
    }
    guest.kill(&mut scene.hosts[0].0)
}

/// QEMU has one word for how long the guest is down and for what its clock loses.
fn said_by(migrated: Migrated) -> Said {
    let downtime_ms = number(migrated.downtime_ms);
    Said {
        downtime_ms,
        lost_ms: downtime_ms,
        total_ms: number(migrated.total_ms),
    }
}

#[expect(clippy::cast_precision_loss, reason = "exact up to 100 days of ns")]
fn number(figure: u64) -> f64 {
    figure as f64
}

fn checks(scene: &Scene) -> Vec<Check> {
    let (ours, qemu) = ([&scene.freeze, &scene.advance], &scene.qemu);
    let all = [ours[0], ours[1], qemu];
    let [freeze, advance, theirs] = all.map(|it| Figures::medians(&it.figures));
    let ratio = |name, of_ours: Figures, aim| {
        let ratio = of_ours.clock_error_ms / theirs.clock_error_ms;
        let told = |it: Figures| format!("{:.2} ms within {:.2}", it.clock_error_ms, it.bound_ms);
        let detail = format!("{} and {}", told(of_ours), told(theirs));
        Check::new(name, ratio, Limit::AtMost(aim), "of QEMU's").with_detail(detail)
    };
    let steps = |of: &[&Moves]| of.iter().map(|it| it.backwards_steps).sum();
    let made = all.iter().map(|it| it.figures.len() as u64).sum();
    let due = number((all.len() * MOVES) as u64);
    vec![
        Check::new("moves", number(made), Limit::Equals(due), "moves"),
        ratio("downtime_ratio", freeze, 0.5),
        ratio("clock_error_ratio", advance, 0.1),
        count("backwards_steps", steps(&ours), "reads"),
        count("backwards_steps_qemu", steps(&[qemu]), "reads"),
        count("damaged_pages", scene.damaged, "pages"),
    ]
}

fn finish(scene: &mut Scene, stage: &mut Stage) -> Result<()> {
    let version = peer::version(&mut scene.hosts[0].0)?;
    let all = [&scene.freeze, &scene.advance, &scene.qemu];
    let [freeze, advance, qemu] = all.map(|it| Figures::medians(&it.figures));
    let table = format!(
        "{}\nMedians of {MOVES} moves each; {version}, `{}`.\n",
        table([&freeze, &advance, &qemu]),
        PeerGuest::options(CPUS, MEMORY_MIB)
    );
    let path = stage.logs.join(TABLE);
    fs::write(&path, &table).with_context(|| format!("cannot write {}", path.display()))?;
    let hosts = scene.hosts.drain(..);
    hosts.map(|(host, _)| host).try_for_each(Host::power_off)
}
