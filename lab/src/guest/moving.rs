//! A guest that moves from one VMM to another.

use super::Guest;
use crate::clocks::ClockSight;
use crate::control::Adjustment;
use crate::host::Host;
use crate::wire::WireEnd;
use anyhow::{Context, Result, bail, ensure};
use lab_agent::WITHHOLD_ATTRIBUTES;
use lab_agent::message::{Exit, Spawn, Spawned};
use rustix::process::Signal;
use serde::Deserialize;
use std::time::{Duration, Instant};

/// Longest time for a whole migration.
const MIGRATION_LIMIT: Duration = Duration::from_secs(120);

/// Longest time until a VMM waits for a guest.
const READY_LIMIT: Duration = Duration::from_secs(20);

/// Lets a guest cross a network that is private.
pub const INSECURE: &str = "--insecure";

/// What `pvtime migrate --json` says, as far as the lab judges it.
#[derive(Debug, Clone, Deserialize)]
pub struct MigrationReport {
    /// `Accepted`, `Refused` or `Moved`.
    pub outcome: String,
    /// Why the guest cannot go there.
    pub refusals: Vec<String>,
    /// What was sent; none where nothing was.
    pub transfer: Option<Transfer>,
    /// What had been stolen from each vCPU when it stopped, in ns, by its structure; none of one whose
    /// guest has not asked for it, and empty where it did not go.
    pub stolen_at_stop_ns: Vec<Option<u64>>,
    /// What was done to its time; none where it stays paused or did not go.
    pub record: Option<Adjustment>,
}

/// What was sent.
#[derive(Debug, Clone, Copy, Deserialize)]
pub struct Transfer {
    /// Rounds of memory.
    pub rounds: u32,
    /// Bytes that were sent.
    pub sent_bytes: u64,
    /// As many of them as were sent while the guest was stopped.
    pub stopped_bytes: u64,
    /// From the offer to the destination's word.
    pub total_ms: u64,
    /// From the stop to that word.
    pub downtime_ms: u64,
    /// Whether what was left at the stop would fit into the downtime that was asked for.
    pub converged: bool,
}

impl MigrationReport {
    /// How far the gap in its record is from what passed by the counters of the host that the guest
    /// left and of the one that it reached, beyond what it states as its error and the lab's own, in
    /// us; none where there is no such record.
    #[must_use]
    pub fn blackout_error_us(&self, [left, reached]: [&ClockSight; 2]) -> Option<f64> {
        let record = self.record.as_ref()?;
        let gap = record.gap.as_ref()?;
        let passed_ns = reached.since_ns(record.after.host, left, record.before.host);
        let lab_ns = (left.error() + reached.error()).as_nanos();
        let bound_ns = u128::from(gap.error_ns.unwrap_or(0)) + lab_ns;
        let beyond_ns = gap.ns.abs_diff(passed_ns).saturating_sub(bound_ns);
        Some(u32::try_from(beyond_ns / 1_000).map_or(f64::INFINITY, f64::from))
    }
}

/// A VMM that waits for a guest.
#[derive(Debug, Clone)]
pub struct Receiver {
    /// Its process on its host.
    pub vmm: Spawned,
    /// Where it waits, for `pvtime migrate`.
    pub address: String,
    name: &'static str,
    socket: String,
    reports: String,
}

impl Receiver {
    /// Starts a VMM that waits at a Unix socket of its host, and returns when it does.
    ///
    /// # Errors
    /// When it does not wait.
    pub fn start(name: &'static str, host: &mut Host) -> Result<Self> {
        Self::start_with(name, host, &[])
    }

    /// The same with options that say how the socket is secured.
    ///
    /// # Errors
    /// When it does not wait.
    pub fn start_with(name: &'static str, host: &mut Host, options: &[&str]) -> Result<Self> {
        let address = format!("unix:{}", host.file(&format!("{name}-migration.sock")));
        Self::launch(name, &[], &address, host, options)
    }

