//! What goes over the wire: exact text, both JSON implementations, and lines that are no messages.

use std::string::{String as StdString, ToString};
use std::vec;
use std::vec::Vec as StdVec;

use heapless::Vec;
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::report::{
    Bye, ByeReason, Clocks, Conduit, Error, ErrorKind, EventStream, Firing, Hello, Interfaces,
    LiveTime, MAX_BARE_CPUS, Memory, Outcome, PausedTime, Periods, Program, Sample, Spin,
    SpinClock, SpinGap, StolenTime, TestResult, Timer, TimerState,
};
use crate::request::{ArmTimer, Fill};
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
    prop::sample::select(&WORKLOADS)
}

const WORKLOADS: [Workload; 7] = [
    Workload::Idle,
    Workload::Busy,
    Workload::Spin,
    Workload::SpinPhysical,
    Workload::SpinLive,
    Workload::Events,
    Workload::Change,
];

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
    (any::<(u32, [u64; 7], Option<u64>)>(), steal).prop_map(|((cpu, n, paused_ns), steal)| {
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
            paused_ns,
        })
    })
}

fn spin() -> impl Strategy<Value = Body> {
    let clock = prop_oneof![
        Just(SpinClock::Virtual),
        Just(SpinClock::Physical),
        Just(SpinClock::Live)
    ];
    let numbers = any::<(u32, [u64; 7], [(u64, u64, u64); MAX_GAPS])>();
    (numbers, clock).prop_map(|((cpu, n, gaps), clock)| {
        Body::Spin(Spin {
            cpu,
            clock,
            reads: n[0],
            first_counter: n[1],
            last_counter: n[2],
            largest_gaps: gaps.map(|(start, ticks, stolen_ns)| SpinGap {
                start,
                ticks,
                stolen_ns,
            }),
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
        Just(ByeReason::Kexec),
        Just(ByeReason::Failed)
    ]
    .prop_map(|reason| Body::Bye(Bye { reason }))
}

fn interfaces() -> impl Strategy<Value = Body> {
    let conduit = prop_oneof![Just(Conduit::None), Just(Conduit::Hvc), Just(Conduit::Smc)];
    let stolen = prop::collection::vec(any::<Option<(u64, u64)>>(), 0..=MAX_BARE_CPUS);
    let missing = any::<(Option<u32>, Option<StdString>, Option<StdString>)>();
    let live = any::<Option<(u64, u32, u32, u32)>>();
    let paused = any::<Option<([u64; 6], u32, bool, u32)>>();
    let stream = any::<Option<(u8, i16, u32, u32, u64)>>();
    (conduit, stolen, missing, live, paused, stream).prop_map(
        |(conduit, stolen, missing, live, paused, stream)| {
            let stolen = stolen
                .into_iter()
                .map(|found| found.map(|(address, stolen_ns)| StolenTime { address, stolen_ns }));
            Body::Interfaces(Interfaces {
                conduit,
                smccc_version: missing.0,
                stolen_time: stolen.collect(),
                stolen_time_missing: missing.1.map(|text| clip(&text)),
                live_time: live.map(|(address, native, pv, changes)| LiveTime {
                    address,
                    native_frequency_hz: native,
                    pv_frequency_hz: pv,
                    changes,
                }),
                live_time_missing: missing.2.map(|text| clip(&text)),
                paused_time: paused.map(|(n, last_cause, last_frozen, interrupts)| PausedTime {
                    address: n[0],
                    paused_ns: n[1],
                    events: n[2],
                    last_paused_ns: n[3],
                    last_counter: n[4],
                    last_error_ns: n[5],
                    last_cause,
                    last_frozen,
                    interrupts,
                }),
                event_stream: stream.map(|(bit, lost_bits, rate_hz, translations, events)| {
                    EventStream {
                        bit,
                        lost_bits,
                        rate_hz,
                        translations,
                        events,
                    }
                }),
            })
        },
    )
}

fn clocks() -> impl Strategy<Value = Body> {
    any::<(u32, [u64; 3], Option<u64>, Option<u64>)>().prop_map(|(cpu, n, live, stolen_ns)| {
        Body::Clocks(Clocks {
            cpu,
            virtual_before: n[0],
            physical: n[1],
            live,
            virtual_after: n[2],
            stolen_ns,
        })
    })
}

fn which_timer() -> impl Strategy<Value = Timer> {
    prop_oneof![Just(Timer::Virtual), Just(Timer::Physical)]
}

fn timer() -> impl Strategy<Value = Body> {
    let rest = any::<(u32, [bool; 3], [u64; 3], [Option<u64>; 3], u32)>();
    (which_timer(), rest, proptest::option::of(periods())).prop_map(|(timer, rest, periods)| {
        let (cpu, is, n, [deadline, fired_at, compare], interrupts) = rest;
        Body::Timer(TimerState {
            cpu,
            timer,
            live: is[0],
            frequency_hz: n[0],
            armed_at: n[1],
            deadline,
            masked: is[1],
            interrupts,
            fired_at,
            now: n[2],
            is_due: is[2],
            compare,
            periods,
        })
    })
}

fn periods() -> impl Strategy<Value = Periods> {
    any::<([u64; 3], Option<([u64; 5], Option<u64>)>)>().prop_map(|(n, moved)| Periods {
        period_ticks: n[0],
        fired: n[1],
        early: n[2],
        moved: moved.map(|(n, compare)| Firing {
            armed_at: n[0],
            deadline: n[1],
            compare,
            fired_at: n[2],
            stolen_before_ns: n[3],
            stolen_ns: n[4],
        }),
    })
}

fn memory() -> impl Strategy<Value = Body> {
    any::<([u64; 3], Option<u64>)>().prop_map(|(n, first_damaged)| {
        Body::Memory(Memory {
            pages: n[0],
            changes: n[1],
            damaged: n[2],
            first_damaged,
        })
    })
}

fn test_result() -> impl Strategy<Value = Body> {
    let outcome = prop_oneof![
        Just(Outcome::Passed),
        Just(Outcome::Failed),
        Just(Outcome::Absent)
    ];
    (outcome, any::<(StdString, StdString)>()).prop_map(|(outcome, (name, message))| {
        Body::Test(TestResult {
            name: clip(&name),
            outcome,
            message: clip(&message),
        })
    })
}

fn report() -> impl Strategy<Value = Report> {
    let body = prop_oneof![
        hello(),
        sample(),
        spin(),
        interfaces(),
        clocks(),
        timer(),
        memory(),
        test_result(),
        Just(Body::Done),
        error(),
        bye()
    ];
    (any::<Option<u32>>(), body).prop_map(|(answers, body)| Report { answers, body })
}

fn arm_timer() -> impl Strategy<Value = ArmTimer> {
    let rest = any::<(u32, bool, Option<i64>, bool, Option<u64>, bool)>();
    (which_timer(), rest).prop_map(
        |(timer, (cpu, live, delay_us, masked, period_us, put_off))| ArmTimer {
            cpu,
            timer,
            live,
            delay_us,
            masked,
            period_us,
            put_off,
        },
    )
}

fn request() -> impl Strategy<Value = Request> {
    let action = prop_oneof![
        Just(Action::Hello),
        Just(Action::Sample),
        Just(Action::Spin),
        any::<u32>().prop_map(|period_ms| Action::SetPeriod { period_ms }),
        (any::<u32>(), workload())
            .prop_map(|(cpu, workload)| Action::SetWorkload { cpu, workload }),
        any::<(u32, bool)>().prop_map(|(cpu, online)| Action::SetOnline { cpu, online }),
        Just(Action::Interfaces),
        Just(Action::Clocks),
        arm_timer().prop_map(Action::ArmTimer),
        Just(Action::Timers),
        any::<u32>().prop_map(|rate_hz| Action::SetEventStream { rate_hz }),
        any::<(u64, u32, u32)>().prop_map(|(seed, mib, changes_per_s)| Action::Fill(Fill {
            seed,
            mib,
            changes_per_s
        })),
        Just(Action::Verify),
        Just(Action::RunTests),
        Just(Action::Suspend),
        Just(Action::PowerOff),
        Just(Action::Reset),
        Just(Action::Kexec),
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
        "interfaces" => Body::Interfaces(serde_json::from_value(body).unwrap()),
        "clocks" => Body::Clocks(serde_json::from_value(body).unwrap()),
        "timer" => Body::Timer(serde_json::from_value(body).unwrap()),
        "memory" => Body::Memory(serde_json::from_value(body).unwrap()),
        "test" => Body::Test(serde_json::from_value(body).unwrap()),
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
    let timer = ArmTimer {
        cpu: 2,
        timer: Timer::Physical,
        live: true,
        delay_us: Some(-5),
        masked: false,
        period_us: None,
        put_off: false,
    };
    let never = ArmTimer {
        delay_us: None,
        ..timer
    };
    let again = ArmTimer {
        period_us: Some(5000),
        ..timer
    };
    let ahead = ArmTimer {
        put_off: true,
        ..again
    };
    let fill = Fill {
        seed: u64::MAX,
        mib: 64,
        changes_per_s: 500,
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
            Request::new(Action::SetOnline {
                cpu: 3,
                online: false,
            }),
            r#"{"type":"set_online","body":{"cpu":3,"online":false}}"#,
        ),
        (
            Request::new(spin).with_id(4_294_967_295),
            r#"{"type":"set_workload","id":4294967295,"body":{"cpu":1,"workload":"spin"}}"#,
        ),
        (
            Request::new(Action::ArmTimer(timer)),
            r#"{"type":"arm_timer","body":{"cpu":2,"timer":"physical","live":true,"delay_us":-5,"masked":false}}"#,
        ),
        (
            Request::new(Action::ArmTimer(never)),
            r#"{"type":"arm_timer","body":{"cpu":2,"timer":"physical","live":true,"delay_us":null,"masked":false}}"#,
        ),
        (
            Request::new(Action::ArmTimer(again)),
            r#"{"type":"arm_timer","body":{"cpu":2,"timer":"physical","live":true,"delay_us":-5,"masked":false,"period_us":5000}}"#,
        ),
        (
            Request::new(Action::ArmTimer(ahead)),
            r#"{"type":"arm_timer","body":{"cpu":2,"timer":"physical","live":true,"delay_us":-5,"masked":false,"period_us":5000,"put_off":true}}"#,
        ),
        (
            Request::new(Action::SetEventStream { rate_hz: 10_000 }),
            r#"{"type":"set_event_stream","body":{"rate_hz":10000}}"#,
        ),
        (
            Request::new(Action::Fill(fill)),
            r#"{"type":"fill","body":{"seed":18446744073709551615,"mib":64,"changes_per_s":500}}"#,
        ),
        (Request::new(Action::RunTests), r#"{"type":"run_tests"}"#),
        (Request::new(Action::Suspend), r#"{"type":"suspend"}"#),
        (Request::new(Action::PowerOff), r#"{"type":"power_off"}"#),
        (Request::new(Action::Reset), r#"{"type":"reset"}"#),
        (Request::new(Action::Kexec), r#"{"type":"kexec"}"#),
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
        paused_ns: None,
    };
    let followed = Sample {
        paused_ns: Some(9),
        ..sample.clone()
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
        (
            Report::new(Body::Sample(followed)),
            r#"{"type":"sample","body":{"sequence":3,"cpu":1,"counter_before":18446744073709551615,"monotonic_ns":5,"monotonic_raw_ns":6,"boottime_ns":7,"realtime_ns":8,"counter_after":4,"steal_ns":[10000000,null],"paused_ns":9}}"#,
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
        paused_ns: Some(u64::MAX),
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
        workloads: core::iter::repeat_n(Workload::SpinPhysical, MAX_CPUS).collect(),
    };
    // A control character takes six bytes on the wire.
    let error = Error {
        kind: ErrorKind::UnknownType,
        message: clip(&"\u{1}".repeat(1000)),
    };
    assert_eq!(error.message.len(), 256);
    let bodies = [
        Body::Sample(sample),
        Body::Hello(hello),
        Body::Error(error),
        Body::Interfaces(longest_interfaces()),
        Body::Test(TestResult {
            name: clip(&"\u{1}".repeat(1000)),
            outcome: Outcome::Passed,
            message: clip(&"\u{1}".repeat(1000)),
        }),
    ];
    for body in bodies {
        let report = Report {
            answers: Some(u32::MAX),
            body,
        };
        assert_eq!(Report::parse(emitted(&report).as_bytes()), Ok(report));
    }
}

fn longest_interfaces() -> Interfaces {
    let stolen = StolenTime {
        address: u64::MAX,
        stolen_ns: u64::MAX,
    };
    Interfaces {
        conduit: Conduit::None,
        smccc_version: Some(u32::MAX),
        stolen_time: core::iter::repeat_n(Some(stolen), MAX_BARE_CPUS).collect(),
        stolen_time_missing: Some(clip(&"\u{1}".repeat(1000))),
        live_time: Some(LiveTime {
            address: u64::MAX,
            native_frequency_hz: u32::MAX,
            pv_frequency_hz: u32::MAX,
            changes: u32::MAX,
        }),
        live_time_missing: Some(clip(&"\u{1}".repeat(1000))),
        paused_time: Some(PausedTime {
            address: u64::MAX,
            paused_ns: u64::MAX,
            events: u64::MAX,
            last_paused_ns: u64::MAX,
            last_counter: u64::MAX,
            last_error_ns: u64::MAX,
            last_cause: u32::MAX,
            last_frozen: false,
            interrupts: u32::MAX,
        }),
        event_stream: Some(EventStream {
            bit: u8::MAX,
            lost_bits: i16::MIN,
            rate_hz: u32::MAX,
            translations: u32::MAX,
            events: u64::MAX,
        }),
    }
}

fn fired(deadline: Option<u64>, fired_at: Option<u64>, now: u64) -> TimerState {
    TimerState {
        cpu: 0,
        timer: Timer::Virtual,
        live: false,
        frequency_hz: 1000,
        armed_at: 0,
        deadline,
        masked: false,
        interrupts: u32::from(fired_at.is_some()),
        fired_at,
        now,
        is_due: fired_at.is_some(),
        compare: deadline,
        periods: None,
    }
}

#[test]
fn a_timer_is_early_late_or_lost() {
    let early = fired(Some(100), Some(99), 200);
    assert_eq!((early.early_ticks(), early.late_ticks()), (Some(1), None));
    assert!(early.is_wrong() && !early.is_lost(0));
    let late = fired(Some(100), Some(107), 200);
    assert_eq!((late.early_ticks(), late.late_ticks()), (None, Some(7)));
    assert!(!late.is_wrong() && !late.is_lost(0));

    let waits = fired(Some(100), None, 100);
    assert!(!waits.is_lost(0) && !waits.is_wrong());
    let lost = fired(Some(100), None, 151);
    assert!(lost.is_lost(50) && !lost.is_lost(51));
    assert!(!fired(None, None, u64::MAX).is_lost(0), "never is not lost");
    assert_eq!(fired(None, Some(5), 9).early_ticks(), Some(u64::MAX - 5));
    assert!(fired(None, Some(5), 9).is_wrong());

    let twice = TimerState {
        interrupts: 2,
        ..late
    };
    assert!(twice.is_wrong());
    let status = TimerState {
        masked: true,
        is_due: true,
        ..fired(Some(100), None, 99)
    };
    assert!(status.is_wrong(), "due before its deadline");
    let status = TimerState { now: 200, ..status };
    assert!(!status.is_wrong() && !status.is_lost(0));
    let forgotten = TimerState {
        is_due: false,
        ..status
    };
    assert!(forgotten.is_lost(0));
    let unmasked = TimerState {
        interrupts: 1,
        ..status
    };
    assert!(unmasked.is_wrong(), "a masked timer has no interrupt");
}

#[test]
fn the_gap_over_a_count_is_found_if_it_is_among_the_largest() {
    let mut spin = Spin::default();
    spin.largest_gaps[0] = SpinGap {
        start: 1000,
        ticks: 50,
        stolen_ns: 0,
    };
    spin.largest_gaps[1] = SpinGap {
        start: u64::MAX,
        ticks: 11,
        stolen_ns: 0,
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
    for workload in WORKLOADS {
        assert_eq!(workload.to_string().parse(), Ok(workload));
        assert_eq!(
            serde_json::to_value(workload).unwrap(),
            json!(workload.to_string())
        );
    }
    let error = "spinning".parse::<Workload>().unwrap_err();
    assert_eq!(
        error.to_string(),
        "not a workload; write idle, busy, spin, spin_physical, spin_live, events or change"
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
        paused_ns: None,
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
    let every_type = [
        "bye",
        "clocks",
        "done",
        "error",
        "hello",
        "interfaces",
        "memory",
        "sample",
        "spin",
        "test",
        "timer",
    ];
    assert!(
        types
            .iter()
            .map(|name| name.trim_matches('"'))
            .eq(every_type),
        "{types:?}"
    );
}
