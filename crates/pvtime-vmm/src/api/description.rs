//! Holds the server to `docs/openapi.json`, and `docs/api.md` to both.

use std::collections::BTreeSet;

use jsonschema::Validator;
use pvtime::host::Cause;
use pvtime::host::timeline::{EventKind, GapSource, Policy};
use serde_json::{Map, Value, json};

use super::answers::{Events, SnapshotPhase, VmState};
use super::fake::{FakeVm, record};
use super::http::Request;
use super::requests::MAX_WAIT;
use super::routes::{Api, ROUTES};
use crate::history;
use pvtime_kvm::record::LiveRecord;

const OPENAPI: &str = include_str!("../../../../docs/openapi.json");
const PAGE: &str = include_str!("../../../../docs/api.md");

/// The description, with every object closed: in the file a client may meet fields that it does
/// not know, here each must be described.
fn closed() -> Value {
    let mut document = document();
    for schema in members_mut(&mut document["components"]["schemas"]).values_mut() {
        schema["additionalProperties"] = false.into();
    }
    document
}

fn document() -> Value {
    serde_json::from_str(OPENAPI).unwrap()
}

fn members_mut(value: &mut Value) -> &mut Map<String, Value> {
    value.as_object_mut().expect("an object")
}

fn members(value: &Value) -> &Map<String, Value> {
    value.as_object().expect("an object")
}

fn validator(document: &Value, schema: &Value) -> Validator {
    let mut whole = json!({ "components": document["components"] });
    members_mut(&mut whole).extend(members(schema).clone());
    jsonschema::draft202012::new(&whole).expect("a schema of the description is one")
}

#[track_caller]
fn assert_fits(validator: &Validator, value: &Value, what: &str) {
    let errors: Vec<_> = validator
        .iter_errors(value)
        .map(|error| format!("{}: {error}", error.instance_path()))
        .collect();
    assert!(errors.is_empty(), "{what}: {errors:#?}\n{value}");
}

/// An operation of the description.
struct Operation<'a> {
    method: String,
    path: &'a str,
    described: &'a Value,
}

fn operations(document: &Value) -> Vec<Operation<'_>> {
    let mut operations = Vec::new();
    for (path, methods) in members(&document["paths"]) {
        for (method, described) in members(methods) {
            operations.push(Operation {
                method: method.to_uppercase(),
                path,
                described,
            });
        }
    }
    operations
}

impl Operation<'_> {
    fn answer_schema(&self) -> &Value {
        &self.described["responses"]["200"]["content"]["application/json"]["schema"]
    }

    fn request(&self) -> &Value {
        &self.described["requestBody"]["content"]["application/json"]
    }
}

fn ask(api: &Api, method: &str, target: &str, body: &Value) -> (u16, Value) {
    let body = match body {
        Value::Null => Vec::new(),
        body => body.to_string().into_bytes(),
    };
    let response = api.answer(&Request::new(method, target, body));
    let body = serde_json::from_slice(&response.body).unwrap_or_default();
    (response.status, body)
}

/// A VM with records of every kind.
fn api() -> (FakeVm, Api) {
    let vm = FakeVm::started();
    vm.records.push(record("pause"));
    vm.records.push(record("resume"));
    let mut moved = record("restore");
    moved.cause = Some("migration".into());
    moved.clamped = true;
    moved.gap = record("resume").gap.map(|mut gap| {
        gap.ns = -5;
        gap.error_ns = None;
        gap
    });
    moved.live = Some(LiveRecord {
        pv_before: 1,
        pv_after: 2,
        distance: "-0.250000".into(),
        hold_ticks: 3,
    });
    vm.records.push(moved);
    (vm.clone(), Api::new(vm))
}

#[test]
fn what_is_described_is_served_and_what_is_served_is_described() {
    let document = document();
    let described: BTreeSet<_> = operations(&document)
        .into_iter()
        .map(|it| (it.method, it.path.to_owned()))
        .collect();
    let served: BTreeSet<_> = ROUTES
        .iter()
        .map(|it| (it.method.to_owned(), it.path.to_owned()))
        .collect();
    assert_eq!(described, served);
    assert_eq!(document["info"]["version"], env!("CARGO_PKG_VERSION"));
}

#[test]
fn answers_are_as_described() {
    let document = closed();
    let (_, api) = api();
    let reading: Vec<_> = operations(&document)
        .into_iter()
        .filter(|it| it.method == "GET")
        .collect();
    assert_eq!(reading.len(), 7);
    for operation in reading {
        let validator = validator(&document, operation.answer_schema());
        let (status, body) = ask(&api, "GET", operation.path, &Value::Null);
        assert_eq!(status, 200);
        assert_fits(&validator, &body, operation.path);
        assert!(
            !validator.is_valid(&json!({})),
            "{} fits all",
            operation.path
        );
    }
}

