//! `pvtime ctl` as people run it, against a real socket with a VM that is none behind it.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::Ordering;
use std::thread::sleep;
use std::time::{Duration, Instant};

use pvtime_vmm::api::{Server, Vm, answers, requests};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

#[path = "../src/api/fake.rs"]
mod fake;

use fake::{FakeVm, record};

/// Longer than anything here takes.
const LONG: Duration = Duration::from_secs(30);

struct Setup {
    folder: TempDir,
    socket: PathBuf,
    vm: FakeVm,
    server: Server,
}

fn setup() -> Setup {
    let folder = TempDir::new().unwrap();
    let socket = folder.path().join("vm.sock");
    let vm = FakeVm::started();
    let server = Server::start(&socket).unwrap();
    server.serve(vm.clone());
    Setup {
        folder,
        socket,
        vm,
        server,
    }
}

fn ctl(socket: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pvtime"));
    command.arg("ctl").arg(socket).args(arguments);
    command
}

impl Setup {
    fn run(&self, arguments: &[&str]) -> Output {
        let mut command = ctl(&self.socket, arguments);
        command.current_dir(self.folder.path()).output().unwrap()
    }

    /// What it prints, with success.
    #[track_caller]
    fn says(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(
            output.status.success() && error.is_empty(),
            "{arguments:?}: {error}"
        );
        String::from_utf8(output.stdout).unwrap()
    }

    /// The one line of its failure.
    #[track_caller]
    fn refuses(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {error}");
        assert!(output.stdout.is_empty(), "{arguments:?} prints, and fails");
        assert_eq!(error.lines().count(), 1, "{error}");
        error
    }
}

fn json_lines(text: &str) -> Vec<Value> {
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// `events --follow`, whose first line has been printed.
fn follow(socket: &Path) -> (Child, BufReader<impl Read>) {
    let mut command = ctl(socket, &["events", "--follow", "--json"]);
    let command = command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap());
    assert_eq!(next_line(&mut lines)["event"], "start");
    (child, lines)
}

fn next_line(lines: &mut BufReader<impl Read>) -> Value {
    let mut line = String::new();
    lines.read_line(&mut line).unwrap();
    serde_json::from_str(&line).unwrap()
}

/// The exit status and what was said on standard error.
fn end_of(mut child: Child) -> (Option<i32>, String) {
    let start = Instant::now();
    let status = loop {
        match child.try_wait().unwrap() {
            Some(status) => break status,
            None if start.elapsed() > LONG => {
                child.kill().unwrap();
                panic!("it does not end");
            }
            None => sleep(Duration::from_millis(5)),
        }
    };
    let mut error = String::new();
    child.stderr.unwrap().read_to_string(&mut error).unwrap();
    (status.code(), error)
}

#[test]
fn a_migration_names_its_files_from_the_root_on() {
    let setup = setup();
    let output = Command::new(env!("CARGO_BIN_EXE_pvtime"))
        .arg("migrate")
        .arg(&setup.socket)
        .args([
            "tcp:other.example:7001",
            "--tls-cert",
            "a.pem",
            "--tls-key",
            "/b.key",
        ])
        .args(["--tls-ca", "../c.pem", "--tls-name", "other"])
        .current_dir(setup.folder.path())
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let asked = setup.vm.migrations.lock().unwrap().pop().unwrap();
    let tls = asked.tls.unwrap();
    assert_eq!(tls.cert, setup.folder.path().join("a.pem"));
    assert_eq!(tls.key, Path::new("/b.key"));
    assert_eq!(tls.ca, setup.folder.path().join("../c.pem"));
    assert_eq!(tls.name.as_deref(), Some("other"));
    assert!(!asked.insecure);
}

