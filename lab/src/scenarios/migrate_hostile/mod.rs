//! Peers of `pvtime receive` that are no pvtime, or one that lies: each is refused in bounded time and
//! memory, in a line, and nothing of a VM runs.

mod attacks;
mod peer;
mod stream;

use self::attacks::{Attack, Stall, attacks, stalls};
use self::peer::{Peer, Said, socket};
use self::stream::{COMMIT, Stream};
use super::bare_checks::{at_least, count};
use super::migrate_faults::{end_relay, start_relay};
use crate::guest::{Guest, GuestImage, GuestSpec, Receiver, Waiting, host_spec};
use crate::host::Host;
use crate::interrupt::sleep;
use crate::report::{Check, Limit};
use crate::scenario::{Scenario, Stage, Step, no_checks};
use anyhow::{Context, Result, bail};
use lab_agent::relay::Order;
use std::time::Duration;

pub const SCENARIO: Scenario = Scenario {
    name: "migrate-hostile",
    about: "peers that lie, send nonsense, stall or drip are refused by `pvtime receive`, and nothing runs",
    must_fail: None,
    play,
};

/// Those that stall or drip, each at a VMM of its own.
const STALLED: [&str; 11] = [
    "stall-0", "stall-1", "stall-2", "stall-3", "stall-4", "stall-5", "stall-6", "stall-7",
    "stall-8", "stall-9", "stall-10",
];

/// A message's deadline, 10 s, and what a busy machine adds.
const STALL_LIMIT_S: f64 = 20.0;
/// How often those that drip say a byte.
const DRIP_EVERY: Duration = Duration::from_millis(500);

/// Beyond what the VMM is and the pages that came: memory for what a length says would be 1 MiB for
/// an offer, and 4 GiB for anything that is believed.
const PEAK_LIMIT_MIB: f64 = 24.0;

#[derive(Default)]
struct Scene {
    host: Option<Host>,
    stream: Option<Stream>,
    receiver: Option<Receiver>,
    refused: Refused,
}

/// What came of peers.
#[derive(Default)]
struct Refused {
    peers: usize,
    /// What was wrong with how one was refused.
    faults: Vec<String>,
    /// The longest until a line was said.
    longest: Duration,
    peak_kib: u64,
}

fn play(stage: &mut Stage) -> Result<()> {
    stage.play(
        Scene::default(),
        &[
            Step {
                name: "boot a host, and record how a guest moves",
                act: record,
                checks: no_checks,
            },
            Step {
                name: "send what is no VM",
                act: attack_all,
                checks: |scene| scene.refused.checks("hostile", 36, 10.0),
            },
            Step {
                name: "send nonsense in the place of the commit",
                act: forge_commit,
                checks: |scene| vec![scene.refused.fault_check("unfinished_vms_that_ran")],
            },
            Step {
                name: "stall, and drip",
                act: stall_all,
                checks: |scene| {
                    scene
                        .refused
                        .checks("stalling", STALLED.len(), STALL_LIMIT_S)
                },
            },
            Step {
                name: "power the host off",
                act: |scene, _| scene.host.take().context("no host")?.power_off(),
                checks: no_checks,
            },
        ],
    )
}

fn record(scene: &mut Scene, stage: &mut Stage) -> Result<()> {
    let mut host = stage.boot(&host_spec("host", stage.assets, &stage.logs)?)?;
    let spec = GuestSpec {
        image: GuestImage::El1,
        memory_mib: 64,
        ..GuestSpec::new("honest")
    };
    let mut guest = Guest::start(&spec, &mut host)?;
    guest.await_hello(&mut host)?;
    let there = Receiver::start("there", &mut host)?;
    let (near, kept) = (host.file("relay.sock"), host.file("stream"));
    let order = Order {
        listen: near.clone(),
        to: socket(&there).to_owned(),
        fault: None,
        keep: Some(kept.clone()),
    };
    let (said, relay) = start_relay(&order, &mut host)?;
    let report = guest.ask_to_move(&mut host, &format!("unix:{near}"), &[])?;
    if report.outcome != "Moved" {
        bail!("the guest was not moved: {report:?}");
    }
    end_relay(relay, &said, &mut host)?;
    let stream = Stream::parse(&host.read_from(&kept, 0)?)?;
    let bytes: usize = stream.frames.iter().map(|frame| frame.1.len()).sum();
    stage.note(&format!(
        "{} frames with {bytes} bytes",
        stream.frames.len()
    ));
    guest.follow(&mut host, &there)?;
    stage.keep_records(&guest, &mut host)?;
    there.kill(&mut host)?;
    scene.receiver = Some(Receiver::start("receiver", &mut host)?);
    (scene.host, scene.stream) = (Some(host), Some(stream));
    Ok(())
}

