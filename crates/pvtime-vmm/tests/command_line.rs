//! Bad input to the command: one line that names the way out, and no success.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use tempfile::TempDir;

struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    fn file(&self, name: &str, bytes: &[u8]) -> String {
        let path = self.0.path().join(name);
        fs::write(&path, bytes).unwrap();
        path.to_str().unwrap().into()
    }

    /// As little of an arm64 `Image` as passes for one.
    fn image(&self) -> String {
        let mut bytes = [0; 64];
        bytes[56..60].copy_from_slice(b"ARM\x64");
        self.file("Image", &bytes)
    }
}

fn pvtime(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_pvtime"))
        .args(arguments)
        .output()
        .unwrap()
}

/// Runs the command and returns the one line that it must say.
#[track_caller]
fn refused(arguments: &[&str]) -> String {
    let output = pvtime(arguments);
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success(), "{arguments:?} succeeded");
    assert!(output.status.code().is_some(), "{arguments:?} was killed");
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(output.stdout.is_empty(), "{:?}", output.stdout);
    text
}

#[track_caller]
fn says(arguments: &[&str], expected: &str) {
    let text = refused(arguments);
    assert!(text.contains(expected), "{arguments:?} says {text}");
}

#[test]
fn options_that_do_not_exist() {
    says(
        &["run", "--kernel", "x", "--colour"],
        "unexpected argument '--colour'",
    );
    says(
        &["run", "--kernel", "x", "--cpu", "1"],
        "a similar argument exists: '--cpus'",
    );
    says(&["walk"], "unrecognized subcommand 'walk'");
    says(&["run"], "--kernel <FILE>");
    says(
        &["run", "--kernel", "x", "--stolen-time", "yes"],
        "possible values: auto, on, user, off",
    );
    says(&["ctl", "socket"], "see `pvtime --help`");
    says(&["ctl", "socket", "events", "--after", "-1"], "--after <N>");
    says(&["ctl", "socket", "figure"], "<FILE.svg>");
    says(
        &["run", "--kernel", "x", "--id", "a b"],
        "a name is 1 to 64 letters, digits and hyphens",
    );
}

#[test]
fn security_that_is_none() {
    for command in [
        &["receive", "tcp:127.0.0.1:0"][..],
        &["migrate", "vm.sock", "tcp:127.0.0.1:1"],
    ] {
        let with = |options: &[&'static str]| [command, options].concat();
        says(&with(&["--tls-cert", "a"]), "--tls-key <FILE>");
        says(
            &with(&["--tls-key", "a", "--tls-ca", "b"]),
            "--tls-cert <FILE>",
        );
        says(&with(&["--tls-name", "a"]), "--tls-cert <FILE>");
        let files = ["--tls-cert", "a", "--tls-key", "b", "--tls-ca", "c"];
        let both = [&files[..], &["--insecure"]].concat();
        says(&with(&both), "cannot be used with '--insecure'");
    }
}

#[test]
fn cpus_that_no_machine_has() {
    for cpus in ["0", "513", "-1", "many", "", "1.5", "99999999999999999999"] {
        says(&["run", "--kernel", "x", "--cpus", cpus], "--cpus <N>");
    }
    says(
        &["run", "--kernel", "x", "--cpus", "0"],
        "0 is not in 1..=512",
    );
}

#[test]
fn frequencies_that_no_guest_can_use() {
    for frequency in [
        "0",
        "1",
        "999999",
        "4294967296",
        "-1",
        "1GHz",
        "on",
        "",
        "99999999999999999999",
    ] {
        says(
            &["run", "--kernel", "x", "--live-physical-time", frequency],
            "give a frequency of 1000000 to 4294967295 Hz, such as 1000000000, or off",
        );
    }
    says(
        &["run", "--kernel", "x", "--paused-time", "auto"],
        "possible values: on, off",
    );
}

#[test]
fn memory_that_no_machine_has() {
    for memory in ["0", "1047553", "-1", "1G", "", "99999999999999999999"] {
        says(
            &["run", "--kernel", "x", "--memory", memory],
            "--memory <MIB>",
        );
    }
}

#[test]
fn kernels_that_are_none() {
    let folder = Folder::new();
    let short = folder.file("short", &[0; 63]);
    says(&["run", "--kernel", &short], "is no arm64 Image");
    let gzip = folder.file("gzip", b"\x1f\x8b\x08\0");
    says(
        &["run", "--kernel", &gzip],
        "it is compressed with gzip; give --kernel an uncompressed",
    );
    let none = folder.0.path().join("none");
    says(&["run", "--kernel", none.to_str().unwrap()], "No such file");
    says(
        &["run", "--kernel", folder.0.path().to_str().unwrap()],
        "cannot read the kernel",
    );
}

#[test]
fn an_initramfs_and_a_command_line_that_do_not_fit() {
    let folder = Folder::new();
    let image = folder.image();
    let large = folder.file("large", &vec![0; 12 << 20]);
    says(
        &[
            "run",
            "--kernel",
            &image,
            "--initramfs",
            &large,
            "--memory",
            "16",
        ],
        "do not fit into 16 MiB; start with --memory 17 or more",
    );
    says(
        &["run", "--kernel", &image, "--initramfs", "/nonexistent"],
        "cannot read the initramfs /nonexistent",
    );
    says(
        &["run", "--kernel", &image, "--cmdline", &"x".repeat(2048)],
        "the command line has 2048 bytes, and arm64 Linux takes 2047",
    );
}

#[test]
fn a_vm_that_is_not_there() {
    says(
        &["ctl", "/nonexistent/socket", "status"],
        "cannot reach a VM at /nonexistent/socket",
    );
}

#[test]
#[cfg(not(target_arch = "aarch64"))]
fn a_host_of_another_architecture() {
    let folder = Folder::new();
    says(
        &["run", "--kernel", &folder.image()],
        "pvtime run needs an arm64 host",
    );
}

#[test]
fn help_shows_examples_and_succeeds() {
    for command in ["run", "probe", "ctl"] {
        let output = pvtime(&[command, "--help"]);
        assert!(output.status.success());
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.contains("Examples:\n  pvtime "), "{text}");
        assert!(
            !text.contains('\u{1b}'),
            "colour without a terminal: {text:?}"
        );
    }
    assert!(pvtime(&["--version"]).status.success());
}

#[test]
fn probe_prints_facts_both_ways() {
    let output = pvtime(&["probe", "--json"]);
    assert!(output.status.success());
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    assert_eq!(report["kernel"], release.trim());
    let has_kvm = report["host"]["capabilities"].is_array();
    assert!(has_kvm || report["host"]["reason"].is_string(), "{report}");
    assert!(!has_kvm || Path::new("/dev/kvm").exists());
    let output = pvtime(&["probe"]);
    assert!(output.status.success());
    assert!(
        String::from_utf8(output.stdout)
            .unwrap()
            .contains("As a guest\n")
    );
}
