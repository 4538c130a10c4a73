//! Moves of a spinning guest, as a snapshot, between two hosts: pauses that begin on one host and end
//! on another.

mod figures;
mod journeys;

use journeys::Hosts;
pub use journeys::Plan;

use super::pauses::{
    Pause, backwards_steps, check_agreement, check_gaps, check_lost, check_stolen_growth, median,
    quiet_growths_ms, sample, sights,
};
use super::watch::worst;
use crate::clocks::ClockSight;
use crate::control::Adjustment;
use crate::guest::{Guest, GuestImage, GuestSpec};
use crate::host::Host;
use crate::interrupt::sleep;
use crate::lost::Bounds;
use crate::report::{Check, Limit};
use crate::scenario::Stage;
use crate::sightings::Sighting;
use crate::status::Status;
use crate::vmm::Snapshot;
use anyhow::{Context, Result, bail};
use figures::{Move, Work, seconds};
use guest_protocol::Workload;
use guest_protocol::report::{Program, Sample};
use std::time::{Duration, Instant};

/// How much older the first host is at least.
const LEAST_UPTIME_DIFFERENCE_S: f64 = 120.0;

/// Where the VMM says what the time of a restored VM took.
const WORK: &str = "restored the time of ";
const RESTORE_LIMIT: Duration = Duration::from_secs(60);

/// For how long a guest spins between an answer and its stop, and after it was restored before it is
/// asked what it saw. It answers on the vCPU that spins where it has but one, and Linux does first what
/// was due meanwhile; without a read on either side it saw no step.
const SPINNING: Duration = Duration::from_millis(100);

/// Who travels: a guest whose last vCPU spins while the others idle.
#[derive(Debug, Clone, Copy)]
pub struct Traveller {
    pub name: &'static str,
    /// Linux has a clock of its own, and the bare-metal guest sees what is stolen from it within a
    /// step.
    pub program: Program,
    pub cpus: u32,
    pub on_restore: &'static str,
    /// How often it is restored on the host that it is on.
    pub in_place: usize,
    /// And on the other host.
    pub to_and_fro: usize,
    /// And goes on at once, for the time that this takes.
    pub at_once: usize,
}

/// One guest on its way, and what was seen of it.
pub struct Journey {
    who: Traveller,
    guest: Option<Guest>,
    at: usize,
    restored: usize,
    moves: Vec<Move>,
    works: Vec<Work>,
    /// Linux's clocks before all moves and after them.
    sights: [Vec<Sighting>; 2],
}

impl Journey {
    /// Starts a guest on the first host.
    fn start(who: Traveller, hosts: &mut Hosts) -> Result<Self> {
        let host = hosts.get(0)?;
        let image = match who.program {
            Program::Linux => GuestImage::Linux,
            Program::El1 => GuestImage::El1,
        };
        let spec = GuestSpec {
            image,
            cpus: who.cpus,
            ..GuestSpec::new(who.name)
        };
        let mut guest = Guest::start(&spec, host)?;
        guest.await_hello(host)?;
        place(&guest, host)?;
        guest.set_workload(host, who.spinner(), Workload::Spin)?;
        let before = who.sights(&guest, host)?;
        Ok(Self {
            who,
            guest: Some(guest),
            at: 0,
            restored: 0,
            moves: Vec::new(),
            works: Vec::new(),
            sights: [before, Vec::new()],
        })
    }

