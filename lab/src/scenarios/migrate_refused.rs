//! Guests that cannot go on where they are asked to go stay where they are, and notice nothing.

use super::bare_checks::{at_least, count};
use super::lpt_chain::ONE_FREQUENCY;
use super::watch::{ms, worst};
use crate::bare::{Bare, OnHost};
use crate::guest::{
    Guest, GuestImage, GuestSpec, INSECURE, MigrationReport, Receiver, Waiting, boot_host_of,
    host_spec,
};
use crate::host::Host;
use crate::machine::{HostSpec, Place};
use crate::report::{Check, Limit, Skipped};
use crate::scenario::{Scenario, Stage, Step, no_checks};
use crate::wire::{WireEnd, wire};
use anyhow::{Context, Result, bail};
use guest_protocol::Workload;
use guest_protocol::report::{Spin, SpinGap};
use guest_protocol::request::Fill;
use std::time::{Duration, Instant};

pub const SCENARIO: Scenario = Scenario {
    name: "migrate-refused",
    about: "what a guest would lose on another host is refused before memory moves",
    must_fail: None,
    play,
};

/// How often each guest is asked for, with `--dry-run` and without.
const TRIES: usize = 3;

/// The emulator may wait for so much of a question, as where guests are watched.
const CALM_PERCENT: f64 = 2.0;

/// The other host's device, as its kernel names the first, and how much it may have received: an
/// offer is some KiB.
const RECEIVED: &str = "/sys/class/net/eth0/statistics/rx_bytes";
const MOST_RECEIVED: f64 = 512.0 * 1024.0;

/// A guest, and why the other host cannot have it.
struct Case {
    spec: fn() -> GuestSpec,
    /// Name of the VMM that is asked.
    receiver: &'static str,
    without_filter: bool,
    /// The whole reason, or what it holds.
    says: &'static [&'static str],
}

const CASES: [Case; 4] = [
    Case {
        spec: || GuestSpec {
            cpus: 2,
            ..GuestSpec::new("without-lpt")
        },
        receiver: "other-frequency",
        without_filter: false,
        says: &["25000000 Hz", "100000000 Hz", "live physical time"],
    },
    Case {
        spec: || plain("without-lpt-el1"),
        receiver: "other-frequency-el1",
        without_filter: false,
        says: &["25000000 Hz", "100000000 Hz", "live physical time"],
    },
    Case {
        // The other host has no place for stolen time either, and says so of a guest that has it.
        spec: || bare("with-lpt", 16, "off"),
        receiver: "no-filter",
        without_filter: true,
        says: &["KVM_ARM_VM_SMCCC_FILTER", "no hypercall reaches the VMM"],
    },
    Case {
        spec: || bare("large", 640, "on"),
        receiver: "little-memory",
        without_filter: false,
        says: &["the VM has 640 MiB of memory", "MiB available"],
    },
];

/// A bare-metal guest that may go to another frequency.
fn bare(name: &'static str, memory_mib: u32, stolen_time: &'static str) -> GuestSpec {
    GuestSpec {
        memory_mib,
        stolen_time,
        vmm_options: &["--live-physical-time", "1000000000"],
        ..plain(name)
    }
}

/// One that may not, and says what was stolen within each step.
fn plain(name: &'static str) -> GuestSpec {
    GuestSpec {
        image: GuestImage::El1,
        cpus: 2,
        memory_mib: 16,
        ..GuestSpec::new(name)
    }
}

#[derive(Default)]
struct Scene {
    /// The guests', and the one that cannot have them.
    hosts: Vec<(Host, WireEnd)>,
    seen: Vec<Seen>,
}

/// What came of asking for one guest.
struct Seen {
    case: &'static Case,
    /// What `--dry-run` said, and the command without it, each time.
    reports: Vec<[MigrationReport; 2]>,
    /// Over each question, and over a moment behind the last.
    gaps: Vec<Gap>,
    reads: u64,
    /// For how long its vCPUs were stopped meanwhile, by its VMM.
    paused_ns: u64,
    /// Bytes that the other host received.
    received: u64,
    /// What was done to the guest's time since its start.
    records: usize,
    /// The VMM there awaits the next guest, and has none.
    still_waits: bool,
}

