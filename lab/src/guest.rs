//! A guest under `pvtime run` on a host.

use crate::dialogue::Dialogue;
use crate::host::Host;
use crate::interrupt;
use crate::sightings::Sightings;
use crate::status::Status;
use anyhow::{Context, Result, bail};
use guest_protocol::report::{Hello, Program};
use guest_protocol::{Action, Body, LineBuffer, MAX_LINE, Report, Request, Workload};
use lab_agent::message::{Exit, Spawn, Spawned};
use std::collections::VecDeque;
use std::time::{Duration, Instant};

mod moving;
mod spec;

pub use moving::{INSECURE, MigrationReport, Receiver, Transfer, Waiting};
use spec::command_line;
pub use spec::{
    GuestImage, GuestSpec, WARNINGS, boot_host, boot_host_of, host_spec, host_spec_with_debian,
    host_spec_with_next,
};

/// Longest time from the start of the VMM to the guest program's first report.
pub const BOOT_LIMIT: Duration = Duration::from_secs(120);

/// Longest time for an answer, and for the end after a power-off.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// How often new reports are looked for.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// A guest that was started. It ends with its host at the latest.
pub struct Guest {
    name: &'static str,
    is_busy: bool,
    vmm: Spawned,
    pvtime: String,
    socket: String,
    /// Where the VMM writes what the guest program reports, and how much of it was read.
    reports: String,
    read: u64,
    lines: LineBuffer,
    arrived: VecDeque<Report>,
    last_id: u32,
    pub(crate) sightings: Sightings,
}

impl Guest {
    /// Starts the VMM. The guest's boot is awaited by [`Self::await_hello`].
    ///
    /// # Errors
    /// When the host refuses.
    pub fn start(spec: &GuestSpec, host: &mut Host) -> Result<Self> {
        let (kernel, initramfs) = match spec.image {
            GuestImage::Linux => ("Image", Some(host.path_of("guest.cpio")?)),
            GuestImage::Debian => ("debian-Image", Some(host.path_of("debian.cpio")?)),
            GuestImage::LinuxWithNext => ("Image", Some(host.path_of("next.cpio")?)),
            GuestImage::El1 => ("el1", None),
        };
        let kernel = host.path_of(kernel)?;
        let mut argv = vec!["run", "--kernel", &kernel];
        if let Some(initramfs) = &initramfs {
            argv.extend(["--initramfs", initramfs]);
        }
        let (cmdline, memory) = (command_line(spec), spec.memory_mib.to_string());
        let cpus = spec.cpus.to_string();
        argv.extend([
            "--cmdline",
            &cmdline,
            "--memory",
            &memory,
            "--cpus",
            &cpus,
            "--stolen-time",
            spec.stolen_time,
            "--on-pause",
            spec.on_pause,
        ]);
        argv.extend(spec.vmm_options);
        let is_busy = spec.workload != Workload::Idle;
        Self::spawn_without(spec.withheld, spec.name, is_busy, &argv, host)
    }

    /// Has a guest go on that was saved in a folder on this host. Its program does not introduce
    /// itself again.
    ///
    /// # Errors
    /// When the host refuses.
    pub fn restore(
        name: &'static str,
        is_busy: bool,
        snapshot: &str,
        host: &mut Host,
    ) -> Result<Self> {
        Self::spawn(name, is_busy, &["restore", snapshot], host)
    }

    /// Starts a VMM with these arguments, and others that say where its guest is to be heard.
    ///
    /// # Errors
    /// When the host refuses.
    pub fn spawn(
        name: &'static str,
        is_busy: bool,
        arguments: &[&str],
        host: &mut Host,
    ) -> Result<Self> {
        Self::spawn_without(None, name, is_busy, arguments, host)
    }

