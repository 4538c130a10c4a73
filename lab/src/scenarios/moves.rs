//! Moves of a spinning guest, as a snapshot, between two hosts: pauses that begin on one host and end
//! on another.

use super::pauses::{
    Pause, backwards_steps, check_agreement, check_stolen_growth, median, quiet_growths_ms,
};
use super::watch::{structure, worst};
use crate::clocks::ClockSight;
use crate::control::Adjustment;
use crate::guest::{Guest, GuestSpec, host_spec};
use crate::host::Host;
use crate::interrupt::sleep;
use crate::machine::HostSpec;
use crate::report::{Check, Limit};
use crate::scenario::Stage;
use crate::status::Status;
use crate::vmm::Snapshot;
use anyhow::{Context, Result, bail};
use guest_protocol::Workload;
use guest_protocol::report::Sample;
use serde_json::json;
use std::time::{Duration, Instant};

/// The second host is started when the first has run for this long.
const UPTIME: Duration = Duration::from_secs(122);
const LEAST_UPTIME_DIFFERENCE_S: f64 = 120.0;

/// Where the VMM says what the time of a restored VM took.
const WORK: &str = "restored the time of ";
const RESTORE_LIMIT: Duration = Duration::from_secs(60);

/// Two hosts; the counter of the first is minutes ahead.
#[derive(Default)]
pub struct Hosts(Vec<Host>);

impl Hosts {
    /// Starts the first host.
    pub fn boot(stage: &mut Stage) -> Result<Self> {
        let mut hosts = Self::default();
        hosts.add("host-0", stage)?;
        Ok(hosts)
    }

    /// Starts the second, when the first has run for minutes.
    pub fn add_younger(&mut self, stage: &mut Stage) -> Result<()> {
        let up_ns = self.get(0)?.clocks()?.uptime_ns();
        let up = Duration::from_nanos(u64::try_from(up_ns)?);
        sleep(UPTIME.saturating_sub(up))?;
        self.add("host-1", stage)
    }

    fn add(&mut self, name: &'static str, stage: &mut Stage) -> Result<()> {
        let spec = HostSpec {
            memory_mib: 1536,
            ..host_spec(name, stage.assets, &stage.logs)?
        };
        let mut host = stage.boot(&spec)?;
        host.pin_agent(&[1])?;
        self.0.push(host);
        Ok(())
    }

    pub fn get(&mut self, index: usize) -> Result<&mut Host> {
        self.0.get_mut(index).context("no such host")
    }

    pub fn power_off(&mut self) -> Result<()> {
        self.0.drain(..).try_for_each(Host::power_off)
    }
}

/// One guest on its way, and what was seen of it.
#[derive(Default)]
pub struct Journey {
    name: &'static str,
    on_restore: &'static str,
    guest: Option<Guest>,
    at: usize,
    moves: Vec<Move>,
    works: Vec<Work>,
}

/// What the time of a VM takes that is restored and goes on at once.
struct Work {
    /// By the VMM's own clock.
    took_us: f64,
    /// How many times as long a system call takes on that host as here.
    slowness: f64,
}

/// One move: a pause, and what else was known around it.
struct Move {
    pause: Pause,
    is_far: bool,
    /// From the stop to the resumption by the hosts' counters and the lab's clock, and its error.
    passed_ns: i128,
    passed_error: Duration,
    uptime_difference_s: f64,
}

impl Journey {
    /// Starts a guest on the first host; its last vCPU spins, the others idle.
    pub fn start(
        name: &'static str,
        cpus: u32,
        on_restore: &'static str,
        hosts: &mut Hosts,
    ) -> Result<Self> {
        let host = hosts.get(0)?;
        let spec = GuestSpec {
            cpus,
            ..GuestSpec::new(name)
        };
        let mut guest = Guest::start(&spec, host)?;
        guest.await_hello(host)?;
        place(&guest, host)?;
        guest.set_workload(host, cpus - 1, Workload::Spin)?;
        Ok(Self {
            name,
            on_restore,
            guest: Some(guest),
            ..Self::default()
        })
    }

