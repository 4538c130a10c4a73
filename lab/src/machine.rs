//! The process that a host lives in: QEMU, or the agent itself on an arm64 machine with KVM.

use crate::assets::Assets;
use crate::initramfs::Initramfs;
use crate::wire::WireEnd;
use anyhow::{Context, Result, bail};
use lab_agent::PORT_NAME;
use lab_agent::tether::tether;
use rustix::process::{Pid, setpriority_process};
use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Folder of a host's files in its initramfs.
pub const FILES: &str = "lab";

/// Where the firmware starts: between QEMU's own first instructions, at the start of RAM, and any kernel.
const FIRMWARE_ADDRESS: u64 = 0x4001_0000;

/// Niceness of QEMU.
const PRECEDENCE: i32 = -10;

/// Where hosts live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// In QEMU.
    Emulated,
    /// On this machine itself: it is arm64 and has KVM.
    Local,
}

impl Place {
    /// This machine if it can be a host, else QEMU.
    #[must_use]
    pub fn detect() -> Self {
        let can = cfg!(target_arch = "aarch64") && Path::new("/dev/kvm").exists();
        if can { Self::Local } else { Self::Emulated }
    }
}

/// A file that a host is to have.
#[derive(Debug, Clone)]
pub struct HostFile {
    /// Name to find it by.
    pub name: String,
    /// Where it is on this machine.
    pub from: PathBuf,
}

/// What a host is to be.
#[derive(Debug, Clone)]
pub struct HostSpec {
    /// Name in logs.
    pub name: &'static str,
    /// Frequency of the counter; a local host has its own.
    pub counter_frequency_hz: u64,
    /// CPUs; a local host has its own.
    pub cpus: u32,
    /// Memory in MiB; a local host has its own.
    pub memory_mib: u32,
    /// Has EL2, and so KVM. Without it the host is always emulated.
    pub virtualization: bool,
    /// Is asked to have `FEAT_ECV`. [`lab_agent::message::Hello`] says whether it has.
    pub enhanced_counter: bool,
    /// Networks that it is in; a local host has its own.
    pub wires: Vec<WireEnd>,
    /// Files beside the agent.
    pub files: Vec<HostFile>,
}

impl HostSpec {
    /// Two CPUs, 25 MHz, KVM, and memory for a few guests.
    #[must_use]
    pub fn new(name: &'static str) -> Self {
        Self {
            name,
            counter_frequency_hz: 25_000_000,
            cpus: 2,
            memory_mib: 2048,
            virtualization: true,
            enhanced_counter: false,
            wires: Vec::new(),
            files: Vec::new(),
        }
    }
}

/// A running process with an agent in it. Killed when dropped.
pub struct Machine {
    process: Child,
    /// Where its last words are.
    log: PathBuf,
    /// Archive to remove with it.
    archive: Option<PathBuf>,
}

impl Machine {
    /// Starts QEMU with the spec's machine, and returns the channel's end.
    ///
    /// # Errors
    /// When files are missing or QEMU does not start.
    pub fn emulate(spec: &HostSpec, assets: &Assets, logs: &Path) -> Result<(Self, UnixStream)> {
        if spec.counter_frequency_hz == 0 || 1_000_000_000 % spec.counter_frequency_hz != 0 {
            bail!(
                "QEMU cannot have a counter of {} Hz: its tick is a whole number of ns, so choose a \
                 divisor of 1,000,000,000",
                spec.counter_frequency_hz
            );
        }
        if spec.enhanced_counter && spec.cpus < 2 {
            bail!(
                "the firmware of a host with FEAT_ECV needs two CPUs to start one of them at EL2"
            );
        }
        let archive = logs.join(format!("{}.cpio", spec.name));
        fs::write(&archive, host_initramfs(spec, assets)?)
            .with_context(|| format!("cannot write {}", archive.display()))?;
        let (ours, theirs) = UnixStream::pair()?;
        let log = logs.join(format!("{}-qemu.log", spec.name));
        let mut command = Command::new(assets.emulator_of(spec));
        command
            .args(qemu_arguments(spec))
            .args(firmware_arguments(spec, assets)?)
            .arg("-kernel")
            .arg(&assets.host_kernel)
            .arg("-initrd")
            .arg(&archive)
            .arg("-serial")
            .arg(format!(
                "file:{}",
                logs.join(format!("{}-console.log", spec.name)).display()
            ));
        // The channel's other end is QEMU's standard input: nothing to name, nothing to clean up.
        let process = start(&mut command, theirs.into(), &log)?;
        prefer(&process);
        Ok((
            Self {
                process,
                log,
                archive: Some(archive),
            },
            ours,
        ))
    }

    /// Starts the agent as a child on this machine, and returns the channel's end.
    ///
    /// # Errors
    /// When the agent does not start.
    pub fn local(spec: &HostSpec, agent: &Path, logs: &Path) -> Result<(Self, UnixStream)> {
        let (ours, theirs) = UnixStream::pair()?;
        let log = logs.join(format!("{}-agent.log", spec.name));
        let process = start(&mut Command::new(agent), theirs.into(), &log)?;
        Ok((
            Self {
                process,
                log,
                archive: None,
            },
            ours,
        ))
    }

    /// Process id of QEMU or of the agent.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Whether QEMU emulates it.
    #[must_use]
    pub fn is_emulated(&self) -> bool {
        self.archive.is_some()
    }

