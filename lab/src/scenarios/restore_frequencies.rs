//! A guest with live physical time is saved and restored on hosts of other counter frequencies. It reads
//! its clock all the time and shows what it read.

use super::clock_reader::{ASK, KNOW, ROUND_BYTES, Reading, image, readings};
use super::watch::ms;
use crate::host::Host;
use crate::interrupt::sleep;
use crate::machine::{HostFile, HostSpec, Place};
use crate::report::{Check, Limit};
use crate::requests::Finished;
use crate::scenario::{Scenario, Stage, Step};
use crate::vmm::{Snapshot, Vmm};
use anyhow::{Context, Result, bail};
use lab_agent::message::Exit;
use serde::Deserialize;
use std::time::{Duration, Instant};

pub const SCENARIO: Scenario = Scenario {
    name: "restore-frequencies",
    about: "a clock on live physical time goes on over snapshots, at whatever counter frequency",
    must_fail: None,
    play,
};

/// The hosts' counters, one after the other.
const CHAIN_HZ: [u32; 5] = [
    25_000_000,
    100_000_000,
    31_250_000,
    1_000_000_000,
    25_000_000,
];
/// So a PV tick is a nanosecond.
const PV_HZ: u32 = 1_000_000_000;
/// How many bytes the guest shows on each host. Between two of them it is away for several seconds,
/// which its clock must not show.
const SHOWN_BYTES: usize = 60 * ROUND_BYTES;
const LIMIT: Duration = Duration::from_secs(60);

#[derive(Deserialize)]
struct Record {
    event: String,
    after: Counters,
    live: Option<Live>,
}

#[derive(Deserialize)]
struct Counters {
    guest: u64,
    frequency_hz: u64,
}

#[derive(Deserialize)]
struct Live {
    pv_after: u64,
    distance: String,
}

/// A resumption, as the VMM recorded it.
struct Resumed {
    count: u64,
    native_hz: u64,
    pv: u64,
    /// From the ideal, in PV ticks.
    distance: f64,
}

impl Resumed {
    /// Whether what the guest read maps the count at which it went on to the PV count that the VMM
    /// says, and the guest's readings begin there.
    fn is_what_was_read(&self, readings: &[Reading]) -> bool {
        let here =
            |reading: &&Reading| reading.native_hz == self.native_hz && reading.pv >= self.pv;
        let first = readings.iter().find(here);
        first.is_some_and(|reading| reading.mapping.apply(self.count) == Some(self.pv))
    }
}

#[derive(Default)]
struct Scene {
    snapshot: Option<Snapshot>,
    unasked: Option<Snapshot>,
    shown: Vec<u8>,
    /// On each host but the first.
    resumed: Vec<Resumed>,
    refusal: Option<Finished>,
}

fn play(stage: &mut Stage) -> Result<()> {
    if stage.assets.place == Place::Local {
        stage.note("left out: this machine has one counter frequency");
        return Ok(());
    }
    stage.play(
        Scene::default(),
        &[Step {
            name: "save a guest and restore it on hosts of other frequencies",
            act: chain,
            checks,
        }],
    )
}

fn chain(scene: &mut Scene, stage: &mut Stage) -> Result<()> {
    const NAMES: [&str; CHAIN_HZ.len()] = ["first", "second", "third", "fourth", "fifth"];
    for (name, counter_frequency_hz) in NAMES.into_iter().zip(CHAIN_HZ) {
        let file = HostFile {
            name: "pvtime".into(),
            from: stage.assets.program("pvtime")?,
        };
        let mut host = stage.boot(&HostSpec {
            counter_frequency_hz: counter_frequency_hz.into(),
            memory_mib: 1024,
            files: vec![file],
            ..HostSpec::new(name)
        })?;
        stage.note(&format!("{name} host, {counter_frequency_hz} Hz"));
        let vmm = match scene.snapshot.take() {
            None => begin(scene, &mut host)?,
            Some(snapshot) => {
                refuse(scene, &mut host)?;
                let folder = snapshot.put(&mut host, "asked")?;
                Vmm::start(&mut host, name, &["restore", &folder])?
            }
        };
        await_readings(&mut host, &vmm)?;
        scene.snapshot = Some(leave(scene, stage, &mut host, vmm)?);
        host.power_off()?;
    }
    Ok(())
}

/// Starts the guest, and saves one that reads the structure and has not asked for it.
fn begin(scene: &mut Scene, host: &mut Host) -> Result<Vmm> {
    let frequency = PV_HZ.to_string();
    let mut start = |name, find| {
        let path = host.file(&format!("{name}.Image"));
        host.put_file(&path, 0o644, &image(find))?;
        let argv = [
            "run",
            "--kernel",
            &path,
            "--memory",
            "6",
            "--live-physical-time",
            &frequency,
        ];
        Vmm::start(host, name, &argv)
    };
    let unasked = start("unasked", KNOW)?;
    let asked = start("first", ASK)?;
    await_readings(host, &unasked)?;
    unasked.ctl(host, &["pause"])?;
    scene.unasked = Some(unasked.snapshot(host)?);
    unasked.stop(host)?;
    Ok(asked)
}

