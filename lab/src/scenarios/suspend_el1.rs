//! The bare-metal guest suspends itself (PSCI `SYSTEM_SUSPEND`): its other CPUs are off, its first one
//! wakes at an entry of the guest's, its counters ran on, and nothing of it was hidden.

use super::bare_checks::{arm_all, at_least, check_tests, count};
use super::pauses::backwards_steps;
use super::view::{View, records};
use super::watch::ms;
use crate::bare::{Bare, OnHost, Tests};
use crate::control::{Accounts, Adjustment};
use crate::guest::{Guest, GuestImage, GuestSpec, Receiver, host_spec};
use crate::host::Host;
use crate::interrupt::sleep;
use crate::report::{Check, Limit};
use crate::scenario::{Scenario, Stage, Step, no_checks};
use crate::status::Status;
use anyhow::{Context, Result, bail};
use guest_protocol::report::{Hello, Memory, Spin, TimerState};
use guest_protocol::request::Fill;
use guest_protocol::{Action, Body, Workload};
use lab_agent::message::Exit;
use std::time::{Duration, Instant};

pub const SCENARIO: Scenario = Scenario {
    name: "suspend-el1",
    about: "the bare-metal guest suspends itself and wakes with its counters run on, its timers late",
    must_fail: None,
    play: |stage| stage.play(Scene::default(), &[BOOT, TEST, FINISH_SLEEP, END]),
};

pub const MOVED: Scenario = Scenario {
    name: "suspend-moved",
    about: "a guest that suspended itself is saved, restored and moved, sleeps on, and wakes there",
    must_fail: None,
    play: |stage| stage.play(Scene::default(), &[BOOT, RESUME, RESTORED, MIGRATED, END]),
};

/// As many as there are kinds of timers.
const VCPUS: u32 = 4;
const CHANGER: u32 = 1;
const SPINNER: u32 = 2;
/// Timers of every kind over a suspension: due before it, long ago, after it, and within it: these are
/// armed last, so that it begins before them on a busy machine too.
const DELAYS_US: [Option<i64>; 4] = [
    Some(1_000),
    Some(-1_000_000),
    Some(4_500_000),
    Some(3_000_000),
];
/// From arming the last of them to the end of the suspension, and until all are due.
const WAKES: Duration = Duration::from_millis(3_500);
const ALL_DUE: Duration = Duration::from_secs(5);
/// A timer that is later than this after it could come is lost: the emulator may not run for so long.
const PATIENCE_S: u64 = 2;
/// A millisecond at 25 MHz: by how much a host's wall clock may leave its counter, which it is not slewed
/// against here, and the two are read at different moments.
const WALL_ERROR_TICKS: u32 = 25_000;
/// Longest time for a guest to suspend itself.
const LIMIT: Duration = Duration::from_secs(30);

#[derive(Default)]
struct Scene {
    host: Option<Host>,
    guest: Option<Guest>,
    tests: Tests,
    naps: Vec<Nap>,
}

/// One suspension, from before the guest was asked for it to after it answered.
struct Nap {
    name: &'static str,
    before: View,
    after: View,
    is_moved: bool,
    stop: Adjustment,
    resume: Adjustment,
    /// What was recorded meanwhile, by every VMM that it had.
    records: Vec<Adjustment>,
    hello: Hello,
    timers: Vec<TimerState>,
    spins: Vec<Spin>,
    memory: [Memory; 2],
}

const BOOT: Step<Scene> = Step {
    name: "boot a host and a guest",
    act: boot,
    checks: no_checks,
};
const TEST: Step<Scene> = Step {
    name: "have it test itself",
    act: |scene, _| {
        let guest = scene.guest.as_mut().context("no guest")?;
        let host = scene.host.as_mut().context("no host")?;
        scene.tests = bare(guest, host).run_tests()?;
        Ok(())
    },
    checks: |scene| check_tests(&scene.tests, 16, "with SYSTEM_SUSPEND"),
};
const FINISH_SLEEP: Step<Scene> = Step {
    name: "wake it as after a sleep of the host",
    act: |scene, stage| scene.nap(stage, "finish-sleep", None, Guest::finish_sleep),
    checks: last_nap,
};
const RESUME: Step<Scene> = Step {
    name: "wake it by a request",
    act: |scene, stage| scene.nap(stage, "resume", None, Guest::resume),
    checks: last_nap,
};
const RESTORED: Step<Scene> = Step {
    name: "wake it where it was restored",
    act: |scene, stage| scene.nap(stage, "restored", Some(by_snapshot), Guest::finish_sleep),
    checks: last_nap,
};
const MIGRATED: Step<Scene> = Step {
    name: "wake it where it was moved to",
    act: |scene, stage| scene.nap(stage, "migrated", Some(by_migration), Guest::finish_sleep),
    checks: last_nap,
};
const END: Step<Scene> = Step {
    name: "power both off",
    act: |scene, stage| {
        let host = scene.host.as_mut().context("no host")?;
        let guest = scene.guest.take().context("no guest")?;
        stage.keep_figures(&guest, host)?;
        guest.power_off(host)?;
        scene.host.take().context("no host")?.power_off()
    },
    checks: no_checks,
};