    /// The same for a VMM that does not find this in the host's KVM: a `WITHHOLD_` of the agent's.
    ///
    /// # Errors
    /// When the host refuses.
    pub fn spawn_without(
        withheld: Option<&str>,
        name: &'static str,
        is_busy: bool,
        arguments: &[&str],
        host: &mut Host,
    ) -> Result<Self> {
        let pvtime = host.path_of("pvtime")?;
        let agent = host.facts().agent_program.clone();
        let mut before = Vec::new();
        before.extend(withheld.map(|withheld| [agent.as_str(), withheld]));
        let socket = host.file(&format!("{name}.sock"));
        let reports = host.file(&format!("{name}-reports.log"));
        let console = host.file(&format!("{name}-console.log"));
        let places = [
            "--id",
            name,
            "--console",
            &console,
            "--serial",
            "stdio",
            "--api-socket",
            &socket,
        ];
        let argv = [before.as_flattened(), &[&pvtime], arguments, &places].concat();
        let vmm = host.spawn(Spawn {
            argv: argv.into_iter().map(str::to_owned).collect(),
            stdin: true,
            stdout: Some(reports.clone()),
            stderr: Some(host.file(&format!("{name}-vmm.log"))),
            ..Spawn::default()
        })?;
        for log in ["reports", "console", "vmm"] {
            host.keep_log(&format!("{name}-{log}.log"));
        }
        Ok(Self {
            name,
            is_busy,
            vmm,
            pvtime,
            socket,
            reports,
            read: 0,
            lines: LineBuffer::new(),
            arrived: VecDeque::new(),
            last_id: 0,
            sightings: Sightings::default(),
        })
    }

