//! Migrations that break at random points: the connection is cut, or a VMM killed. One VMM has the
//! guest afterwards, whole, or an operator finds out which may.

mod fault;
mod sides;

use self::fault::{Kind, Lengths, Planned, Ways};
use self::sides::{Found, Side, decide};
use super::bare_checks::{at_least, count};
use super::saved_guest::{self, SAVED};
use super::secured::Secured;
use crate::bare::{Bare, OnHost};
use crate::guest::{Guest, Receiver};
use crate::host::Host;
use crate::report::Check;
use crate::scenario::{Scenario, Stage};
use anyhow::{Context, Result, bail, ensure};
use fastrand::Rng;
use guest_protocol::request::Fill;
use lab_agent::message::{ChildId, Exit, Spawn};
use lab_agent::relay::{LISTENS, Order, Passed, RELAY};
use rustix::process::Signal;
use std::time::Duration;

pub const SCENARIO: Scenario = Scenario {
    name: "migrate-faults",
    about: "connections cut and VMMs killed at 100 points of migrations leave one owner of a whole VM",
    must_fail: None,
    play: |stage| play(stage, 100),
};

pub const FEW: Scenario = Scenario {
    name: "migrate-faults-few",
    about: "the same at nine points",
    must_fail: None,
    play: |stage| play(stage, 9),
};

/// Chooses the points; without it, chance does.
const SEED: &str = "PVTIME_LAB_SEED";

/// How often it is migrated undisturbed, to know how much passes.
const MEASURED: usize = 2;

/// Memory with a pattern in it that goes on changing.
const FILL: Fill = Fill {
    seed: 1,
    mib: 2,
    changes_per_s: 200,
};
const LIMIT: Duration = Duration::from_secs(45);

/// By what name a destination proves who it is, whichever VMM it is.
const DESTINATION: &str = "destination.example";

/// Names of the VMMs, which take turns.
const NAMES: [&str; 2] = ["here", "there"];

/// What came of the faults.
#[derive(Default)]
struct Tally {
    points: usize,
    reached: usize,
    /// The guest stayed, without a decision.
    stayed: usize,
    /// It was there, without a decision.
    moved: usize,
    /// An operator had to decide, and on which side.
    decided: [usize; 2],
    /// A side was in doubt, or both.
    in_doubt: usize,
    both_in_doubt: usize,
    /// It ended with the VMM that had it, which was killed.
    killed_with_vmm: usize,
    /// It was to go over TLS.
    over_tls: usize,
    /// It was paused when it was to move.
    paused: usize,
    /// It was, and then it ran without anybody's word.
    woken: Vec<String>,
    /// A VMM in doubt let it go on without `--take-over`.
    resumed_in_doubt: Vec<String>,
    two_owners: Vec<String>,
    lost: Vec<String>,
    corrupt: Vec<String>,
}

/// A host, the guest on it, and what is tried with it.
struct Scene {
    host: Host,
    guest: Guest,
    secured: Secured,
    /// Which of [`NAMES`] the guest's VMM has.
    at: usize,
    /// What the guest's memory had of changes when it was looked at last.
    changes: u64,
    /// Its live physical time then.
    live: u64,
    random: Rng,
    tally: Tally,
}

fn play(stage: &mut Stage, points: usize) -> Result<()> {
    let seed = match std::env::var(SEED) {
        Ok(seed) => seed
            .parse()
            .with_context(|| format!("{SEED} is no number"))?,
        Err(_) => fastrand::u64(..),
    };
    stage.note(&format!("{SEED}={seed}"));
    stage.step("boot a host, and save a guest");
    let mut scene = Scene::begin(stage, Rng::with_seed(seed))?;
    stage.step("migrate it undisturbed, in the clear and over TLS");
    let lengths = Ways {
        clear: scene.measure(false)?,
        secured: scene.measure(true)?,
    };
    for number in 1..=points {
        let planned = Planned::choose(&mut scene.random, &lengths, number);
        stage.step(&format!("{planned}, {number} of {points}"));
        scene
            .try_fault(&planned)
            .with_context(|| format!("point {number}, {planned}, {SEED}={seed}"))?;
    }
    let told = format!("{SEED}={seed}");
    stage
        .report
        .checks
        .extend(scene.tally.checks(points, &told));
    scene.guest.stop(&mut scene.host)?;
    scene.host.power_off()
}