fn last_nap(scene: &Scene) -> Vec<Check> {
    scene.naps.last().map_or_else(Vec::new, Nap::checks)
}

fn boot(scene: &mut Scene, stage: &mut Stage) -> Result<()> {
    let mut host = stage.boot(&host_spec("host", stage.assets, &stage.logs)?)?;
    let spec = GuestSpec {
        image: GuestImage::El1,
        cpus: VCPUS,
        memory_mib: 32,
        vmm_options: &["--suspend-guest", "on", "--paused-time", "on"],
        ..GuestSpec::new("guest")
    };
    let mut guest = Guest::start(&spec, &mut host)?;
    guest.await_hello(&mut host)?;
    let mut bare = OnHost {
        guest: &mut guest,
        host: &mut host,
    };
    bare.fill(Fill {
        seed: 1,
        mib: 2,
        changes_per_s: 500,
    })?;
    bare.give_work(CHANGER, Workload::Change)?;
    bare.give_work(SPINNER, Workload::Spin)?;
    scene.guest = Some(guest);
    scene.host = Some(host);
    Ok(())
}

/// Takes a suspended guest elsewhere.
type Travel = fn(&mut Guest, &mut Host) -> Result<()>;

fn by_snapshot(guest: &mut Guest, host: &mut Host) -> Result<()> {
    let folder = host.file("snapshot");
    guest.ctl(host, &["snapshot", &folder])?;
    let pvtime = host.path_of("pvtime")?;
    let unheard = host.run(&[&pvtime, "restore", &folder, "--console", "off"], LIMIT)?;
    if unheard.exit == Exit::Status(0) || !unheard.stderr.contains("--api-socket") {
        bail!("a guest that nobody could wake was restored: {unheard:?}");
    }
    let restored = ["restore", &folder];
    let left = std::mem::replace(guest, Guest::spawn("restored", true, &restored, host)?);
    left.stop(host)
}

fn by_migration(guest: &mut Guest, host: &mut Host) -> Result<()> {
    let receiver = Receiver::start("migrated", host)?;
    guest.move_to(host, &receiver, &[]).map(drop)
}

impl Scene {
    /// Has the guest suspend itself for a while, and looks before and after.
    fn nap(
        &mut self,
        stage: &mut Stage,
        name: &'static str,
        travel: Option<Travel>,
        wake: fn(&Guest, &mut Host) -> Result<Adjustment>,
    ) -> Result<()> {
        let guest = self.guest.as_mut().context("no guest")?;
        let host = self.host.as_mut().context("no host")?;
        let mut asked = bare(guest, host);
        let memory = asked.verify()?;
        // The spinning CPU's account starts afresh.
        asked.spun()?;
        let past = records(guest, host)?.len();
        arm_all(&mut bare(guest, host), VCPUS, false, &DELAYS_US)?;
        let armed = Instant::now();
        let before = View::of(guest, host)?;
        let request = guest.send(host, Action::Suspend)?;
        await_suspended(guest, host)?;
        let mut recorded = records(guest, host)?.split_off(past);
        let stop = recorded.last().context("no record")?.clone();
        if let Some(travel) = travel {
            travel(guest, host)?;
        }
        sleep(WAKES.saturating_sub(armed.elapsed()))?;
        let status = await_status(guest, host)?;
        if status.state != "Suspended" {
            bail!("the guest was {} before it was woken", status.state);
        }
        let resume = wake(guest, host)?;
        match guest.await_answer(host, request)? {
            Body::Done => {}
            other => bail!("the guest sent {other:?} when it was woken"),
        }
        let after = View::of(guest, host)?;
        let is_moved = travel.is_some();
        let past = if is_moved { 0 } else { past + recorded.len() };
        recorded.extend(records(guest, host)?.split_off(past));
        sleep(ALL_DUE.saturating_sub(armed.elapsed()))?;
        let mut asked = bare(guest, host);
        let nap = Nap {
            name,
            is_moved,
            before,
            after,
            stop,
            resume,
            records: recorded,
            hello: hello(&mut asked)?,
            timers: asked.timers()?,
            spins: asked.spun()?,
            memory: [memory, asked.verify()?],
        };
        stage.report.adjustments.extend(guest.adjustments(host)?);
        self.naps.push(nap);
        Ok(())
    }
}