fn attack_all(scene: &mut Scene, _: &mut Stage) -> Result<()> {
    let host = scene.host.as_mut().context("no host")?;
    let receiver = scene.receiver.as_ref().context("no receiver")?;
    let stream = scene.stream.as_ref().context("nothing was recorded")?;
    for attack in attacks(stream)? {
        let peer = Peer::send(&attack, receiver, host)?;
        host.close_stdin(peer.talker)?;
        scene
            .refused
            .enter(&peer.await_line(&attack, receiver, host)?, &attack);
        peer.end(host)?;
    }
    let waiting = receiver.waiting(host)?;
    scene.refused.end(waiting, receiver, host)
}

/// A whole VM arrives, and the word that it is the destination's does not: it may be run by nobody.
fn forge_commit(scene: &mut Scene, _: &mut Stage) -> Result<()> {
    let host = scene.host.as_mut().context("no host")?;
    let receiver = scene.receiver.take().context("no receiver")?;
    let stream = scene.stream.as_ref().context("nothing was recorded")?;
    scene.refused = Refused::default();
    let attack = Attack {
        name: "damage in the commit".into(),
        bytes: stream.through(COMMIT)?.damaged().bytes,
        says: "the VM is in doubt",
    };
    let peer = Peer::send(&attack, &receiver, host)?;
    // Its vCPUs have threads by now, which it says in a line of its own.
    let said = peer.await_text(attack.says, &attack, &receiver, host)?;
    scene.refused.enter(&said, &attack);
    let status = receiver.ctl(host, &["status", "--json"])?;
    let status = status.context("the VM in doubt does not answer")?;
    if !status.contains("In doubt") {
        scene.refused.faults.push(format!("its status: {status}"));
    }
    let before = vcpu_run_ns(&receiver, host)?;
    sleep(Duration::from_millis(300))?;
    let run_ns = vcpu_run_ns(&receiver, host)? - before;
    if run_ns > 0 {
        scene
            .refused
            .faults
            .push(format!("its vCPU's thread ran {run_ns} ns"));
    }
    peer.end(host)?;
    receiver.kill(host)
}

/// For how long its vCPUs' threads ran.
fn vcpu_run_ns(receiver: &Receiver, host: &mut Host) -> Result<u64> {
    let threads = host.threads(receiver.vmm.pid)?.threads;
    let vcpus = threads.iter().filter(|it| it.name.starts_with("vcpu"));
    Ok(vcpus.map(|it| it.run_ns).sum())
}

