//! Scenarios, each named after what it shows.

use super::world::{BEGIN_NS, Host, InSleep};
use super::*;
use crate::host::HostCount;
use crate::host::live::LiveError;
use crate::host::timers::{Timer, TimerControl, VcpuTimers};
use crate::scale::{CompareValue, NS_PER_S, Rounding, ScaleError};
use std::string::ToString;
use std::vec::Vec;

const MHZ: u64 = 1_000_000;
const MS: u64 = 1_000_000;

fn freeze() -> Config {
    Config {
        paused_time: true,
        ..Config::default()
    }
}

fn advance() -> Config {
    let policies = Policies {
        pause: Policy::Advance,
        restore: Policy::Advance,
        migrate: Policy::Advance,
        suspend: Policy::Advance,
        ..Policies::default()
    };
    Config {
        policies,
        ..freeze()
    }
}

fn with_live(pv_hz: u64) -> Config {
    Config {
        live_physical_time: Some(Frequency::from_hz(pv_hz).unwrap()),
        ..freeze()
    }
}

/// A VM, its host, and the physical time.
#[derive(Clone)]
struct Vm {
    timeline: Timeline,
    host: Host,
    now_ns: u64,
    actions: Vec<Action>,
}

impl Vm {
    fn new(config: Config, host: Host) -> Self {
        Self {
            timeline: Timeline::new(config).unwrap(),
            host,
            now_ns: BEGIN_NS,
            actions: Vec::new(),
        }
    }

    fn started(config: Config, host: Host) -> Self {
        let mut vm = Self::new(config, host);
        vm.step(Event::Start);
        vm
    }

    fn pass(&mut self, ns: u64) -> &mut Self {
        self.now_ns += ns;
        self
    }

    fn sleep(&mut self, ns: u64, counter: InSleep) -> &mut Self {
        self.host.sleep(self.now_ns, ns, counter);
        self.pass(ns)
    }

    fn try_step(&self, event: Event<'_>) -> Result<Step, TimelineError> {
        self.timeline.step(self.host.sample(self.now_ns), event)
    }

    fn step(&mut self, event: Event<'_>) -> Option<Adjustment> {
        let step = self.try_step(event).unwrap();
        self.timeline = step.timeline;
        self.actions = step.actions.iter().collect();
        step.adjustment
    }

    fn count(&self) -> u64 {
        let counter = HostCount(self.host.counter(self.now_ns));
        counter.to_guest(self.timeline.offset().unwrap()).0
    }

    fn saved(&self) -> SavedVm {
        let saved = self.timeline.save(Sequences::default()).unwrap();
        assert_eq!(SavedVm::parse(&saved.emit()), Ok(saved));
        saved
    }

    /// The VM's saved state on another host, `away_ns` later, not resumed yet.
    fn restored(&self, host: Host, away_ns: u64, cause: Cause) -> Self {
        let mut vm = Self::new(*self.timeline.config(), host);
        vm.now_ns = self.now_ns + away_ns;
        vm.step(Event::Restore {
            saved: &self.saved(),
            cause,
        });
        vm
    }

    fn paused_time(&self) -> PausedTime {
        *self.timeline.paused_time().unwrap()
    }
}

fn host_with_wall(skew_ns: i64, error_ns: u64) -> Host {
    Host {
        wall_skew_ns: skew_ns,
        wall_error_ns: error_ns,
        ..Host::new(MHZ)
    }
}

#[test]
fn a_vm_starts_near_zero_on_both_counters() {
    let mut vm = Vm::new(freeze(), Host::new(MHZ));
    let record = vm.step(Event::Start).unwrap();
    let offset = CounterOffset(MHZ);
    assert_eq!(
        vm.actions,
        [
            Action::SetCounterOffset(offset),
            Action::PublishPausedTime {
                value: PausedTime::default(),
                notify: false
            }
        ]
    );
    assert_eq!(
        (record.event, record.cause, record.policy),
        (EventKind::Start, None, None)
    );
    assert_eq!(
        (record.before.offset, record.after.offset),
        (CounterOffset(0), offset)
    );
    assert_eq!(vm.pass(5 * MS).count(), 5_000);
}

#[test]
fn t14_s19_a_frozen_counter_stands_still_for_any_length() {
    let mut vm = Vm::started(freeze(), Host::new(25 * MHZ));
    for pause_ns in [1, 40, 3 * NS_PER_S, 60 * NS_PER_S, 1_000_000 * NS_PER_S] {
        vm.pass(7 * MS).step(Event::Pause(Cause::Operator));
        let stopped = vm.timeline.stopped_at().unwrap();
        let record = vm.pass(pause_ns).step(Event::Resume).unwrap();
        assert_eq!(vm.count(), stopped.0);
        assert_eq!(record.shown_ticks(), Some(0));
        assert_eq!(record.policy, Some(Policy::Freeze));
        let gap = record.gap.unwrap();
        assert_eq!(gap.source, GapSource::Counter);
        assert!(
            record
                .gap_ticks()
                .unwrap()
                .abs_diff(i128::from(pause_ns / 40))
                <= 1
        );
        assert!(
            u64::try_from(gap.ns).unwrap().abs_diff(pause_ns) <= 40,
            "a tick"
        );
        assert_eq!(i128::from(record.hidden_ns), gap.ns);
        // The length is that of the ticks taken out.
        let ticks = record.after.offset.0 - record.before.offset.0;
        let length = vm.host.frequency().ticks_to_ns(ticks, Rounding::Nearest);
        assert_eq!(length, Ok(record.hidden_ns));
    }
    let told = vm.paused_time();
    assert_eq!(told.events, 5);
    assert_eq!(told.last.counter, vm.count());
    assert_eq!(told.last.cause, Cause::Operator.into());
    assert!(told.last.frozen);
    assert_eq!(told.paused_ns, vm.timeline.paused().of(Cause::Operator));
}

#[test]
fn t8_an_advancing_counter_never_stopped() {
    let mut vm = Vm::started(advance(), Host::new(25 * MHZ));
    let offset = vm.timeline.offset();
    vm.pass(7 * MS).step(Event::Pause(Cause::Operator));
    let record = vm.pass(3 * NS_PER_S).step(Event::Resume).unwrap();
    assert_eq!(vm.timeline.offset(), offset);
    assert_eq!(vm.count(), 25 * (7_000 + 3_000_000));
    let told = vm.paused_time();
    assert_eq!(
        vm.actions,
        [Action::PublishPausedTime {
            value: told,
            notify: true
        }]
    );
    assert_eq!(
        (told.paused_ns, told.events, told.last.frozen),
        (0, 1, false)
    );
    assert_eq!((told.last.physical_ns, record.hidden_ns), (3 * NS_PER_S, 0));
    assert_eq!(record.shown_ticks(), Some(75 * MHZ));
    assert_eq!(vm.timeline.paused().total_ns(), u128::from(3 * NS_PER_S));
}

#[test]
fn t9_a_late_executor_loses_nothing() {
    let mut vm = Vm::started(freeze(), Host::new(MHZ));
    vm.pass(MS).step(Event::Pause(Cause::Operator));
    vm.pass(NS_PER_S).step(Event::Resume);
    // The offset is set 5 ms after it was computed: the guest reads these 5 ms, not 0.
    assert_eq!(vm.pass(5 * MS).count(), 6_000);
}