fn bare<'a>(guest: &'a mut Guest, host: &'a mut Host) -> OnHost<'a> {
    OnHost { guest, host }
}

fn hello(guest: &mut impl Bare) -> Result<Hello> {
    match guest.ask_one(Action::Hello)? {
        Body::Hello(hello) => Ok(hello),
        other => bail!("the guest sent {other:?} for a hello"),
    }
}

/// Waits for the guest to have suspended itself.
fn await_suspended(guest: &Guest, host: &mut Host) -> Result<()> {
    let start = Instant::now();
    while guest.status(host)?.state != "Suspended" {
        if start.elapsed() > LIMIT {
            bail!("the guest did not suspend itself within {LIMIT:?}");
        }
        sleep(Duration::from_millis(20))?;
    }
    Ok(())
}

/// Waits for a VMM that has just begun to say what its VM does.
fn await_status(guest: &Guest, host: &mut Host) -> Result<Status> {
    let start = Instant::now();
    loop {
        match guest.status(host) {
            Ok(status) if status.state != "Not started" => return Ok(status),
            Err(error) if start.elapsed() > LIMIT => return Err(error),
            _ => sleep(Duration::from_millis(20))?,
        }
    }
}

impl Nap {
    fn checks(&self) -> Vec<Check> {
        let mut checks = self.time_checks();
        checks.extend(self.account_checks());
        checks.extend(self.timer_checks());
        checks.extend(self.state_checks());
        let named = |check: Check| {
            let detail = format!("{}: {}", self.name, check.detail);
            check.with_detail(detail.trim_end_matches(": "))
        };
        checks.into_iter().map(named).collect()
    }

    fn gap_ns(&self) -> u64 {
        let gap = self.resume.gap.as_ref().map_or(0, |gap| gap.ns);
        u64::try_from(gap).unwrap_or(0)
    }

    /// The counter ran on, and one record says so.
    fn time_checks(&self) -> Vec<Check> {
        let told = format!("suspended for {:.3} ms", ms(self.gap_ns()));
        let of = |event: &str| self.records.iter().filter(|it| it.event == event).count();
        let (suspends, resumes) = (of("guest suspend"), of("resume"));
        let hidden_ns: u64 = self.records.iter().map(|it| it.hidden_ns).sum();
        let (from, to) = (self.stop.before, self.resume.after);
        let shown = to.guest.wrapping_sub(from.guest);
        let passed = to.host.wrapping_sub(from.host);
        let at_most =
            |name, measured, limit| Check::new(name, measured, Limit::AtMost(limit), "ms");
        let ran_on = Check::new(
            "counter_error_ticks",
            f64::from(u32::try_from(shown.abs_diff(passed)).unwrap_or(u32::MAX)),
            // Elsewhere it is the wall clocks that say what passed.
            if self.is_moved {
                Limit::AtMost(f64::from(WALL_ERROR_TICKS))
            } else {
                Limit::Equals(0.0)
            },
            "ticks",
        );
        vec![
            equals("suspends_recorded", suspends, 1, "records"),
            equals("resumes_recorded", resumes, 1, "records").with_detail(told),
            at_most(
                "counter_error_ms",
                self.after.error_ms(&self.before, 0),
                1.0,
            ),
            ran_on,
            count("hidden_ns", hidden_ns, "ns"),
            count(
                "told_paused_ns",
                self.after.paused.paused_ns - self.before.paused.paused_ns,
                "ns",
            ),
        ]
    }