#[test]
fn facts_are_printed_both_ways() {
    let setup = setup();
    for (command, of_people, of_json) in [
        ("status", "fake: running", "elapsed_ns"),
        ("ledger", "residual ms", "vcpus"),
        ("events", "hidden ms", "sequence"),
    ] {
        let text = setup.says(&[command]);
        assert!(text.contains(of_people), "{text}");
        let json = json_lines(&setup.says(&[command, "--json"]));
        assert_eq!(json.len(), 1, "{command}");
        assert!(json[0].get(of_json).is_some(), "{command}: {json:?}");
    }
}

#[test]
fn a_pause_and_a_resumption_show_what_they_did() {
    let setup = setup();
    let text = setup.says(&["pause"]);
    assert!(
        text.lines().count() == 2 && text.contains(" pause "),
        "{text}"
    );
    assert_eq!(setup.says(&["pause"]), "The VM is paused already.\n");
    assert_eq!(setup.says(&["pause", "--json"]), "");
    assert!(setup.vm.is_paused.load(Ordering::SeqCst));
    let done = json_lines(&setup.says(&["resume", "--json"]));
    assert_eq!(
        (&done[0]["event"], &done[0]["gap"]["ns"]),
        (&"resume".into(), &3_000_000_000u64.into())
    );
    assert_eq!(setup.says(&["resume"]), "The VM is running already.\n");
}

#[test]
fn orders_reach_the_vm() {
    let setup = setup();
    assert_eq!(setup.says(&["snapshot", "saved"]), "");
    let saved = setup.folder.path().canonicalize().unwrap().join("saved");
    assert_eq!(*setup.vm.snapshots.lock().unwrap(), [saved]);
    let said = json_lines(&setup.says(&["snapshot", "more", "--json"]));
    assert_eq!(said[0]["phase"], "Saved");
    assert_eq!(said[0]["memory_bytes"], said[0]["done_bytes"]);
    assert_eq!(setup.says(&["stop"]), "");
    assert!(setup.vm.is_stopped.load(Ordering::SeqCst));

    setup.vm.is_broken.store(true, Ordering::SeqCst);
    for arguments in [
        &["pause"][..],
        &["snapshot", "again"],
        &["ledger"],
        &["status"],
    ] {
        let error = setup.refuses(arguments);
        assert_eq!(error, "pvtime: the VM refuses: the thread has ended\n");
    }
}