#[test]
fn each_cause_has_its_policy() {
    let only = |policies| Config {
        policies,
        ..freeze()
    };
    let advance = Policy::Advance;
    let freeze = Policies::default();
    let cases = [
        (
            Cause::Operator,
            false,
            Policies {
                pause: advance,
                ..freeze
            },
        ),
        (
            Cause::Snapshot,
            false,
            Policies {
                pause: advance,
                ..freeze
            },
        ),
        (
            Cause::Snapshot,
            true,
            Policies {
                restore: advance,
                ..freeze
            },
        ),
        (
            Cause::Migration,
            false,
            Policies {
                migrate: advance,
                ..freeze
            },
        ),
        (
            Cause::Migration,
            true,
            Policies {
                migrate: advance,
                ..freeze
            },
        ),
        (
            Cause::HostSuspend,
            false,
            Policies {
                suspend: advance,
                ..freeze
            },
        ),
    ];
    for (cause, elsewhere, advances) in cases {
        for (policies, policy) in [(freeze, Policy::Freeze), (advances, advance)] {
            let mut vm = Vm::started(only(policies), Host::new(MHZ));
            vm.pass(MS).step(Event::Pause(cause));
            if elsewhere {
                vm = vm.restored(Host::new(MHZ), MS, cause);
            }
            assert_eq!(
                vm.step(Event::Resume).unwrap().policy,
                Some(policy),
                "{cause}"
            );
        }
    }
}

#[test]
fn a_restored_vm_goes_on_where_it_stopped() {
    let mut vm = Vm::started(freeze(), Host::new(25 * MHZ));
    vm.pass(7 * MS).step(Event::Pause(Cause::Snapshot));
    let there = Host {
        counter_base: u64::MAX - 3,
        booted_at_ns: BEGIN_NS - 77 * NS_PER_S,
        ..Host::new(25 * MHZ)
    };
    let mut restored = vm.restored(there, 3_600 * NS_PER_S, Cause::Snapshot);
    let record = restored.pass(MS).step(Event::Resume).unwrap();
    assert_eq!(restored.count(), 25 * 7_000);
    assert_eq!(record.gap.unwrap().source, GapSource::WallClocks);
    assert_eq!(record.hidden_ns, 3_600 * NS_PER_S + MS);
    assert_eq!(
        record.before,
        Reading::new(&vm.host.sample(vm.now_ns), GuestCount(175_000))
    );
    assert_eq!(record.after.guest, GuestCount(175_000));
    assert!(matches!(restored.actions[0], Action::SetCounterOffset(_)));
    // Twice from the same state, with the same result.
    let mut again = vm.restored(there, 3_600 * NS_PER_S, Cause::Snapshot);
    again.pass(MS).step(Event::Resume);
    assert_eq!(again.timeline, restored.timeline);
}

#[test]
fn a_restored_vm_advances_by_the_wall_clocks() {
    let mut vm = Vm::started(advance(), host_with_wall(0, 2_000));
    vm.pass(7 * MS).step(Event::Pause(Cause::Migration));
    let there = host_with_wall(500_700, 3_000);
    let mut moved = vm.restored(there, 20 * MS, Cause::Migration);
    let record = moved.pass(MS).step(Event::Resume).unwrap();
    // 21 ms passed, 21.5007 ms by the clocks; the part of a tick is left out.
    assert_eq!(moved.count(), 7_000 + 21_500);
    let gap = record.gap.unwrap();
    assert_eq!((gap.ns, gap.error_ns), (21_500_700, 5_000));
    assert_eq!((record.hidden_ns, record.clamped), (0, false));
    assert_eq!(record.shown_ticks(), Some(21_500));
    assert_eq!(record.gap_ticks(), Some(21_500));
}

#[test]
fn a_negative_elapsed_time_is_refused_or_clamped_on_request() {
    let mut vm = Vm::started(advance(), host_with_wall(0, 2 * MS));
    vm.pass(7 * MS).step(Event::Pause(Cause::Migration));
    let there = host_with_wall(-30 * 1_000_000, MS);
    let moved = vm.restored(there, 20 * MS, Cause::Migration);
    let error = moved.try_step(Event::Resume).unwrap_err();
    assert_eq!(
        error,
        TimelineError::NegativeElapsed {
            elapsed_ns: -10_000_000,
            error_ns: 3 * MS
        }
    );
    assert_eq!(
        error.to_string(),
        "by the hosts' clocks -10000000 ns passed on the way, with an error of at most 3000000 ns: \
         set the clocks, allow clamping, or use freeze"
    );

    let config = Config {
        negative_elapsed: NegativeElapsed::Clamp,
        ..advance()
    };
    vm.timeline.config = config;
    let mut moved = vm.restored(there, 20 * MS, Cause::Migration);
    let record = moved.step(Event::Resume).unwrap();
    assert_eq!((moved.count(), record.clamped), (7_000, true));
    assert_eq!(record.gap.unwrap().ns, -10_000_000);
    assert_eq!(moved.paused_time().last.physical_ns, 0, "s7");
}

#[test]
fn a_negative_elapsed_time_within_the_error_is_none() {
    let mut vm = Vm::started(advance(), host_with_wall(0, 6 * MS));
    vm.pass(7 * MS).step(Event::Pause(Cause::Migration));
    let there = host_with_wall(-30 * 1_000_000, 4 * MS);
    let mut moved = vm.restored(there, 20 * MS, Cause::Migration);
    let record = moved.step(Event::Resume).unwrap();
    assert_eq!((moved.count(), record.clamped), (7_000, true));
    // Freezing needs no clock, and says what the clocks said all the same.
    vm.timeline.config = freeze();
    let far_off = host_with_wall(-1_000_000_000_000, 0);
    let mut moved = vm.restored(far_off, 20 * MS, Cause::Migration);
    let record = moved.step(Event::Resume).unwrap();
    assert_eq!(
        (moved.count(), record.clamped, record.hidden_ns),
        (7_000, true, 0)
    );
}

#[test]
fn wall_clocks_of_two_kinds_give_no_length() {
    let mut vm = Vm::started(advance(), Host::new(MHZ));
    vm.pass(7 * MS).step(Event::Pause(Cause::Snapshot));
    let other = |config| {
        let mut vm = vm.clone();
        vm.timeline.config = config;
        let moved = vm.restored(Host::new(MHZ), 20 * MS, Cause::Snapshot);
        let mut now = moved.host.sample(moved.now_ns);
        now.wall_standard = WallStandard::Realtime;
        moved.timeline.step(now, Event::Resume)
    };
    assert_eq!(
        other(advance()),
        Err(TimelineError::WallClocksDiffer {
            saved: WallStandard::Tai,
            host: WallStandard::Realtime
        })
    );
    let gap = other(freeze()).unwrap().adjustment.unwrap().gap.unwrap();
    assert_eq!(
        (gap.ns, gap.error_ns, gap.source),
        (0, u64::MAX, GapSource::Unknown)
    );
}