impl Scene {
    fn begin(stage: &mut Stage, random: Rng) -> Result<Self> {
        let mut host = saved_guest::prepare(stage, FILL)?;
        let guest = restore(0, &mut host)?;
        let secured = Secured::on(&mut host, DESTINATION)?;
        Ok(Self {
            host,
            guest,
            secured,
            at: 0,
            changes: 0,
            live: 0,
            random,
            tally: Tally::default(),
        })
    }

    /// What passes when nothing breaks.
    fn measure(&mut self, is_secured: bool) -> Result<Lengths> {
        let mut passed = Vec::new();
        for _ in 0..MEASURED {
            let receiver = self.receiver(is_secured)?;
            let one = self.migrate(&receiver, is_secured, None)?;
            let found = self.settle(&receiver)?;
            if found.sides != [Side::Ended, Side::Running] {
                bail!("an undisturbed migration left {found}");
            }
            self.follow(&receiver)?;
            self.look()?;
            passed.push(one);
        }
        Lengths::of(&passed)
    }

    fn receiver(&mut self, is_secured: bool) -> Result<Receiver> {
        let name = NAMES[1 - self.at];
        clear(name, &mut self.host);
        if !is_secured {
            return Receiver::start(name, &mut self.host);
        }
        let receiver = Receiver::start_with(name, &mut self.host, &self.secured.at_destination())?;
        let said = receiver.said(&mut self.host)?;
        ensure!(said.contains("over TLS"), "it waits for anybody: {said:?}");
        Ok(receiver)
    }

    /// Migrates through a relay, to the command's end, however it ends.
    fn migrate(
        &mut self,
        receiver: &Receiver,
        is_secured: bool,
        planned: Option<&Planned>,
    ) -> Result<Passed> {
        let host = &mut self.host;
        let listen = host.file("relay.sock");
        let _was_not_there = host.remove_file(&listen);
        let source = self.guest.vmm().pid;
        let order = Order {
            listen: listen.clone(),
            to: receiver.address.trim_start_matches("unix:").to_owned(),
            fault: planned.map(|it| it.fault(source, receiver.vmm.pid)),
            keep: None,
        };
        let (said, relay) = start_relay(&order, host)?;
        let options = is_secured.then(|| self.secured.at_source());
        let options = options.unwrap_or_default();
        let migrated = self
            .guest
            .ask_to_move(host, &format!("unix:{listen}"), &options);
        let passed = end_relay(relay, &said, host);
        passed.with_context(|| match migrated {
            Ok(report) => format!("the guest was {}", report.outcome),
            Err(error) => format!("the guest was not moved: {error:#}"),
        })
    }

    /// Waits until both sides say what they have.
    fn settle(&mut self, receiver: &Receiver) -> Result<Found> {
        Found::settle(&mut self.host, &self.guest, receiver, LIMIT)
    }

    /// One migration with a fault, and what is made of what it leaves.
    fn try_fault(&mut self, planned: &Planned) -> Result<()> {
        let receiver = self.receiver(planned.is_secured)?;
        if planned.is_paused {
            self.guest.pause(&mut self.host)?;
        }
        let passed = self.migrate(&receiver, planned.is_secured, Some(planned))?;
        let found = self.settle(&receiver)?;
        self.tally.points += 1;
        self.tally.reached += usize::from(passed.acted);
        self.tally.over_tls += usize::from(planned.is_secured);
        self.tally.paused += usize::from(planned.is_paused);
        let what = format!("{planned}: {found}");
        let stays = self.resolve(found, &receiver, planned.kind, what)?;
        self.end_other(stays, &receiver)?;
        if self.is_paused()? {
            self.guest.resume(&mut self.host)?;
        } else if planned.is_paused && stays.is_some_and(|side| found.sides[side] != Side::InDoubt)
        {
            let what = format!("{planned}: {found}");
            self.tally.woken.push(what);
        }
        self.look()
    }

    /// Whether the guest that there is now waits for its operator.
    fn is_paused(&mut self) -> Result<bool> {
        Ok(self.guest.status(&mut self.host)?.state == "Paused")
    }