#[test]
fn requests_are_taken_as_described_and_no_others() {
    let document = document();
    let changing: Vec<_> = operations(&document)
        .into_iter()
        .filter(|it| it.method != "GET")
        .collect();
    assert_eq!(changing.len(), 6);
    for operation in changing {
        let (_, api) = api();
        let (method, path) = (operation.method.as_str(), operation.path);
        let validator = validator(&document, &operation.request()["schema"]);
        let example = &operation.request()["example"];
        assert_fits(&validator, example, path);
        let (status, body) = ask(&api, method, path, example);
        let answer = &operation.described["responses"][status.to_string()];
        match status {
            204 => assert!(answer.is_object() && body.is_null(), "{path}"),
            200 => assert_fits(
                &self::validator(&closed(), operation.answer_schema()),
                &body,
                path,
            ),
            _ => panic!("{path}: {status} {body}"),
        }

        let (field, value) = members(example).iter().next().expect("a field");
        for wrong in [
            json!({}),
            json!({ field: 7 }),
            json!({ field: "nothing of the kind" }),
            json!({ field: null }),
            json!({ field: value, "more": 1 }),
            json!([]),
        ] {
            assert!(
                !validator.is_valid(&wrong),
                "{path} is described to take {wrong}"
            );
            assert_eq!(
                ask(&api, method, path, &wrong).0,
                400,
                "{path} takes {wrong}"
            );
        }
    }
}

#[test]
fn queries_are_taken_as_described_and_no_others() {
    let document = document();
    let (_, api) = api();
    let mut seen = Vec::new();
    for operation in operations(&document) {
        let status = |query: &str| {
            let target = format!("{}?{query}", operation.path);
            ask(
                &api,
                &operation.method,
                &target,
                operation.request().get("example").unwrap_or(&Value::Null),
            )
            .0
        };
        assert_eq!(status("nothing=1"), 400, "{}", operation.path);
        let none = Vec::new();
        for parameter in operation.described["parameters"]
            .as_array()
            .unwrap_or(&none)
        {
            let name = parameter["name"].as_str().unwrap();
            seen.push(name.to_owned());
            assert_eq!(
                status(&format!("{name}={}", parameter["example"])),
                200,
                "{name}"
            );
            assert_eq!(status(&format!("{name}=-1")), 400, "{name}");
            if let Some(most) = parameter["schema"]["maximum"].as_u64() {
                assert_eq!(status(&format!("{name}={most}")), 200, "{name}");
                let beyond = u128::from(most) + 1;
                assert_eq!(status(&format!("{name}={beyond}")), 400, "{name}");
            }
        }
    }
    assert_eq!(seen, ["after", "wait_ms", "vcpu"]);
}

#[test]
fn faults_are_as_described() {
    let document = closed();
    let (vm, api) = api();
    vm.is_broken
        .store(true, std::sync::atomic::Ordering::SeqCst);
    let fault = &document["components"]["responses"]["Fault"]["content"]["application/json"];
    let validator = validator(&document, &fault["schema"]);
    for (method, target, expected) in [
        ("GET", "/time?x", 400),
        ("GET", "/none", 404),
        ("PUT", "/time", 405),
        ("GET", "/time", 500),
    ] {
        let (status, body) = ask(&api, method, target, &Value::Null);
        assert_eq!(status, expected);
        assert_fits(&validator, &body, target);
    }
    for operation in operations(&document) {
        let default = &operation.described["responses"]["default"];
        assert_eq!(
            default["$ref"], "#/components/responses/Fault",
            "{}",
            operation.path
        );
    }
}

/// The values that a property of a schema may have.
fn values(schema: &str, property: &str) -> Vec<String> {
    let document = document();
    let allowed = &document["components"]["schemas"][schema]["properties"][property]["enum"];
    let allowed = allowed.as_array().expect("an enum").iter();
    allowed
        .filter_map(|it| it.as_str().map(str::to_owned))
        .collect()
}

fn names(of: &[impl ToString]) -> Vec<String> {
    of.iter().map(ToString::to_string).collect()
}

