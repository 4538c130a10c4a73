//! `pvtime run` beside QEMU: the same kernel and initramfs, on one host, in turns.

use super::watch::ms;
use crate::guest::{BOOT_LIMIT, host_spec};
use crate::host::Host;
use crate::interrupt::sleep;
use crate::machine::HostSpec;
use crate::peer;
use crate::report::{Check, Limit};
use crate::scenario::{Scenario, Stage, Step, no_checks};
use anyhow::{Context, Result, bail};
use lab_agent::message::{Mapping, Spawn};
use rustix::process::Signal;
use std::fmt::Write as _;
use std::fs;
use std::time::Duration;

/// Not in the list: it needs another VMM, and has aims rather than limits.
pub const SCENARIO: Scenario = Scenario {
    name: "bench",
    about: "time to the guest's init and the VMM's own memory, beside QEMU",
    must_fail: None,
    play,
};

/// The page, in the folder of the logs.
pub const PAGE: &str = "benchmarks-vmms.md";

/// Starts of each VMM with each console; odd, so that one of them is the median.
const REPEATS: usize = 3;

const GUEST_MEMORY_MIB: u64 = 256;

/// From the guest's first report to the look at the VMM's memory.
const REST: Duration = Duration::from_secs(1);

/// What the guest program says first.
const HELLO: &str = "\"type\":\"hello\"";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Vmm {
    Pvtime,
    Qemu,
}

/// One start of one VMM.
#[derive(Debug, Clone, Copy)]
struct Run {
    vmm: Vmm,
    /// The kernel's log is kept off the console.
    quiet: bool,
    init_ms: f64,
    own_mib: f64,
}

#[derive(Default)]
struct Scene {
    host: Option<Host>,
    qemu_version: String,
    runs: Vec<Run>,
    /// How long all of it took, and how long the emulator's threads waited for a CPU meanwhile.
    took: Duration,
    held_up: Duration,
}

fn play(stage: &mut Stage) -> Result<()> {
    stage.play(
        Scene::default(),
        &[
            Step {
                name: "boot a host with both VMMs",
                act: boot,
                checks: no_checks,
            },
            Step {
                name: "start each in turn",
                act: measure,
                checks,
            },
            Step {
                name: "write the page",
                act: write_page,
                checks: no_checks,
            },
            Step {
                name: "power the host off",
                act: |scene, _| scene.host.take().context("no host")?.power_off(),
                checks: no_checks,
            },
        ],
    )
}

fn boot(scene: &mut Scene, stage: &mut Stage) -> Result<()> {
    let mut spec = host_spec("host", stage.assets, &stage.logs)?;
    spec.files.extend(peer::files(stage.assets)?);
    let mut host = stage.boot(&HostSpec {
        memory_mib: 3072,
        ..spec
    })?;
    scene.qemu_version = peer::version(&mut host)?;
    scene.host = Some(host);
    Ok(())
}

fn measure(scene: &mut Scene, stage: &mut Stage) -> Result<()> {
    let host = scene.host.as_mut().context("no host")?;
    let (start_at, held_up_before) = (stage.elapsed(), host.held_up()?);
    for _ in 0..REPEATS {
        for quiet in [false, true] {
            for vmm in [Vmm::Pvtime, Vmm::Qemu] {
                let run = start(host, vmm, quiet)?;
                stage.note(&format!("{run:?}"));
                scene.runs.push(run);
            }
        }
    }
    scene.held_up = host.held_up()?.saturating_sub(held_up_before);
    scene.took = stage.elapsed().saturating_sub(start_at);
    Ok(())
}

fn start(host: &mut Host, vmm: Vmm, quiet: bool) -> Result<Run> {
    let reports = host.file("bench-reports");
    let spawn = Spawn {
        argv: arguments(host, vmm, quiet)?,
        stdout: Some(reports.clone()),
        stderr: Some(host.file("bench-errors")),
        ..Spawn::default()
    };
    let started = host.spawn(spawn)?;
    let found = host
        .wait_for_text(&reports, HELLO, BOOT_LIMIT)
        .with_context(|| format!("the guest of {vmm:?} did not report"))?;
    sleep(REST)?;
    let own_mib = own_memory_mib(&host.mappings(started.pid)?)?;
    host.signal(started.child, Signal::KILL.as_raw())?;
    host.wait(started.child, BOOT_LIMIT)?;
    Ok(Run {
        vmm,
        quiet,
        init_ms: ms(found.at_ns - started.started_ns),
        own_mib,
    })
}

