//! A guest's physical counter shows what its virtual one does, whatever is done to its time: on a host
//! whose KVM answers each read of it, and on one whose hardware has the offset (`FEAT_ECV`).

use crate::bare::{Bare, OnHost};
use crate::control::Adjustment;
use crate::guest::{Guest, GuestImage, GuestSpec, host_spec};
use crate::host::Host;
use crate::interrupt::sleep;
use crate::machine::{HostSpec, Place};
use crate::report::{Check, Limit, Skipped};
use crate::scenario::{Scenario, Stage, Step};
use anyhow::{Context, Result, bail};
use guest_protocol::report::Clocks;
use serde::Deserialize;
use std::time::Duration;

pub const SCENARIO: Scenario = Scenario {
    name: "physical-counter",
    about: "CNTPCT is CNTVCT after start, pauses and restores, with and without FEAT_ECV",
    must_fail: None,
    play,
};

/// Readings before and after each event: the narrowest of some is as narrow as they get.
const READINGS: usize = 10;
/// How long a VM stands still, and how far the counters would be apart if one of them moved.
const PAUSE: Duration = Duration::from_millis(500);
/// Largest distance of the virtual reads around the physical one, in the narrowest reading: a
/// fifth of the pause shows beyond doubt.
const SKEW_LIMIT_US: f64 = 1000.0;

/// Why there is no emulated host with `FEAT_ECV`, and the way out.
const NO_EMULATOR: &str = "no emulator with FEAT_ECV is named: `cargo xtask lab run physical-counter` \
    fetches one, or name QEMU 9 or later with PVTIME_LAB_QEMU_ECV";

