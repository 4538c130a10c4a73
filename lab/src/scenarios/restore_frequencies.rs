//! A guest with live physical time is saved and restored on hosts of other counter frequencies. It reads
//! its clock all the time, with a program of forty instructions, and shows what it read.

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
const SHOWN_BYTES: usize = 60 * 48;
const LIMIT: Duration = Duration::from_secs(60);

/// `PV_TIME_LPT`; its result is the structure's address.
const ASK: u32 = 0xd400_0002; // hvc #0
/// The same address without asking.
const KNOW: u32 = 0xd2a1_4020; // mov x0, #0xa010000

/// An arm64 Image that shows, as 64-bit words on the second serial port and again and again: the
/// structure's sequence number, frequencies, multiplier and fraction bits, the virtual counter, and the
/// sequence number.
fn image(find: u32) -> Vec<u8> {
    const HEADER: [u32; 16] = [
        0x1400_0010, // b . + 64
        0,
        0,
        0,
        4096, // image_size
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0x644d_5241, // "ARM\x64"
        0,
    ];
    const START: [u32; 3] = [
        0xd2a1_2033, // mov x19, #0x9010000
        0x5280_0440, // mov w0, #0x22
        0x72b8_a000, // movk w0, #0xc500, lsl #16
    ];
    const AGAIN: [u32; 28] = [
        0xaa00_03f4, // mov x20, x0
        0xf940_0681, // again: ldr x1, [x20, #8]
        0xf940_0a82, // ldr x2, [x20, #16]
        0xf940_0e83, // ldr x3, [x20, #24]
        0xf940_1684, // ldr x4, [x20, #40]
        0xd503_3fdf, // isb
        0xd53b_e045, // mrs x5, cntvct_el0
        0xd503_3fdf, // isb
        0xf940_0686, // ldr x6, [x20, #8]
        0xaa01_03e0, // mov x0, x1
        0x9400_000c, // bl show
        0xaa02_03e0, // mov x0, x2
        0x9400_000a, // bl show
        0xaa03_03e0, // mov x0, x3
        0x9400_0008, // bl show
        0xaa04_03e0, // mov x0, x4
        0x9400_0006, // bl show
        0xaa05_03e0, // mov x0, x5
        0x9400_0004, // bl show
        0xaa06_03e0, // mov x0, x6
        0x9400_0002, // bl show
        0x17ff_ffec, // b again
        0x5280_0109, // show: mov w9, #8
        0x3900_0260, // next: strb w0, [x19]
        0xd348_fc00, // lsr x0, x0, #8
        0x7100_0529, // subs w9, w9, #1
        0x54ff_ffa1, // b.ne next
        0xd65f_03c0, // ret
    ];
    let program = HEADER.iter().chain(&START).chain([&find]).chain(&AGAIN);
    program.flat_map(|word| word.to_le_bytes()).collect()
}

/// One reading of the guest's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Reading {
    native_hz: u64,
    pv_hz: u64,
    pv: u64,
}

impl Reading {
    /// From the six words that were shown; `None` where the structure changed between the first and
    /// the last.
    fn new(words: [u64; 6]) -> Option<Self> {
        let [before, frequencies, multiplier, bits, count, after] = words;
        let pv = (u128::from(count) * u128::from(multiplier)) >> (bits & 0x3f);
        (before == after).then_some(Self {
            native_hz: frequencies & 0xffff_ffff,
            pv_hz: frequencies >> 32,
            pv: u64::try_from(pv).ok()?,
        })
    }
}

/// What the guest showed on all its hosts: each went on where the one before stopped.
fn readings(shown: &[u8]) -> Vec<Option<Reading>> {
    let (words, _) = shown.as_chunks::<8>();
    let words: Vec<u64> = words.iter().map(|word| u64::from_le_bytes(*word)).collect();
    let (rounds, _) = words.as_chunks::<6>();
    rounds.iter().map(|words| Reading::new(*words)).collect()
}

#[derive(Deserialize)]
struct Record {
    event: String,
    live: Option<Live>,
}

#[derive(Deserialize)]
struct Live {
    distance: String,
}

#[derive(Default)]
struct Scene {
    snapshot: Option<Snapshot>,
    unasked: Option<Snapshot>,
    shown: Vec<u8>,
    /// Of each host but the first: how far live physical time was from the ideal, in PV ticks.
    distances: Vec<f64>,
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
            scene.distances.push(live.distance.parse()?);
        }
    }
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
    let errors = scene.distances.iter().zip(&CHAIN_HZ[1..]);
    let errors =
        errors.map(|(distance, hz)| distance.abs() / (f64::from(PV_HZ) / f64::from(*hz) + 1.0));
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
            count(scene.distances.len()),
            Limit::Equals(hops),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reading_is_what_the_guest_computes() {
        let frequencies = (u64::from(PV_HZ) << 32) + 25_000_000;
        let at_25_mhz = [2, frequencies, 5 << 61, 58, 25, 2];
        let reading = Reading {
            native_hz: 25_000_000,
            pv_hz: PV_HZ.into(),
            pv: 1000,
        };
        assert_eq!(Reading::new(at_25_mhz), Some(reading));
        let torn = [2, frequencies, 5 << 61, 58, 25, 4];
        assert_eq!(Reading::new(torn), None);
        let mut shown: Vec<u8> = [at_25_mhz, torn]
            .iter()
            .flatten()
            .flat_map(|word| word.to_le_bytes())
            .collect();
        assert_eq!(readings(&shown), [Some(reading), None]);
        // One that was cut is not looked at.
        shown.pop();
        assert_eq!(readings(&shown), [Some(reading)]);
    }

    #[test]
    fn the_image_begins_as_one_and_fits_a_page() {
        for find in [ASK, KNOW] {
            let image = image(find);
            assert_eq!(image[56..60], *b"ARM\x64");
            assert!(image.len() <= 4096);
        }
    }
}