#[test]
fn t13_another_frequency_is_refused_before_anything_moves() {
    let vm = Vm::started(freeze(), Host::new(25 * MHZ));
    let error = vm
        .timeline
        .admits(Frequency::from_hz(24 * MHZ).unwrap())
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "the VM's counter runs at 25000000 Hz and this host's at 24000000 Hz: choose a host of \
         the same frequency, or start the VM with live physical time"
    );
    assert_eq!(
        vm.timeline.admits(Frequency::from_hz(25 * MHZ).unwrap()),
        Ok(())
    );
    let created = Timeline::new(freeze()).unwrap();
    assert_eq!(created.admits(Frequency::from_hz(1).unwrap()), Ok(()));
}

#[test]
fn l15_a_guest_that_did_not_ask_stays_at_its_frequency() {
    let mut vm = Vm::started(with_live(1_000 * MHZ), Host::new(25 * MHZ));
    let other = Frequency::from_hz(24 * MHZ).unwrap();
    let error = vm.timeline.admits(other).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the VM's counter runs at 25000000 Hz and this host's at 24000000 Hz: its guest did not \
         ask for live physical time; choose a host of the same frequency"
    );
    vm.pass(MS).step(Event::Pause(Cause::Migration));
    let mut there = Vm::new(with_live(1_000 * MHZ), Host::new(24 * MHZ));
    let saved = vm.saved();
    let cause = Cause::Migration;
    let restore = Event::Restore {
        saved: &saved,
        cause,
    };
    assert_eq!(there.try_step(restore), Err(error));

    vm.step(Event::Resume);
    vm.step(Event::LivePhysicalTimeFound);
    assert_eq!(vm.timeline.admits(other), Ok(()));
    assert!(
        vm.timeline
            .admits(Frequency::from_hz(1 << 32).unwrap())
            .is_err(),
        "l10"
    );
    vm.pass(MS).step(Event::Pause(Cause::Migration));
    let saved = vm.saved();
    there.step(Event::Restore {
        saved: &saved,
        cause,
    });

    vm.step(Event::GuestReset);
    assert_eq!(
        vm.timeline.admits(other),
        Err(error),
        "the next kernel may not know it"
    );
}

#[test]
fn l1_the_pv_frequency_is_for_life() {
    let mut vm = Vm::started(with_live(1_000 * MHZ), Host::new(25 * MHZ));
    vm.pass(MS).step(Event::Pause(Cause::Snapshot));
    let saved = vm.saved();
    for config in [with_live(24 * MHZ), freeze()] {
        let there = Vm::new(config, Host::new(25 * MHZ));
        let cause = Cause::Snapshot;
        let error = there.try_step(Event::Restore {
            saved: &saved,
            cause,
        });
        assert_eq!(
            error,
            Err(TimelineError::PvFrequencyDiffers {
                saved: vm.timeline.config.live_physical_time,
                configured: config.live_physical_time
            })
        );
    }
    let error = TimelineError::PvFrequencyDiffers {
        saved: None,
        configured: None,
    };
    assert!(error.to_string().contains("without live physical time"));
}

#[test]
fn s11_nothing_is_hidden_from_the_four_counters_of_nested_virtualization() {
    let refused = |policies| {
        let config = Config {
            policies,
            nested_virtualization: true,
            ..Config::default()
        };
        match Timeline::new(config) {
            Ok(_) => None,
            Err(TimelineError::FreezeWithNested { event, instead }) => Some((event, instead)),
            Err(other) => panic!("{other}"),
        }
    };
    let shown = advance().policies;
    assert_eq!(refused(shown), None);
    let freeze = Policy::Freeze;
    let cases = [
        (
            Policies {
                pause: freeze,
                ..shown
            },
            "pause",
            "advance",
        ),
        (
            Policies {
                restore: freeze,
                ..shown
            },
            "restore",
            "advance",
        ),
        (
            Policies {
                migrate: freeze,
                ..shown
            },
            "migrate",
            "advance",
        ),
        (
            Policies {
                suspend: freeze,
                ..shown
            },
            "suspend",
            "advance",
        ),
        (
            Policies {
                stall: StallPolicy::Freeze,
                ..shown
            },
            "stall",
            "report",
        ),
    ];
    for (policies, event, instead) in cases {
        assert_eq!(refused(policies), Some((event, instead)));
    }
}

#[test]
fn l14_what_live_physical_time_excludes_is_refused_at_once() {
    let config = with_live(1_000 * MHZ);
    let nested = Config {
        nested_virtualization: true,
        ..config
    };
    assert_eq!(Timeline::new(nested), Err(TimelineError::LiveWithNested));
    let virtual_only = Config {
        counters: CounterScope::VirtualOnly,
        ..config
    };
    assert_eq!(
        Timeline::new(virtual_only),
        Err(TimelineError::LiveWithVirtualOnly)
    );
    let large = with_live(1 << 32);
    let error = LiveError::Scale(ScaleError::AboveCntfrq {
        frequency_hz: 1 << 32,
    });
    assert_eq!(Timeline::new(large), Err(error.into()));
    let freeze = Policies::default();
    let advance = Policy::Advance;
    for (event, policies) in [
        (
            "pause",
            Policies {
                pause: advance,
                ..freeze
            },
        ),
        (
            "restore",
            Policies {
                restore: advance,
                ..freeze
            },
        ),
        (
            "migrate",
            Policies {
                migrate: advance,
                ..freeze
            },
        ),
        (
            "suspend",
            Policies {
                suspend: advance,
                ..freeze
            },
        ),
    ] {
        let error = Err(TimelineError::LiveWithAdvance { event });
        assert_eq!(Timeline::new(Config { policies, ..config }), error);
    }
    let vm = Vm::started(config, Host::new(25 * MHZ));
    assert_eq!(
        vm.try_step(Event::GuestSuspend),
        Err(TimelineError::LiveWithGuestSuspend)
    );
    let fast = Vm::new(config, Host::new(1 << 32));
    assert!(fast.try_step(Event::Start).is_err(), "l10");
}

#[test]
fn g1_an_offset_for_other_counters_is_refused() {
    let config = Config {
        counters: CounterScope::VirtualOnly,
        ..freeze()
    };
    let mut vm = Vm::started(config, Host::new(MHZ));
    vm.step(Event::Pause(Cause::Snapshot));
    let there = Vm::new(freeze(), Host::new(MHZ));
    let (saved, cause) = (vm.saved(), Cause::Snapshot);
    assert_eq!(
        there.try_step(Event::Restore {
            saved: &saved,
            cause
        }),
        Err(TimelineError::ScopeDiffers {
            saved: CounterScope::VirtualOnly,
            configured: CounterScope::Both
        })
    );
    for cause in [Cause::Operator, Cause::HostSuspend] {
        let error = there.try_step(Event::Restore {
            saved: &saved,
            cause,
        });
        assert_eq!(error, Err(TimelineError::NotARestore { cause }));
    }
}