fn arguments(host: &Host, vmm: Vmm, quiet: bool) -> Result<Vec<String>> {
    let (kernel, initramfs) = (host.path_of("Image")?, host.path_of("guest.cpio")?);
    let memory = GUEST_MEMORY_MIB.to_string();
    let console = if vmm == Vmm::Pvtime {
        "ttyS0"
    } else {
        "ttyAMA0"
    };
    let cmdline = format!(
        "console={console} panic=-1{}",
        if quiet { " quiet" } else { "" }
    );
    let (mut argv, options) = match vmm {
        Vmm::Pvtime => {
            let options = vec![
                "run",
                "--kernel",
                &kernel,
                "--initramfs",
                &initramfs,
                "--cmdline",
                &cmdline,
                "--memory",
                &memory,
                "--cpus",
                "1",
                "--console",
                "off",
                "--serial",
                "stdio",
            ];
            (vec![host.path_of("pvtime")?], options)
        }
        Vmm::Qemu => {
            let options = vec![
                "-M",
                "virt,gic-version=3",
                "-enable-kvm",
                "-cpu",
                "host",
                "-smp",
                "1",
                "-m",
                &memory,
                "-nographic",
                "-net",
                "none",
                "-kernel",
                &kernel,
                "-initrd",
                &initramfs,
                "-append",
                &cmdline,
            ];
            (peer::qemu(host)?, options)
        }
    };
    argv.extend(options.into_iter().map(str::to_owned));
    Ok(argv)
}

/// What is resident besides the guest's memory, which is the largest mapping.
fn own_memory_mib(mappings: &[Mapping]) -> Result<f64> {
    let largest = mappings
        .iter()
        .map(|mapping| mapping.size_bytes)
        .max()
        .unwrap_or(0);
    let guest_bytes = GUEST_MEMORY_MIB << 20;
    if largest < guest_bytes {
        bail!("the VMM has no mapping as large as the guest's memory");
    }
    let mut own = mappings
        .iter()
        .filter(|mapping| mapping.size_bytes != largest);
    let own_bytes: u64 = own.by_ref().map(|mapping| mapping.resident_bytes).sum();
    #[expect(clippy::cast_precision_loss, reason = "exact up to 8 PiB")]
    Ok(own_bytes as f64 / f64::from(1 << 20))
}

/// The middle one of the runs of a VMM with a console.
fn median(runs: &[Run], vmm: Vmm, quiet: bool, figure: fn(&Run) -> f64) -> f64 {
    let chosen = runs
        .iter()
        .filter(|run| run.vmm == vmm && run.quiet == quiet);
    let mut figures: Vec<_> = chosen.map(figure).collect();
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or(f64::NAN)
}

fn checks(scene: &Scene) -> Vec<Check> {
    let ratio = |quiet, figure: fn(&Run) -> f64| {
        let of = |vmm| median(&scene.runs, vmm, quiet, figure);
        of(Vmm::Pvtime) / of(Vmm::Qemu)
    };
    let check = |name, measured, aim| Check::new(name, measured, Limit::AtMost(aim), "of QEMU's");
    vec![
        check("time_to_init_ratio", ratio(false, |run| run.init_ms), 0.5),
        check(
            "time_to_init_quiet_ratio",
            ratio(true, |run| run.init_ms),
            0.5,
        ),
        check("own_memory_ratio", ratio(false, |run| run.own_mib), 0.1),
    ]
}

