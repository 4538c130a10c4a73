use std::path::Path;
use std::sync::atomic::Ordering;

use serde_json::{Value, json};

use super::*;
use crate::api::fake::{FakeVm, record};

fn ask(api: &Api, method: &str, target: &str, body: &str) -> (u16, Value) {
    let response = api.answer(&Request::new(method, target, body.into()));
    let body = match response.body.as_slice() {
        b"" => Value::Null,
        body => serde_json::from_slice(body).unwrap(),
    };
    (response.status, body)
}

fn fault(api: &Api, method: &str, target: &str, body: &str) -> (u16, String) {
    let (status, body) = ask(api, method, target, body);
    let message = body["fault_message"].as_str();
    (status, message.expect("a fault has a message").to_owned())
}

fn started() -> (FakeVm, Api) {
    let vm = FakeVm::started();
    (vm.clone(), Api::new(vm))
}

const PAUSE: &str = r#"{"state":"Paused"}"#;
const RESUME: &str = r#"{"state":"Resumed"}"#;

#[test]
fn a_vm_is_described_paused_and_resumed() {
    let (vm, api) = started();
    let state = |api: &Api| ask(api, "GET", "/", "").1["state"].clone();
    assert_eq!(
        ask(&api, "GET", "/", ""),
        (
            200,
            json!({
                "app_name": "pvtime", "id": "fake", "state": "Running",
                "vmm_version": env!("CARGO_PKG_VERSION"),
            })
        )
    );
    assert_eq!(ask(&api, "PATCH", "/vm", PAUSE), (204, Value::Null));
    assert_eq!(state(&api), "Paused");
    assert_eq!(ask(&api, "PATCH", "/vm", PAUSE).0, 204);
    assert_eq!(ask(&api, "PATCH", "/vm", RESUME).0, 204);
    assert_eq!(ask(&api, "PATCH", "/vm", RESUME).0, 204);
    assert_eq!(state(&api), "Running");
    assert_eq!(vm.records.last(), 3, "what changes nothing is no event");
}

const PREPARE: &str = r#"{"phase":"Prepare"}"#;
const FINISH: &str = r#"{"phase":"Finish"}"#;

#[test]
fn an_announced_sleep_stops_a_vm_and_its_end_lets_no_other_pause_end() {
    let (vm, api) = started();
    let state = |api: &Api| ask(api, "GET", "/", "").1["state"].clone();
    let announce = |body| ask(&api, "PUT", "/time/host-sleep", body).0;
    assert_eq!((announce(FINISH), announce(PREPARE)), (204, 204));
    assert_eq!(state(&api), "Paused");
    assert_eq!((announce(PREPARE), announce(FINISH)), (204, 204));
    assert_eq!(state(&api), "Running");
    assert_eq!(vm.records.last(), 3);

    assert_eq!(ask(&api, "PATCH", "/vm", PAUSE).0, 204);
    assert_eq!((announce(PREPARE), announce(FINISH)), (204, 204));
    assert_eq!(state(&api), "Paused");
    assert_eq!(vm.records.last(), 4);
}

#[test]
fn the_end_of_a_sleep_does_not_wait_for_a_slow_guest() {
    let (vm, api) = started();
    vm.guest_is_slow.store(true, Ordering::SeqCst);
    std::thread::scope(|scope| {
        let prepared = scope.spawn(|| fault(&api, "PUT", "/time/host-sleep", PREPARE));
        while api.changes.lock().is_none() {
            std::thread::yield_now();
        }
        let (status, message) = fault(&api, "PATCH", "/vm", PAUSE);
        assert_eq!(status, 409);
        assert!(message.contains("client's prepare-sleep is"), "{message}");
        assert_eq!(ask(&api, "PUT", "/time/host-sleep", FINISH).0, 204);
        let (status, message) = prepared.join().unwrap();
        assert_eq!(status, 410);
        assert!(message.contains("was said to be over"), "{message}");
    });
    assert_eq!(ask(&api, "GET", "/", "").1["state"], "Running");
    assert_eq!(vm.records.last(), 1, "nothing was done");
    assert_eq!(ask(&api, "PATCH", "/vm", PAUSE).0, 204);
}