/// Live physical time from 100 MHz to 24 MHz at PV 1 GHz, where the 2020 series went back by 41.
#[test]
fn l2_a_change_of_frequency_is_translated_published_and_held() {
    let mut vm = Vm::started(with_live(1_000 * MHZ), Host::new(100 * MHZ));
    assert!(matches!(vm.actions[1], Action::PublishLivePhysicalTime(_)));
    vm.step(Event::LivePhysicalTimeFound);
    vm.pass(290).step(Event::Pause(Cause::Migration));
    let mut moved = vm.restored(Host::new(24 * MHZ), MS, Cause::Migration);
    let record = moved.step(Event::Resume).unwrap();

    // Ideal 290; count 7 is 291 (the multiplier gives 291.67), count 6 would be 249.
    let live = record.live.unwrap();
    assert_eq!(
        (live.pv_before, live.pv_after, live.hold_ticks),
        (290, 291, 0)
    );
    assert_eq!(live.distance.to_string(), "+1.000000");
    assert_eq!(
        (record.shown_ticks(), record.before.guest),
        (None, GuestCount(29))
    );
    let [offset, timers, published, told] = moved.actions[..] else {
        panic!("{:?}", moved.actions)
    };
    assert_eq!(offset, Action::SetCounterOffset(record.after.offset));
    let Action::TranslateTimers(translation) = timers else {
        panic!("{timers:?}")
    };
    assert_eq!(published, Action::PublishLivePhysicalTime(translation.to));
    assert!(matches!(
        told,
        Action::PublishPausedTime { notify: true, .. }
    ));

    // An expired timer and one that is not, the same for any vCPU.
    let timer = |value| Timer {
        control: TimerControl(TimerControl::ENABLE),
        compare_value: CompareValue(value),
    };
    let timers = VcpuTimers::new(timer(29), timer(30), 0);
    let translated = translation.apply(&timers).timers;
    assert!(translated.virtual_timer.is_firing(moved.count()), "l5");
    assert!(!translated.physical_timer.is_firing(moved.count()), "l7");
    assert!(translated.physical_timer.is_firing(8));
    // L8: a vCPU that is created now has the offset and the mapping that all others have.
    assert_eq!(moved.timeline.offset(), Some(record.after.offset));
    assert_eq!(moved.timeline.live().unwrap().mapping(), &translation.to);
}

#[test]
fn l2_vcpus_are_held_until_the_clock_has_caught_up() {
    // 2 Hz and 3 Hz at PV 6 Hz: half a second is PV 3, between counts 1 (PV 2) and 2 (PV 4).
    let mut vm = Vm::started(with_live(6), Host::new(2));
    vm.step(Event::LivePhysicalTimeFound);
    vm.pass(NS_PER_S / 2).step(Event::Pause(Cause::Migration));
    let mut moved = vm.restored(Host::new(3), 0, Cause::Migration);
    let record = moved.step(Event::Resume).unwrap();
    let live = record.live.unwrap();
    assert_eq!((live.pv_before, live.pv_after, live.hold_ticks), (3, 2, 1));
    assert_eq!(live.distance.to_string(), "-1.000000");
    let until = record.after.host.after(1);
    assert_eq!(moved.actions.last(), Some(&Action::HoldUntil(until)));

    // Stopped again at once, nobody has read the clock meanwhile: back at 2 Hz nothing was gained.
    moved.step(Event::Pause(Cause::Migration));
    let mut back = moved.restored(Host::new(2), 0, Cause::Migration);
    let live = back.step(Event::Resume).unwrap().live.unwrap();
    assert_eq!((live.pv_after, live.hold_ticks), (3, 0));
    assert_eq!(live.distance.to_string(), "+0.000000");
}

#[test]
fn a_hold_survives_a_pause_on_the_same_host() {
    let mut vm = Vm::started(with_live(6), Host::new(2));
    vm.step(Event::LivePhysicalTimeFound);
    vm.pass(NS_PER_S / 2).step(Event::Pause(Cause::Migration));
    let mut moved = vm.restored(Host::new(3), 0, Cause::Migration);
    moved.step(Event::Resume);
    moved.step(Event::Pause(Cause::Operator));
    let record = moved.pass(NS_PER_S).step(Event::Resume).unwrap();
    assert_eq!(record.live.unwrap().hold_ticks, 1);
    assert!(matches!(moved.actions.last(), Some(Action::HoldUntil(_))));
}

#[test]
fn s1_s3_a_sleep_is_taken_out_and_told() {
    for in_sleep in [InSleep::CountsOn, InSleep::StandsStill] {
        let mut vm = Vm::started(freeze(), Host::new(25 * MHZ));
        vm.pass(3 * MS).step(Event::Observe);
        vm.pass(2 * MS);
        let asleep = vm.count();
        vm.sleep(4 * NS_PER_S, in_sleep);
        assert_eq!(
            vm.timeline.slept_ns(&vm.host.sample(vm.now_ns)),
            Some(4_000_000_000)
        );
        let record = vm
            .step(Event::Slept(Evidence::Clocks { error_ns: 0 }))
            .unwrap();
        assert_eq!(vm.count(), asleep, "{in_sleep:?}");
        assert_eq!(
            (record.cause, record.hidden_ns),
            (Some(Cause::HostSuspend), 4 * NS_PER_S)
        );
        assert_eq!(record.gap.unwrap().source, GapSource::SleepClocks);
        assert_eq!(record.shown_ticks(), None, "both readings are of now");
        let told = vm.paused_time();
        assert_eq!((told.paused_ns, told.events), (4 * NS_PER_S, 1));
        assert_eq!((told.last.counter, told.last.frozen), (asleep, true));
        let sets = vm
            .actions
            .iter()
            .any(|a| matches!(a, Action::SetCounterOffset(_)));
        assert_eq!(sets, in_sleep == InSleep::CountsOn);
        assert_eq!(vm.timeline.paused().of(Cause::HostSuspend), 4 * NS_PER_S);
        assert_eq!(
            vm.timeline.slept_ns(&vm.host.sample(vm.now_ns)),
            None,
            "dealt with"
        );
    }
}

/// What four seconds without the VM are known by.
const KNOWN_BY: [Evidence; 2] = [
    Evidence::Clocks { error_ns: 0 },
    Evidence::Stall {
        certain_ns: 3_940_000_013,
        possible_ns: 4_010_000_000,
    },
];

fn stalls_too() -> Config {
    let policies = Policies {
        stall: StallPolicy::Freeze,
        ..Policies::default()
    };
    Config {
        policies,
        ..freeze()
    }
}

/// A VM that has dealt with four seconds in which it was not run, known by this.
fn woken(known_by: Evidence) -> (Vm, Adjustment) {
    let mut vm = Vm::started(stalls_too(), Host::new(25 * MHZ));
    vm.pass(3 * MS);
    match known_by {
        Evidence::Clocks { .. } => vm.sleep(4 * NS_PER_S, InSleep::CountsOn),
        Evidence::Stall { .. } => vm.pass(4 * NS_PER_S),
    };
    let record = vm.step(Event::Slept(known_by)).unwrap();
    (vm, record)
}

#[test]
fn s9_all_that_a_sleep_asks_of_the_kernel_is_one_offset() {
    for known_by in KNOWN_BY {
        let (vm, record) = woken(known_by);
        let published = Action::PublishPausedTime {
            value: vm.paused_time(),
            notify: true,
        };
        let offset = Action::SetCounterOffset(record.after.offset);
        assert_eq!(vm.actions, [offset, published], "{known_by:?}");
    }
}

