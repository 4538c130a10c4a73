use pvtime::host::timeline::{Config, Event, Policies, StallPolicy, Step, WallStandard};
use pvtime::host::{GuestCount, HostCount};
use pvtime::scale::Frequency;

use super::*;

const MS: u64 = 1_000_000;
const S: u64 = 1_000 * MS;
/// 25 MHz.
const TICKS_PER_MS: u64 = 25_000;

/// A host whose clocks are exact; it was up for an hour and slept before.
#[derive(Clone, Copy)]
struct Host {
    boottime_ns: u64,
    slept_ns: u64,
    counter: u64,
}

impl Host {
    fn new() -> Self {
        Self {
            boottime_ns: 3_600 * S,
            slept_ns: 60 * S,
            counter: 3_600_000 * TICKS_PER_MS,
        }
    }

    fn runs(self, ms: u64) -> Self {
        Self {
            boottime_ns: self.boottime_ns + ms * MS,
            counter: self.counter + ms * TICKS_PER_MS,
            ..self
        }
    }

    fn sleeps(self, ms: u64) -> Self {
        Self {
            slept_ns: self.slept_ns + ms * MS,
            ..self.runs(ms)
        }
    }

    /// Something starts its counter anew.
    fn restarts(self) -> Self {
        Self {
            counter: 5 * TICKS_PER_MS,
            ..self
        }
    }

    /// Sleeps with its power off, and starts its counter anew.
    fn hibernates(self, ms: u64) -> Self {
        self.sleeps(ms).restarts()
    }

    fn sample(self) -> HostSample {
        let awake_ns = self.boottime_ns - self.slept_ns;
        HostSample {
            counter: HostCount(self.counter),
            frequency: Frequency::from_hz(1_000 * TICKS_PER_MS).unwrap(),
            wall_ns: 1_800_000_000 * S + self.boottime_ns,
            wall_standard: WallStandard::Realtime,
            wall_error_ns: 0,
            boottime_ns: self.boottime_ns,
            monotonic_ns: awake_ns,
            monotonic_raw_ns: awake_ns,
            span_ns: 500,
        }
    }
}

fn running(at: Host) -> Timeline {
    let config = Config {
        policies: Policies {
            stall: StallPolicy::Freeze,
            ..Policies::default()
        },
        ..Config::default()
    };
    let timeline = Timeline::new(config).unwrap();
    timeline.step(at.sample(), Event::Start).unwrap().timeline
}

/// The lease was renewed at `at` for the last time; up to `then`, a vCPU's thread was busy for
/// `busy_ms` of it, and the other one all the time that its lease was.
fn silence(at: Host, then: Host, busy_ms: u64) -> Silence {
    let vcpu = |busy_ms| {
        let activity = |physical_ns, busy_ns| Activity {
            physical_ns,
            busy_ns,
        };
        let before = activity(at.boottime_ns, 7 * S);
        Some((before, activity(then.boottime_ns, 7 * S + busy_ms * MS)))
    };
    Silence {
        since_ns: at.boottime_ns,
        ended_ns: at.boottime_ns + 50 * MS,
        stepped_ns: at.boottime_ns,
        vcpus: vec![vcpu(1), vcpu(busy_ms)],
    }
}

fn evidence(at: Host, then: Host, busy_ms: u64) -> Option<Evidence> {
    silence(at, then, busy_ms).evidence(&running(at), &at.sample(), &then.sample())
}

#[test]
fn s17_a_stop_of_all_threads_is_certain_but_for_the_lease_and_the_margin() {
    let at = Host::new();
    let then = at.runs(4_000);
    let stall = |certain_ms| {
        Some(Evidence::Stall {
            certain_ns: certain_ms * MS,
            // And the way back in.
            possible_ns: 4_010 * MS,
        })
    };
    // Nobody was busy for longer than the lease.
    assert_eq!(evidence(at, then, 50), stall(3_940));
    // A timer was late, and this vCPU went on for a while.
    assert_eq!(evidence(at, then, 300), stall(3_690));
    // Only the thread that renews did not run.
    for busy_ms in [3_990, 4_000, 4_100] {
        assert_eq!(evidence(at, then, busy_ms), None);
    }
}

#[test]
fn a_stop_within_the_lease_and_the_margin_is_nothing() {
    let at = Host::new();
    assert_eq!(evidence(at, at.runs(60), 1), None);
    assert!(evidence(at, at.runs(61), 1).is_some());
}

#[test]
fn nothing_is_certain_of_a_thread_that_was_not_looked_at_or_before_the_last_step() {
    let at = Host::new();
    let then = at.runs(4_000);
    let mut unknown = silence(at, then, 1);
    unknown.vcpus.push(None);
    assert_eq!(
        unknown.evidence(&running(at), &at.sample(), &then.sample()),
        None
    );
    let resumed = Silence {
        stepped_ns: at.boottime_ns + 3_000 * MS,
        ..silence(at, then, 1)
    };
    assert_eq!(resumed.certain_ns(then.boottime_ns), 990 * MS);
}

#[test]
fn a_sleep_is_what_the_clocks_say() {
    let at = Host::new();
    let then = at.sleeps(4_000).runs(200);
    let clocks = |error_ns| Some(Evidence::Clocks { error_ns });
    assert_eq!(evidence(at, then, 10), clocks(0));
    // Freezing and thawing took less than a lease: a vCPU may have seen the rest.
    assert_eq!(evidence(at, at.sleeps(4_000).runs(20), 10), clocks(40 * MS));
    // The counter stood still, so the kernel asked the RTC.
    let stood = Host {
        counter: at.counter,
        ..then
    };
    assert_eq!(evidence(at, stood, 10), clocks(S));
    // And nobody has seen of it what a lease had left to see.
    let stood = Host {
        counter: at.counter,
        ..at.sleeps(4_000).runs(20)
    };
    assert_eq!(evidence(at, stood, 10), clocks(S));
}