    /// What the guest is called when it is restored for the next time.
    fn next_name(&mut self) -> &'static str {
        self.restored += 1;
        // Names last as long as the lab: there are a few of them.
        format!("{}-{}", self.who.name, self.restored).leak()
    }

    /// Takes the guest to a host under another name. It may be the host where it is.
    fn go(&mut self, to: usize, hosts: &mut Hosts, stage: &mut Stage) -> Result<()> {
        let name = self.next_name();
        stage.step(&format!("take guest {name} to host {to}"));
        let old = self.guest.take().context("no guest")?;
        hosts.0.iter_mut().try_for_each(Host::set_clock)?;
        let left = Departure::from(self.who, old, hosts.get(self.at)?, name, stage)?;
        let mut folder = left.folder.clone();
        if to != self.at {
            let from = hosts.get(self.at)?;
            let snapshot = Snapshot::take(from, &folder)?;
            Snapshot::remove(from, &folder)?;
            folder = snapshot.put(hosts.get(to)?, name)?;
        }
        let host = hosts.get(to)?;
        let is_far = to != self.at;
        let (guest, one) = left.arrive(host, name, &folder, is_far)?;
        Snapshot::remove(host, &folder)?;
        self.moves.push(one);
        (self.guest, self.at) = (Some(guest), to);
        Ok(())
    }

    /// Takes the guest between both hosts. It has arrived then.
    fn go_to_and_fro(&mut self, hosts: &mut Hosts, stage: &mut Stage) -> Result<()> {
        for _ in 0..self.who.to_and_fro {
            self.go(1 - self.at, hosts, stage)?;
        }
        let guest = self.guest.as_ref().context("no guest")?;
        self.sights[1] = self.who.sights(guest, hosts.get(self.at)?)?;
        Ok(())
    }

    /// Saves the guest, and has it go on at once, each time for a while.
    fn begin_anew(&mut self, hosts: &mut Hosts, stage: &mut Stage) -> Result<()> {
        let mut guest = self.guest.take().context("no guest")?;
        let host = hosts.get(self.at)?;
        guest.pause(host)?;
        let folder = host.file(&format!("{}-again", guest.name()));
        guest.ctl(host, &["snapshot", &folder])?;
        for _ in 0..self.who.at_once {
            let name = self.next_name();
            stage.step(&format!("have guest {name} go on at once"));
            stage.keep_records(&guest, host)?;
            guest.stop(host)?;
            let arguments = ["restore", &folder, "--on-restore", self.who.on_restore];
            guest = Guest::spawn(name, true, &arguments, host)?;
            let took_us = await_restoration(name, host)?;
            let slowness = host.slowness()?;
            self.works.push(Work { took_us, slowness });
        }
        Snapshot::remove(host, &folder)?;
        self.guest = Some(guest);
        Ok(())
    }

    /// Ends the guest.
    fn end(&mut self, hosts: &mut Hosts, stage: &mut Stage) -> Result<()> {
        let mut guest = self.guest.take().context("no guest")?;
        let host = hosts.get(self.at)?;
        self.who.keep_time(&mut guest, host, stage)?;
        guest.power_off(host)
    }

    /// What holds under both policies.
    fn checks(&self) -> Vec<Check> {
        let name = self.who.name;
        let far = || self.moves.iter().filter(|it| it.is_far);
        let nearest = far().map(|it| it.uptime_difference_s);
        let nearest = nearest.reduce(f64::min).unwrap_or(f64::NAN);
        let backwards = self.moves.iter().map(|it| backwards_steps(&it.pause.spins));
        let backwards = backwards.sum();
        let least = Limit::AtLeast(LEAST_UPTIME_DIFFERENCE_S);
        let moves = format!("{name}, {} moves to another host", far().count());
        let stolen = |check, figure: fn(&Move) -> f64| {
            let measured = worst(self.moves.iter().map(figure));
            Check::new(check, measured, Limit::Equals(0.0), "ns").with_detail(name)
        };
        let mut checks = vec![
            Check::new("uptime_difference_s", nearest, least, "s").with_detail(moves),
            stolen("stolen_loss_ns", Move::stolen_loss_ns),
            stolen(
                "stolen_beyond_run_delay_ns",
                Move::stolen_beyond_run_delay_ns,
            ),
        ];
        if !self.works.is_empty() {
            checks.push(self.check_work());
        }
        if self.who.program == Program::Linux {
            checks.push(self.check_monotonic());
        }
        let pauses = self.moves.iter().map(|it| &it.pause);
        checks.extend(check_agreement(pauses, backwards, name));
        checks
    }

    /// What the VMM's work on time adds to a restoration, as long as system calls would take here.
    fn check_work(&self) -> Check {
        let took = |figure: fn(&Work) -> f64| median(self.works.iter().map(figure).collect());
        let detail = format!(
            "{}; restoring the time and resuming, at the median of {}: {:.0} us on a host whose \
             system calls take {:.0} times as long as this machine's",
            self.who.name,
            self.works.len(),
            took(|it| it.took_us),
            took(|it| it.slowness),
        );
        let measured = took(|it| it.took_us / it.slowness);
        Check::new("clock_work_us", measured, Limit::AtMost(500.0), "us").with_detail(detail)
    }

    /// Linux's clock lost what passed by the hosts' counters and the lab's clock and its own did not
    /// show.
    fn check_monotonic(&self) -> Check {
        let [before, after] = &self.sights;
        let lost = Bounds::lost(before, after, |sample| sample.monotonic_ns);
        let due: Vec<_> = self.moves.iter().map(Move::hidden).collect();
        check_lost("monotonic_excess_ms", lost, &due, self.who.name)
    }

    /// What holds where the guest is not to see the gap.
    pub fn freeze_checks(&self) -> Vec<Check> {
        let name = self.who.name;
        let shown = self.moves.iter().map(|it| it.pause.shown_ticks()).max();
        #[expect(clippy::cast_precision_loss, reason = "0, or it fails")]
        let shown = shown.map_or(f64::NAN, |ticks| ticks as f64);
        let none = Limit::Equals(0.0);
        let frozen = Check::new("frozen_ticks", shown, none, "ticks");
        let steps = self.moves.iter().map(|it| it.pause.step_excess_us(0));
        let steps: Vec<_> = steps.collect();
        let pauses: Vec<_> = self.moves.iter().map(|it| &it.pause).collect();
        let growth = check_stolen_growth(&pauses, name);
        match self.who.program {
            Program::El1 => {
                let circumstances = self.circumstances(&steps);
                let mut checks = check_gaps(steps, &circumstances);
                checks.extend([frozen.with_detail(name), growth]);
                checks
            }
            Program::Linux => {
                let seen =
                    format!("{name}; steps over the moves, with what was stolen: {steps:.0?}");
                vec![frozen.with_detail(seen), growth]
            }
        }
    }

    fn circumstances(&self, gaps_us: &[f64]) -> String {
        let held_up = self.moves.iter().map(|it| it.pause.held_up.as_secs_f64());
        let held_up = median(held_up.map(|s| s * 1e3).collect());
        let sides = self.moves.iter().filter_map(|it| it.pause.sides_us());
        let sides: Vec<_> = sides.collect();
        format!(
            "{}; {gaps_us:.0?}; before and after where known, with what was stolen: {sides:.0?}; others \
             bounded; the new host's emulator waited {held_up:.0} ms for CPUs at the median",
            self.who.name,
        )
    }

    /// What holds where the guest is to see the gap.
    pub fn advance_checks(&self) -> Vec<Check> {
        let name = self.who.name;
        let recorded = self.moves.iter().map(|it| it.check_error(name));
        let mut checks: Vec<_> = recorded.collect();
        if self.who.program == Program::El1 {
            let steps = self.moves.iter().map(Move::step_error_us);
            let steps: Vec<_> = steps.collect();
            let detail = self.circumstances(&steps);
            let (middle, largest) = (
                median(steps.clone()).abs(),
                worst(steps.into_iter().map(f64::abs)),
            );
            let check = |name, measured, most| {
                Check::new(name, measured, Limit::AtMost(most), "us").with_detail(detail.clone())
            };
            checks.extend([
                check("counter_step_error_us_median", middle, 2000.0),
                check("counter_step_error_us_worst", largest, 20_000.0),
            ]);
        }
        checks
    }
}