#[test]
fn s19_a_sleep_is_as_long_as_the_ticks_that_are_taken_out() {
    for known_by in KNOWN_BY {
        let (vm, record) = woken(known_by);
        let ticks = record.after.offset.0 - record.before.offset.0;
        let frequency = vm.host.frequency();
        let of_hidden = frequency.ns_to_ticks(record.hidden_ns, Rounding::Down);
        assert_eq!(Ok(ticks), of_hidden, "{known_by:?}");
        assert_eq!(record.before.guest.0 - record.after.guest.0, ticks);
        let told = vm.paused_time();
        assert_eq!((told.paused_ns, told.events), (record.hidden_ns, 1));
        assert_eq!(told.last.physical_ns, record.hidden_ns, "{known_by:?}");
    }
}

#[test]
fn s17_slewed_and_set_clocks_do_not_matter() {
    for slew_ppm in [-80_000, 80_000] {
        let slewed = Host {
            slew_ppm,
            ..Host::new(25 * MHZ)
        };
        let mut vm = Vm::started(freeze(), slewed);
        vm.pass(100 * MS);
        let asleep = vm.count();
        vm.sleep(4 * NS_PER_S, InSleep::CountsOn);
        // Somebody sets the wall clock back by an hour.
        vm.host.wall_skew_ns = -3_600_000_000_000;
        let record = vm
            .step(Event::Slept(Evidence::Clocks { error_ns: 0 }))
            .unwrap();
        assert_eq!((vm.count(), record.hidden_ns), (asleep, 4 * NS_PER_S));
        vm.pass(MS).step(Event::Pause(Cause::Operator));
        vm.host.wall_skew_ns = 3_600_000_000_000;
        let record = vm.pass(NS_PER_S).step(Event::Resume).unwrap();
        assert_eq!(record.gap.unwrap().ns, 1_000_000_000);
    }
}

#[test]
fn an_advancing_guest_sees_the_sleep() {
    for in_sleep in [InSleep::CountsOn, InSleep::StandsStill] {
        let mut vm = Vm::started(advance(), Host::new(25 * MHZ));
        vm.pass(5 * MS).sleep(4 * NS_PER_S, in_sleep);
        let record = vm
            .step(Event::Slept(Evidence::Clocks { error_ns: 0 }))
            .unwrap();
        assert_eq!(vm.count(), 25 * 4_005_000, "{in_sleep:?}");
        assert_eq!((record.hidden_ns, vm.paused_time().paused_ns), (0, 0));
        assert_eq!(vm.paused_time().last.physical_ns, 4 * NS_PER_S);
    }
}

#[test]
fn s13_a_restarted_counter_goes_on_from_the_guests() {
    for (config, least_ms, most_ms) in [(freeze(), 1_000, 1_001), (advance(), 5_000, 5_001)] {
        let mut vm = Vm::started(
            config,
            Host {
                slew_ppm: -80_000,
                ..Host::new(25 * MHZ)
            },
        );
        vm.pass(MS).step(Event::Observe);
        vm.pass(999 * MS)
            .sleep(4 * NS_PER_S, InSleep::RestartsAt(7));
        let asleep = 25 * 1_000 * 1_000;
        vm.step(Event::Slept(Evidence::Clocks { error_ns: 0 }));
        let passed_ms = vm.count() / 25_000;
        assert!((least_ms..=most_ms).contains(&passed_ms), "{passed_ms}");
        assert!(vm.count() >= asleep, "never backwards");
    }
}

#[test]
fn s13_a_counter_that_restarts_during_a_pause_changes_nothing() {
    for in_sleep in [InSleep::StandsStill, InSleep::RestartsAt(7)] {
        for (config, count) in [(freeze(), 25 * 1_000), (advance(), 25 * 5_001_000)] {
            let mut vm = Vm::started(config, Host::new(25 * MHZ));
            vm.pass(MS).step(Event::Pause(Cause::HostSuspend));
            vm.pass(NS_PER_S).sleep(4 * NS_PER_S, in_sleep);
            let record = vm.step(Event::Resume).unwrap();
            assert_eq!(vm.count(), count, "{in_sleep:?}");
            assert_eq!(record.gap.unwrap().source, GapSource::Boottime);
            assert_eq!(record.gap.unwrap().ns, 5_000_000_000);
        }
    }
}

#[test]
fn s6_several_sleeps_before_the_guest_looks_add_up() {
    let mut vm = Vm::started(freeze(), Host::new(25 * MHZ));
    for seconds in 1..=4 {
        vm.pass(MS).sleep(seconds * NS_PER_S, InSleep::CountsOn);
        vm.step(Event::Slept(Evidence::Clocks { error_ns: 0 }));
    }
    assert_eq!(vm.paused_time().paused_ns, 10 * NS_PER_S);
    assert_eq!(vm.paused_time().events, 4);
}

#[test]
fn s7_no_sleep_and_a_negative_one_inject_nothing() {
    let mut vm = Vm::started(freeze(), Host::new(25 * MHZ));
    let before = vm.paused_time();
    let evidence = Evidence::Clocks { error_ns: 0 };
    vm.pass(MS);
    assert_eq!(vm.step(Event::Slept(evidence)), None);
    // CLOCK_BOOTTIME lost against CLOCK_MONOTONIC, which is no clock's right.
    vm.pass(MS);
    let mut now = vm.host.sample(vm.now_ns);
    now.monotonic_ns += 500_000;
    let step = vm.timeline.step(now, Event::Slept(evidence)).unwrap();
    assert_eq!((step.adjustment, step.actions), (None, Actions::default()));
    // Nobody is told of one of which nothing is certain.
    vm.sleep(2 * MS, InSleep::CountsOn);
    vm.step(Event::Slept(Evidence::Clocks { error_ns: 2 * MS }));
    assert_eq!(vm.paused_time(), before);
}

#[test]
fn a_sleep_that_nobody_kept_the_guest_from_is_shown_and_the_vm_can_be_paused() {
    let slept_ns = 4 * NS_PER_S;
    for (in_sleep, hidden_ns, offset_moves) in [
        (InSleep::CountsOn, 0, false),
        (InSleep::StandsStill, slept_ns - RTC_ERROR_NS, false),
        (InSleep::RestartsAt(7), slept_ns - RTC_ERROR_NS, true),
    ] {
        let mut vm = Vm::started(freeze(), Host::new(25 * MHZ));
        vm.pass(500 * MS);
        let nothing = vm.host.sample(vm.now_ns);
        assert_eq!(vm.timeline.shown_sleep(&nothing), None);
        vm.sleep(slept_ns, in_sleep).pass(500 * MS);
        assert!(vm.try_step(Event::Pause(Cause::Operator)).is_err());
        let offset = vm.timeline.offset();
        let shown = vm.timeline.shown_sleep(&vm.host.sample(vm.now_ns)).unwrap();
        let record = vm.step(Event::Slept(shown)).unwrap();
        assert_eq!(record.hidden_ns, hidden_ns, "{in_sleep:?}");
        assert_eq!(record.gap.unwrap().ns, i128::from(slept_ns));
        assert_eq!(vm.timeline.offset() != offset, offset_moves, "{in_sleep:?}");
        vm.step(Event::Pause(Cause::Operator));
        assert_eq!(vm.timeline.shown_sleep(&vm.host.sample(vm.now_ns)), None);
    }
    // A guest that is to see sleeps lacks one that its counter did not count, and no other.
    for (in_sleep, is_shown) in [(InSleep::CountsOn, false), (InSleep::StandsStill, true)] {
        let mut vm = Vm::started(advance(), Host::new(25 * MHZ));
        vm.pass(500 * MS).sleep(slept_ns, in_sleep);
        let shown = vm.timeline.shown_sleep(&vm.host.sample(vm.now_ns));
        assert_eq!(shown.is_some(), is_shown, "{in_sleep:?}");
    }
}

