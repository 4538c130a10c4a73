//! Any events with any samples of the clocks, which need not be those of a real host: no panic,
//! and whatever is accepted keeps the laws.
#![no_main]

use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use pvtime::host::saved::{SavedVm, Sequences};
use pvtime::host::timeline::{
    Action, Adjustment, Config, Event, EventKind, Evidence, HostSample, NegativeElapsed, Policies,
    Policy, StallPolicy, Step, Timeline, WallStandard,
};
use pvtime::host::{Cause, CounterOffset, GuestCount, HostCount};
use pvtime::scale::Frequency;

#[derive(Arbitrary, Clone, Copy, Debug)]
struct Choices {
    policies: [bool; 5],
    clamp: bool,
    pv_hz: Option<u32>,
    paused_time: bool,
    has_ecv: bool,
}

/// How the clocks move on before an event.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Clocks {
    /// As on one host: nanoseconds awake, then asleep.
    Pass {
        awake_ns: u32,
        asleep_ns: u16,
        magnitude: u8,
        tai: bool,
    },
    /// Anything at all.
    Jump {
        clocks: [u64; 6],
        frequency_hz: u32,
        span_ns: u8,
    },
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Happening {
    Start,
    Observe,
    Pause(u8),
    GuestSuspend,
    Resume,
    SleptClocks(u16),
    SleptStall(u32, u32),
    Found,
    Reset,
    SaveAndRestore { by_migration: bool },
}

fn config(choices: Choices) -> Config {
    let policy = |index: usize| match choices.policies[index] {
        true => Policy::Advance,
        false => Policy::Freeze,
    };
    Config {
        policies: Policies {
            pause: policy(0),
            restore: policy(1),
            migrate: policy(2),
            suspend: policy(3),
            stall: match choices.policies[4] {
                true => StallPolicy::Freeze,
                false => StallPolicy::Report,
            },
        },
        negative_elapsed: match choices.clamp {
            true => NegativeElapsed::Clamp,
            false => NegativeElapsed::Refuse,
        },
        live_physical_time: choices
            .pv_hz
            .and_then(|hz| Frequency::from_hz(hz.into()).ok()),
        paused_time: choices.paused_time,
        has_ecv: choices.has_ecv,
        ..Config::default()
    }
}

fn next(sample: HostSample, clocks: Clocks) -> HostSample {
    match clocks {
        Clocks::Pass {
            awake_ns,
            asleep_ns,
            magnitude,
            tai,
        } => {
            let awake_ns = u64::from(awake_ns) << (magnitude % 16);
            let passed_ns = awake_ns + (u64::from(asleep_ns) << (magnitude % 32));
            let ticks = u128::from(passed_ns) * u128::from(sample.frequency.hz()) / 1_000_000_000;
            HostSample {
                counter: sample.counter.after(ticks as u64),
                wall_ns: sample.wall_ns.saturating_add(passed_ns),
                wall_standard: if tai {
                    WallStandard::Tai
                } else {
                    WallStandard::Realtime
                },
                boottime_ns: sample.boottime_ns.saturating_add(passed_ns),
                monotonic_ns: sample.monotonic_ns.saturating_add(awake_ns),
                monotonic_raw_ns: sample.monotonic_raw_ns.saturating_add(awake_ns),
                ..sample
            }
        }
        Clocks::Jump {
            clocks,
            frequency_hz,
            span_ns,
        } => HostSample {
            counter: HostCount(clocks[0]),
            frequency: Frequency::from_hz(frequency_hz.max(1).into()).unwrap(),
            wall_ns: clocks[1],
            wall_error_ns: clocks[2],
            boottime_ns: clocks[3],
            monotonic_ns: clocks[4],
            monotonic_raw_ns: clocks[5],
            span_ns: span_ns.into(),
            ..sample
        },
    }
}

struct Vm {
    timeline: Timeline,
    offset: CounterOffset,
    /// The guest's own clock when it last could read it.
    seen: u64,
    events: u64,
}

/// The guest's own clock: PV ticks with live physical time, else its counter.
fn clock(timeline: &Timeline, count: GuestCount) -> Option<u64> {
    match timeline.live() {
        Some(live) => live.pv_at(count).ok(),
        None => Some(count.0),
    }
}

