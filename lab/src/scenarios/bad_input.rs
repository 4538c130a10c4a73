//! What a person may get wrong on a host: a clear line, no success, nothing left running.

use crate::guest::host_spec;
use crate::host::Host;
use crate::machine::{HostSpec, Place};
use crate::report::{Check, Limit};
use crate::requests::Finished;
use crate::scenario::{Scenario, Stage, Step, no_checks};
use anyhow::{Context, Result};
use lab_agent::message::{Exit, Process, Spawn};
use std::fs::File;
use std::io::Read;
use std::time::Duration;

pub const SCENARIO: Scenario = Scenario {
    name: "bad-input",
    about: "what cannot be run is refused in one line that names the way out",
    must_fail: None,
    play,
};

const COMMAND_LIMIT: Duration = Duration::from_secs(30);

/// A user without rights: "nobody".
const NOBODY: u32 = 65534;

/// Enough of a kernel to look like one.
const TRUNCATED_LEN: usize = 1 << 20;

/// One thing to get wrong.
struct Case {
    name: &'static str,
    /// Arguments of `pvtime`, separated by blanks; `{Image}` and the like are files of the host.
    arguments: &'static str,
    /// What the line must name: the trouble, and the way out.
    says: &'static [&'static str],
}

const ON_A_HOST_WITHOUT_KVM: &[Case] = &[Case {
    name: "no_kvm",
    arguments: "run --kernel {Image}",
    says: &["there is no /dev/kvm", "virtualization"],
}];

const WITHOUT_RIGHTS: &[Case] = &[Case {
    name: "no_right_to_kvm",
    arguments: "run --kernel {Image}",
    says: &["no right to use /dev/kvm", "as root"],
}];