#[test]
fn a_sleep_that_the_guest_has_seen_is_on_record() {
    for in_sleep in [InSleep::CountsOn, InSleep::StandsStill] {
        let mut vm = Vm::started(freeze(), Host::new(25 * MHZ));
        vm.pass(100 * MS).sleep(30 * MS, in_sleep);
        let before = vm.count();
        let seen = Evidence::Clocks { error_ns: 30 * MS };
        let record = vm.step(Event::Slept(seen)).unwrap();
        assert_eq!((vm.count(), vm.actions.len()), (before, 0), "{in_sleep:?}");
        assert_eq!(
            (record.policy, record.hidden_ns),
            (Some(Policy::Advance), 0)
        );
        let gap = record.gap.unwrap();
        assert_eq!((gap.ns, gap.error_ns), (30_000_000, 30 * MS));
    }
    // What the clocks' noise explains is none.
    let mut vm = Vm::started(freeze(), Host::new(25 * MHZ));
    vm.pass(MS).sleep(SLEEP_THRESHOLD_NS - 1, InSleep::CountsOn);
    let seen = Evidence::Clocks { error_ns: MS };
    assert_eq!(vm.step(Event::Slept(seen)), None);
}

#[test]
fn a_sleep_that_drift_may_explain_is_told_and_left_in() {
    for in_sleep in [InSleep::CountsOn, InSleep::StandsStill] {
        let mut vm = Vm::started(freeze(), Host::new(25 * MHZ));
        vm.pass(3_600 * NS_PER_S).sleep(4 * NS_PER_S, in_sleep);
        let before = vm.count();
        let record = vm
            .step(Event::Slept(Evidence::Clocks { error_ns: 0 }))
            .unwrap();
        assert_eq!(vm.count(), before, "as the counter has it");
        assert_eq!(
            (record.policy, record.hidden_ns),
            (Some(Policy::Advance), 0)
        );
        assert_eq!(record.gap.unwrap().ns, 4_000_000_000);
        let told = vm.paused_time();
        assert_eq!(
            (told.events, told.paused_ns, told.last.frozen),
            (1, 0, false)
        );
        assert_eq!(told.last.physical_ns, 4 * NS_PER_S);
    }
}

#[test]
fn s14_a_sleep_that_was_not_looked_at_is_saved() {
    let mut vm = Vm::started(freeze(), Host::new(25 * MHZ));
    vm.pass(MS).sleep(4 * NS_PER_S, InSleep::CountsOn);
    vm.step(Event::Slept(Evidence::Clocks { error_ns: 0 }));
    vm.step(Event::Pause(Cause::Snapshot));
    let mut there = vm.restored(Host::new(25 * MHZ), NS_PER_S, Cause::Snapshot);
    there.step(Event::Resume);
    let value = there.paused_time();
    assert_eq!((value.paused_ns, value.events), (5 * NS_PER_S, 2));
    let publish = Action::PublishPausedTime {
        value,
        notify: true,
    };
    assert_eq!(there.actions[1], publish);
}

#[test]
fn s15_s16_pauses_are_told_from_when_it_is_on_and_not_when_off() {
    let off = Config {
        paused_time: false,
        ..freeze()
    };
    let mut vm = Vm::started(off, Host::new(25 * MHZ));
    vm.pass(MS).step(Event::Pause(Cause::Operator));
    vm.pass(9 * NS_PER_S).step(Event::Resume);
    assert_eq!(vm.actions.len(), 1, "nothing is published");
    vm.step(Event::Pause(Cause::Snapshot));
    vm.timeline.config = freeze();
    let mut on = vm.restored(Host::new(25 * MHZ), NS_PER_S, Cause::Snapshot);
    on.step(Event::Resume);
    assert_eq!(
        (on.paused_time().paused_ns, on.paused_time().events),
        (NS_PER_S, 1)
    );
    assert_eq!(on.timeline.paused().total_ns(), 10_000_000_000);
    on.step(Event::Pause(Cause::Snapshot));
    on.timeline.config = off;
    let mut off = on.restored(Host::new(25 * MHZ), NS_PER_S, Cause::Snapshot);
    off.step(Event::Resume);
    assert_eq!(off.timeline.paused_time(), None);
}

#[test]
fn sequences_are_saved_for_structures_that_there_are() {
    let sequences = Sequences {
        live_physical_time: 4,
        paused_time: 6,
    };
    let off = Config {
        paused_time: false,
        ..freeze()
    };
    for (config, live_physical_time, paused_time) in
        [(with_live(1), 4, 6), (freeze(), 0, 6), (off, 0, 0)]
    {
        let mut vm = Vm::started(config, Host::new(MHZ));
        vm.step(Event::Pause(Cause::Snapshot));
        let saved = vm.timeline.save(sequences).unwrap();
        let expected = Sequences {
            live_physical_time,
            paused_time,
        };
        assert_eq!(saved.sequences, expected);
        assert_eq!(SavedVm::parse(&saved.emit()), Ok(saved));
    }
}

#[test]
fn a_sleep_must_be_dealt_with_first() {
    let mut vm = Vm::started(freeze(), Host::new(25 * MHZ));
    vm.pass(MS).sleep(2 * MS, InSleep::CountsOn);
    let error = Err(TimelineError::UnhandledSleep {
        slept_ns: 2_000_000,
    });
    assert_eq!(vm.try_step(Event::Observe), error);
    assert_eq!(vm.try_step(Event::Pause(Cause::Snapshot)), error);
    vm.timeline.config = advance();
    assert!(vm.try_step(Event::Observe).is_ok(), "nothing to correct");
    vm.timeline.config = freeze();
    vm.step(Event::Slept(Evidence::Clocks { error_ns: 0 }));
    vm.sleep(SLEEP_THRESHOLD_NS - 1, InSleep::CountsOn);
    assert!(vm.try_step(Event::Observe).is_ok(), "too short to matter");
}

#[test]
fn a_restart_must_be_dealt_with_first() {
    let mut vm = Vm::started(freeze(), Host::new(25 * MHZ));
    vm.pass(500 * MS).sleep(0, InSleep::RestartsAt(7));
    let error = vm.try_step(Event::Pause(Cause::Operator)).unwrap_err();
    assert!(matches!(
        error,
        TimelineError::UnhandledRestart {
            boottime_ns: 500_000_000,
            ..
        }
    ));
    vm.step(Event::Slept(Evidence::Clocks { error_ns: 0 }))
        .unwrap();
    assert!(vm.count() >= 25 * 500_000);
    // A counter that stood still is right already for a guest that freezes, and not for another.
    let mut standing = Vm::started(advance(), Host::new(25 * MHZ));
    standing.pass(MS).sleep(NS_PER_S, InSleep::StandsStill);
    let refused = |event| {
        let refused = standing.try_step(event);
        matches!(refused, Err(TimelineError::UnhandledRestart { .. }))
    };
    assert!(refused(Event::Observe));
    // The clocks say what it was, and a stall is something else.
    let stall = Evidence::Stall {
        certain_ns: MS,
        possible_ns: MS,
    };
    assert!(refused(Event::Slept(stall)));
}

