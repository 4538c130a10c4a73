//! What goes over the wire: exact text, both JSON implementations, and lines that are no messages.

use std::string::{String as StdString, ToString};
use std::vec::Vec as StdVec;

use heapless::Vec;
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::report::{Bye, ByeReason, Error, ErrorKind, Hello, Program, Sample, Spin, SpinGap};
use crate::{
    Action, Body, MAX_CPUS, MAX_GAPS, MAX_LINE, ParseError, Report, Request, Workload, clip,
};

fn emitted(report: &Report) -> StdString {
    let mut line = [0xa5; MAX_LINE];
    let length = report.emit(&mut line).unwrap();
    StdString::from_utf8(line[..length].to_vec()).unwrap()
}

fn emitted_request(request: &Request) -> StdString {
    let mut line = [0xa5; MAX_LINE];
    let length = request.emit(&mut line).unwrap();
    StdString::from_utf8(line[..length].to_vec()).unwrap()
}

fn workload() -> impl Strategy<Value = Workload> {
    prop_oneof![
        Just(Workload::Idle),
        Just(Workload::Busy),
        Just(Workload::Spin)
    ]
}

fn hello() -> impl Strategy<Value = Body> {
    let workloads = prop::collection::vec(workload(), 0..=MAX_CPUS);
    let program = prop_oneof![Just(Program::Linux), Just(Program::El1)];
    let numbers = any::<(u16, u32, u32, u64, u64, u32)>();
    (numbers, program, any::<StdString>(), workloads).prop_map(
        |(numbers, program, system, workloads)| {
            Body::Hello(Hello {
                protocol: numbers.0,
                program,
                system: clip(&system),
                cpus_possible: numbers.1,
                cpus_online: numbers.2,
                counter_frequency_hz: numbers.3,
                steal_unit_ns: numbers.4,
                sample_period_ms: numbers.5,
                workloads: workloads.into_iter().collect(),
            })
        },
    )
}

fn sample() -> impl Strategy<Value = Body> {
    let steal = prop::collection::vec(any::<Option<u64>>(), 0..=MAX_CPUS);
    (any::<(u32, [u64; 7])>(), steal).prop_map(|((cpu, n), steal)| {
        Body::Sample(Sample {
            sequence: n[0],
            cpu,
            counter_before: n[1],
            monotonic_ns: n[2],
            monotonic_raw_ns: n[3],
            boottime_ns: n[4],
            realtime_ns: n[5],
            counter_after: n[6],
            steal_ns: steal.into_iter().collect(),
        })
    })
}

fn spin() -> impl Strategy<Value = Body> {
    any::<(u32, [u64; 7], [(u64, u64); MAX_GAPS])>().prop_map(|(cpu, n, gaps)| {
        Body::Spin(Spin {
            cpu,
            reads: n[0],
            first_counter: n[1],
            last_counter: n[2],
            largest_gaps: gaps.map(|(start, ticks)| SpinGap { start, ticks }),
            backwards_steps: n[3],
            largest_backwards_ticks: n[4],
            cross_backwards_steps: n[5],
            largest_cross_backwards_ticks: n[6],
        })
    })
}

fn error() -> impl Strategy<Value = Body> {
    let kind = prop_oneof![
        Just(ErrorKind::Malformed),
        Just(ErrorKind::UnknownType),
        Just(ErrorKind::Refused),
        Just(ErrorKind::Failed),
    ];
    (kind, any::<StdString>()).prop_map(|(kind, message)| {
        Body::Error(Error {
            kind,
            message: clip(&message),
        })
    })
}

fn bye() -> impl Strategy<Value = Body> {
    prop_oneof![
        Just(ByeReason::PowerOff),
        Just(ByeReason::Reset),
        Just(ByeReason::Failed)
    ]
    .prop_map(|reason| Body::Bye(Bye { reason }))
}

fn report() -> impl Strategy<Value = Report> {
    let body = prop_oneof![hello(), sample(), spin(), Just(Body::Done), error(), bye()];
    (any::<Option<u32>>(), body).prop_map(|(answers, body)| Report { answers, body })
}