    /// What the threads of an emulator have waited for a CPU of this machine so far.
    ///
    /// # Errors
    /// When it has ended.
    pub fn held_up(&self) -> Result<Duration> {
        if !self.is_emulated() {
            return Ok(Duration::ZERO);
        }
        let mut total_ns = 0;
        for thread in fs::read_dir(format!("/proc/{}/task", self.pid()))?.flatten() {
            // A thread may have ended since.
            let Ok(counts) = fs::read_to_string(thread.path().join("schedstat")) else {
                continue;
            };
            let run_delay_ns = counts
                .split_ascii_whitespace()
                .nth(1)
                .map(str::parse::<u64>);
            total_ns += run_delay_ns.context("no run delay in schedstat")??;
        }
        Ok(Duration::from_nanos(total_ns))
    }

    /// Waits for the process to end by itself.
    ///
    /// # Errors
    /// When it does not within the limit.
    pub fn await_end(&mut self, limit: Duration) -> Result<()> {
        let start = Instant::now();
        while self.process.try_wait()?.is_none() {
            if start.elapsed() > limit {
                bail!(
                    "the host did not power off within {:.1} s",
                    limit.as_secs_f64()
                );
            }
            sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// What the process said of itself, for an error message; empty if it said nothing.
    #[must_use]
    pub fn last_words(&self) -> String {
        let said = fs::read(&self.log).unwrap_or_default();
        let said = String::from_utf8_lossy(&said);
        said.trim()
            .lines()
            .last()
            .map(|line| format!(" ({line})"))
            .unwrap_or_default()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ended_already = self.process.kill();
        let _reaped_already = self.process.wait();
        if let Some(archive) = &self.archive {
            let _not_worth_a_failure = fs::remove_file(archive);
        }
    }
}

/// Asks for precedence over this machine's other work: what QEMU loses to it is lost to the host
/// inside without a trace, in the middle of what is measured. Not everybody may have it.
fn prefer(process: &Child) {
    let pid = i32::try_from(process.id()).ok().and_then(Pid::from_raw);
    let _refused = setpriority_process(pid, PRECEDENCE);
}

pub(crate) fn start(command: &mut Command, stdin: OwnedFd, log: &Path) -> Result<Child> {
    let file = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
    command.stdin(stdin).stdout(file.try_clone()?).stderr(file);
    let program = command.get_program().to_string_lossy().into_owned();
    tether(command).spawn().map_err(|error| {
        if error.kind() == ErrorKind::NotFound {
            anyhow::anyhow!(
                "there is no {program}: install it (Debian: apt-get install \
                 --no-install-recommends qemu-system-arm), or name one with PVTIME_LAB_QEMU"
            )
        } else {
            anyhow::Error::new(error).context(format!("cannot start {program}"))
        }
    })
}

/// Has the first CPU start in our firmware, at EL3. Everything else is as without: QEMU loads the kernel,
/// and answers PSCI itself.
fn firmware_arguments(spec: &HostSpec, assets: &Assets) -> Result<Vec<String>> {
    if !spec.enhanced_counter {
        return Ok(Vec::new());
    }
    let file = assets.firmware()?;
    // A comma ends a value of QEMU's, two are one.
    let file = file.display().to_string().replace(',', ",,");
    let loader = format!("loader,file={file},addr={FIRMWARE_ADDRESS:#x},force-raw=on,cpu-num=0");
    Ok(vec!["-device".to_owned(), loader])
}

fn qemu_arguments(spec: &HostSpec) -> Vec<String> {
    let virtualization = if spec.virtualization { "on" } else { "off" };
    // The one has no FEAT_ECV, the other all that the emulator knows, and EL3 to let EL2 have it.
    let (cpu, secure) = if spec.enhanced_counter {
        ("max", "on")
    } else {
        ("cortex-a76", "off")
    };
    // A panic ends QEMU, which ends the channel, which the lab reports with the console's last words.
    let arguments = format!(
        "-nodefaults -no-user-config -display none -monitor none -no-reboot \
         -M virt,virtualization={virtualization},secure={secure},gic-version=3 \
         -cpu {cpu},cntfrq={} -smp {} -m {} \
         -device virtio-serial-pci -chardev socket,id=lab,fd=0 \
         -device virtserialport,chardev=lab,name={PORT_NAME}",
        spec.counter_frequency_hz, spec.cpus, spec.memory_mib
    );
    let mut arguments: Vec<String> = arguments
        .split_ascii_whitespace()
        .map(str::to_owned)
        .collect();
    arguments.extend(spec.wires.iter().flat_map(|end| end.qemu_arguments()));
    arguments.extend([
        "-append".into(),
        "console=ttyAMA0 panic=-1 sysctl.debug.exception-trace=1".into(),
    ]);
    arguments
}

fn host_initramfs(spec: &HostSpec, assets: &Assets) -> Result<Vec<u8>> {
    let mut archive = Initramfs::default();
    archive.add_file("init", 0o755, &assets.program("lab-agent")?)?;
    for file in &spec.files {
        archive.add_file(&format!("{FILES}/{}", file.name), 0o755, &file.from)?;
    }
    for module in modules_of(spec, assets)? {
        archive.add_file(&module.name, 0o644, &module.from)?;
    }
    archive.finish()
}

/// Modules of the kernel that the host loads, in their order, and where they are in its initramfs.
pub(crate) fn modules_of(spec: &HostSpec, assets: &Assets) -> Result<Vec<HostFile>> {
    if spec.wires.is_empty() {
        return Ok(Vec::new());
    }
    let files = assets.network_modules()?.into_iter();
    let in_archive = files.map(|from| HostFile {
        name: format!(
            "{FILES}/modules/{}",
            from.file_name().unwrap_or_default().to_string_lossy()
        ),
        from,
    });
    Ok(in_archive.collect())
}
