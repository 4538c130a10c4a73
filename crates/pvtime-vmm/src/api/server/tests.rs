//! Clients of every kind, over a real socket.

use std::sync::atomic::Ordering;
use std::sync::mpsc::channel;

use serde_json::json;
use tempfile::TempDir;

use super::*;
use crate::api::answers::{Events, Instance, VmState};
use crate::api::client::{self, Client};
use crate::api::fake::{FakeVm, record};

/// Longer than anything here takes.
const LONG: Duration = Duration::from_secs(60);

struct Setup {
    _folder: TempDir,
    path: PathBuf,
    vm: FakeVm,
    client: Client,
    server: Server,
}

fn setup_with(limits: Limits) -> Setup {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("vm.sock");
    let vm = FakeVm::started();
    let server = Server::start_with(&path, limits).unwrap();
    server.serve(vm.clone());
    Setup {
        client: Client::new(&path),
        path,
        vm,
        server,
        _folder: folder,
    }
}

fn setup() -> Setup {
    setup_with(Limits {
        patience: LONG,
        ..LIMITS
    })
}

/// The status of the answer to these bytes.
fn answer_to(setup: &Setup, bytes: &[u8]) -> u16 {
    let mut stream = UnixStream::connect(&setup.path).unwrap();
    stream.write_all(bytes).unwrap();
    answer_on(&mut stream)
}

fn answer_on(stream: &mut UnixStream) -> u16 {
    stream.set_read_timeout(Some(LONG)).unwrap();
    Response::read(stream).unwrap().status
}

fn pause(client: &Client) -> Result<(), client::Error> {
    client.change("PATCH", "/vm", &json!({ "state": "Paused" }))
}

#[test]
fn the_socket_is_for_its_owner_and_goes_with_the_server() {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    let setup = setup();
    let metadata = setup.path.metadata().unwrap();
    assert!(metadata.file_type().is_socket());
    assert_eq!(metadata.mode() & 0o777, 0o600);

    let instance: Instance = setup.client.get("/").unwrap();
    assert_eq!(
        (instance.app_name.as_str(), instance.state),
        ("pvtime", VmState::Running)
    );
    drop(setup.server);
    assert!(!setup.path.exists());
    let error = setup.client.get::<Instance>("/").unwrap_err().to_string();
    assert!(error.starts_with("cannot reach a VM at "), "{error}");
}

/// `pvtime receive` has it before its VM is there.
#[test]
fn a_server_without_a_vm_says_so_until_it_has_one() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("vm.sock");
    let server = Server::start(&path).unwrap();
    let client = Client::new(&path);
    for error in [
        client.get::<Instance>("/").unwrap_err(),
        pause(&client).unwrap_err(),
    ] {
        assert!(error.is_without_vm(), "{error}");
        assert!(error.to_string().contains("has not arrived"), "{error}");
    }
    server.serve(FakeVm::started());
    assert_eq!(client.get::<Instance>("/").unwrap().state, VmState::Running);

    drop(server);
    let server = Server::start(&path).unwrap();
    drop(server);
    assert!(!path.exists());
}

#[test]
fn a_socket_that_took_its_place_is_left_alone() {
    let setup = setup();
    fs::remove_file(&setup.path).unwrap();
    fs::write(&setup.path, "precious").unwrap();
    drop(setup.server);
    assert_eq!(fs::read(&setup.path).unwrap(), b"precious");
}

#[test]
fn a_path_that_is_taken_is_left_alone() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("taken");
    let refusal = || Server::start(&path).err().unwrap().to_string();

    fs::write(&path, "precious").unwrap();
    let error = refusal();
    assert!(
        error.contains("give --api-socket a path that does not exist"),
        "{error}"
    );
    assert_eq!(fs::read(&path).unwrap(), b"precious");
    fs::remove_file(&path).unwrap();

    // A VMM that was killed leaves its socket.
    drop(UnixListener::bind(&path).unwrap());
    let error = refusal();
    assert!(
        error.contains("was left by a VMM that has ended; remove it"),
        "{error}"
    );
    fs::remove_file(&path).unwrap();

    let other = Server::start(&path).unwrap();
    let error = refusal();
    assert!(error.contains("a path that does not exist"), "{error}");
    drop(other);
}

#[test]
fn bad_requests_are_answered_and_harm_nobody() {
    let setup = setup();
    let with_length = |length: usize| {
        format!("PUT /actions HTTP/1.1\r\nContent-Length: {length}\r\n\r\n").into_bytes()
    };
    for (bytes, expected) in [
        (b"\xff\xff\r\n\r\n".to_vec(), 400),
        (b"HELO mail.example\r\n\r\n".to_vec(), 400),
        ([b"GET /".as_slice(), &[b'x'; 9_000]].concat(), 431),
        (with_length(65_537), 413),
        ([with_length(65_536), vec![b'['; 65_536]].concat(), 400),
        ([with_length(2), b"{}".to_vec()].concat(), 400),
        (
            b"PUT /actions HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec(),
            411,
        ),
        (b"DELETE / HTTP/1.1\r\n\r\n".to_vec(), 405),
        (b"GET /none HTTP/1.1\r\n\r\n".to_vec(), 404),
        (b"GET / HTTP/1.1\r\n\r\n".to_vec(), 200),
    ] {
        let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(60)]);
        assert_eq!(answer_to(&setup, &bytes), expected, "{shown}");
    }
    assert!(!setup.vm.is_stopped.load(Ordering::SeqCst));
}