#[test]
fn a_stop_is_longer_the_later_it_is_dealt_with() {
    // The offset could not be set at once, and nobody came in meanwhile.
    let at = Host::new();
    let found = silence(at, at.runs(4_000), 50);
    let certain_ms = |host: Host| {
        let evidence = found.evidence(&running(at), &at.sample(), &host.sample());
        match evidence {
            Some(Evidence::Stall { certain_ns, .. }) => certain_ns / MS,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(certain_ms(at.runs(4_000)), 3_940);
    assert_eq!(certain_ms(at.runs(4_090)), 4_030);
    // Who looked again, on the lease that is renewed meanwhile, would know of nothing.
    let anew = silence(at.runs(4_000), at.runs(4_010), 10);
    let host = at.runs(4_010).sample();
    assert_eq!(anew.evidence(&running(at), &at.sample(), &host), None);
}

#[test]
fn g4_a_counter_that_restarts_unseen_by_the_clocks_goes_on_from_the_guests() {
    let start = Host::new();
    let at = start.runs(2_000);
    let Step { timeline, .. } = running(start).step(at.sample(), Event::Observe).unwrap();
    let last = guest(&timeline, at.runs(50));
    let then = at.runs(100).restarts().runs(4_000);
    for busy_ms in [50, 4_100] {
        let found = silence(at, then, busy_ms).evidence(&timeline, &at.sample(), &then.sample());
        // Where the threads ran there was no stop, and the clocks have something to say still.
        assert_eq!(found.is_some(), busy_ms == 50);
        let found = found.unwrap_or(Evidence::Stall {
            certain_ns: 0,
            possible_ns: 0,
        });
        let step = timeline.step(then.sample(), Event::Slept(found)).unwrap();
        let after = guest(&step.timeline, then);
        assert!(after >= last, "{after:?} after {last:?}");
        let shown_ms = (after.0 - guest(&timeline, at).0) / TICKS_PER_MS;
        let hidden_ms = step.adjustment.unwrap().hidden_ns / MS;
        assert!(
            (4_100..=4_106).contains(&(shown_ms + hidden_ms)),
            "{shown_ms} ms"
        );
        assert_eq!(hidden_ms > 0, busy_ms == 50);
    }
}

/// What the guest's counter reads.
fn guest(timeline: &Timeline, at: Host) -> GuestCount {
    HostCount(at.counter).to_guest(timeline.offset().expect("it runs"))
}

#[test]
fn s13_g4_after_a_hibernation_the_guests_counter_goes_on_from_its_own_count() {
    let start = Host::new();
    let timeline = running(start);
    let at = start.runs(2_000);
    let Step { timeline, .. } = timeline.step(at.sample(), Event::Observe).unwrap();
    let old_offset = timeline.offset().unwrap();
    let last = guest(&timeline, at.runs(50));

    let then = at.runs(100).hibernates(3_600_000).runs(900);
    let found = silence(at, then, 50).evidence(&timeline, &at.sample(), &then.sample());
    let found = found.expect("a sleep");
    assert_eq!(found, Evidence::Clocks { error_ns: S });
    let step = timeline.step(then.sample(), Event::Slept(found)).unwrap();

    // With the old offset the guest's counter would be far before 0.
    assert!(HostCount(then.counter).to_guest(old_offset).0 > u64::MAX / 2);
    let after = guest(&step.timeline, then);
    assert!(after >= last, "{after:?} after {last:?}");
    // What it was awake for, and the possible drift of that, is all it shows.
    let shown_ms = (after.0 - guest(&timeline, at).0) / TICKS_PER_MS;
    assert!((1_000..=1_002).contains(&shown_ms), "{shown_ms} ms");
    let record = step.adjustment.unwrap();
    assert!(record.hidden_ns >= 3_598 * S, "{}", record.hidden_ns);
}

#[test]
fn no_evidence_is_ever_for_more_than_the_timeline_can_take_out() {
    for awake_ms in [0, 1, 49, 50, 51, 61, 500] {
        for asleep_ms in [0, 1, 2, 30, 50, 60, 100, 4_000] {
            for busy_ms in [0, 10, 100, 5_000] {
                let at = Host::new();
                let then = at.sleeps(asleep_ms).runs(awake_ms);
                let timeline = running(at);
                let silence = silence(at, then, busy_ms);
                let Some(found) = silence.evidence(&timeline, &at.sample(), &then.sample()) else {
                    continue;
                };
                let stepped = timeline.step(then.sample(), Event::Slept(found)).unwrap();
                let last_seen = at.runs(50.min(awake_ms + asleep_ms));
                assert!(
                    guest(&stepped.timeline, then) >= guest(&timeline, last_seen),
                    "{awake_ms} {asleep_ms} {busy_ms}: {found:?}"
                );
            }
        }
    }
}

#[test]
fn a_thread_vouches_for_itself_within_the_margin() {
    let activity = |physical_ms, busy_ms| Activity {
        physical_ns: physical_ms * MS,
        busy_ns: busy_ms * MS,
    };
    let before = activity(100, 7);
    for (passed_ms, busy_ms, ran) in [(80, 80, true), (80, 70, true), (80, 69, false)] {
        let now = activity(100 + passed_ms, 7 + busy_ms);
        assert_eq!(before.ran_until(&now), ran, "{busy_ms} of {passed_ms} ms");
    }
}