    /// The suspension is in each vCPU's accounts once, and was not stolen.
    fn account_checks(&self) -> Vec<Check> {
        let both = self.before.accounts.iter().zip(&self.after.accounts);
        let asleep = |(before, after): (&Accounts, &Accounts)| {
            after.paused_ns.host_suspend_ns - before.paused_ns.host_suspend_ns
        };
        let (least, most) = both.map(asleep).fold((u64::MAX, 0), |(least, most), ns| {
            (ns.min(least), ns.max(most))
        });
        let of_gap = |ns| ms(ns) / ms(self.gap_ns());
        let detail = format!("{:.3} to {:.3} ms", ms(least), ms(most));
        // A thread that waits for a CPU on its way out or in leaves some of it out, or adds some.
        let in_accounts =
            |name, ns, limit| Check::new(name, of_gap(ns), limit, "of it").with_detail(&*detail);
        let [_, passed_ns] = self.after.passed_ns(&self.before);
        let passed_ns = u64::try_from(passed_ns).unwrap_or(u64::MAX);
        let awake_ns = passed_ns.saturating_sub(self.gap_ns());
        let stolen_ns = self.after.stolen_ns - self.before.stolen_ns;
        vec![
            in_accounts("least_in_accounts", least, Limit::AtLeast(0.5)),
            in_accounts("most_in_accounts", most, Limit::AtMost(1.6)),
            count(
                "stolen_beyond_awake_ns",
                stolen_ns.saturating_sub(awake_ns),
                "ns",
            )
            .with_detail(format!(
                "{:.3} ms stolen, {:.3} ms awake",
                ms(stolen_ns),
                ms(awake_ns)
            )),
        ]
    }

    /// A timer that was due before the end comes once, when the guest has woken; none wakes it.
    fn timer_checks(&self) -> Vec<Check> {
        let asleep = self.stop.after.guest..self.resume.after.guest;
        let is_in = |count: Option<u64>| count.is_some_and(|count| asleep.contains(&count));
        let of = |is_such: &dyn Fn(&TimerState) -> bool| {
            self.timers.iter().filter(|it| is_such(it)).count()
        };
        let could_come = |deadline: u64| deadline.max(self.resume.after.guest);
        let is_lost = |it: &TimerState| {
            let patience = PATIENCE_S * it.frequency_hz;
            let late = |deadline| it.fired_at.unwrap_or(it.now) > could_come(deadline) + patience;
            if it.fired_at.is_none_or(|at| at >= asleep.end) && !it.masked {
                it.deadline.is_some_and(late)
            } else {
                it.is_lost(patience)
            }
        };
        let detail = format!("{:?}", self.timers);
        vec![
            at_least(
                "timers_slept_over",
                of(&|it| !it.masked && is_in(it.deadline)),
                1,
                "timers",
            ),
            count(
                "fired_while_suspended",
                of(&|it| is_in(it.fired_at)) as u64,
                "timers",
            ),
            count("early_or_twice", of(&TimerState::is_wrong) as u64, "timers"),
            count("lost", of(&is_lost) as u64, "timers").with_detail(detail),
            at_least("fired", of(&|it| it.fired_at.is_some()), 6, "timers"),
        ]
    }

    /// Its CPUs are on again, and its memory and what it had read are as they were.
    fn state_checks(&self) -> Vec<Check> {
        let awake = self.resume.after.guest;
        let stale = self.spins.iter().filter(|spin| spin.first_counter < awake);
        let [before, after] = &self.memory;
        vec![
            equals("smp", self.hello.cpus_online as usize, VCPUS, "CPUs"),
            equals("spinning_cpus", self.spins.len(), 1, "CPUs"),
            count("backwards_steps", backwards_steps(&self.spins), "steps"),
            count("stale_reads", stale.count() as u64, "CPUs"),
            count("damaged_pages", after.damaged, "pages"),
            at_least(
                "changed_pages",
                usize::try_from(after.changes - before.changes).unwrap_or(0),
                100,
                "pages",
            ),
        ]
    }
}

fn equals(name: &'static str, measured: usize, expected: u32, unit: &'static str) -> Check {
    let measured = u32::try_from(measured).map_or(f64::INFINITY, f64::from);
    Check::new(name, measured, Limit::Equals(expected.into()), unit)
}