    /// Does what the manual says for what was found, and returns whether the guest is here (0) or
    /// there (1) then.
    fn resolve(
        &mut self,
        found: Found,
        receiver: &Receiver,
        kind: Kind,
        what: String,
    ) -> Result<Option<usize>> {
        let is = |side| found.sides.iter().filter(|it| **it == side).count();
        let (running, doubtful) = (is(Side::Running) + is(Side::Paused), is(Side::InDoubt));
        self.tally.in_doubt += usize::from(doubtful > 0);
        self.tally.both_in_doubt += usize::from(doubtful == 2);
        self.refuse_to_resume(found, receiver, &what);
        if running > 1 {
            self.tally.two_owners.push(what);
            return Ok(Some(0));
        }
        let Some(choice) = decide(found.sides, self.random.bool()) else {
            if kind.may_end(found.sides) {
                self.tally.killed_with_vmm += 1;
            } else {
                self.tally.lost.push(what);
            }
            return Ok(None);
        };
        match (found.sides[choice], choice) {
            (Side::Running | Side::Paused, 0) => self.tally.stayed += 1,
            (Side::Running | Side::Paused, _) => self.tally.moved += 1,
            _ => self.tally.decided[choice] += 1,
        }
        let other = 1 - choice;
        if found.sides[other] == Side::InDoubt {
            self.ctl(other, receiver, &["stop"])?;
        }
        if found.sides[choice] == Side::InDoubt {
            self.ctl(choice, receiver, &["resume", "--take-over"])?;
        }
        Ok(Some(choice))
    }

    /// A VM in doubt does not go on without somebody's word.
    fn refuse_to_resume(&mut self, found: Found, receiver: &Receiver, what: &str) {
        let sides = found.sides.iter().enumerate();
        for (side, _) in sides.filter(|(_, state)| **state == Side::InDoubt) {
            for command in ["resume", "finish-sleep"] {
                if self.ctl(side, receiver, &[command]).is_ok() {
                    self.tally
                        .resumed_in_doubt
                        .push(format!("{command}, {what}"));
                }
            }
        }
    }

    fn ctl(&mut self, side: usize, receiver: &Receiver, arguments: &[&str]) -> Result<String> {
        if side == 0 {
            return self.guest.ctl(&mut self.host, arguments);
        }
        let said = receiver.ctl(&mut self.host, arguments)?;
        said.with_context(|| format!("{} failed at the destination", arguments.join(" ")))
    }

    fn vmm_of(&self, side: usize, receiver: &Receiver) -> ChildId {
        if side == 0 {
            self.guest.vmm().child
        } else {
            receiver.vmm.child
        }
    }

    /// Sees to it that nothing is left of the side that does not have the guest, and takes a new
    /// guest where neither has it.
    fn end_other(&mut self, stays: Option<usize>, receiver: &Receiver) -> Result<()> {
        for side in [0, 1].into_iter().filter(|side| stays != Some(*side)) {
            // It waits for the next guest, or was told to stop and does.
            self.end(self.vmm_of(side, receiver))?;
        }
        match stays {
            Some(0) => Ok(()),
            Some(_) => self.follow(receiver),
            None => self.begin_anew(),
        }
    }

    /// Is with the guest where it is now.
    fn follow(&mut self, receiver: &Receiver) -> Result<()> {
        self.guest.follow(&mut self.host, receiver)?;
        self.at = 1 - self.at;
        Ok(())
    }

    /// The guest answers, and its memory is what it last wrote; else there is a new one.
    fn look(&mut self) -> Result<()> {
        let mut asked = OnHost {
            guest: &mut self.guest,
            host: &mut self.host,
        };
        let found = asked
            .verify()
            .and_then(|memory| Ok((memory, asked.clocks()?.live)));
        let wrong = match found {
            Ok((memory, Some(live)))
                if memory.damaged == 0 && memory.changes >= self.changes && live > self.live =>
            {
                (self.changes, self.live) = (memory.changes, live);
                return Ok(());
            }
            Ok((memory, live)) => format!(
                "{memory:?}, {} changes before; live physical time {live:?}, {} before",
                self.changes, self.live
            ),
            Err(error) => format!("{error:#}"),
        };
        self.tally.corrupt.push(wrong);
        self.end(self.guest.vmm().child)?;
        self.begin_anew()
    }