#[test]
fn g4_a_counter_that_restarts_in_a_stall_goes_on_from_the_guests() {
    let stall = |certain_ms| Evidence::Stall {
        certain_ns: certain_ms * MS,
        possible_ns: 1_000 * MS,
    };
    for (policy, certain_ms, shown_ms, hidden_ms) in [
        (StallPolicy::Freeze, 950, 150, 950),
        (StallPolicy::Freeze, 0, 1_100, 0),
        (StallPolicy::Report, 950, 1_100, 0),
    ] {
        let mut vm = Vm::started(freeze(), Host::new(25 * MHZ));
        vm.timeline.config.policies.stall = policy;
        vm.pass(MS).step(Event::Observe);
        // 100 ms, then a second without a beat in which no clock but the counter restarts.
        vm.pass(100 * MS).sleep(0, InSleep::RestartsAt(7));
        vm.pass(1_000 * MS);
        let record = vm.step(Event::Slept(stall(certain_ms))).unwrap();
        let passed_ms = vm.count() / 25_000;
        assert!(
            (shown_ms..=shown_ms + 3).contains(&passed_ms),
            "{passed_ms} ms, {policy:?}"
        );
        assert_eq!(record.hidden_ns, hidden_ms * MS);
        let gap = record.gap.unwrap();
        assert_eq!(
            (gap.ns, gap.source),
            (i128::from(certain_ms * MS), GapSource::Inferred)
        );
        assert!(gap.error_ns > (1_000 - certain_ms) * MS, "and the drift");
    }
    // Not even that somebody stalled is known.
    let mut vm = Vm::started(freeze(), Host::new(25 * MHZ));
    vm.pass(100 * MS).sleep(0, InSleep::RestartsAt(7)).pass(MS);
    let nothing = Evidence::Stall {
        certain_ns: 0,
        possible_ns: 0,
    };
    let record = vm.step(Event::Slept(nothing)).unwrap();
    assert_eq!((record.gap.unwrap().ns, record.hidden_ns), (0, 0));
    assert!(
        (25 * 101_000..25 * 102_000).contains(&vm.count()),
        "{}",
        vm.count()
    );
}

#[test]
fn a_stall_takes_out_nothing_that_the_counter_did_not_count() {
    let mut vm = Vm::started(freeze(), Host::new(25 * MHZ));
    vm.timeline.config.policies.stall = StallPolicy::Freeze;
    // Less than a sleep, in which the counter stood still.
    vm.pass(200 * MS).sleep(MS / 2, InSleep::StandsStill);
    vm.pass(100 * MS);
    let stall = Evidence::Stall {
        certain_ns: 50 * MS,
        possible_ns: 60 * MS,
    };
    let record = vm.step(Event::Slept(stall)).unwrap();
    assert_eq!(record.hidden_ns, 50 * MS - MS / 2);
    assert_eq!(vm.count(), 25 * (250_000 + 500));
}

#[test]
fn a_stall_is_reported_or_its_certain_part_taken_out() {
    let stall = Evidence::Stall {
        certain_ns: 3 * MS,
        possible_ns: 5 * MS,
    };
    let mut vm = Vm::started(freeze(), Host::new(25 * MHZ));
    vm.pass(10 * MS);
    let before = vm.clone();
    let record = vm.step(Event::Slept(stall)).unwrap();
    assert_eq!((vm.count(), record.hidden_ns), (250_000, 0));
    assert_eq!(record.policy, Some(Policy::Advance));
    assert_eq!(record.gap.unwrap().source, GapSource::Inferred);
    assert_eq!((vm.actions.len(), vm.paused_time().events), (0, 0));

    let mut vm = before;
    vm.timeline.config.policies.stall = StallPolicy::Freeze;
    let record = vm.step(Event::Slept(stall)).unwrap();
    assert_eq!((vm.count(), record.hidden_ns), (175_000, 3 * MS));
    assert_eq!(record.gap.unwrap().error_ns, 2 * MS);
    assert_eq!((vm.actions.len(), vm.paused_time().paused_ns), (2, 3 * MS));

    // Nothing is certain: nothing is taken out, nobody is told, but it is on record.
    let doubtful = Evidence::Stall {
        certain_ns: 0,
        possible_ns: 5 * MS,
    };
    let record = vm
        .try_step(Event::Slept(doubtful))
        .unwrap()
        .adjustment
        .unwrap();
    assert_eq!(
        (record.policy, record.hidden_ns),
        (Some(Policy::Advance), 0)
    );
    assert_eq!(record.gap.unwrap().error_ns, 5 * MS);
    let none = Evidence::Stall {
        certain_ns: 0,
        possible_ns: 0,
    };
    assert_eq!(vm.try_step(Event::Slept(none)).unwrap().adjustment, None);

    let swapped = Evidence::Stall {
        certain_ns: 5,
        possible_ns: 3,
    };
    let error = TimelineError::StallBounds {
        certain_ns: 5,
        possible_ns: 3,
    };
    assert_eq!(vm.try_step(Event::Slept(swapped)), Err(error));
    let long = Evidence::Stall {
        certain_ns: NS_PER_S,
        possible_ns: NS_PER_S,
    };
    vm.pass(MS);
    assert_eq!(
        vm.try_step(Event::Slept(long)),
        Err(TimelineError::SleepTooLong {
            hidden_ns: NS_PER_S,
            now: GuestCount(200_000),
            last: GuestCount(175_000)
        })
    );
}

#[test]
fn s12_a_guest_that_suspends_itself_keeps_its_counters_running() {
    let mut vm = Vm::started(freeze(), Host::new(25 * MHZ));
    let record = vm.pass(MS).step(Event::GuestSuspend).unwrap();
    assert_eq!(record.event, EventKind::GuestSuspend);
    let record = vm.pass(4 * NS_PER_S).step(Event::Resume).unwrap();
    assert_eq!(record.policy, Some(Policy::Advance));
    assert_eq!(vm.count(), 25 * 4_001_000);
    assert_eq!(
        (vm.paused_time().paused_ns, record.hidden_ns),
        (0, 0),
        "never both"
    );
}

#[test]
fn s12_one_that_was_moved_meanwhile_stays_suspended_and_sleeps_once() {
    let mut vm = Vm::started(freeze(), Host::new(25 * MHZ));
    vm.pass(MS).step(Event::GuestSuspend);
    vm.pass(NS_PER_S);
    let host = Host {
        wall_error_ns: 1_000,
        ..Host::new(25 * MHZ)
    };
    let mut there = vm.restored(host, 2 * NS_PER_S, Cause::Migration);
    assert!(there.timeline.is_guest_suspended());
    assert_eq!(there.timeline.stop_cause(), Some(Cause::HostSuspend));
    // And on, without having run there.
    there.pass(NS_PER_S);
    let mut on = there.restored(host, NS_PER_S, Cause::Snapshot);
    assert!(on.timeline.is_guest_suspended());
    let record = on.step(Event::Resume).unwrap();
    assert_eq!(
        (record.cause, record.policy, record.hidden_ns),
        (Some(Cause::HostSuspend), Some(Policy::Advance), 0)
    );
    assert_eq!(record.gap.unwrap().ns, 5 * i128::from(NS_PER_S));
    assert_eq!(on.count(), 25 * 5_001_000);
    let paused = on.timeline.paused();
    assert_eq!(paused, PausedNs::new([0, 0, 0, 5 * NS_PER_S]));
    assert_eq!(
        (on.paused_time().paused_ns, on.paused_time().events),
        (0, 1)
    );
    assert!(!on.timeline.is_guest_suspended());
}