const ON_A_GOOD_HOST: &[Case] = &[
    Case {
        name: "kernel_missing",
        arguments: "run --kernel {absent}",
        says: &["absent", "No such file"],
    },
    Case {
        name: "kernel_of_another_kind",
        arguments: "run --kernel {pvtime}",
        says: &["pvtime", "is no arm64 Image"],
    },
    Case {
        name: "kernel_truncated",
        arguments: "run --kernel {truncated}",
        says: &["truncated"],
    },
    Case {
        name: "initramfs_missing",
        arguments: "run --kernel {Image} --initramfs {absent}",
        says: &["cannot read the initramfs", "absent"],
    },
    Case {
        name: "initramfs_that_does_not_fit",
        arguments: "run --kernel {Image} --initramfs {Image} --memory 64",
        says: &["do not fit into 64 MiB", "--memory"],
    },
    Case {
        name: "command_line_that_does_not_fit",
        arguments: "run --kernel {Image} --cmdline {2048}",
        says: &["command line", "2047"],
    },
    Case {
        name: "no_cpus",
        arguments: "run --kernel {Image} --cpus 0",
        says: &["--cpus", "1.."],
    },
    Case {
        name: "too_many_cpus",
        arguments: "run --kernel {Image} --cpus 100000",
        says: &["--cpus", "1.."],
    },
    Case {
        name: "cpus_that_are_no_number",
        arguments: "run --kernel {Image} --cpus four",
        says: &["--cpus", "four"],
    },
    Case {
        name: "no_memory",
        arguments: "run --kernel {Image} --memory 0",
        says: &["--memory", "1.."],
    },
    Case {
        name: "too_much_memory",
        arguments: "run --kernel {Image} --memory 99999999999",
        says: &["--memory", "1.."],
    },
    Case {
        name: "memory_that_is_no_number",
        arguments: "run --kernel {Image} --memory plenty",
        says: &["--memory", "plenty"],
    },
    Case {
        name: "receive_where_its_control_socket_cannot_be",
        arguments: "receive unix:{absent} --api-socket {Image}",
        says: &[
            "cannot make the control socket",
            "Image",
            "give --api-socket a path",
        ],
    },
    Case {
        name: "receive_in_the_clear",
        arguments: "receive tcp:0.0.0.0:7001",
        says: &["which is not this machine", "--tls-cert", "--insecure"],
    },
    Case {
        name: "certificate_missing",
        arguments: "receive tcp:0.0.0.0:7001 --tls-cert {absent} --tls-key {absent} --tls-ca {absent}",
        says: &["absent", "No such file"],
    },
    Case {
        name: "certificate_that_is_none",
        arguments: "receive unix:{absent} --tls-cert {Image} --tls-key {Image} --tls-ca {Image}",
        says: &["Image", "it has more than 1 MiB"],
    },
    Case {
        name: "unknown_option",
        arguments: "run --kernel {Image} --stolen-times on",
        says: &["--stolen-times", "--stolen-time"],
    },
    Case {
        name: "unknown_choice",
        arguments: "run --kernel {Image} --stolen-time maybe",
        says: &["maybe", "possible values: auto, on"],
    },
    Case {
        name: "pv_frequency_that_no_guest_can_use",
        arguments: "run --kernel {Image} --live-physical-time 1",
        says: &["--live-physical-time", "1000000 to 4294967295 Hz", "or off"],
    },
    Case {
        name: "pv_frequency_that_is_none",
        arguments: "run --kernel {Image} --live-physical-time fast",
        says: &["fast", "1000000 to 4294967295 Hz", "or off"],
    },
    Case {
        name: "live_physical_time_and_advance",
        arguments: "run --kernel {Image} --live-physical-time 1000000000 --on-pause advance",
        says: &["--on-pause advance", "use freeze"],
    },
    Case {
        name: "paused_time_perhaps",
        arguments: "run --kernel {Image} --paused-time perhaps",
        says: &["perhaps", "possible values: on, off"],
    },
    Case {
        name: "snapshot_missing",
        arguments: "restore {absent}",
        says: &["absent", "is no snapshot"],
    },
    Case {
        name: "snapshot_that_is_a_file",
        arguments: "restore {Image}",
        says: &["Image", "snapshot"],
    },
    Case {
        name: "policy_that_is_none",
        arguments: "restore {absent} --on-restore sometimes",
        says: &["sometimes", "possible values: freeze, advance"],
    },
    Case {
        name: "stolen_time_that_is_never_brought_up_to_date",
        arguments: "run --kernel {Image} --stolen-time user --stolen-time-period 0",
        says: &["--stolen-time-period", "1.."],
    },
    Case {
        name: "unknown_command",
        arguments: "walk",
        says: &["walk", "--help"],
    },
    Case {
        name: "socket_of_no_vm",
        arguments: "ctl {absent} status",
        says: &["cannot reach a VM", "--api-socket"],
    },
    Case {
        name: "socket_in_no_folder",
        arguments: "run --kernel {Image} --api-socket {absent}/socket",
        says: &["absent/socket"],
    },
    Case {
        name: "console_in_no_folder",
        arguments: "run --kernel {Image} --console {absent}/console",
        says: &["absent/console"],
    },
];

#[derive(Default)]
struct Scene {
    host: Option<Host>,
    checks: Vec<Check>,
}

fn play(stage: &mut Stage) -> Result<()> {
    let take_checks = |scene: &Scene| scene.checks.clone();
    stage.play(
        Scene::default(),
        &[
            Step {
                name: "start a VM on a host without KVM",
                act: no_kvm,
                checks: take_checks,
            },
            Step {
                name: "boot a host with KVM",
                act: boot,
                checks: no_checks,
            },
            Step {
                name: "start a VM as a user without rights",
                act: |scene, _| try_all(scene, WITHOUT_RIGHTS, Some(NOBODY)),
                checks: take_checks,
            },
            Step {
                name: "get everything else wrong",
                act: |scene, _| try_all(scene, ON_A_GOOD_HOST, None),
                checks: take_checks,
            },
            Step {
                name: "power the host off",
                act: |scene, _| scene.host.take().context("no host")?.power_off(),
                checks: no_checks,
            },
        ],
    )
}

fn no_kvm(scene: &mut Scene, stage: &mut Stage) -> Result<()> {
    if stage.assets.place == Place::Local {
        stage.note("left out: this machine has KVM, and is not to lose it");
        return Ok(());
    }
    let spec = host_spec("plain", stage.assets, &stage.logs)?;
    let spec = HostSpec {
        virtualization: false,
        memory_mib: 512,
        ..spec
    };
    scene.host = Some(stage.boot(&spec)?);
    try_all(scene, ON_A_HOST_WITHOUT_KVM, None)?;
    scene.host.take().context("no host")?.power_off()
}