    /// The same at its host's end of a network, for a guest of the host at the other end, with
    /// options that say how that is secured.
    ///
    /// # Errors
    /// When it does not wait.
    pub fn start_on(
        name: &'static str,
        host: &mut Host,
        end: WireEnd,
        options: &[&str],
    ) -> Result<Self> {
        let address = format!("tcp:{}:0", host.address_at(end)?);
        Self::launch(name, &[], &address, host, options)
    }

    /// The same for a VMM that finds no SMCCC filter, and no place for stolen time, in its host's KVM.
    ///
    /// # Errors
    /// When it does not wait.
    pub fn start_without_filter(name: &'static str, host: &mut Host, end: WireEnd) -> Result<Self> {
        let address = format!("tcp:{}:0", host.address_at(end)?);
        let agent = host.facts().agent_program.clone();
        let before = [agent.as_str(), WITHHOLD_ATTRIBUTES];
        Self::launch(name, &before, &address, host, &[INSECURE])
    }

    fn launch(
        name: &'static str,
        before: &[&str],
        address: &str,
        host: &mut Host,
        more: &[&str],
    ) -> Result<Self> {
        let file = |suffix: &str| host.file(&format!("{name}-{suffix}"));
        let (socket, reports) = (file("api.sock"), file("reports.log"));
        let (console, log) = (file("console.log"), file("vmm.log"));
        let pvtime = host.path_of("pvtime")?;
        let mut argv = before.to_vec();
        argv.extend([
            pvtime.as_str(),
            "receive",
            address,
            "--console",
            &console,
            "--serial",
            "stdio",
            "--api-socket",
            &socket,
        ]);
        argv.extend(more);
        // A VMM that never gets a guest leaves it empty.
        host.put_file(&console, 0o600, &[])?;
        let vmm = host.spawn(Spawn {
            argv: argv.into_iter().map(str::to_owned).collect(),
            stdin: true,
            stdout: Some(reports.clone()),
            stderr: Some(log.clone()),
            ..Spawn::default()
        })?;
        for kind in ["reports", "console", "vmm"] {
            host.keep_log(&format!("{name}-{kind}.log"));
        }
        Ok(Self {
            vmm,
            address: await_address(host, &log)?,
            name,
            socket,
            reports,
        })
    }

    /// What its VMM said on standard error.
    ///
    /// # Errors
    /// When the host does not answer.
    pub fn said(&self, host: &mut Host) -> Result<String> {
        let log = host.read_from(&host.file(&format!("{}-vmm.log", self.name)), 0)?;
        Ok(String::from_utf8_lossy(&log).into_owned())
    }

    /// What it does now: a VMM without a guest tells no status.
    ///
    /// # Errors
    /// When the host does not answer.
    pub fn waiting(&self, host: &mut Host) -> Result<Waiting> {
        if host.poll_end(self.vmm.child)?.is_some() {
            return Ok(Waiting::Ended);
        }
        Ok(match self.ctl(host, &["status", "--json"])? {
            Some(_) => Waiting::NoMore,
            None => Waiting::ForTheNext,
        })
    }

    /// Ends it as nothing can prevent.
    ///
    /// # Errors
    /// When it has ended already.
    pub fn kill(self, host: &mut Host) -> Result<()> {
        host.signal(self.vmm.child, Signal::KILL.as_raw())?;
        host.wait(self.vmm.child, READY_LIMIT).map(drop)
    }

    /// Runs `pvtime ctl` on its VMM; none where that fails.
    ///
    /// # Errors
    /// When the host does not answer.
    pub fn ctl(&self, host: &mut Host, arguments: &[&str]) -> Result<Option<String>> {
        let pvtime = host.path_of("pvtime")?;
        let argv = [&[pvtime.as_str(), "ctl", &self.socket], arguments].concat();
        let finished = host.run(&argv, Duration::from_secs(30))?;
        Ok((finished.exit == Exit::Status(0)).then_some(finished.stdout))
    }
}