fn await_readings(host: &mut Host, vmm: &Vmm) -> Result<()> {
    let start = Instant::now();
    while vmm.read(host, "serial").map_or(0, |shown| shown.len()) < SHOWN_BYTES {
        if start.elapsed() > LIMIT {
            bail!(
                "the guest shows nothing: {}",
                String::from_utf8_lossy(&vmm.read(host, "log")?)
            );
        }
        sleep(Duration::from_millis(50))?;
    }
    Ok(())
}

/// Tries to restore the guest that did not ask, once.
fn refuse(scene: &mut Scene, host: &mut Host) -> Result<()> {
    if let Some(unasked) = scene.unasked.take() {
        let (pvtime, folder) = (host.path_of("pvtime")?, unasked.put(host, "unasked")?);
        scene.refusal = Some(host.run(&[&pvtime, "restore", &folder], LIMIT)?);
    }
    Ok(())
}

/// Stops the guest, keeps what it showed, and takes it along.
fn leave(scene: &mut Scene, stage: &mut Stage, host: &mut Host, vmm: Vmm) -> Result<Snapshot> {
    vmm.ctl(host, &["pause"])?;
    scene.shown.extend(vmm.read(host, "serial")?);
    let events = vmm.ctl(host, &["events", "--json"])?;
    stage.report.adjustments.extend(parsed(&events)?);
    for line in events.lines() {
        let record: Record = serde_json::from_str(line)?;
        if record.event == "resume" {
            let live = record.live.context("a record without live physical time")?;
            scene.resumed.push(Resumed {
                count: record.after.guest,
                native_hz: record.after.frequency_hz,
                pv: live.pv_after,
                distance: live.distance.parse()?,
            });
        }
    }
    stage.keep_figure_of(&vmm, host)?;
    let snapshot = vmm.snapshot(host)?;
    vmm.stop(host)?;
    Ok(snapshot)
}

fn parsed(events: &str) -> Result<Vec<serde_json::Value>> {
    let records = events.lines().map(serde_json::from_str);
    Ok(records.collect::<Result<_, _>>()?)
}

fn checks(scene: &Scene) -> Vec<Check> {
    let shown = readings(&scene.shown);
    let whole: Vec<Reading> = shown.iter().flatten().copied().collect();
    let pairs = || whole.iter().zip(whole.iter().skip(1));
    let count = |count: usize| u32::try_from(count).map_or(f64::INFINITY, f64::from);
    let mut hosts: Vec<u64> = whole.iter().map(|reading| reading.native_hz).collect();
    hosts.dedup();
    let backwards = pairs().filter(|(before, after)| after.pv < before.pv);
    let other = whole
        .iter()
        .filter(|reading| reading.pv_hz != u64::from(PV_HZ));
    let hops_only = pairs().filter(|(before, after)| before.native_hz != after.native_hz);
    let shown_ms = hops_only.map(|(before, after)| ms(after.pv.saturating_sub(before.pv)));
    // At most a native tick and a PV tick; the hosts' own ticks decide.
    let errors = scene.resumed.iter().zip(&CHAIN_HZ[1..]);
    let errors = errors
        .map(|(resumed, hz)| resumed.distance.abs() / (f64::from(PV_HZ) / f64::from(*hz) + 1.0));
    let resumed = scene.resumed.iter();
    let unlike = resumed.filter(|resumed| !resumed.is_what_was_read(&whole));
    let largest = |of: &mut dyn Iterator<Item = f64>| of.fold(0.0, f64::max);
    let refused = scene.refusal.as_ref().is_some_and(|refusal| {
        refusal.exit == Exit::Status(1) && refusal.stderr.contains("did not ask for live physical")
    });
    let said = scene.refusal.as_ref().map(|refusal| refusal.stderr.trim());
    let hops = count(CHAIN_HZ.len() - 1);
    vec![
        Check::new(
            "lpt_readings",
            count(whole.len()),
            Limit::AtLeast(100.0),
            "readings",
        ),
        Check::new(
            "lpt_hosts",
            count(hosts.len()),
            Limit::Equals(hops + 1.0),
            "frequencies",
        )
        .with_detail(format!("{hosts:?}")),
        Check::new(
            "lpt_backwards_steps",
            count(backwards.count()),
            Limit::Equals(0.0),
            "steps",
        ),
        Check::new(
            "lpt_other_pv_frequencies",
            count(other.count()),
            Limit::Equals(0.0),
            "readings",
        ),
        Check::new(
            "lpt_torn_readings",
            count(shown.len() - whole.len()),
            Limit::AtMost(hops),
            "readings",
        ),
        Check::new(
            "lpt_resumptions",
            count(scene.resumed.len()),
            Limit::Equals(hops),
            "records",
        ),
        Check::new(
            "lpt_hops_not_as_recorded",
            count(unlike.count()),
            Limit::Equals(0.0),
            "records",
        ),
        Check::new(
            "lpt_error_of_its_bound",
            largest(&mut errors.into_iter()),
            Limit::AtMost(1.0),
            "of a native and a PV tick",
        ),
        Check::new(
            "lpt_shown_of_a_hop_ms",
            largest(&mut shown_ms.into_iter()),
            Limit::AtMost(2000.0),
            "ms",
        ),
        Check::new(
            "unasked_refused",
            f64::from(u8::from(refused)),
            Limit::Equals(1.0),
            "refusals",
        )
        .with_detail(said.unwrap_or_default().to_owned()),
    ]
}