impl Traveller {
    fn spinner(self) -> u32 {
        self.cpus - 1
    }

    /// Its clocks, if it has any. To be looked at once for each VMM that it has.
    fn sights(self, guest: &Guest, host: &mut Host) -> Result<Vec<Sighting>> {
        match self.program {
            Program::Linux => sights(&mut guest.dialogue(), host, self.spinner()),
            Program::El1 => Ok(Vec::new()),
        }
    }

    fn keep_time(self, guest: &mut Guest, host: &mut Host, stage: &mut Stage) -> Result<()> {
        match self.program {
            Program::Linux => {
                // It may have been restored without being asked for anything.
                guest.sample(host)?;
                stage.keep_time(guest, host)
            }
            Program::El1 => stage.keep_records(guest, host),
        }
    }
}

/// A guest that was saved and ended, and what was known of it.
struct Departure {
    who: Traveller,
    folder: String,
    asked: Instant,
    stopped: Instant,
    stop: Adjustment,
    before: Status,
    /// When it was saved.
    saved: Status,
    sample: Option<Sample>,
    clocks: ClockSight,
}

impl Departure {
    fn from(
        who: Traveller,
        mut old: Guest,
        host: &mut Host,
        name: &str,
        stage: &mut Stage,
    ) -> Result<Self> {
        let sample = sample(&mut old, host, who.program)?;
        // The accounts start afresh.
        old.spins(host)?;
        sleep(SPINNING)?;
        let before = old.status(host)?;
        let asked = Instant::now();
        let stop = old.pause(host)?;
        let stopped = Instant::now();
        let clocks = host.clocks()?;
        let folder = host.file(name);
        old.ctl(host, &["snapshot", &folder])?;
        let saved = old.status(host)?;
        stage.keep_records(&old, host)?;
        old.stop(host)?;
        Ok(Self {
            who,
            folder,
            asked,
            stopped,
            stop,
            before,
            saved,
            sample,
            clocks,
        })
    }