fn request() -> impl Strategy<Value = Request> {
    let action = prop_oneof![
        Just(Action::Hello),
        Just(Action::Sample),
        Just(Action::Spin),
        any::<u32>().prop_map(|period_ms| Action::SetPeriod { period_ms }),
        (any::<u32>(), workload())
            .prop_map(|(cpu, workload)| Action::SetWorkload { cpu, workload }),
        Just(Action::PowerOff),
        Just(Action::Reset),
    ];
    (any::<Option<u32>>(), action).prop_map(|(id, action)| Request { id, action })
}

/// The same message as `serde_json` reads it.
fn read_by_serde_json(line: &str) -> Report {
    let line: Value = serde_json::from_str(line).unwrap();
    let answers = line
        .get("answers")
        .map(|n| u32::try_from(n.as_u64().unwrap()).unwrap());
    let body = line["body"].clone();
    let body = match line["type"].as_str().unwrap() {
        "hello" => Body::Hello(serde_json::from_value(body).unwrap()),
        "sample" => Body::Sample(serde_json::from_value(body).unwrap()),
        "spin" => Body::Spin(serde_json::from_value(body).unwrap()),
        "done" => Body::Done,
        "error" => Body::Error(serde_json::from_value(body).unwrap()),
        "bye" => Body::Bye(serde_json::from_value(body).unwrap()),
        other => panic!("type {other}"),
    };
    Report { answers, body }
}

/// The same message as `serde_json` writes it: keys sorted, spaced out on one line.
fn written_by_serde_json(line: &str) -> StdString {
    let value: Value = serde_json::from_str(line).unwrap();
    serde_json::to_string_pretty(&value)
        .unwrap()
        .replace('\n', " ")
}

proptest! {
    #[test]
    fn report_survives_the_wire_and_both_implementations_agree(report in report()) {
        let line = emitted(&report);
        prop_assert!(line.ends_with('\n') && line.matches('\n').count() == 1, "{line}");
        prop_assert_eq!(&Report::parse(line.as_bytes()).unwrap(), &report);
        prop_assert_eq!(&read_by_serde_json(&line), &report);
        let rewritten = written_by_serde_json(&line);
        if rewritten.len() <= MAX_LINE {
            prop_assert_eq!(&Report::parse(rewritten.as_bytes()).unwrap(), &report);
        }
    }

    #[test]
    fn request_survives_the_wire_and_both_implementations_agree(request in request()) {
        let line = emitted_request(&request);
        prop_assert_eq!(Request::parse(line.as_bytes()).unwrap(), request);
        let rewritten = written_by_serde_json(&line);
        prop_assert_eq!(Request::parse(rewritten.as_bytes()).unwrap(), request);
    }

    #[test]
    fn noise_is_refused_without_a_panic(line in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = Report::parse(&line);
        let mut object = b"{\"type\":\"sample\",\"body\":{".to_vec();
        object.extend(line);
        prop_assert!(Report::parse(&object).is_err());
        object[9..15].copy_from_slice(b"set_up");
        prop_assert!(Request::parse(&object).is_err());
    }

    #[test]
    fn a_cut_line_is_refused(report in report(), at in any::<prop::sample::Index>()) {
        let line = emitted(&report);
        let line = line.trim_end();
        let cut = &line.as_bytes()[..at.index(line.len())];
        prop_assert!(Report::parse(cut).is_err());
    }

    #[test]
    fn a_damaged_line_does_not_panic(
        report in report(),
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
    ) {
        let mut line = emitted(&report).into_bytes();
        let at = at.index(line.len());
        line[at] = byte;
        let _ = Report::parse(&line);
        let _ = Request::parse(&line);
    }
}

