//! The systemd sleep hook, with a command in place of `pvtime` that writes down how it was called.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Output};

const HOOK: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../../contrib/systemd/pvtime-sleep"
);

fn run(folder: &Path, arguments: &[&str]) -> Output {
    Command::new("sh")
        .arg(HOOK)
        .args(arguments)
        .env("PVTIME", folder.join("pvtime"))
        .env("PVTIME_SOCKETS", folder)
        .output()
        .unwrap()
}

/// A command that writes down its arguments, and fails for a socket with this in its name.
fn write_command(folder: &Path, failing: &str) {
    let path = folder.join("pvtime");
    let said = folder.join("said");
    let script = format!(
        "#!/bin/sh\necho \"$@\" >>'{}'\ncase \"$2\" in *{failing}*) exit 1;; esac\n",
        said.display()
    );
    fs::write(&path, script).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn s18_every_vm_is_told_and_one_that_fails_keeps_no_other_from_it() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let _sockets: Vec<_> = ["a.sock", "b.sock"]
        .map(|name| UnixListener::bind(folder.join(name)).unwrap())
        .into();
    fs::write(folder.join("no.sock"), "").unwrap();
    write_command(folder, "a.sock");
    for (phase, command) in [("pre", "prepare-sleep"), ("post", "finish-sleep")] {
        let output = run(folder, &[phase, "suspend"]);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let said = fs::read_to_string(folder.join("said")).unwrap();
        let mut said: Vec<_> = said.lines().collect();
        said.sort_unstable();
        let wanted = ["a.sock", "b.sock"]
            .map(|name| format!("ctl {} {command}", folder.join(name).display()));
        assert_eq!(said, wanted);
        fs::remove_file(folder.join("said")).unwrap();
    }
}

#[test]
fn s18_no_vm_is_no_error_and_a_wrong_call_is() {
    let folder = tempfile::tempdir().unwrap();
    assert!(run(folder.path(), &["pre", "suspend"]).status.success());
    let output = run(folder.path(), &["before"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(!output.stderr.is_empty());
}