fn boot(scene: &mut Scene, stage: &mut Stage) -> Result<()> {
    let spec = host_spec("host", stage.assets, &stage.logs)?;
    let mut host = stage.boot(&HostSpec {
        memory_mib: 1024,
        ..spec
    })?;
    let mut start = vec![0; TRUNCATED_LEN];
    File::open(&stage.assets.guest_kernel)?.read_exact(&mut start)?;
    host.put_file(&host.file("truncated"), 0o644, &start)?;
    scene.host = Some(host);
    Ok(())
}

fn try_all(scene: &mut Scene, cases: &[Case], user: Option<u32>) -> Result<()> {
    let host = scene.host.as_mut().context("no host")?;
    scene.checks.clear();
    for case in cases {
        let before = running(host)?;
        let mut argv = vec![host.path_of("pvtime")?];
        argv.extend(
            case.arguments
                .split(' ')
                .map(|argument| fill_in(argument, host)),
        );
        let argv: Vec<_> = argv.iter().map(String::as_str).collect();
        let change = |spawn: &mut Spawn| spawn.user = user;
        let finished = host.run_with(&argv, COMMAND_LIMIT, change)?;
        let mut faults = faults(&finished, case.says);
        let left = running(host)?.saturating_sub(before);
        if left > 0 {
            faults.push(format!("{left} processes left running"));
        }
        scene.checks.push(check(case.name, &faults, &finished));
    }
    Ok(())
}

/// How many VMMs run on the host.
fn running(host: &mut Host) -> Result<usize> {
    let is_vmm = |process: &&Process| process.name == "pvtime";
    Ok(host.processes()?.iter().filter(is_vmm).count())
}

fn check(name: &'static str, faults: &[String], finished: &Finished) -> Check {
    let measured = u32::try_from(faults.len()).map_or(f64::INFINITY, f64::from);
    let said = finished.stderr.trim();
    let detail = if faults.is_empty() {
        said.to_owned()
    } else {
        faults.join(", ") + ": " + said
    };
    Check::new(name, measured, Limit::Equals(0.0), "faults").with_detail(detail)
}

/// What is wrong with how a command was refused.
fn faults(finished: &Finished, says: &[&str]) -> Vec<String> {
    let mut faults = Vec::new();
    if !matches!(finished.exit, Exit::Status(1..)) {
        faults.push(format!("ended with {:?}", finished.exit));
    }
    let lines = finished.stderr.lines().count();
    if lines != 1 {
        faults.push(format!("{lines} lines on standard error"));
    }
    if !finished.stdout.is_empty() {
        faults.push("something on standard output".to_owned());
    }
    let silent_on = says.iter().filter(|word| !finished.stderr.contains(**word));
    faults.extend(silent_on.map(|word| format!("does not say {word:?}")));
    faults
}

/// Puts paths of the host in the place of names in braces, and a text in the place of its length.
fn fill_in(argument: &str, host: &Host) -> String {
    let Some((name, rest)) = argument.strip_prefix('{').and_then(|it| it.split_once('}')) else {
        return argument.to_owned();
    };
    match (name.parse(), host.path_of(name)) {
        (Ok(length), _) => "x".repeat(length),
        (Err(_), Ok(path)) => path + rest,
        (Err(_), Err(_)) => host.file(name) + rest,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(exit: Exit, stdout: &str, stderr: &str) -> Finished {
        Finished {
            exit,
            stdout: stdout.into(),
            stderr: stderr.into(),
        }
    }

    #[test]
    fn each_fault_of_a_refusal_is_found() {
        let says = &["no kernel", "--kernel"];
        let line = "pvtime: no kernel; give one with --kernel\n";
        let found =
            |exit, stdout: &str, stderr: &str| faults(&refused(exit, stdout, stderr), says).len();
        assert_eq!(found(Exit::Status(1), "", line), 0);
        assert_eq!(found(Exit::Status(0), "", line), 1);
        assert_eq!(found(Exit::Signal(6), "", line), 1);
        assert_eq!(found(Exit::Status(1), "{}", line), 1);
        assert_eq!(found(Exit::Status(1), "", &format!("{line}help\n")), 1);
        assert_eq!(found(Exit::Status(1), "", "pvtime: no kernel\n"), 1);
        assert_eq!(found(Exit::Status(1), "", ""), 3);
    }
}