#[test]
fn a_request_has_one_deadline_however_it_drips() {
    let patience = Duration::from_millis(300);
    let setup = setup_with(Limits { patience, ..LIMITS });
    let start = Instant::now();
    let mut stream = UnixStream::connect(&setup.path).unwrap();
    // A byte well before each read would time out.
    let mut dripped = 0;
    while stream.write_all(b"G").is_ok() {
        assert!(start.elapsed() < LONG / 4, "it is never refused");
        dripped += 1;
        thread::sleep(patience / 10);
    }
    assert!(dripped >= 2, "refused before its time");
    assert_eq!(answer_on(&mut stream), 408);
    assert!(start.elapsed() >= patience);

    let mut stream = UnixStream::connect(&setup.path).unwrap();
    stream
        .write_all(b"PUT /actions HTTP/1.1\r\nContent-Length: 9\r\n\r\n{")
        .unwrap();
    assert_eq!(answer_on(&mut stream), 408, "the body counts too");
    assert_eq!(answer_to(&setup, b"GET / HTTP/1.1\r\n\r\n"), 200);
}

#[test]
fn a_client_that_does_not_take_its_answer_is_left() {
    let patience = Duration::from_millis(200);
    let setup = setup_with(Limits {
        connections: 1,
        patience,
    });
    for _ in 0..Events::PAGE {
        let mut long = record("resume");
        long.event = "x".repeat(3_000);
        setup.vm.records.push(long);
    }
    let mut deaf = UnixStream::connect(&setup.path).unwrap();
    deaf.write_all(b"GET /time/events HTTP/1.1\r\n\r\n")
        .unwrap();
    let start = Instant::now();
    while setup.client.get::<Instance>("/").is_err() {
        assert!(start.elapsed() < LONG, "its place is never given up");
        thread::sleep(patience / 10);
    }
}

#[test]
fn too_many_connections_are_told_so() {
    let setup = setup_with(Limits {
        connections: 2,
        patience: LONG,
    });
    let silent = [(); 2].map(|()| UnixStream::connect(&setup.path).unwrap());
    let error = setup.client.get::<Instance>("/").unwrap_err();
    assert_eq!(
        error.to_string(),
        "the VM refuses: 2 connections are open; close one, or ask again in a moment"
    );
    assert!(!error.is_without_vm(), "there may be one");
    drop(silent);
    let start = Instant::now();
    while setup.client.get::<Instance>("/").is_err() {
        assert!(start.elapsed() < LONG, "their places are never given up");
        thread::yield_now();
    }
}

#[test]
fn one_changes_while_many_read() {
    let setup = setup();
    let (has_begun, go_on) = setup.vm.hold_snapshot();
    let client = setup.client.clone();
    let snapshot = thread::spawn(move || {
        client.change("PUT", "/snapshot/create", &json!({ "snapshot_path": "/s" }))
    });
    has_begun.recv_timeout(LONG).unwrap();
    for (method, path, body) in [
        ("PATCH", "/vm", json!({ "state": "Paused" })),
        ("PUT", "/actions", json!({ "action_type": "Stop" })),
        ("PUT", "/snapshot/create", json!({ "snapshot_path": "/t" })),
    ] {
        let refused = setup.client.change(method, path, &body);
        let Err(client::Error::Refused { status, message }) = refused else {
            panic!("{path}: {refused:?}")
        };
        assert_eq!(status, 409);
        assert_eq!(
            message,
            "another client's snapshot is under way; ask again when it is over"
        );
    }
    for path in ["/", "/snapshot", "/time", "/time/ledger", "/time/events"] {
        setup.client.get::<serde_json::Value>(path).unwrap();
    }
    go_on.send(()).unwrap();
    snapshot.join().unwrap().unwrap();
    assert_eq!(*setup.vm.snapshots.lock().unwrap(), [Path::new("/s")]);
    pause(&setup.client).unwrap();
}

#[test]
fn whoever_waits_for_an_event_gets_it_and_learns_of_the_end() {
    let setup = setup();
    let wait_for = |after: u64| {
        let client = setup.client.clone();
        thread::spawn(move || {
            let target = format!("/time/events?after={after}&wait_ms=60000");
            client.get_after::<Events>(&target, LONG).unwrap()
        })
    };
    let waiter = wait_for(1);
    pause(&setup.client).unwrap();
    let answer = waiter.join().unwrap();
    assert_eq!(
        (answer.events[0].sequence, answer.last, answer.ended),
        (2, 2, false)
    );
    assert_eq!(answer.events[0].event, "pause");

    let waiter = wait_for(2);
    let start = Instant::now();
    // Long enough to be waiting; if it is not yet, the end is told all the same.
    thread::sleep(Duration::from_millis(50));
    setup.vm.records.finish();
    let answer = waiter.join().unwrap();
    assert_eq!((answer.events.len(), answer.ended), (0, true));
    assert!(start.elapsed() < LONG);
}

#[test]
fn the_end_waits_for_no_client() {
    let setup = setup();
    let _silent = UnixStream::connect(&setup.path).unwrap();
    let mut waiting = UnixStream::connect(&setup.path).unwrap();
    waiting
        .write_all(b"GET /time/events?after=1&wait_ms=60000 HTTP/1.1\r\n\r\n")
        .unwrap();
    // The request has been taken when another that came later has been answered.
    setup.client.get::<Instance>("/").unwrap();
    let (sender, ended) = channel();
    let server = setup.server;
    thread::spawn(move || {
        drop(server);
        sender.send(()).unwrap();
    });
    ended.recv_timeout(LONG / 2).unwrap();
    assert_eq!(answer_on(&mut waiting), 200);
}