#[test]
fn described_values_are_all_there_are() {
    let kinds = [
        EventKind::Start,
        EventKind::Restore,
        EventKind::Pause,
        EventKind::GuestSuspend,
        EventKind::Resume,
        EventKind::Slept,
    ];
    assert_eq!(values("Record", "event"), names(&kinds));
    assert_eq!(values("Record", "cause"), names(&Cause::ALL));
    assert_eq!(
        values("Record", "policy"),
        names(&[Policy::Freeze, Policy::Advance])
    );
    let sources = [
        GapSource::Counter,
        GapSource::Boottime,
        GapSource::WallClocks,
        GapSource::SleepClocks,
        GapSource::Inferred,
        GapSource::Unknown,
    ];
    assert_eq!(values("Gap", "source"), names(&sources));
    let states = [
        VmState::NotStarted,
        VmState::Running,
        VmState::Paused,
        VmState::Suspended,
        VmState::InDoubt,
        VmState::Moved,
    ];
    let states = states.map(|it| serde_json::to_value(it).unwrap());
    let states: Vec<_> = states.iter().filter_map(Value::as_str).collect();
    assert_eq!(values("Instance", "state"), states);
    let phases = [
        SnapshotPhase::Idle,
        SnapshotPhase::Saving,
        SnapshotPhase::Saved,
        SnapshotPhase::Failed,
    ];
    let phases = phases.map(|it| serde_json::to_value(it).unwrap());
    let phases: Vec<_> = phases.iter().filter_map(Value::as_str).collect();
    assert_eq!(values("Snapshot", "phase"), phases);
}

#[test]
fn described_limits_are_those_of_the_server() {
    let document = document();
    let schemas = &document["components"]["schemas"];
    assert_eq!(
        schemas["Events"]["properties"]["events"]["maxItems"],
        Events::PAGE
    );
    let samples = &schemas["History"]["properties"]["samples"]["maxItems"];
    assert_eq!(*samples, history::CAPACITY + 1, "the last one is of now");
    let parameters = &document["paths"]["/time/events"]["get"]["parameters"];
    assert_eq!(
        u128::from(parameters[1]["schema"]["maximum"].as_u64().unwrap()),
        MAX_WAIT.as_millis()
    );
}

/// The sections of the page: heading and text.
fn sections() -> Vec<(&'static str, &'static str)> {
    PAGE.split("\n## ")
        .skip(1)
        .map(|section| section.split_once('\n').expect("a section has text"))
        .collect()
}

/// The examples of a section that are fenced with this word.
fn examples(section: &str, fence: &str) -> Vec<Value> {
    section
        .split(&format!("\n```{fence}\n"))
        .skip(1)
        .map(|rest| rest.split("\n```").next().expect("a fence ends"))
        .map(|text| serde_json::from_str(text).expect("an example is JSON"))
        .collect()
}

#[test]
fn the_page_has_every_resource_and_its_examples_are_right() {
    let document = closed();
    let sections = sections();
    for operation in operations(&document) {
        let Operation { method, path, .. } = &operation;
        let heading = format!("{method} {path}");
        let found = sections.iter().find(|(it, _)| *it == heading);
        let (_, text) = found.unwrap_or_else(|| panic!("the page has no {heading}"));
        let shown = examples(text, "json");
        let calls: Vec<&str> = text
            .lines()
            .filter(|it| it.starts_with("    curl "))
            .collect();
        assert!(!calls.is_empty(), "{heading} shows no call");
        assert!(
            calls
                .iter()
                .all(|it| it.contains(&format!("http://localhost{path}"))),
            "{heading} calls something else"
        );
        if method == "GET" {
            assert_eq!(shown.len(), 1, "{heading}");
            let validator = validator(&document, operation.answer_schema());
            assert_fits(&validator, &shown[0], &heading);
            continue;
        }
        let (_, api) = api();
        for call in calls {
            assert!(call.contains(&format!("-X {method} ")), "{call}");
            let (_, body) = call.split_once("-d '").expect("a call with a body");
            let body = serde_json::from_str(body.trim_end_matches('\'')).unwrap();
            let status = ask(&api, method, path, &body).0;
            assert!(matches!(status, 200 | 204), "{call}: {status}");
        }
    }
    let headings: Vec<_> = sections
        .iter()
        .filter(|(it, _)| it.contains(" /"))
        .collect();
    assert_eq!(headings.len(), ROUTES.len());
}

#[test]
fn the_pages_fault_is_what_the_server_says() {
    let (_, api) = api();
    let sections = sections();
    let (_, text) = sections
        .iter()
        .find(|(heading, _)| *heading == "When it is not done")
        .expect("a section on faults");
    let shown = examples(text, "json fault");
    let said = ask(&api, "PATCH", "/vm", &json!({ "state": "Off" }));
    assert_eq!(vec![said.1], shown);
}