#[test]
fn requests_are_these_lines() {
    let spin = Action::SetWorkload {
        cpu: 1,
        workload: Workload::Spin,
    };
    let cases = [
        (Request::new(Action::Hello), r#"{"type":"hello"}"#),
        (
            Request::new(Action::Sample).with_id(0),
            r#"{"type":"sample","id":0}"#,
        ),
        (Request::new(Action::Spin), r#"{"type":"spin"}"#),
        (
            Request::new(Action::SetPeriod { period_ms: 250 }),
            r#"{"type":"set_period","body":{"period_ms":250}}"#,
        ),
        (
            Request::new(spin).with_id(4_294_967_295),
            r#"{"type":"set_workload","id":4294967295,"body":{"cpu":1,"workload":"spin"}}"#,
        ),
        (Request::new(Action::PowerOff), r#"{"type":"power_off"}"#),
        (Request::new(Action::Reset), r#"{"type":"reset"}"#),
    ];
    for (request, line) in cases {
        assert_eq!(emitted_request(&request).trim_end(), line);
        assert_eq!(Request::parse(line.as_bytes()), Ok(request));
    }
}

#[test]
fn reports_are_these_lines() {
    let error = Error {
        kind: ErrorKind::Refused,
        message: clip("no CPU \"9\"\u{1b}"),
    };
    let sample = Sample {
        sequence: 3,
        cpu: 1,
        counter_before: u64::MAX,
        monotonic_ns: 5,
        monotonic_raw_ns: 6,
        boottime_ns: 7,
        realtime_ns: 8,
        counter_after: 4,
        steal_ns: [Some(10_000_000), None].into_iter().collect(),
    };
    assert_eq!(sample.window_ticks(), 5, "a counter may wrap");
    let cases = [
        (
            Report {
                answers: Some(7),
                body: Body::Done,
            },
            r#"{"type":"done","answers":7}"#,
        ),
        (
            Report::new(Body::Bye(Bye {
                reason: ByeReason::PowerOff,
            })),
            r#"{"type":"bye","body":{"reason":"power_off"}}"#,
        ),
        (
            Report::new(Body::Error(error)),
            r#"{"type":"error","body":{"kind":"refused","message":"no CPU \"9\"\u001B"}}"#,
        ),
        (
            Report::new(Body::Sample(sample)),
            r#"{"type":"sample","body":{"sequence":3,"cpu":1,"counter_before":18446744073709551615,"monotonic_ns":5,"monotonic_raw_ns":6,"boottime_ns":7,"realtime_ns":8,"counter_after":4,"steal_ns":[10000000,null]}}"#,
        ),
    ];
    for (report, line) in cases {
        assert_eq!(emitted(&report).trim_end(), line);
        assert_eq!(Report::parse(line.as_bytes()), Ok(report));
    }
}

#[test]
fn the_longest_messages_fit_a_line() {
    let steal_ns = core::iter::repeat_n(Some(u64::MAX), MAX_CPUS).collect();
    let sample = Sample {
        sequence: u64::MAX,
        cpu: u32::MAX,
        counter_before: u64::MAX,
        monotonic_ns: u64::MAX,
        monotonic_raw_ns: u64::MAX,
        boottime_ns: u64::MAX,
        realtime_ns: u64::MAX,
        counter_after: u64::MAX,
        steal_ns,
    };
    let hello = Hello {
        protocol: u16::MAX,
        program: Program::Linux,
        system: clip(&"\u{1}".repeat(1000)),
        cpus_possible: u32::MAX,
        cpus_online: u32::MAX,
        counter_frequency_hz: u64::MAX,
        steal_unit_ns: u64::MAX,
        sample_period_ms: u32::MAX,
        workloads: core::iter::repeat_n(Workload::Idle, MAX_CPUS).collect(),
    };
    // A control character takes six bytes on the wire.
    let error = Error {
        kind: ErrorKind::UnknownType,
        message: clip(&"\u{1}".repeat(1000)),
    };
    assert_eq!(error.message.len(), 256);
    for body in [Body::Sample(sample), Body::Hello(hello), Body::Error(error)] {
        let report = Report {
            answers: Some(u32::MAX),
            body,
        };
        assert_eq!(Report::parse(emitted(&report).as_bytes()), Ok(report));
    }
}

#[test]
fn the_gap_over_a_count_is_found_if_it_is_among_the_largest() {
    let mut spin = Spin::default();
    spin.largest_gaps[0] = SpinGap {
        start: 1000,
        ticks: 50,
    };
    spin.largest_gaps[1] = SpinGap {
        start: u64::MAX,
        ticks: 11,
    };
    let start = |count| spin.gap_over(count).map(|gap| gap.start);
    assert_eq!(
        [999, 1000, 1049, 1050].map(start),
        [None, Some(1000), Some(1000), None]
    );
    assert_eq!(
        [u64::MAX, 9, 10].map(start),
        [Some(u64::MAX), Some(u64::MAX), None]
    );
}

#[test]
fn a_short_buffer_is_an_error() {
    let report = Report::new(Body::Done);
    let length = emitted(&report).len();
    let mut line = [0xa5; MAX_LINE];
    assert_eq!(report.emit(&mut line[..length]), Ok(length));
    // One byte less has room for all but the newline.
    let error = report.emit(&mut line[..length - 1]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "message does not fit into 15 bytes; give it 4096"
    );
}

#[test]
fn unknown_fields_are_skipped() {
    let line = r#" {"seq":1.5e3,"type":"set_period","why":{"a":[{},[null,"}\"]"]]},
        "body":{"period_ms":9,"jitter":[1,2],"note":"x"},"id":2} "#;
    let request = Request::new(Action::SetPeriod { period_ms: 9 }).with_id(2);
    assert_eq!(
        Request::parse(line.replace('\n', "").as_bytes()),
        Ok(request)
    );
}

#[test]
fn an_unknown_type_is_named_with_its_id() {
    let error = Request::parse(br#"{"type":"set_time","id":12,"body":{"ns":1}}"#).unwrap_err();
    assert_eq!(error.id(), Some(12));
    assert_eq!(error.to_string(), "unknown message type `set_time`");
    let long = json!({ "type": "x".repeat(500) }).to_string();
    let ParseError::UnknownType { name, .. } = Report::parse(long.as_bytes()).unwrap_err() else {
        panic!("not an unknown type");
    };
    assert_eq!(name.len(), 32);
}

#[test]
fn a_wrong_body_is_refused_with_its_id() {
    let cases = [
        r#"{"type":"set_period","id":3}"#,
        r#"{"type":"set_period","id":3,"body":{}}"#,
        r#"{"type":"set_period","id":3,"body":{"period_ms":-1}}"#,
        r#"{"type":"set_period","id":3,"body":{"period_ms":4294967296}}"#,
        r#"{"type":"set_period","id":3,"body":{"period_ms":1.5}}"#,
        r#"{"type":"set_workload","id":3,"body":{"cpu":0,"workload":"sleepy"}}"#,
    ];
    for line in cases {
        let error = Request::parse(line.as_bytes()).unwrap_err();
        assert!(matches!(error, ParseError::Body { .. }), "{line}: {error}");
        assert_eq!(error.id(), Some(3), "{line}");
    }
}

#[test]
fn lists_and_texts_beyond_their_bound_are_refused() {
    let bye = r#"{"type":"error","body":{"kind":"failed","message":""#;
    let fits = std::format!("{bye}{}\"}}}}", "m".repeat(256));
    assert!(Report::parse(fits.as_bytes()).is_ok());
    let too_long = std::format!("{bye}{}\"}}}}", "m".repeat(257));
    assert!(matches!(
        Report::parse(too_long.as_bytes()),
        Err(ParseError::Body { .. })
    ));
}

#[test]
fn other_text_is_told_from_a_damaged_message() {
    for text in [
        "",
        "\r\n",
        "[    0.000000] Booting Linux",
        "[1]",
        "null",
        "\"type\"",
    ] {
        assert_eq!(
            Report::parse(text.as_bytes()),
            Err(ParseError::NotAMessage),
            "{text}"
        );
    }
    for text in [
        "{",
        "{}",
        r#"{"type":7}"#,
        r#"{"type":"done"} x"#,
        r#"{"id":1,"id":2}"#,
    ] {
        let error = Report::parse(text.as_bytes()).unwrap_err();
        assert!(
            matches!(error, ParseError::Malformed { .. }),
            "{text}: {error}"
        );
    }
}

#[test]
fn length_and_depth_of_a_line_are_bounded() {
    let line = |filler: usize| json!({ "type": "done", "filler": "f".repeat(filler) }).to_string();
    let overhead = line(0).len();
    assert!(Report::parse(line(MAX_LINE - overhead).as_bytes()).is_ok());
    let error = Report::parse(line(MAX_LINE - overhead + 1).as_bytes()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "line of 4097 bytes; at most 4096 are read"
    );

    let nested = |depth: usize| {
        let (open, close) = ("[".repeat(depth), "]".repeat(depth));
        std::format!(r#"{{"type":"done","brackets":"\"[[[[[[[[[[[[[[[[[[[","deep":{open}{close}}}"#)
    };
    assert!(Report::parse(nested(15).as_bytes()).is_ok());
    assert_eq!(
        Report::parse(nested(16).as_bytes()),
        Err(ParseError::TooDeep)
    );
}

#[test]
fn workloads_have_one_name_everywhere() {
    for workload in [Workload::Idle, Workload::Busy, Workload::Spin] {
        assert_eq!(workload.to_string().parse(), Ok(workload));
        assert_eq!(
            serde_json::to_value(workload).unwrap(),
            json!(workload.to_string())
        );
    }
    let error = "spinning".parse::<Workload>().unwrap_err();
    assert_eq!(
        error.to_string(),
        "not a workload; write idle, busy or spin"
    );
}

#[test]
fn clip_cuts_between_characters() {
    assert_eq!(clip::<5>("aäöü").as_str(), "aäö");
    assert_eq!(clip::<4>("aäöü").as_str(), "aä");
    assert_eq!(clip::<9>("aäöü").as_str(), "aäöü");
}

#[test]
fn a_stream_is_cut_into_lines() {
    let mut buffer = crate::LineBuffer::<4>::new();
    let mut lines = StdVec::new();
    for &byte in b"ab\n\nabcd\nabcdefg\nxy\r\nz" {
        match buffer.push(byte) {
            Ok(None) => {}
            Ok(Some(line)) => lines.push(StdString::from_utf8(line.to_vec()).unwrap()),
            Err(too_long) => lines.push(too_long.to_string()),
        }
    }
    let dropped = "a line of 7 bytes was dropped; at most 4 are kept";
    assert_eq!(lines, ["ab", "", "abcd", dropped, "xy\r"]);
}

#[test]
fn more_cpus_than_the_bound_are_refused() {
    let cpus: StdVec<Option<u64>> = core::iter::repeat_n(None, MAX_CPUS + 1).collect();
    let mut sample: Value = serde_json::from_str(&emitted(&Report::new(Body::Sample(Sample {
        sequence: 0,
        cpu: 0,
        counter_before: 0,
        monotonic_ns: 0,
        monotonic_raw_ns: 0,
        boottime_ns: 0,
        realtime_ns: 0,
        counter_after: 0,
        steal_ns: Vec::new(),
    }))))
    .unwrap();
    sample["body"]["steal_ns"] = json!(cpus[1..]);
    assert!(Report::parse(sample.to_string().as_bytes()).is_ok());
    sample["body"]["steal_ns"] = json!(cpus);
    let error = Report::parse(sample.to_string().as_bytes()).unwrap_err();
    assert!(
        matches!(error, ParseError::Body { name: "sample", .. }),
        "{error}"
    );
}

#[test]
fn the_manual_shows_lines_as_they_are() {
    let manual = include_str!("../../../docs/guests.md");
    let lines = manual.lines().filter(|line| line.starts_with("    {"));
    let mut types = std::collections::BTreeSet::new();
    for line in lines.map(str::trim_start) {
        let report = Report::parse(line.as_bytes()).unwrap_or_else(|e| panic!("{e}: {line}"));
        assert_eq!(emitted(&report).trim_end(), line);
        types.insert(serde_json::from_str::<Value>(line).unwrap()["type"].to_string());
    }
    let every_type = ["bye", "done", "error", "hello", "sample", "spin"];
    assert!(
        types
            .iter()
            .map(|name| name.trim_matches('"'))
            .eq(every_type),
        "{types:?}"
    );
}