#[test]
fn a_vm_that_was_not_started_is_in_no_state_to_be_changed() {
    let api = Api::new(FakeVm::default());
    assert_eq!(ask(&api, "GET", "/", "").1["state"], "Not started");
    for (method, path, body) in [
        ("PATCH", "/vm", PAUSE),
        ("PATCH", "/vm", RESUME),
        ("PUT", "/snapshot/create", r#"{"snapshot_path":"/a"}"#),
        ("PUT", "/time/host-sleep", PREPARE),
        ("PUT", "/time/host-sleep", FINISH),
    ] {
        let (status, message) = fault(&api, method, path, body);
        assert_eq!(status, 409);
        assert!(message.contains("was not started yet"), "{message}");
    }
}

#[test]
fn a_vm_in_doubt_does_nothing_but_be_taken_over() {
    let (vm, api) = started();
    assert_eq!(ask(&api, "PUT", "/time/host-sleep", PREPARE).0, 204);
    vm.is_in_doubt.store(true, Ordering::SeqCst);
    for (method, path, body) in [
        ("PATCH", "/vm", PAUSE),
        ("PATCH", "/vm", RESUME),
        ("PUT", "/snapshot/create", r#"{"snapshot_path":"/a"}"#),
        ("PUT", "/migration", r#"{"destination":"unix:/a"}"#),
        ("PUT", "/time/host-sleep", PREPARE),
        ("PUT", "/time/host-sleep", FINISH),
    ] {
        let (status, message) = fault(&api, method, path, body);
        assert_eq!(status, 409, "{path} {body}");
        assert!(message.contains("resume --take-over"), "{message}");
    }
    assert_eq!(vm.records.last(), 2, "nothing was done");
    let take_over = r#"{"state":"TakenOver"}"#;
    assert_eq!(ask(&api, "PATCH", "/vm", take_over).0, 204);
    assert_eq!(ask(&api, "GET", "/", "").1["state"], "Running");
}

#[test]
fn a_vm_is_saved_and_ended() {
    let (vm, api) = started();
    let snapshot = |path: &str| json!({ "snapshot_path": path }).to_string();
    assert_eq!(ask(&api, "PUT", "/snapshot/create", &snapshot("/a")).0, 204);
    assert_eq!(*vm.snapshots.lock().unwrap(), [Path::new("/a")]);
    let (status, message) = fault(&api, "PUT", "/snapshot/create", &snapshot("a"));
    assert_eq!(status, 400);
    assert!(
        message.starts_with("the field snapshot_path: a is relative"),
        "{message}"
    );

    assert!(!vm.is_stopped.load(Ordering::SeqCst));
    assert_eq!(
        ask(&api, "PUT", "/actions", r#"{"action_type":"Stop"}"#).0,
        204
    );
    assert!(vm.is_stopped.load(Ordering::SeqCst));
}

#[test]
fn a_migration_is_secured_by_files_of_the_host() {
    let (vm, api) = started();
    let migrate = |tls: Value| json!({ "destination": "tcp:other:1", "tls": tls }).to_string();
    let files = |key: &str| json!({ "cert": "/a.pem", "key": key, "ca": "/ca.pem", "name": "b" });
    assert_eq!(
        ask(&api, "PUT", "/migration", &migrate(files("/a.key"))).0,
        200
    );
    let asked = vm.migrations.lock().unwrap().pop().unwrap();
    let tls = asked.tls.unwrap();
    assert_eq!(
        (tls.key, tls.name),
        (Path::new("/a.key").into(), Some("b".into()))
    );
    let both = json!({ "destination": "tcp:a:1", "insecure": true, "tls": files("/a.key") });
    for (body, expected) in [
        (
            migrate(files("a.key")),
            "the field tls.key: a.key is relative",
        ),
        (
            migrate(json!({ "cert": "/a", "key": "/b" })),
            "missing field `ca`",
        ),
        (
            migrate(json!({ "cert": "/a", "key": "/b", "ca": "/c", "crl": "/d" })),
            "unknown field",
        ),
        (
            both.to_string(),
            "the field insecure: with tls nothing is in the clear",
        ),
    ] {
        let (status, message) = fault(&api, "PUT", "/migration", &body);
        assert_eq!(status, 400);
        assert!(message.contains(expected), "{message}");
    }
    assert!(vm.migrations.lock().unwrap().is_empty());
}

#[test]
fn a_failure_is_said_and_the_next_may_try() {
    let (vm, api) = started();
    vm.is_broken.store(true, Ordering::SeqCst);
    let snapshot = r#"{"snapshot_path":"/a"}"#;
    for (method, path, body) in [
        ("GET", "/time", ""),
        ("GET", "/time/ledger", ""),
        ("PATCH", "/vm", PAUSE),
        ("PUT", "/time/host-sleep", PREPARE),
        ("PUT", "/snapshot/create", snapshot),
    ] {
        let expected = (500, "the thread has ended".to_owned());
        assert_eq!(fault(&api, method, path, body), expected, "{path}");
    }
    vm.is_broken.store(false, Ordering::SeqCst);
    assert_eq!(ask(&api, "PATCH", "/vm", PAUSE).0, 204);
}

#[test]
fn what_does_not_exist_is_refused_with_what_does() {
    let (_, api) = started();
    let (status, message) = fault(&api, "GET", "/machine-config", "");
    assert_eq!(status, 404);
    assert_eq!(
        message,
        "there is no /machine-config; there are /, /vm, /snapshot/create, /snapshot, /migration, \
         /actions, /time, /time/ledger, /time/events, /time/host-sleep, /time/history"
    );
    let (status, message) = fault(&api, "PUT", "/vm", PAUSE);
    assert_eq!(
        (status, message.as_str()),
        (405, "/vm takes another method: use PATCH")
    );
    let response = api.answer(&Request::new("POST", "/time", Vec::new()));
    let mut head = Vec::new();
    response.write(&mut head).unwrap();
    let head = String::from_utf8(head).unwrap();
    assert!(head.contains("\r\nAllow: GET\r\n"), "{head}");
    assert_eq!(fault(&api, "GET", "/time/", "").0, 404);
    assert_eq!(fault(&api, "get", "/time", "").0, 405);
}

#[test]
fn what_a_resource_does_not_take_is_refused_by_name() {
    let (vm, api) = started();
    for (method, target, body, expected) in [
        ("GET", "/", "{}", "GET / takes no body"),
        ("GET", "/?x=1", "", "\"x\" cannot be asked for here"),
        ("GET", "/time?x=1", "", "\"x\" cannot be asked for here"),
        (
            "GET",
            "/time/ledger?vcpu=1",
            "",
            "\"vcpu\" cannot be asked for here",
        ),
        (
            "GET",
            "/time/events?before=1",
            "",
            "\"before\" cannot be asked for here",
        ),
        (
            "GET",
            "/time/history?vcpu=1",
            "",
            "vcpu is 1, and this VM has none of that number",
        ),
        (
            "PATCH",
            "/vm?now=1",
            PAUSE,
            "\"now\" cannot be asked for here",
        ),
        (
            "PATCH",
            "/vm",
            "",
            "the body is not what this resource takes",
        ),
        (
            "PATCH",
            "/vm",
            r#"{"state":"Off"}"#,
            "the field state: unknown variant `Off`",
        ),
        (
            "PUT",
            "/actions",
            r#"{"action":"Stop"}"#,
            "unknown field `action`",
        ),
        (
            "PUT",
            "/snapshot/create",
            r#"{"snapshot_path":[]}"#,
            "the field snapshot_path: ",
        ),
    ] {
        let (status, message) = fault(&api, method, target, body);
        assert_eq!(status, 400, "{target}");
        assert!(message.contains(expected), "{target}: {message}");
    }
    assert_eq!(vm.records.last(), 1, "nothing was done");
}

#[test]
fn events_come_in_pages() {
    let (vm, api) = started();
    let count = Events::PAGE + 10;
    for _ in 1..count {
        vm.records.push(record("pause"));
    }
    let page = |after: usize| {
        let (status, body) = ask(&api, "GET", &format!("/time/events?after={after}"), "");
        assert_eq!(status, 200);
        assert_eq!(
            (&body["last"], &body["ended"]),
            (&json!(count), &json!(false))
        );
        let events = body["events"].as_array().unwrap().clone();
        let sequences: Vec<_> = events.iter().map(|it| it["sequence"].as_u64()).collect();
        (sequences.len(), sequences.last().copied().flatten())
    };
    assert_eq!(page(0), (Events::PAGE, Some(Events::PAGE as u64)));
    assert_eq!(page(Events::PAGE), (10, Some(count as u64)));
    assert_eq!(page(count), (0, None));
    vm.records.finish();
    assert_eq!(
        ask(&api, "GET", "/time/events?wait_ms=60000&after=9999", "").1["ended"],
        true
    );
}
