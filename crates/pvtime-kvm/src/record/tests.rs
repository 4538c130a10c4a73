use std::sync::Arc;
use std::thread;
use std::time::Instant;

use pvtime::abi::live_physical_time::LivePhysicalTime;
use pvtime::host::timeline::{
    Config, Event, HostSample, Policies, Policy, Step, Timeline, WallStandard,
};
use pvtime::host::timers::{Timer, Translation, VcpuTimers};
use pvtime::host::{Cause, HostCount};
use pvtime::scale::{CompareValue, Frequency};

use super::*;

const SECOND_NS: u64 = 1_000_000_000;

/// A host with a counter of this rate, some time after both started at 0.
fn sample(frequency_hz: u64, after_ns: u64) -> HostSample {
    HostSample {
        counter: HostCount(after_ns / 1_000 * (frequency_hz / 1_000_000)),
        frequency: Frequency::from_hz(frequency_hz).unwrap(),
        wall_ns: 1_700_000_000 * SECOND_NS + after_ns,
        wall_standard: WallStandard::Tai,
        wall_error_ns: 10_000,
        boottime_ns: after_ns,
        monotonic_ns: after_ns,
        monotonic_raw_ns: after_ns,
        span_ns: 100,
    }
}

fn step(timeline: &mut Timeline, now: HostSample, event: Event<'_>) -> Record {
    let Step {
        timeline: next,
        adjustment,
        ..
    } = timeline.step(now, event).unwrap();
    *timeline = next;
    Record::new(&adjustment.unwrap(), now.wall_ns)
}

/// The record of an event of which nothing else matters.
fn any_record() -> Record {
    let mut timeline = Timeline::new(Config::default()).unwrap();
    step(&mut timeline, sample(1_000_000, SECOND_NS), Event::Start)
}

#[test]
fn a_start_a_pause_and_a_resumption_say_all_that_was_done() {
    let at = |seconds: u64| sample(25_000_000, seconds * SECOND_NS);
    let mut timeline = Timeline::new(Config::default()).unwrap();

    let start = step(&mut timeline, at(5), Event::Start);
    assert_eq!(
        (start.event.as_str(), start.wall_ns),
        ("start", at(5).wall_ns)
    );
    assert_eq!(
        (&start.cause, &start.policy, &start.gap),
        (&None, &None, &None)
    );
    assert_eq!(start.shown_ticks, None);
    assert_eq!((start.before.guest, start.after.guest), (125_000_000, 0));
    assert_eq!((start.before.offset, start.after.offset), (0, 125_000_000));

    let pause = step(&mut timeline, at(7), Event::Pause(Cause::Operator));
    assert_eq!(pause.cause.as_deref(), Some("operator"));
    assert_eq!((&pause.policy, &pause.gap), (&None, &None));
    assert_eq!(pause.after.guest, 50_000_000);

    let resume = step(&mut timeline, at(10), Event::Resume);
    assert_eq!(resume.policy.as_deref(), Some("freeze"));
    let gap = GapRecord {
        ns: 3_000_000_000,
        ticks: 75_000_000,
        error_ns: Some(resume.gap.as_ref().unwrap().error_ns.unwrap()),
        source: "counter".into(),
    };
    assert_eq!(resume.gap, Some(gap));
    assert_eq!(
        (resume.hidden_ns, resume.shown_ticks),
        (3_000_000_000, Some(0))
    );
    let after = ReadingRecord {
        host: 250_000_000,
        guest: 50_000_000,
        offset: 200_000_000,
        frequency_hz: 25_000_000,
    };
    assert_eq!((resume.after, resume.clamped), (after, false));
    assert_eq!(resume.live, None);
}

#[test]
fn an_advance_is_shown_and_not_hidden() {
    let policies = Policies {
        pause: Policy::Advance,
        ..Policies::default()
    };
    let config = Config {
        policies,
        ..Config::default()
    };
    let mut timeline = Timeline::new(config).unwrap();
    let at = |seconds: u64| sample(1_000_000, seconds * SECOND_NS);
    step(&mut timeline, at(1), Event::Start);
    step(&mut timeline, at(2), Event::Pause(Cause::Snapshot));
    let resume = step(&mut timeline, at(4), Event::Resume);
    assert_eq!(resume.cause.as_deref(), Some("snapshot"));
    assert_eq!(resume.policy.as_deref(), Some("advance"));
    assert_eq!((resume.hidden_ns, resume.shown_ticks), (0, Some(2_000_000)));
}