/// A kind of host, and the names of the guests on it.
struct Case {
    host: &'static str,
    /// `ECV` of `ID_AA64MMFR0_EL1` that the host has to have.
    ecv: u64,
    guests: [&'static str; 4],
}

const CASES: [Case; 2] = [
    Case {
        host: "without-ecv",
        ecv: 0,
        guests: [
            "freezing",
            "restored-freeze",
            "restored-advance",
            "advancing",
        ],
    },
    // With CNTPOFF_EL2, which KVM gives the offset.
    Case {
        host: "with-ecv",
        ecv: 2,
        guests: [
            "ecv-freezing",
            "ecv-restored-freeze",
            "ecv-restored-advance",
            "ecv-advancing",
        ],
    },
];

/// What was read around each event on one host.
struct Seen {
    case: &'static Case,
    frequency_hz: u64,
    events: Vec<(&'static str, Vec<Clocks>)>,
}

fn play(stage: &mut Stage) -> Result<()> {
    stage.play(
        Vec::new(),
        &[
            Step {
                name: "disturb guests on a host without FEAT_ECV",
                act: |seen, stage| see(seen, stage, &CASES[0]),
                checks: |seen| checks_of(seen, &CASES[0]),
            },
            Step {
                name: "disturb guests on a host with FEAT_ECV",
                act: |seen, stage| see(seen, stage, &CASES[1]),
                checks: |seen| checks_of(seen, &CASES[1]),
            },
        ],
    )
}

fn see(seen: &mut Vec<Seen>, stage: &mut Stage, case: &'static Case) -> Result<()> {
    if case.ecv > 0 && stage.assets.place == Place::Emulated && stage.assets.qemu_ecv.is_none() {
        stage.report.skipped.push(Skipped {
            part: format!("a host {}", case.host.replace('-', " ")),
            reason: NO_EMULATOR.to_owned(),
        });
        return Ok(());
    }
    let spec = HostSpec {
        enhanced_counter: case.ecv > 0,
        ..host_spec(case.host, stage.assets, &stage.logs)?
    };
    let mut host = stage.boot(&spec)?;
    let facts = host.facts();
    if facts.enhanced_counter != Some(case.ecv) {
        let reason = why_not(facts.enhanced_counter, case.ecv, stage.assets.place);
        stage.report.skipped.push(Skipped {
            part: format!("a host {}", case.host.replace('-', " ")),
            reason,
        });
        return host.power_off();
    }
    let frequency_hz = facts.counter_frequency_hz.context("no counter")?;
    let mut events = freeze(stage, &mut host, case)?;
    events.extend(advance(stage, &mut host, case)?);
    seen.push(Seen {
        case,
        frequency_hz,
        events,
    });
    host.power_off()
}

/// Why a host is not as it should be, and the way out.
fn why_not(found: Option<u64>, wanted: u64, place: Place) -> String {
    let found = found.map_or_else(|| "none".to_owned(), |ecv| ecv.to_string());
    let way_out = match place {
        Place::Local => "it is this machine itself; --host qemu emulates one",
        Place::Emulated => "name QEMU 9 or later with PVTIME_LAB_QEMU_ECV",
    };
    format!("the host's ID_AA64MMFR0_EL1.ECV is {found}, not {wanted}: {way_out}")
}

type Events = Vec<(&'static str, Vec<Clocks>)>;

/// Starts a guest that is to see no pause, pauses it, and restores it twice.
fn freeze(stage: &mut Stage, host: &mut Host, case: &'static Case) -> Result<Events> {
    let [name, frozen, advanced, _] = case.guests;
    let mut guest = start(host, name, "freeze")?;
    let mut events = vec![("start", read(&mut guest, host)?)];
    let over = pause(&mut guest, host, "freeze")?;
    events.push(("pause, freeze", over));
    let before = read(&mut guest, host)?;
    guest.pause(host)?;
    let folder = host.file(name);
    guest.ctl(host, &["snapshot", &folder])?;
    stage.keep_records(&guest, host)?;
    guest.stop(host)?;
    sleep(PAUSE)?;
    for (event, name, policy) in [
        ("snapshot and restore, freeze", frozen, "freeze"),
        ("snapshot and restore, advance", advanced, "advance"),
    ] {
        let arguments = ["restore", &folder, "--on-restore", policy];
        let mut guest = Guest::spawn(name, false, &arguments, host)?;
        let after = read(&mut guest, host)?;
        is_recorded(&resumption(&guest, host)?, policy)?;
        stage.keep_records(&guest, host)?;
        guest.power_off(host)?;
        events.push((event, [before.clone(), after].concat()));
    }
    Ok(events)
}

/// Starts a guest that is to see a pause, and pauses it.
fn advance(stage: &mut Stage, host: &mut Host, case: &'static Case) -> Result<Events> {
    let mut guest = start(host, case.guests[3], "advance")?;
    let over = pause(&mut guest, host, "advance")?;
    stage.keep_records(&guest, host)?;
    guest.power_off(host)?;
    Ok(vec![("pause, advance", over)])
}

fn start(host: &mut Host, name: &'static str, on_pause: &'static str) -> Result<Guest> {
    let spec = GuestSpec {
        image: GuestImage::El1,
        memory_mib: 16,
        on_pause,
        ..GuestSpec::new(name)
    };
    let mut guest = Guest::start(&spec, host)?;
    guest.await_hello(host)?;
    Ok(guest)
}

/// What is read before and after a pause.
fn pause(guest: &mut Guest, host: &mut Host, policy: &str) -> Result<Vec<Clocks>> {
    let before = read(guest, host)?;
    guest.pause(host)?;
    sleep(PAUSE)?;
    is_recorded(&guest.resume(host)?, policy)?;
    Ok([before, read(guest, host)?].concat())
}

fn read(guest: &mut Guest, host: &mut Host) -> Result<Vec<Clocks>> {
    let mut asked = OnHost { guest, host };
    (0..READINGS).map(|_| asked.clocks()).collect()
}

/// The event was the one that is judged: a VM stood still, and its counters by the policy.
fn is_recorded(record: &Adjustment, policy: &str) -> Result<()> {
    let stood_ns = record.gap.as_ref().map_or(0, |gap| gap.ns);
    let is_still = record.before.guest == record.after.guest;
    let is_meant = is_still == (policy == "freeze") && record.policy.as_deref() == Some(policy);
    if !is_meant || stood_ns < PAUSE.as_nanos().cast_signed() {
        bail!("the record is not of a {policy} over {PAUSE:?}: {record:?}");
    }
    Ok(())
}

/// The record of how a restored guest went on.
fn resumption(guest: &Guest, host: &mut Host) -> Result<Adjustment> {
    let mut records = guest.adjustments(host)?.into_iter();
    let resume = records.rfind(|record| record["event"] == "resume");
    let resume = resume.context("no resumption was recorded")?;
    Adjustment::deserialize(&resume).with_context(|| format!("cannot understand {resume}"))
}

fn checks_of(seen: &[Seen], case: &'static Case) -> Vec<Check> {
    let of_case = seen.iter().filter(|seen| seen.case.host == case.host);
    of_case.flat_map(Seen::checks).collect()
}

impl Seen {
    fn checks(&self) -> Vec<Check> {
        let events = self.events.iter();
        events
            .flat_map(|(event, readings)| {
                let detail = format!("{}: {event}, {} readings", self.case.host, readings.len());
                [
                    check_excess(readings).with_detail(&detail),
                    self.check_skew(readings).with_detail(&detail),
                ]
            })
            .collect()
    }

    /// The readings can tell something.
    #[expect(clippy::cast_precision_loss, reason = "for people")]
    fn check_skew(&self, readings: &[Clocks]) -> Check {
        let skews = readings
            .iter()
            .map(|clocks| clocks.virtual_after.wrapping_sub(clocks.virtual_before));
        let us = skews.min().map_or(f64::NAN, |ticks| {
            ticks as f64 / self.frequency_hz as f64 * 1e6
        });
        Check::new("read_skew_us", us, Limit::AtMost(SKEW_LIMIT_US), "us")
    }
}

#[expect(clippy::cast_precision_loss, reason = "0, or it fails")]
fn check_excess(readings: &[Clocks]) -> Check {
    let worst = readings.iter().map(excess_ticks).max();
    let worst = worst.map_or(f64::NAN, |ticks| ticks as f64);
    Check::new(
        "physical_virtual_excess_ticks",
        worst,
        Limit::Equals(0.0),
        "ticks",
    )
}

/// How far the physical count lies outside of the two virtual ones around it. It is read between them
/// in program order, so the difference of the two counters is 0 within what the reads took.
fn excess_ticks(clocks: &Clocks) -> u64 {
    let early = clocks.virtual_before.saturating_sub(clocks.physical);
    let late = clocks.physical.saturating_sub(clocks.virtual_after);
    early.max(late)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clocks(physical: u64) -> Clocks {
        Clocks {
            cpu: 0,
            virtual_before: 100,
            physical,
            live: None,
            virtual_after: 110,
            stolen_ns: None,
        }
    }

    #[test]
    fn a_physical_count_outside_of_its_virtual_ones_has_an_excess() {
        let excess = |physical| excess_ticks(&clocks(physical));
        assert_eq!([100, 105, 110].map(excess), [0, 0, 0]);
        assert_eq!(
            [99, 111, 0, u64::MAX].map(excess),
            [1, 1, 100, u64::MAX - 110]
        );
        assert!(check_excess(&[clocks(100), clocks(110)]).pass);
        assert!(!check_excess(&[clocks(100), clocks(111)]).pass);
        assert!(!check_excess(&[]).pass);
    }

    #[test]
    fn what_is_left_out_has_a_way_out() {
        let reason = why_not(Some(1), 2, Place::Emulated);
        assert!(reason.contains("is 1, not 2") && reason.contains("PVTIME_LAB_QEMU_ECV"));
        assert!(why_not(None, 0, Place::Local).contains("is none, not 0"));
    }
}