    fn arrive(
        self,
        host: &mut Host,
        name: &'static str,
        folder: &str,
        is_far: bool,
    ) -> Result<(Guest, Move)> {
        let held_up = host.held_up()?;
        let least = self.stopped.elapsed();
        let policy = self.who.on_restore;
        let arguments = ["restore", folder, "--on-restore", policy, "--paused"];
        let mut guest = Guest::spawn(name, true, &arguments, host)?;
        await_restoration(name, host)?;
        place(&guest, host)?;
        let restored = guest.status(host)?;
        let resume = guest.resume(host)?;
        let after = guest.status(host)?;
        let arrived = sample(&mut guest, host, self.who.program)?;
        sleep(SPINNING)?;
        let spins = guest.spins(host)?;
        let most = self.asked.elapsed();
        let held_up = host.held_up()?.saturating_sub(held_up);
        let clocks = host.clocks()?;
        if spins.is_empty() {
            bail!("no vCPU of guest {name} spins");
        }
        let quiet_growths_ms = quiet_growths_ms(&guest, host)?;
        let one = Move {
            is_far,
            saved: self.saved,
            restored,
            passed_ns: clocks.since_ns(resume.after.host, &self.clocks, self.stop.after.host),
            passed_error: self.clocks.error() + clocks.error(),
            uptime_difference_s: seconds(self.clocks.up_longer_than_ns(&clocks)).abs(),
            pause: Pause {
                kept: (least, most),
                stop: self.stop,
                resume,
                before: self.before,
                after,
                held_up,
                spins,
                samples: self.sample.zip(arrived),
                quiet_growths_ms,
            },
        };
        Ok((guest, one))
    }
}

/// Gives the vCPU that spins a CPU of its own.
fn place(guest: &Guest, host: &mut Host) -> Result<()> {
    guest.pin(host, &[0], &[1])?;
    let last = guest.status(host)?.vcpus.len().saturating_sub(1);
    guest.pin_vcpus(host, |vcpu| if vcpu as usize == last { &[0] } else { &[1] })
}

/// Waits until the VMM says that its VM has its time again, and for how long that took, in us.
fn await_restoration(name: &str, host: &mut Host) -> Result<f64> {
    let log = host.file(&format!("{name}-vmm.log"));
    host.wait_for_text(&log, " us\n", RESTORE_LIMIT)?;
    let log = host.read_from(&log, 0)?;
    let log = String::from_utf8_lossy(&log);
    let line = log.lines().find(|line| line.contains(WORK));
    let figure = line.and_then(|line| line.strip_suffix(" us")?.rsplit(' ').next()?.parse().ok());
    figure.with_context(|| format!("the VMM of guest {name} did not say {WORK:?}"))
}