#[test]
fn live_time_and_a_move_to_another_frequency_are_in_the_record() {
    let config = Config {
        live_physical_time: Frequency::from_hz(31_000_000).ok(),
        ..Config::default()
    };
    let mut timeline = Timeline::new(config).unwrap();
    step(&mut timeline, sample(25_000_000, SECOND_NS), Event::Start);
    let found = timeline.step(
        sample(25_000_000, 2 * SECOND_NS),
        Event::LivePhysicalTimeFound,
    );
    timeline = found.unwrap().timeline;
    let pause = step(
        &mut timeline,
        sample(25_000_000, 3 * SECOND_NS),
        Event::Pause(Cause::Migration),
    );
    let stopped = pause.live.unwrap();
    // Two seconds at 31 MHz, less what a multiplier of finite length loses.
    assert!(
        (61_999_998..=62_000_000).contains(&stopped.pv_after),
        "{stopped:?}"
    );
    let saved = timeline.save(pvtime::host::saved::Sequences::default());
    let saved = saved.unwrap();

    let mut there = Timeline::new(config).unwrap();
    let arrival = Event::Restore {
        saved: &saved,
        cause: Cause::Migration,
    };
    step(&mut there, sample(100_000_000, 4 * SECOND_NS), arrival);
    let resume = step(
        &mut there,
        sample(100_000_000, 5 * SECOND_NS),
        Event::Resume,
    );
    assert_eq!(resume.shown_ticks, None, "ticks of two lengths");
    assert_eq!(resume.before.frequency_hz, 25_000_000);
    assert_eq!(resume.after.frequency_hz, 100_000_000);
    let live = resume.live.unwrap();
    assert_eq!(live.pv_before, stopped.pv_after);
    assert!(live.pv_after - live.pv_before <= 1, "{live:?}");
    assert!(live.distance.starts_with(['+', '-']), "{live:?}");
    assert_eq!(live.hold_ticks, 0);
    assert_eq!(resume.gap.unwrap().source, "wall clocks");
}

#[test]
fn an_error_without_a_bound_is_absent() {
    let gap = Gap {
        ns: -5,
        error_ns: u64::MAX,
        source: pvtime::host::timeline::GapSource::Unknown,
    };
    let record = GapRecord::new(gap, 0);
    assert_eq!((record.ns, record.error_ns), (-5, None));
    assert_eq!(
        serde_json::to_string(&record).unwrap(),
        r#"{"ns":-5,"ticks":0,"error_ns":null,"source":"unknown"}"#
    );
}

#[test]
fn a_record_survives_its_json() {
    let mut record = any_record();
    record.gap = Some(GapRecord {
        ns: i128::from(i64::MIN) * 4,
        ticks: 7,
        error_ns: Some(1),
        source: "counter".into(),
    });
    record.live = Some(LiveRecord {
        pv_before: u64::MAX,
        pv_after: 1,
        distance: "+0.500000".into(),
        hold_ticks: 3,
    });
    let text = serde_json::to_string(&record).unwrap();
    assert_eq!(serde_json::from_str::<Record>(&text).unwrap(), record);
}

fn sequences(records: &[Record]) -> Vec<u64> {
    records.iter().map(|record| record.sequence).collect()
}

#[test]
fn records_are_numbered_and_old_ones_go() {
    let records = Records::default();
    assert_eq!(records.last(), 0);
    let count = Records::CAPACITY as u64 + 3;
    for _ in 0..count {
        records.push(any_record());
    }
    assert_eq!(records.last(), count);
    assert_eq!(
        sequences(&records.after(count - 2, Duration::ZERO)),
        [count - 1, count]
    );
    let kept = records.after(0, Duration::ZERO);
    assert_eq!(kept.len(), Records::CAPACITY);
    assert_eq!(kept[0].sequence, 4, "the first three are gone");
    assert!(records.after(u64::MAX, Duration::ZERO).is_empty());
}

#[test]
fn whoever_waits_gets_the_next_record_or_the_end() {
    const PATIENCE: Duration = Duration::from_secs(60);
    let records = Arc::new(Records::default());
    records.push(any_record());
    assert_eq!(sequences(&records.after(0, PATIENCE)), [1], "no wait");
    assert_eq!(records.last_after(0, PATIENCE), 1, "no wait");
    assert_eq!(records.last_after(1, Duration::ZERO), 1, "no record");

    let waiting = Arc::clone(&records);
    let waiter = thread::spawn(move || sequences(&waiting.after(1, PATIENCE)));
    records.push(any_record());
    assert_eq!(waiter.join().unwrap(), [2]);

    let waiting = Arc::clone(&records);
    let waiter = thread::spawn(move || waiting.after(2, PATIENCE).len());
    let start = Instant::now();
    records.finish();
    assert_eq!(waiter.join().unwrap(), 0);
    assert!(start.elapsed() < PATIENCE / 2, "it waited on");
    assert!(records.is_finished());
    assert_eq!(sequences(&records.after(0, PATIENCE)), [1, 2]);
}

#[test]
fn l13_what_timers_lose_adds_up() {
    let hz = |hz| Frequency::from_hz(hz).unwrap();
    let mapping = |native| LivePhysicalTime::between(hz(native), hz(1_000_000_000)).unwrap();
    // To a host that is a thousand times faster, whose counter passes 2^64 so much earlier.
    let translation = Translation {
        from: mapping(1_000_000),
        to: mapping(1_000_000_000),
        has_run: true,
        has_ecv: false,
    };
    let timer = |control, compare_value| Timer {
        control: TimerControl(control),
        compare_value: CompareValue(compare_value),
    };
    let (on, off) = (TimerControl::ENABLE, 0);
    let mut record = TimersRecord::default();
    for (virtual_timer, physical_timer, stream) in [
        (timer(on, 1 << 60), timer(on, 1 << 61), 0),
        (timer(off, 1 << 60), timer(on, u64::MAX), 1 << 2 | 15 << 4),
        (timer(on, 5), timer(on, 1 << 60), 1 << 2 | 14 << 4),
    ] {
        let timers = VcpuTimers::new(virtual_timer, physical_timer, stream);
        record = record.with(&translation.apply(&timers));
    }
    let expected = TimersRecord {
        unreachable: 3,
        lost_stream_bits: 10,
    };
    assert_eq!(record, expected);
}