fn write_page(scene: &mut Scene, stage: &mut Stage) -> Result<()> {
    let host = stage.report.hosts.first().context("no host")?;
    let vmm = host.vmm.clone().unwrap_or_default();
    let place = match stage.assets.place {
        crate::machine::Place::Emulated => "a lab host, an arm64 machine emulated by QEMU",
        crate::machine::Place::Local => "an arm64 machine",
    };
    let page = format!(
        "# Starts, memory and reads\n\n\
         Written by `cargo xtask bench`; do not edit.\n\n\
         `{vmm}` beside `{}`, in turns in one run, on {place}, with KVM of Linux {}: one vCPU, \
         {GUEST_MEMORY_MIB} MiB, the same kernel and the same initramfs. Medians of {REPEATS} \
         starts each.\n\n{}\n\
         - Time to init: from the start of the VMM to the first line that the guest's init program \
         writes to a serial port, as seen in the VMM's output, which is looked at every 2 ms.\n\
         - Own memory: resident memory of the VMM's process less the mapping of the guest's memory, \
         {} s later (`/proc/PID/smaps`).\n\
         - QEMU: `{}`.\n\
         - An emulated machine is not timed: only the ratios mean something, and they favour the \
         VMM with fewer exits more than hardware does. In the {:.0} s of this run, the emulator's \
         threads waited {:.0} s for a CPU of the machine below.\n",
        scene.qemu_version,
        host.kernel,
        table(&scene.runs),
        REST.as_secs(),
        "-M virt,gic-version=3 -enable-kvm -cpu host -smp 1 -m 256 -nographic -net none",
        scene.took.as_secs_f64(),
        scene.held_up.as_secs_f64(),
    );
    let path = stage.logs.join(PAGE);
    fs::write(&path, page).with_context(|| format!("cannot write {}", path.display()))
}

fn table(runs: &[Run]) -> String {
    let mut table = String::from("| | pvtime run | QEMU | ratio | aim |\n|---|---|---|---|---|\n");
    let mut row = |name: &str, unit: &str, quiet, figure: fn(&Run) -> f64, aim: &str| {
        let [pvtime, qemu] = [Vmm::Pvtime, Vmm::Qemu].map(|vmm| median(runs, vmm, quiet, figure));
        let ratio = pvtime / qemu;
        // Writing to a string cannot fail.
        let _ = writeln!(
            table,
            "| {name} | {pvtime:.1} {unit} | {qemu:.1} {unit} | {ratio:.2} | {aim} |"
        );
    };
    row(
        "time to init, kernel log on the console",
        "s",
        false,
        |run| run.init_ms / 1e3,
        "0.5",
    );
    row(
        "time to init, `quiet`",
        "s",
        true,
        |run| run.init_ms / 1e3,
        "0.5",
    );
    row("own memory", "MiB", false, |run| run.own_mib, "0.1");
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(vmm: Vmm, init_ms: f64, own_mib: f64) -> Run {
        Run {
            vmm,
            quiet: false,
            init_ms,
            own_mib,
        }
    }

    #[test]
    fn ratios_are_of_medians() {
        let mut scene = Scene::default();
        for init_ms in [900.0, 5000.0, 1000.0] {
            scene.runs.push(run(Vmm::Pvtime, init_ms, 2.0));
            scene.runs.push(run(Vmm::Qemu, 2.5 * init_ms, 40.0));
        }
        let checks = checks(&scene);
        let judged: Vec<_> = checks
            .iter()
            .map(|it| (it.name, it.measured, it.pass))
            .collect();
        assert_eq!(judged[0], ("time_to_init_ratio", 0.4, true));
        assert!(!judged[1].2, "no quiet run, no figure");
        assert_eq!(judged[2], ("own_memory_ratio", 0.05, true));
        let table = table(&scene.runs);
        assert!(
            table.contains("| own memory | 2.0 MiB | 40.0 MiB | 0.05 | 0.1 |"),
            "{table}"
        );
    }

    #[test]
    fn the_guests_memory_is_not_the_vmms_own() {
        let mapping = |size_mib: u64, resident_mib: u64| Mapping {
            size_bytes: size_mib << 20,
            resident_bytes: resident_mib << 20,
            name: String::new(),
        };
        let own = own_memory_mib(&[mapping(3, 2), mapping(256, 60), mapping(1, 1)]).unwrap();
        assert!((own - 3.0).abs() < 1e-9, "{own}");
        assert!(own_memory_mib(&[mapping(128, 60)]).is_err());
    }
}