    /// Name in logs.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Whether it was started with work to do.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        self.is_busy
    }

    /// The VMM's process on the host.
    #[must_use]
    pub fn vmm(&self) -> Spawned {
        self.vmm
    }

    /// A dialogue beside its own with where it is now; to be made once there, since it numbers its
    /// requests afresh.
    #[must_use]
    pub fn dialogue(&self) -> Dialogue {
        Dialogue::attach(self.vmm, self.reports.clone())
    }

    /// Waits for the guest program's introduction and a first sample.
    ///
    /// # Errors
    /// When the guest does not boot; with the VMM's last line if it ended.
    pub fn await_hello(&mut self, host: &mut Host) -> Result<Hello> {
        let is_hello = |report: &Report| matches!(report.body, Body::Hello(_));
        let hello = match self.await_report(host, BOOT_LIMIT, is_hello)?.body {
            Body::Hello(hello) => hello,
            other => bail!("guest {} sent {other:?} for a hello", self.name),
        };
        // What is done to its time later lies after this one. Only Linux has such clocks.
        if hello.program == Program::Linux {
            self.sample(host)?;
        }
        Ok(hello)
    }

    /// Asks the guest program for something, and waits for the report that answers.
    ///
    /// # Errors
    /// When the guest refuses or does not answer.
    pub fn ask(&mut self, host: &mut Host, action: Action) -> Result<Body> {
        let id = self.send(host, action)?;
        self.await_answer(host, id)
    }

    pub(crate) fn send(&mut self, host: &mut Host, action: Action) -> Result<u32> {
        self.last_id += 1;
        let id = self.last_id;
        let mut line = [0; MAX_LINE];
        let length = Request::new(action).with_id(id).emit(&mut line)?;
        host.write_stdin(self.vmm.child, &line[..length])?;
        Ok(id)
    }

    pub(crate) fn await_answer(&mut self, host: &mut Host, id: u32) -> Result<Body> {
        let answers = move |report: &Report| report.answers == Some(id);
        match self.await_report(host, ANSWER_LIMIT, answers)?.body {
            Body::Error(error) => bail!("guest {}: {}", self.name, error.message),
            body => Ok(body),
        }
    }

    /// Changes what a vCPU does.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub fn set_workload(&mut self, host: &mut Host, cpu: u32, workload: Workload) -> Result<()> {
        let done = self.ask(host, Action::SetWorkload { cpu, workload })?;
        match done {
            Body::Done => Ok(()),
            other => bail!("guest {} sent {other:?} for a new workload", self.name),
        }
    }

    /// What the VMM says of the VM now.
    ///
    /// # Errors
    /// When `pvtime ctl` fails.
    pub fn status(&self, host: &mut Host) -> Result<Status> {
        let said = self.ctl(host, &["status", "--json"])?;
        serde_json::from_str(&said)
            .with_context(|| format!("cannot understand the status {said:?}"))
    }

    /// Runs `pvtime ctl` and returns what it prints.
    ///
    /// # Errors
    /// When it fails, with what it says.
    pub fn ctl(&self, host: &mut Host, arguments: &[&str]) -> Result<String> {
        let argv = self.ctl_argv(arguments);
        let argv: Vec<_> = argv.iter().map(String::as_str).collect();
        let finished = host.run(&argv, ANSWER_LIMIT)?;
        if finished.exit != Exit::Status(0) {
            bail!(
                "pvtime ctl {}, {:?}: {}",
                arguments.join(" "),
                finished.exit,
                finished.stderr.trim()
            );
        }
        Ok(finished.stdout)
    }

    /// The command line of `pvtime ctl`.
    #[must_use]
    pub fn ctl_argv(&self, arguments: &[&str]) -> Vec<String> {
        let words = [&[self.pvtime.as_str(), "ctl", &self.socket], arguments].concat();
        words.into_iter().map(str::to_owned).collect()
    }

    /// Lets the vCPUs run on these host CPUs, and the VMM's other threads on those.
    ///
    /// # Errors
    /// When the host has no such CPU.
    pub fn pin(&self, host: &mut Host, vcpus_on: &[usize], others_on: &[usize]) -> Result<()> {
        for thread in host.threads(self.vmm.pid)?.threads {
            host.pin_thread(thread.tid, others_on)?;
        }
        self.pin_vcpus(host, |_| vcpus_on)
    }

    /// Lets each vCPU run on the host CPUs that are chosen for it.
    ///
    /// # Errors
    /// When the host has no such CPU.
    pub fn pin_vcpus<'a>(
        &self,
        host: &mut Host,
        choose: impl Fn(u32) -> &'a [usize],
    ) -> Result<()> {
        for (index, vcpu) in (0..).zip(self.status(host)?.vcpus) {
            host.pin_thread(vcpu.thread_id, choose(index))?;
        }
        Ok(())
    }

    /// What it wrote to its second serial port so far, for a guest that has no program of ours.
    ///
    /// # Errors
    /// When the host does not answer.
    pub fn written(&self, host: &mut Host) -> Result<Vec<u8>> {
        host.read_from(&self.reports, 0)
    }

    /// Ends it from outside, and waits for the VMM's end with status 0.
    ///
    /// # Errors
    /// When either does not happen.
    pub fn stop(self, host: &mut Host) -> Result<()> {
        self.ctl(host, &["stop"])?;
        self.await_end(host, "it was stopped")
    }

    /// Asks the guest to power off, and waits for the VMM's end with status 0.
    ///
    /// # Errors
    /// When either does not happen.
    pub fn power_off(mut self, host: &mut Host) -> Result<()> {
        self.ask(host, Action::PowerOff)?;
        self.await_end(host, "a power-off")
    }

    fn await_end(&self, host: &mut Host, after: &str) -> Result<()> {
        let exit = host.wait(self.vmm.child, ANSWER_LIMIT)?;
        if exit != Exit::Status(0) {
            bail!(
                "the VMM of guest {} ended with {exit:?} after {after}",
                self.name
            );
        }
        Ok(())
    }

    /// What the guest's kernel wrote to its console so far.
    ///
    /// # Errors
    /// When the host does not answer.
    pub fn console(&self, host: &mut Host) -> Result<String> {
        let console = host.read_from(&host.file(&format!("{}-console.log", self.name)), 0)?;
        Ok(String::from_utf8_lossy(&console).into_owned())
    }

    fn await_report(
        &mut self,
        host: &mut Host,
        limit: Duration,
        is_wanted: impl Fn(&Report) -> bool,
    ) -> Result<Report> {
        let start = Instant::now();
        loop {
            self.collect(host)?;
            if let Some(index) = self.arrived.iter().position(&is_wanted) {
                return self.arrived.remove(index).context("a report was there");
            }
            if let Some(exit) = host.poll_end(self.vmm.child)? {
                let log = host.read_from(&host.file(&format!("{}-vmm.log", self.name)), 0)?;
                let said = String::from_utf8_lossy(&log);
                bail!(
                    "pvtime run for guest {} ended with {exit:?}: {}",
                    self.name,
                    said.trim()
                );
            }
            if start.elapsed() > limit {
                bail!(
                    "guest {} did not report within {} s",
                    self.name,
                    limit.as_secs()
                );
            }
            interrupt::sleep(LOOK_EVERY)?;
        }
    }

    fn collect(&mut self, host: &mut Host) -> Result<()> {
        let bytes = host.read_from(&self.reports, self.read)?;
        self.read += bytes.len() as u64;
        for byte in bytes {
            let Some(line) = self.lines.push(byte)? else {
                continue;
            };
            let report = Report::parse(line).with_context(|| {
                format!(
                    "guest {} sent {:?}",
                    self.name,
                    String::from_utf8_lossy(line)
                )
            })?;
            self.arrived.push_back(report);
        }
        Ok(())
    }
}