fn stall_all(scene: &mut Scene, _: &mut Stage) -> Result<()> {
    let host = scene.host.as_mut().context("no host")?;
    let stream = scene.stream.as_ref().context("nothing was recorded")?;
    scene.refused = Refused::default();
    let stalls = stalls(stream)?;
    if stalls.len() != STALLED.len() {
        bail!("{} of {} stalls have a name", STALLED.len(), stalls.len());
    }
    let receivers: Vec<_> = STALLED
        .iter()
        .map(|name| Receiver::start(name, host))
        .collect::<Result<_>>()?;
    let mut peers = Vec::new();
    for (stall, receiver) in stalls.iter().zip(&receivers) {
        peers.push((
            stall,
            receiver,
            Peer::send(&stall.attack, receiver, host)?,
            0,
        ));
    }
    // Whoever runs late drips late: what a drip could say does not depend on how busy the machine is.
    while !peers.is_empty() {
        sleep(DRIP_EVERY)?;
        let mut left = Vec::new();
        for (stall, receiver, peer, said) in peers {
            if let Some(line) = peer.line(&stall.attack, receiver, host)? {
                scene.refused.enter(&line, &stall.attack);
                scene.refused.enter_drip(stall, said);
                peer.end(host)?;
                continue;
            }
            if let Some(byte) = stall.rest.get(said) {
                peer.say(&[*byte], host);
            }
            left.push((stall, receiver, peer, said + 1));
        }
        peers = left;
    }
    for receiver in receivers {
        let waiting = receiver.waiting(host)?;
        scene.refused.end(waiting, &receiver, host)?;
        receiver.kill(host)?;
    }
    Ok(())
}

impl Refused {
    fn enter(&mut self, said: &Said, attack: &Attack) {
        self.peers += 1;
        self.longest = self.longest.max(said.after);
        let text = said.text.trim_end();
        if !text.contains(attack.says) {
            self.faults.push(format!("{}: {text:?}", attack.name));
        }
    }

    /// One that drips is left before it has said all.
    fn enter_drip(&mut self, stall: &Stall, said: usize) {
        if !stall.rest.is_empty() && said >= stall.rest.len() {
            let (name, bytes) = (&stall.attack.name, stall.rest.len());
            self.faults
                .push(format!("{name}: it could say all of its {bytes} bytes"));
        }
    }

    /// Looks at a VMM that is to wait for a VM still, without a thread for a vCPU.
    fn end(&mut self, waiting: Waiting, receiver: &Receiver, host: &mut Host) -> Result<()> {
        if waiting != Waiting::ForTheNext {
            self.faults
                .push(format!("the VMM waits no more: {waiting:?}"));
            return Ok(());
        }
        let said = receiver.said(host)?;
        let unlike = |line: &&str| !line.starts_with("pvtime: no VM came: ");
        // The first says where it waits.
        let odd: Vec<_> = said.lines().skip(1).filter(unlike).collect();
        self.faults.extend(odd.into_iter().map(str::to_owned));
        let threads = host.threads(receiver.vmm.pid)?.threads;
        let vcpus = threads.iter().filter(|it| it.name.starts_with("vcpu"));
        self.faults
            .extend(vcpus.map(|it| format!("there is a thread {}", it.name)));
        self.peak_kib = self.peak_kib.max(peak_kib(receiver, host)?);
        Ok(())
    }

    fn checks(&self, who: &str, peers: usize, limit_s: f64) -> Vec<Check> {
        let mib = u32::try_from(self.peak_kib).map_or(f64::INFINITY, f64::from) / 1024.0;
        let peak = Check::new("peak_memory_mib", mib, Limit::AtMost(PEAK_LIMIT_MIB), "MiB");
        let longest_s = self.longest.as_secs_f64();
        vec![
            at_least("peers", self.peers, peers, "peers").with_detail(who.to_owned()),
            self.fault_check("not_refused"),
            Check::new("longest_s", longest_s, Limit::AtMost(limit_s), "s")
                .with_detail(who.to_owned()),
            peak.with_detail(who.to_owned()),
        ]
    }

    fn fault_check(&self, name: &'static str) -> Check {
        let detail = self.faults.join("; ");
        count(name, self.faults.len() as u64, "faults").with_detail(detail)
    }
}

/// The most memory that a VMM ever had.
fn peak_kib(receiver: &Receiver, host: &mut Host) -> Result<u64> {
    let status = host.read_from(&format!("/proc/{}/status", receiver.vmm.pid), 0)?;
    let status = String::from_utf8_lossy(&status);
    let line = status.lines().find_map(|it| it.strip_prefix("VmHWM:"));
    let line = line.context("the kernel tells no peak")?;
    let kib = line.trim().trim_end_matches(" kB");
    kib.parse()
        .with_context(|| format!("cannot understand {line:?}"))
}