#[test]
fn t15_offsets_wrap_and_counters_do_not() {
    let mut vm = Vm::started(advance(), Host::new(25 * MHZ));
    vm.pass(MS).step(Event::Pause(Cause::Snapshot));
    let saved = SavedVm {
        count: GuestCount(u64::MAX - 100),
        ..vm.saved()
    };
    let mut there = Vm::new(advance(), Host::new(25 * MHZ));
    there.now_ns = vm.now_ns;
    there.step(Event::Restore {
        saved: &saved,
        cause: Cause::Snapshot,
    });
    let count = GuestCount(u64::MAX - 100);
    assert_eq!(
        there.pass(MS).try_step(Event::Resume),
        Err(TimelineError::CounterTooLarge {
            count,
            ticks: 25_000
        })
    );
    there.now_ns = vm.now_ns;
    there.step(Event::Resume);
    assert_eq!(
        there.count(),
        u64::MAX - 100,
        "ahead of its host by nearly 2^64"
    );
    assert_eq!(
        there.pass(MS).try_step(Event::Pause(Cause::Operator)),
        Err(TimelineError::CounterTooLarge {
            count,
            ticks: 25_000
        })
    );
    assert_eq!(
        there.try_step(Event::Slept(Evidence::Clocks { error_ns: 0 })),
        Err(TimelineError::CounterTooLarge {
            count,
            ticks: 25_000
        }),
        "without a sleep too"
    );
}

#[test]
fn clocks_that_go_back_and_frequencies_that_change_are_refused() {
    let mut vm = Vm::started(freeze(), Host::new(25 * MHZ));
    vm.pass(MS).step(Event::Observe);
    let now = vm.host.sample(vm.now_ns);
    let earlier = HostSample {
        boottime_ns: now.boottime_ns - 1,
        ..now
    };
    assert_eq!(
        vm.timeline.step(earlier, Event::Pause(Cause::Operator)),
        Err(TimelineError::ClockWentBack {
            clock: "CLOCK_BOOTTIME",
            before_ns: now.boottime_ns,
            now_ns: now.boottime_ns - 1
        })
    );
    let other = HostSample {
        frequency: Frequency::from_hz(MHZ).unwrap(),
        ..now
    };
    assert_eq!(
        vm.timeline.step(other, Event::Observe),
        Err(TimelineError::FrequencyChanged {
            before: now.frequency,
            now: other.frequency
        })
    );
    vm.step(Event::Pause(Cause::Operator));
    let earlier = HostSample {
        monotonic_ns: now.monotonic_ns - 1,
        ..now
    };
    assert!(matches!(
        vm.timeline.step(earlier, Event::Resume),
        Err(TimelineError::ClockWentBack {
            clock: "CLOCK_MONOTONIC",
            ..
        })
    ));
}

#[test]
fn pauses_past_the_range_are_refused() {
    let mut vm = Vm::started(freeze(), Host::new(25 * MHZ));
    vm.pass(MS).step(Event::Pause(Cause::Operator));
    vm.timeline.paused = PausedNs::new([u64::MAX, 0, 0, 0]);
    let error = vm.pass(MS).try_step(Event::Resume);
    assert_eq!(
        error,
        Err(TimelineError::PausedTooLong { more_ns: 1_000_000 })
    );
}

#[test]
fn r6_events_out_of_order_are_refused() {
    let created = Vm::new(freeze(), Host::new(MHZ));
    let running = Vm::started(freeze(), Host::new(MHZ));
    let mut stopped = running.clone();
    stopped.step(Event::Pause(Cause::Operator));
    let saved = stopped.saved();
    let events = [
        (Event::Start, [true, false, false]),
        (
            Event::Restore {
                saved: &saved,
                cause: Cause::Snapshot,
            },
            [true, false, false],
        ),
        (Event::Observe, [false, true, false]),
        (Event::Pause(Cause::Operator), [false, true, false]),
        (Event::GuestSuspend, [false, true, false]),
        (Event::Resume, [false, false, true]),
        (
            Event::Slept(Evidence::Clocks { error_ns: 0 }),
            [false, true, false],
        ),
        (Event::LivePhysicalTimeFound, [false, true, true]),
        (Event::GuestReset, [false, true, true]),
    ];
    for (event, allowed) in events {
        for (vm, allowed) in [&created, &running, &stopped].into_iter().zip(allowed) {
            let result = vm.try_step(event);
            let refused = matches!(result, Err(TimelineError::OutOfOrder { .. }));
            assert_eq!(!refused, allowed, "{event:?}");
        }
    }
    let error = created.try_step(Event::Resume).unwrap_err();
    let message = "a VM that was not started yet cannot be resumed: check the order of the calls";
    assert_eq!(error.to_string(), message);
    assert!(running.timeline.save(Sequences::default()).is_err());
    assert!(created.timeline.save(Sequences::default()).is_err());
    assert_eq!(
        (stopped.timeline.offset(), stopped.timeline.is_running()),
        (None, false)
    );
    assert_eq!(running.timeline.stopped_at(), None);
    assert_eq!(
        created.timeline.slept_ns(&created.host.sample(BEGIN_NS)),
        None
    );
}

#[test]
fn every_kind_of_thing_has_a_name() {
    let saved = {
        let mut vm = Vm::started(freeze(), Host::new(MHZ));
        vm.step(Event::Pause(Cause::Operator));
        vm.saved()
    };
    let kinds = [
        Event::Start,
        Event::Restore {
            saved: &saved,
            cause: Cause::Snapshot,
        },
        Event::Observe,
        Event::Pause(Cause::Operator),
        Event::GuestSuspend,
        Event::Resume,
        Event::Slept(Evidence::Clocks { error_ns: 0 }),
        Event::LivePhysicalTimeFound,
        Event::GuestReset,
    ]
    .map(|event| event.kind().to_string());
    assert_eq!(
        kinds.join(", "),
        "start, restore, observe, pause, guest suspend, resume, host sleep, \
         live physical time found, guest reset"
    );
    let sources = [
        GapSource::Counter,
        GapSource::Boottime,
        GapSource::WallClocks,
        GapSource::SleepClocks,
        GapSource::Inferred,
        GapSource::Unknown,
    ]
    .map(|source| source.to_string());
    assert_eq!(
        sources.join(", "),
        "counter, CLOCK_BOOTTIME, wall clocks, CLOCK_BOOTTIME against CLOCK_MONOTONIC, \
         inferred from a stall, unknown"
    );
    assert_eq!(
        [Policy::Freeze, Policy::Advance].map(|p| p.to_string()),
        ["freeze", "advance"]
    );
    let standards = [WallStandard::Realtime, WallStandard::Tai].map(|s| s.to_string());
    assert_eq!(standards, ["REALTIME", "TAI"]);
}