/// What a snapshot says on standard error that is under way for longer than a line takes.
fn says_meanwhile(arguments: &[&str]) -> String {
    let setup = setup();
    let (has_begun, go_on) = setup.vm.hold_snapshot();
    let mut command = ctl(&setup.socket, arguments);
    command.current_dir(setup.folder.path());
    let child = command.stdout(Stdio::null()).stderr(Stdio::piped());
    let child = child.spawn().unwrap();
    has_begun.recv_timeout(LONG).unwrap();
    sleep(Duration::from_millis(2500));
    go_on.send(()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn a_long_snapshot_says_how_far_it_is_off_a_terminal_too() {
    let said = says_meanwhile(&["snapshot", "saved"]);
    assert_eq!(
        said, "pvtime: saving: 64 of 256 MiB\n",
        "once: nothing is new"
    );
    assert_eq!(says_meanwhile(&["snapshot", "saved", "--json"]), "");
}

#[test]
fn a_figure_is_a_file() {
    let setup = setup();
    assert_eq!(setup.says(&["figure", "time.svg"]), "");
    let document = std::fs::read_to_string(setup.folder.path().join("time.svg")).unwrap();
    assert!(document.starts_with("<svg ") && document.contains("live physical 1.50 s"));
    let error = setup.refuses(&["figure", "x.svg", "--vcpu", "1"]);
    assert!(error.contains("this VM has none of that number"), "{error}");
    assert!(!setup.folder.path().join("x.svg").exists());
    let error = setup.refuses(&["figure", "none/x.svg"]);
    assert!(
        error.contains("cannot write none/x.svg; give another path"),
        "{error}"
    );
}

#[test]
fn events_are_listed_from_a_number_on_and_over_pages() {
    let setup = setup();
    let count = answers::Events::PAGE + 50;
    for _ in 1..count {
        setup.vm.records.push(record("pause"));
    }
    let all = json_lines(&setup.says(&["events", "--json"]));
    assert_eq!(all.len(), count);
    assert_eq!(all.last().unwrap()["sequence"], count);
    let after = json_lines(&setup.says(&["events", "--json", "--after", "300"]));
    assert_eq!(after[0]["sequence"], 301);
    assert_eq!(setup.says(&["events", "--after", "9999"]), "");
}

#[test]
fn following_goes_on_until_the_vm_ends() {
    let setup = setup();
    let (child, mut lines) = follow(&setup.socket);
    setup.vm.records.push(record("pause"));
    assert_eq!(next_line(&mut lines)["event"], "pause");
    // As a VM ends: first its vCPUs, then its socket.
    setup.vm.records.push(record("resume"));
    setup.vm.records.finish();
    drop(setup.server);
    assert_eq!(end_of(child), (Some(0), String::new()));
    assert_eq!(next_line(&mut lines)["event"], "resume");
}

#[test]
fn following_ends_at_ctrl_c() {
    let setup = setup();
    let (child, _lines) = follow(&setup.socket);
    let pid = Pid::from_child(&child);
    kill_process(pid, Signal::INT).unwrap();
    assert_eq!(end_of(child), (Some(0), String::new()));
}

#[test]
fn following_ends_when_nobody_reads() {
    let setup = setup();
    let (mut child, lines) = follow(&setup.socket);
    drop(lines);
    // Another test's child holds the pipe for the moment between its fork and its exec, so that one
    // line may be written still.
    let start = Instant::now();
    while child.try_wait().unwrap().is_none() && start.elapsed() < LONG {
        setup.vm.records.push(record("pause"));
        sleep(Duration::from_millis(20));
    }
    assert_eq!(end_of(child), (Some(0), String::new()));
}

#[test]
fn a_vmm_that_dies_or_talks_nonsense_is_no_success() {
    let folder = TempDir::new().unwrap();
    let socket = folder.path().join("vm.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let mut commands = Vec::new();
    for (arguments, answer) in [
        (&["events", "--follow"][..], ""),
        (
            &["status"],
            "HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{",
        ),
        (&["status"], "SSH-2.0-OpenSSH\r\n"),
        (
            &["status"],
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
        ),
        (&["stop"], "HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n"),
    ] {
        let mut command = ctl(&socket, arguments);
        let child = command
            .stderr(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = [0; 1024];
        let _ = stream.read(&mut request).unwrap();
        std::io::Write::write_all(&mut stream, answer.as_bytes()).unwrap();
        drop(stream);
        let (status, error) = end_of(child);
        assert_eq!(status, Some(1), "{error}");
        assert_eq!(error.lines().count(), 1, "{error}");
        commands.push(error);
    }
    assert!(
        commands[0].contains("does not answer as one"),
        "{}",
        commands[0]
    );
    assert!(
        commands[1].contains("ended in the middle"),
        "{}",
        commands[1]
    );
    assert!(commands[2].contains("no HTTP/1.1"), "{}", commands[2]);
    assert!(commands[3].contains("is not understood"), "{}", commands[3]);
    assert!(
        commands[4].contains("HTTP status 500, without a reason"),
        "{}",
        commands[4]
    );
}

#[test]
fn s18_a_vmm_that_awaits_its_vm_has_none_to_tell_of_a_sleep() {
    let folder = TempDir::new().unwrap();
    let socket = folder.path().join("vm.sock");
    let _server = Server::start(&socket).unwrap();
    for (command, code) in [("prepare-sleep", 0), ("finish-sleep", 0), ("pause", 1)] {
        let output = ctl(&socket, &[command]).output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{command}");
        assert_eq!(output.stdout, b"", "{command}");
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.contains("the VM has not arrived yet"), "{said}");
    }
}