impl Vm {
    fn step(&mut self, now: HostSample, event: Event<'_>) {
        let before = self.timeline;
        let Ok(Step {
            timeline,
            actions,
            adjustment,
        }) = before.step(now, event)
        else {
            return;
        };
        let again = before.step(now, event).unwrap();
        assert_eq!((timeline, actions), (again.timeline, again.actions));
        // These two ask nothing of the clocks, so the sample says nothing of the guest's counter.
        let timeless = matches!(event, Event::LivePhysicalTimeFound | Event::GuestReset);
        // A sleep is taken out before the guest looks.
        if before.is_running() && !timeless && !matches!(event, Event::Slept(_)) {
            self.look(&before, now.counter.to_guest(self.offset));
        }
        let mut held_until = None;
        for action in actions.iter() {
            match action {
                Action::SetCounterOffset(offset) => self.offset = offset,
                Action::HoldUntil(until) => held_until = Some(until),
                _ => {}
            }
        }
        if let Some(told) = timeline.paused_time() {
            assert!(told.events >= self.events);
            self.events = told.events;
        }
        if timeline.is_running() && !timeless {
            assert_eq!(timeline.offset(), Some(self.offset));
            self.look(&timeline, now.counter.to_guest(self.offset));
            if let Some(until) = held_until {
                let first = clock(&timeline, until.to_guest(self.offset));
                assert!(
                    first.is_none_or(|first| first >= self.seen),
                    "held too short"
                );
            }
        }
        if let Some(Adjustment {
            event: EventKind::Resume,
            policy: Some(Policy::Freeze),
            before,
            after,
            ..
        }) = adjustment
            && before.frequency == after.frequency
        {
            assert_eq!(after.guest, before.guest, "frozen");
        }
        self.timeline = timeline;
    }

    /// Law 1, whatever the clocks said: what a vCPU reads at `count`, if one may run.
    fn look(&mut self, timeline: &Timeline, count: GuestCount) {
        let held = timeline
            .live()
            .is_some_and(|live| live.hold_ticks(count) != Ok(0));
        if let (false, Some(clock)) = (held, clock(timeline, count)) {
            assert!(clock >= self.seen, "from {} back to {clock}", self.seen);
            self.seen = clock;
        }
    }

    fn save_and_restore(&mut self, now: HostSample, by_migration: bool) {
        let Ok(saved) = self.timeline.save(Sequences::default()) else {
            return;
        };
        assert_eq!(SavedVm::parse(&saved.emit()), Ok(saved));
        let cause = if by_migration {
            Cause::Migration
        } else {
            Cause::Snapshot
        };
        let fresh = Timeline::new(*self.timeline.config()).unwrap();
        let admitted = self.timeline.admits(now.frequency);
        match fresh.step(
            now,
            Event::Restore {
                saved: &saved,
                cause,
            },
        ) {
            Ok(step) => {
                assert_eq!(step.timeline.stopped_at(), self.timeline.stopped_at());
                self.timeline = step.timeline;
            }
            Err(error) => assert_eq!(admitted, Err(error)),
        }
    }
}

fuzz_target!(|input: (Choices, Vec<(Clocks, Happening)>)| {
    let (choices, happenings) = input;
    let Ok(timeline) = Timeline::new(config(choices)) else {
        return;
    };
    let mut vm = Vm {
        timeline,
        offset: CounterOffset(0),
        seen: 0,
        events: 0,
    };
    let mut now = HostSample {
        counter: HostCount(0),
        frequency: Frequency::from_hz(25_000_000).unwrap(),
        wall_ns: 1 << 60,
        wall_standard: WallStandard::Tai,
        wall_error_ns: 0,
        boottime_ns: 0,
        monotonic_ns: 0,
        monotonic_raw_ns: 0,
        span_ns: 0,
    };
    for (clocks, happening) in happenings {
        now = next(now, clocks);
        let event = match happening {
            Happening::Start => Event::Start,
            Happening::Observe => Event::Observe,
            Happening::Pause(cause) => Event::Pause(Cause::ALL[usize::from(cause) % 4]),
            Happening::GuestSuspend => Event::GuestSuspend,
            Happening::Resume => Event::Resume,
            Happening::SleptClocks(error_ns) => Event::Slept(Evidence::Clocks {
                error_ns: error_ns.into(),
            }),
            Happening::SleptStall(certain_ns, possible_ns) => Event::Slept(Evidence::Stall {
                certain_ns: certain_ns.into(),
                possible_ns: possible_ns.into(),
            }),
            Happening::Found => Event::LivePhysicalTimeFound,
            Happening::Reset => Event::GuestReset,
            Happening::SaveAndRestore { by_migration } => {
                vm.save_and_restore(now, by_migration);
                continue;
            }
        };
        vm.step(now, event);
    }
});