    /// Ends a VMM, if it does not end by itself just now.
    fn end(&mut self, vmm: ChildId) -> Result<()> {
        if self.host.poll_end(vmm)?.is_none() {
            let _ended_meanwhile = self.host.signal(vmm, Signal::KILL.as_raw());
            self.host.wait(vmm, LIMIT)?;
        }
        Ok(())
    }

    /// The guest as it was saved, in place of one that there is no more.
    fn begin_anew(&mut self) -> Result<()> {
        clear(NAMES[self.at], &mut self.host);
        self.guest = restore(self.at, &mut self.host)?;
        (self.changes, self.live) = (0, 0);
        Ok(())
    }
}

/// A guest as it was saved, under one of the names, once it answers.
fn restore(at: usize, host: &mut Host) -> Result<Guest> {
    let good = host.file(SAVED);
    let mut guest = Guest::restore(NAMES[at], true, &good, host)?;
    let mut asked = OnHost {
        guest: &mut guest,
        host,
    };
    let memory = asked.verify()?;
    ensure!(memory.damaged == 0, "a restored guest has {memory:?}");
    Ok(guest)
}

/// Starts a relay, and returns where it says what passed.
pub(super) fn start_relay(order: &Order, host: &mut Host) -> Result<(String, ChildId)> {
    let (said, agent) = (host.file("relay.out"), host.facts().agent_program.clone());
    let spawned = host.spawn(Spawn {
        argv: vec![agent, RELAY.into(), serde_json::to_string(order)?],
        stdout: Some(said.clone()),
        ..Spawn::default()
    })?;
    host.wait_for_text(&said, LISTENS.trim(), LIMIT)?;
    Ok((said, spawned.child))
}

pub(super) fn end_relay(relay: ChildId, said: &str, host: &mut Host) -> Result<Passed> {
    match host.wait(relay, LIMIT)? {
        Exit::Status(0) => {}
        exit => bail!("the relay ended with {exit:?}"),
    }
    let said = host.read_from(said, 0)?;
    let said = String::from_utf8_lossy(&said);
    let passed = said.trim_start_matches(LISTENS);
    serde_json::from_str(passed).with_context(|| format!("cannot understand {said:?}"))
}

/// Removes what the VMM that had this name before has left in its place.
fn clear(name: &str, host: &mut Host) {
    for file in [
        ".sock",
        "-api.sock",
        "-migration.sock",
        "-reports.log",
        "-vmm.log",
    ] {
        let _was_not_there = host.remove_file(&host.file(&format!("{name}{file}")));
    }
}

impl Tally {
    fn checks(&self, points: usize, told: &str) -> Vec<Check> {
        let none = |name, found: &[String], unit| {
            let detail = found.first().map_or(told, String::as_str);
            count(name, found.len() as u64, unit).with_detail(detail)
        };
        let Self {
            stayed,
            moved,
            decided: [here, there],
            both_in_doubt,
            killed_with_vmm,
            over_tls,
            paused,
            ..
        } = self;
        let detail = format!(
            "{told}: {stayed} stayed, {moved} moved, {here} taken over at the source and {there} at \
             the destination, {both_in_doubt} of these in doubt on both sides; {killed_with_vmm} \
             ended with the VMM that was killed; {paused} were of a VM that was paused, {over_tls} over TLS"
        );
        vec![
            at_least("points", self.points, points, "points").with_detail(detail),
            // What passes changes a little from one migration to the next.
            at_least("reached", self.reached, points * 4 / 5, "points"),
            at_least("over_tls", self.over_tls, points / 7, "points"),
            none("lost_vms", &self.lost, "VMs"),
            none("two_owners", &self.two_owners, "VMs"),
            none("corrupt_guests", &self.corrupt, "looks"),
            none("woken", &self.woken, "VMs"),
            none("resumed_in_doubt", &self.resumed_in_doubt, "VMs"),
            at_least("in_doubt", self.in_doubt, (points / 15).max(1), "VMs"),
        ]
    }
}