/// The largest step of the spinning vCPU.
#[derive(Clone, Copy)]
struct Gap {
    /// Less what was stolen within it; of a guest that does not say, what its thread waited meanwhile.
    ms: f64,
    /// For how long the emulator waited for CPUs of this machine meanwhile.
    held_up_ms: f64,
    /// And for which share of the time.
    held_up_percent: f64,
}

/// What is known before a question.
struct Before {
    at: Instant,
    held_up: Duration,
    run_delay_ns: u64,
}

fn play(stage: &mut Stage) -> Result<()> {
    if stage.assets.place == Place::Local {
        stage.report.skipped.push(Skipped {
            part: "a host of another frequency".into(),
            reason: ONE_FREQUENCY.into(),
        });
        return Ok(());
    }
    stage.play(
        Scene::default(),
        &[
            Step {
                name: "boot a host of 25 MHz, and a small one of 100 MHz",
                act: boot,
                checks: no_checks,
            },
            Step {
                name: "ask for a Linux guest that has no live physical time",
                act: |scene, stage| ask(scene, stage, &CASES[0]),
                checks: last_checks,
            },
            Step {
                name: "ask for a bare-metal guest that has none",
                act: |scene, stage| ask(scene, stage, &CASES[1]),
                checks: last_checks,
            },
            Step {
                name: "ask for a guest that has it, where no hypercall reaches a VMM",
                act: |scene, stage| ask(scene, stage, &CASES[2]),
                checks: last_checks,
            },
            Step {
                name: "ask for a guest with more memory than there is",
                act: |scene, stage| ask(scene, stage, &CASES[3]),
                checks: last_checks,
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
    let kinds = [("host-0", 25_000_000, 1024), ("host-1", 100_000_000, 640)];
    for ((name, counter_frequency_hz, memory_mib), end) in kinds.into_iter().zip(wire(0)) {
        let spec = HostSpec {
            counter_frequency_hz,
            memory_mib,
            wires: vec![end],
            ..host_spec(name, stage.assets, &stage.logs)?
        };
        scene.hosts.push((boot_host_of(&spec, stage)?, end));
    }
    Ok(())
}

fn ask(scene: &mut Scene, stage: &mut Stage, case: &'static Case) -> Result<()> {
    let [(host, _), (other, end)] = &mut scene.hosts[..] else {
        bail!("there are no two hosts");
    };
    let spec = (case.spec)();
    let mut guest = Guest::start(&spec, host)?;
    guest.await_hello(host)?;
    prepare(&mut guest, &spec, host)?;
    let receiver = if case.without_filter {
        Receiver::start_without_filter(case.receiver, other, *end)?
    } else {
        Receiver::start_on(case.receiver, other, *end, &[INSECURE])?
    };
    let before = received(other)?;
    let mut seen = Seen {
        case,
        reports: Vec::new(),
        gaps: Vec::new(),
        reads: 0,
        paused_ns: 0,
        received: 0,
        records: 0,
        still_waits: false,
    };
    let paused_ns = guest.status(host)?.paused_ns;
    let mut since = Before::look(&guest, host)?;
    spins(&mut guest, host, case)?;
    for _ in 0..TRIES {
        let mut ask = |options: &[&str]| {
            let report = guest.ask_to_move(host, &receiver.address, options)?;
            // A step that goes on is the next question's.
            since = seen.look(&mut guest, host, &since)?;
            Ok::<_, anyhow::Error>(report)
        };
        let dry = ask(&[INSECURE, "--dry-run"])?;
        let real = ask(&[INSECURE])?;
        seen.reports.push([dry, real]);
    }
    seen.look(&mut guest, host, &since)?;
    seen.paused_ns = guest.status(host)?.paused_ns - paused_ns;
    seen.received = received(other)? - before;
    seen.records = guest.adjustments(host)?.len();
    seen.still_waits = receiver.waiting(other)? == Waiting::ForTheNext;
    receiver.kill(other)?;
    stage.keep_figures(&guest, host)?;
    guest.power_off(host)?;
    scene.seen.push(seen);
    Ok(())
}

/// Memory that would be seen on its way, and a vCPU that spins on a CPU of its own.
fn prepare(guest: &mut Guest, spec: &GuestSpec, host: &mut Host) -> Result<()> {
    guest.pin(host, &[0], &[1])?;
    guest.pin_vcpus(host, |vcpu| if vcpu == 1 { &[0] } else { &[1] })?;
    if spec.image == GuestImage::Linux {
        return guest.set_workload(host, 1, Workload::Spin);
    }
    let mut asked = OnHost { guest, host };
    asked.fill(Fill {
        seed: 1,
        mib: 4,
        changes_per_s: 0,
    })?;
    asked.interfaces()?;
    asked.give_work(1, Workload::Spin)
}

impl Before {
    fn look(guest: &Guest, host: &mut Host) -> Result<Self> {
        Ok(Self {
            at: Instant::now(),
            held_up: host.held_up()?,
            run_delay_ns: guest.status(host)?.vcpus[1].run_delay_ns,
        })
    }
}

impl Seen {
    /// Enters the largest step that ended since it was looked before.
    fn look(&mut self, guest: &mut Guest, host: &mut Host, since: &Before) -> Result<Before> {
        // The next stretch begins before this one ends: no wait falls between them.
        let next = Before::look(guest, host)?;
        let spin = spins(guest, host, self.case)?;
        let now = Before::look(guest, host)?;
        let frequency_hz = host.facts().counter_frequency_hz.context("no counter")?;
        let waited_ns = now.run_delay_ns - since.run_delay_ns;
        let spec = (self.case.spec)();
        let tells = spec.image == GuestImage::El1 && spec.stolen_time == "on";
        let step_ns = |gap: &SpinGap| {
            let ns = gap.ticks * 1_000_000_000 / frequency_hz;
            ns.saturating_sub(if tells { gap.stolen_ns } else { waited_ns })
        };
        let held_up_ms = now.held_up.saturating_sub(since.held_up).as_secs_f64() * 1e3;
        let all_ms = (now.at - since.at).as_secs_f64() * 1e3;
        self.gaps.push(Gap {
            ms: worst(spin.largest_gaps.iter().map(|gap| ms(step_ns(gap)))),
            held_up_ms,
            held_up_percent: held_up_ms / all_ms * 1e2,
        });
        self.reads += spin.reads;
        Ok(next)
    }
}

/// What the spinning vCPU saw since it was asked last.
fn spins(guest: &mut Guest, host: &mut Host, case: &Case) -> Result<Spin> {
    let spins = if (case.spec)().image == GuestImage::Linux {
        guest.spins(host)?
    } else {
        OnHost { guest, host }.spun()?
    };
    spins
        .into_iter()
        .find(|spin| spin.cpu == 1)
        .context("vCPU 1 does not spin")
}

/// What the host's network device has received, in bytes.
fn received(host: &mut Host) -> Result<u64> {
    let text = host.read_from(RECEIVED, 0)?;
    let text = String::from_utf8(text)?;
    text.trim()
        .parse()
        .with_context(|| format!("{RECEIVED} has {text:?}"))
}

fn last_checks(scene: &Scene) -> Vec<Check> {
    scene.seen.last().map(Seen::checks).unwrap_or_default()
}

impl Seen {
    fn checks(&self) -> Vec<Check> {
        let name = (self.case.spec)().name;
        let reports = || self.reports.iter().flatten();
        let refusals = reports().map(|it| it.refusals.join("; "));
        let said = refusals.clone().next().unwrap_or_default();
        let wrong = reports().filter(|it| !self.is_refusal(it)).count();
        let differ = self.reports.iter().filter(|[dry, real]| {
            // What is available changes from one question to the next.
            figures_off(&dry.refusals) != figures_off(&real.refusals)
        });
        let told: Vec<_> = self.gaps.iter().map(|it| (it.ms, it.held_up_ms)).collect();
        #[expect(clippy::cast_precision_loss, reason = "some KiB, or it fails")]
        let received = self.received as f64;
        vec![
            count("not_refused", wrong as u64, "answers").with_detail(format!("{name}: {said}")),
            count("dry_run_differs", differ.count() as u64, "answers").with_detail(name),
            Check::new(
                "received_bytes",
                received,
                Limit::AtMost(MOST_RECEIVED),
                "bytes",
            )
            .with_detail(format!(
                "{name}: by the other host, in {} questions",
                2 * TRIES
            )),
            count("adjustments_made", self.records as u64 - 1, "records").with_detail(name),
            count("paused_ns", self.paused_ns, "ns").with_detail(name),
            Check::new("counter_gap_ms", self.gap_ms(), Limit::AtMost(20.0), "ms").with_detail(format!(
                "{name}: of each question, less what was stolen, and what the emulator waited for CPUs \
                 meanwhile: {told:.1?}; {} reads",
                self.reads
            )),
            at_least("still_waits", usize::from(self.still_waits), 1, "VMMs")
                .with_detail(self.case.receiver),
        ]
    }

    /// The worst of all questions, and no less than the least step: what asking does, it does each time.
    fn gap_ms(&self) -> f64 {
        let least = self.gaps.iter().map(|gap| gap.ms);
        let least = least.fold(f64::INFINITY, f64::min);
        worst(self.gaps.iter().map(|gap| gap.judged_ms())).max(least)
    }

    /// For this reason and no other, and nothing was sent.
    fn is_refusal(&self, report: &MigrationReport) -> bool {
        let [reason] = &report.refusals[..] else {
            return false;
        };
        report.outcome == "Refused"
            && report.transfer.is_none()
            && report.record.is_none()
            && self.case.says.iter().all(|part| reason.contains(part))
    }
}

impl Gap {
    /// All of it where the emulator was not kept waiting, else what its waits cannot have been.
    fn judged_ms(self) -> f64 {
        if self.held_up_percent <= CALM_PERCENT {
            return self.ms;
        }
        (self.ms - self.held_up_ms).max(0.0)
    }
}

/// The words of reasons without their last figure's digits.
fn figures_off(refusals: &[String]) -> Vec<String> {
    let off = |text: &String| match text.rsplit_once(" MiB available") {
        Some((before, after)) => format!("{}{after}", before.trim_end_matches(char::is_numeric)),
        None => text.clone(),
    };
    refusals.iter().map(off).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(refusals: [&[&str]; 2]) -> Seen {
        let report = |refusals: &[&str]| MigrationReport {
            outcome: "Refused".into(),
            refusals: refusals.iter().map(|&it| it.into()).collect(),
            transfer: None,
            stolen_at_stop_ns: Vec::new(),
            record: None,
        };
        Seen {
            case: &CASES[3],
            reports: vec![refusals.map(report)],
            gaps: gaps([[30.0, 12.0, 2.1], [19.0, 1.0, 2.0], [3.0, 9.0, 9.0]]),
            reads: 1,
            paused_ns: 0,
            received: 100,
            records: 1,
            still_waits: true,
        }
    }

    fn gaps(all: [[f64; 3]; 3]) -> Vec<Gap> {
        let gap = |[ms, held_up_ms, held_up_percent]: [f64; 3]| Gap {
            ms,
            held_up_ms,
            held_up_percent,
        };
        all.map(gap).into()
    }

    fn failed(seen: &Seen) -> Vec<&'static str> {
        let checks = seen.checks().into_iter();
        checks.filter(|it| !it.pass).map(|it| it.name).collect()
    }

    #[test]
    fn a_guest_that_stays_for_its_reason_passes() {
        let text =
            |mib| format!("the VM has 640 MiB of memory, and this host has {mib} MiB available");
        let (first, second) = (text(400), text(399));
        let good = seen([&[&first], &[&second]]);
        assert_eq!(failed(&good), [""; 0]);
        let never_calm = Seen {
            gaps: gaps([[30.0, 12.0, 9.0], [25.0, 90.0, 9.0], [19.5, 90.0, 9.0]]),
            ..seen([&[&first], &[&second]])
        };
        for (seen, ms) in [(good, 19.0), (never_calm, 19.5)] {
            assert!((seen.gap_ms() - ms).abs() < 1e-9, "{}", seen.gap_ms());
        }
        let two = seen([&[&first], &[&second, "and more"]]);
        assert_eq!(failed(&two), ["not_refused", "dry_run_differs"]);
        let other = seen([&["too big"], &["too big"]]);
        assert_eq!(failed(&other), ["not_refused"]);
    }

    #[test]
    fn a_guest_that_notices_fails() {
        let text = "the VM has 640 MiB of memory, and this host has 9 MiB available";
        let noticed = Seen {
            gaps: gaps([[3.0, 0.0, 0.0], [30.0, 9.0, 9.0], [3.0, 0.0, 0.0]]),
            paused_ns: 1,
            records: 3,
            received: 4 << 20,
            still_waits: false,
            ..seen([&[text], &[text]])
        };
        assert_eq!(
            failed(&noticed),
            [
                "received_bytes",
                "adjustments_made",
                "paused_ns",
                "counter_gap_ms",
                "still_waits"
            ]
        );
    }
}