    /// Takes the guest to a host under another name. It may be the host where it is.
    pub fn go(
        &mut self,
        to: usize,
        name: &'static str,
        hosts: &mut Hosts,
        stage: &mut Stage,
    ) -> Result<()> {
        stage.step(&format!("take guest {name} to host {to}"));
        let old = self.guest.take().context("no guest")?;
        hosts.0.iter_mut().try_for_each(Host::set_clock)?;
        let left = Departure::from(old, hosts.get(self.at)?, name, stage)?;
        let mut folder = left.folder.clone();
        if to != self.at {
            let from = hosts.get(self.at)?;
            let snapshot = Snapshot::take(from, &folder)?;
            Snapshot::remove(from, &folder)?;
            folder = snapshot.put(hosts.get(to)?, name)?;
        }
        let host = hosts.get(to)?;
        let is_far = to != self.at;
        let (guest, one) = left.arrive(host, name, &folder, self.on_restore, is_far)?;
        Snapshot::remove(host, &folder)?;
        self.moves.push(one);
        (self.guest, self.at) = (Some(guest), to);
        Ok(())
    }

    /// Takes the guest between both hosts, once for each name.
    pub fn go_to_and_fro(
        &mut self,
        names: &[&'static str],
        hosts: &mut Hosts,
        stage: &mut Stage,
    ) -> Result<()> {
        for name in names {
            self.go(1 - self.at, name, hosts, stage)?;
        }
        Ok(())
    }

    /// Saves the guest, and has it go on at once as often as there are names, each for a while.
    pub fn begin_anew(
        &mut self,
        names: &[&'static str],
        hosts: &mut Hosts,
        stage: &mut Stage,
    ) -> Result<()> {
        let mut guest = self.guest.take().context("no guest")?;
        let host = hosts.get(self.at)?;
        guest.pause(host)?;
        let folder = host.file(&format!("{}-again", guest.name()));
        guest.ctl(host, &["snapshot", &folder])?;
        for name in names {
            stage.step(&format!("have guest {name} go on at once"));
            keep_adjustments(&guest, host, stage)?;
            guest.stop(host)?;
            let arguments = ["restore", &folder, "--on-restore", self.on_restore];
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
    pub fn end(&mut self, hosts: &mut Hosts, stage: &mut Stage) -> Result<()> {
        let guest = self.guest.take().context("no guest")?;
        let host = hosts.get(self.at)?;
        keep_adjustments(&guest, host, stage)?;
        guest.power_off(host)
    }

    /// What holds under both policies.
    pub fn checks(&self) -> Vec<Check> {
        let none = Limit::Equals(0.0);
        let check = |name, measured, limit, unit| {
            Check::new(name, measured, limit, unit).with_detail(self.name)
        };
        let far = || self.moves.iter().filter(|it| it.is_far);
        let nearest = far().map(|it| it.uptime_difference_s);
        let nearest = nearest.fold(f64::INFINITY, f64::min);
        let backwards = self.moves.iter().map(|it| backwards_steps(&it.pause.spins));
        let backwards = backwards.sum();
        let mut checks = vec![
            check(
                "uptime_difference_s",
                if nearest.is_finite() {
                    nearest
                } else {
                    f64::NAN
                },
                Limit::AtLeast(LEAST_UPTIME_DIFFERENCE_S),
                "s",
            )
            .with_detail(format!(
                "{}, {} moves to another host",
                self.name,
                far().count()
            )),
            check(
                "stolen_loss_ns",
                worst(self.moves.iter().map(Move::stolen_loss_ns)),
                none,
                "ns",
            ),
            check(
                "stolen_beyond_run_delay_ns",
                worst(self.moves.iter().map(Move::stolen_beyond_run_delay_ns)),
                none,
                "ns",
            ),
            self.check_work(),
        ];
        let pauses = self.moves.iter().map(|it| &it.pause);
        checks.extend(check_agreement(pauses, backwards, self.name));
        checks
    }

    /// What the VMM's work on time adds to a restoration, as long as system calls would take here.
    fn check_work(&self) -> Check {
        let took = |figure: fn(&Work) -> f64| median(self.works.iter().map(figure).collect());
        let detail = format!(
            "{}; restoring the time and resuming, at the median of {}: {:.0} us on a host whose \
             system calls take {:.0} times as long as this machine's",
            self.name,
            self.works.len(),
            took(|it| it.took_us),
            took(|it| it.slowness),
        );
        let measured = took(|it| it.took_us / it.slowness);
        Check::new("clock_work_us", measured, Limit::AtMost(500.0), "us").with_detail(detail)
    }

    /// What holds where the guest is not to see the gap.
    pub fn freeze_checks(&self) -> Vec<Check> {
        let figures = |figure: fn(&Move) -> Result<f64>| -> Vec<f64> {
            let figures = self.moves.iter().map(figure);
            figures.map(|it| it.unwrap_or(f64::NAN)).collect()
        };
        let gaps = figures(Move::counter_gap_us);
        let shown = self.moves.iter().map(|it| it.pause.shown_ticks()).max();
        #[expect(clippy::cast_precision_loss, reason = "0, or it fails")]
        let shown = shown.map_or(f64::NAN, |ticks| ticks as f64);
        let held_up = self.moves.iter().map(|it| it.pause.held_up.as_secs_f64());
        let held_up = median(held_up.map(|s| s * 1e3).collect());
        let known = self
            .moves
            .iter()
            .filter(|it| it.pause.is_gap_known())
            .count();
        let detail = format!(
            "{}; {gaps:.0?} us; {known} known, others bounded; the new host's emulator waited \
             {held_up:.0} ms for CPUs at the median",
            self.name
        );
        let check = |name, measured, most, unit| {
            Check::new(name, measured, Limit::AtMost(most), unit).with_detail(self.name)
        };
        let pauses = |figure: fn(&Pause) -> Result<f64>| -> Vec<f64> {
            let figures = self.moves.iter().map(|it| figure(&it.pause));
            figures.map(|it| it.unwrap_or(f64::NAN)).collect()
        };
        let mut checks = vec![
            check("counter_gap_us_median", median(gaps.clone()), 2000.0, "us"),
            check(
                "counter_gap_us_worst",
                worst(gaps.into_iter()),
                20_000.0,
                "us",
            )
            .with_detail(detail),
            check("frozen_ticks", shown, 0.0, "ticks"),
            check(
                "monotonic_excess_ms",
                median(pauses(Pause::monotonic_excess_ms)),
                5.0,
                "ms",
            ),
        ];
        let pauses: Vec<_> = self.moves.iter().map(|it| &it.pause).collect();
        checks.push(check_stolen_growth(&pauses, self.name));
        checks
    }

    /// What holds where the guest is to see the gap.
    pub fn advance_checks(&self) -> Vec<Check> {
        self.moves
            .iter()
            .map(|it| it.check_error(self.name))
            .collect()
    }
}

/// A guest that was saved and ended, and what was known of it.
struct Departure {
    folder: String,
    asked: Instant,
    stopped: Instant,
    stop: Adjustment,
    before: Status,
    sample: Sample,
    clocks: ClockSight,
}

impl Departure {
    fn from(mut old: Guest, host: &mut Host, name: &str, stage: &mut Stage) -> Result<Self> {
        let sample = old.sample(host)?;
        // The accounts start afresh.
        old.spins(host)?;
        let before = old.status(host)?;
        let asked = Instant::now();
        let stop = old.pause(host)?;
        let stopped = Instant::now();
        let clocks = host.clocks()?;
        let folder = host.file(name);
        old.ctl(host, &["snapshot", &folder])?;
        keep_adjustments(&old, host, stage)?;
        old.stop(host)?;
        Ok(Self {
            folder,
            asked,
            stopped,
            stop,
            before,
            sample,
            clocks,
        })
    }

    fn arrive(
        self,
        host: &mut Host,
        name: &'static str,
        folder: &str,
        on_restore: &str,
        is_far: bool,
    ) -> Result<(Guest, Move)> {
        let held_up = host.held_up()?;
        let least = self.stopped.elapsed();
        let arguments = ["restore", folder, "--on-restore", on_restore, "--paused"];
        let mut guest = Guest::spawn(name, true, &arguments, host)?;
        await_restoration(name, host)?;
        place(&guest, host)?;
        let resume = guest.resume(host)?;
        // Meanwhile the spinning vCPU gets its turn: the guest's answers are another thread's.
        let after = guest.status(host)?;
        let arrived = guest.sample(host)?;
        let spins = guest.spins(host)?;
        let most = self.asked.elapsed();
        let held_up = host.held_up()?.saturating_sub(held_up);
        let clocks = host.clocks()?;
        if spins.is_empty() {
            bail!("no vCPU of guest {name} spins");
        }
        let samples = (self.sample, arrived);
        let quiet_growths_ms = quiet_growths_ms(&guest, host)?;
        let one = Move {
            is_far,
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
                samples,
                quiet_growths_ms,
            },
        };
        Ok((guest, one))
    }
}

impl Move {
    /// The largest step over the move of a spinning vCPU, less what was stolen from it.
    fn counter_gap_us(&self) -> Result<f64> {
        let mut largest = 0_f64;
        for spin in &self.pause.spins {
            let stolen_ns = self.stolen_ns(spin.cpu as usize)?;
            let step_ns = i128::from(self.pause.ns(self.pause.step_ticks(spin)));
            largest = largest.max(seconds((step_ns - stolen_ns).max(0)) * 1e6);
        }
        Ok(largest)
    }

    /// By how much the structure of a vCPU grew.
    fn stolen_ns(&self, vcpu: usize) -> Result<i128> {
        let after = structure(&self.pause.after, vcpu)?.stolen_ns;
        let before = structure(&self.pause.before, vcpu)?.stolen_ns;
        Ok(i128::from(after) - i128::from(before))
    }

    /// By how much a structure shrank, the most of all vCPUs.
    fn stolen_loss_ns(&self) -> f64 {
        let losses = (0..self.pause.before.vcpus.len()).map(|vcpu| {
            let grown = self.stolen_ns(vcpu);
            grown.map_or(f64::NAN, |grown| seconds((-grown).max(0)) * 1e9)
        });
        worst(losses)
    }

    /// By how much a structure grew beyond what the threads of its vCPU waited for a CPU: all of the
    /// new one, and since the look before the move the old one, which is at most the time from that
    /// look to the stop.
    fn stolen_beyond_run_delay_ns(&self) -> f64 {
        let pause = &self.pause;
        let ran = pause
            .stop
            .after
            .guest
            .saturating_sub(pause.samples.0.counter_before);
        let beyond = pause.after.vcpus.iter().enumerate().map(|(index, vcpu)| {
            let most_ns = i128::from(vcpu.run_delay_ns) + i128::from(pause.ns(ran));
            let grown = self.stolen_ns(index);
            grown.map_or(f64::NAN, |grown| seconds((grown - most_ns).max(0)) * 1e9)
        });
        worst(beyond)
    }

    /// What the guest's counter showed of the gap, against what passed: on one host by its counter,
    /// between hosts by the counters of both and the lab's clock.
    fn check_error(&self, name: &str) -> Check {
        let shown_ns = i128::from(self.pause.ns(self.pause.shown_ticks()));
        let (stop, resume) = (&self.pause.stop, &self.pause.resume);
        let stated_ns = resume.gap.as_ref().and_then(|gap| gap.error_ns);
        if !self.is_far {
            let passed = resume.after.host.wrapping_sub(stop.after.host);
            let error_ns = shown_ns - i128::from(self.pause.ns(passed));
            return check_error(error_ns, 100.0, format!("{name}, on the same host"));
        }
        let lab_us = self.passed_error.as_secs_f64() * 1e6;
        let bound_us = stated_ns.map_or(f64::NAN, |ns| seconds(ns.into()) * 1e6);
        let detail = format!(
            "{name}, to another host over {:.1} s; the record states {bound_us:.0} us, and the lab's \
             own reading is good to {lab_us:.0} us",
            seconds(self.passed_ns)
        );
        check_error(shown_ns - self.passed_ns, bound_us + lab_us, detail)
    }
}

fn check_error(error_ns: i128, most_us: f64, detail: String) -> Check {
    let measured_us = seconds(error_ns).abs() * 1e6;
    Check::new(
        "counter_error_us",
        measured_us,
        Limit::AtMost(most_us),
        "us",
    )
    .with_detail(detail)
}

/// Gives the vCPU that spins a CPU of its own.
fn place(guest: &Guest, host: &mut Host) -> Result<()> {
    guest.pin(host, &[0], &[1])?;
    let last = guest.status(host)?.vcpus.len().saturating_sub(1);
    guest.pin_vcpus(host, |vcpu| if vcpu as usize == last { &[0] } else { &[1] })
}

fn keep_adjustments(guest: &Guest, host: &mut Host, stage: &mut Stage) -> Result<()> {
    for mut record in guest.adjustments(host)? {
        record["guest"] = json!(guest.name());
        stage.report.adjustments.push(record);
    }
    Ok(())
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

#[expect(clippy::cast_precision_loss, reason = "exact up to a hundred days")]
fn seconds(ns: i128) -> f64 {
    ns as f64 / 1e9
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::{Counters, Gap};
    use crate::status::{Generation, Structure, VcpuStatus};

    const MS: u64 = 1_000_000;

    fn status(run_delay_ns: u64, stolen_ns: u64) -> Status {
        let structure = Structure {
            address: 0,
            claimed: true,
            stolen_ns,
        };
        Status {
            state: "Running".into(),
            elapsed_ns: 0,
            paused_ns: 0,
            generation: Generation::default(),
            vcpus: vec![VcpuStatus {
                thread_id: 1,
                run_ns: 0,
                run_delay_ns,
                stolen_time: Some(structure),
            }],
        }
    }

    fn record(host: u64, guest: u64) -> Adjustment {
        let at = Counters {
            host,
            guest,
            frequency_hz: 1_000_000_000,
        };
        Adjustment {
            sequence: 1,
            wall_ns: 0,
            event: String::new(),
            policy: None,
            gap: Some(Gap {
                ns: 0,
                error_ns: Some(MS),
            }),
            hidden_ns: 0,
            shown_ticks: None,
            before: at,
            after: at,
            live: None,
            unanswered_ms: None,
        }
    }

    /// A move over which the guest's counter shows a second.
    fn one(is_far: bool, passed_ns: u64, delay_and_stolen_ns: (u64, u64)) -> Move {
        let sample = Sample {
            sequence: 0,
            cpu: 0,
            counter_before: 1000,
            monotonic_ns: 0,
            monotonic_raw_ns: 0,
            boottime_ns: 0,
            realtime_ns: 0,
            counter_after: 1000,
            steal_ns: [Some(0)].into_iter().collect(),
            paused_ns: None,
        };
        Move {
            is_far,
            passed_ns: passed_ns.into(),
            passed_error: Duration::from_micros(500),
            uptime_difference_s: 0.0,
            pause: Pause {
                kept: (Duration::ZERO, Duration::ZERO),
                stop: record(0, 1000),
                resume: record(passed_ns, 1000 + 1000 * MS),
                before: status(0, 10 * MS),
                after: status(delay_and_stolen_ns.0, delay_and_stolen_ns.1),
                held_up: Duration::ZERO,
                spins: Vec::new(),
                samples: (sample.clone(), sample),
                quiet_growths_ms: vec![0.0],
            },
        }
    }

    #[test]
    fn stolen_time_is_neither_lost_nor_made_up() {
        let figures = |delay, stolen| {
            let it = one(true, 0, (delay, stolen));
            (it.stolen_loss_ns(), it.stolen_beyond_run_delay_ns())
        };
        assert_eq!(figures(2 * MS, 12 * MS), (0.0, 0.0));
        assert!(figures(2 * MS, 10 * MS - 1).0 > 0.5);
        assert!(figures(2 * MS, 12 * MS + 1).1 > 0.5);
    }

    #[test]
    fn what_the_counter_shows_is_what_passed() {
        let passes = |is_far, passed_ns| one(is_far, passed_ns, (0, 0)).check_error("one").pass;
        assert!(passes(false, 1000 * MS + 100_000));
        assert!(!passes(false, 1000 * MS + 101_000));
        // The record's bound of a millisecond, and half of one of the lab's.
        assert!(passes(true, 1001 * MS + 500_000));
        assert!(!passes(true, 1001 * MS + 501_000));
        assert!(!passes(true, 0));
    }
}