/// What a VMM that was to receive a guest does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waiting {
    /// It has none and waits.
    ForTheNext,
    /// It has one, in whatever state.
    NoMore,
    /// It has ended.
    Ended,
}

/// Where the VMM says that it waits: it may have chosen its port.
fn await_address(host: &mut Host, log: &str) -> Result<String> {
    const WAITS: &str = "waiting for a VM at ";
    let start = Instant::now();
    loop {
        host.wait_for_text(log, WAITS, READY_LIMIT)?;
        let said = host.read_from(log, 0)?;
        let said = String::from_utf8_lossy(&said);
        let address = said.split_once(WAITS).map(|(_, rest)| rest);
        // The line may not be whole yet.
        if let Some((address, _)) = address.and_then(|it| it.split_once('\n')) {
            // How the way is secured may follow.
            let address = address.split_ascii_whitespace().next();
            return Ok(address.unwrap_or_default().to_owned());
        }
        if start.elapsed() > READY_LIMIT {
            bail!("the VMM does not say where it waits: {}", said.trim());
        }
    }
}

impl Guest {
    /// Runs `pvtime migrate` and returns what it said, for an answer of the other host.
    ///
    /// # Errors
    /// When there is none, with the command's own line; when the command's status is not that of the answer.
    pub fn ask_to_move(
        &self,
        host: &mut Host,
        destination: &str,
        options: &[&str],
    ) -> Result<MigrationReport> {
        let fixed = [&self.pvtime, "migrate", &self.socket, destination, "--json"];
        let argv = [&fixed, options].concat();
        let finished = host.run(&argv, MIGRATION_LIMIT)?;
        if finished.stdout.is_empty() {
            bail!("{:?}: {}", finished.exit, finished.stderr.trim());
        }
        let report: MigrationReport = serde_json::from_str(&finished.stdout)
            .with_context(|| format!("cannot understand the report {:?}", finished.stdout))?;
        let status = i32::from(report.outcome == "Refused");
        ensure!(
            finished.exit == Exit::Status(status),
            "the guest was {}, and the command ended with {:?}",
            report.outcome,
            finished.exit
        );
        Ok(report)
    }

    /// Moves from its host to another VMM, there or elsewhere, waits for the end of the one it
    /// leaves, and is talked to there from then on.
    ///
    /// # Errors
    /// When it does not move.
    pub fn move_to(
        &mut self,
        host: &mut Host,
        receiver: &Receiver,
        options: &[&str],
    ) -> Result<MigrationReport> {
        let report = self.ask_to_move(host, &receiver.address, options)?;
        if report.outcome != "Moved" {
            bail!("the guest was not moved: {report:?}");
        }
        let exit = host.wait(self.vmm.child, Duration::from_secs(20))?;
        if exit != Exit::Status(0) {
            bail!("the VMM that the guest left ended with {exit:?}");
        }
        self.follow(host, receiver)?;
        Ok(report)
    }

    /// Is talked to at another VMM from now on, after what it said at the one that it left.
    ///
    /// # Errors
    /// When the host does not answer.
    pub fn follow(&mut self, host: &mut Host, receiver: &Receiver) -> Result<()> {
        self.collect(host)?;
        self.arrive_at(receiver);
        Ok(())
    }

    /// Is talked to at another VMM from now on, and has its name. Of what it said before only the
    /// last sample counts: the new VMM's records begin behind it.
    fn arrive_at(&mut self, receiver: &Receiver) {
        self.name = receiver.name;
        let samples = &mut self.sightings.samples;
        samples.drain(..samples.len().saturating_sub(1));
        self.sightings.spins.clear();
        self.vmm = receiver.vmm;
        self.socket.clone_from(&receiver.socket);
        self.reports.clone_from(&receiver.reports);
        self.read = 0;
    }
}
