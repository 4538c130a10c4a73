//! Laws 1 and 6 over random histories of whole VMs: no counter that a guest can read goes back, no
//! timer fires early, none is lost.
//!
//! A history is a list of happenings to one VM on a set of hosts between 1 Hz and 4 GHz. The
//! executor here does what a VMM does, action by action; the guest arms timers, reads its counters
//! at the first and the last moment that it runs, and knows when it was promised to be woken.

use super::world::{BEGIN_NS, Host, InSleep};
use super::*;
use crate::host::HostCount;
use crate::host::ledger::Accounts;
use crate::host::saved::SavedVcpu;
use crate::host::stolen::StolenAccount;
use crate::host::timers::{Timer, TimerControl, VcpuTimers};
use crate::scale::CompareValue;
use core::cell::Cell;
use core::ops::Range;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

const HISTORIES: u32 = 100_000;
const EVENTS: Range<usize> = 1..24;
const HOSTS: usize = 4;
const VCPUS: usize = 2;

/// What happens to the VM, with lengths in nanoseconds.
#[derive(Clone, Copy, Debug)]
enum Happening {
    Run(u64),
    Arm {
        vcpu: usize,
        physical: bool,
        ticks: i64,
    },
    Steal(u64),
    Pause(Cause, u64),
    Save {
        cause: Cause,
        away_ns: u64,
        host: usize,
    },
    Sleep(u64, InSleep),
    Stall {
        certain_ns: u64,
        ns: u64,
    },
    Observe,
}

/// A length from 1 ns to 20 minutes, each magnitude as likely.
fn length() -> impl Strategy<Value = u64> {
    (0u32..=40, any::<u64>()).prop_map(|(shift, ns)| (ns >> 24 >> shift) + 1)
}

fn in_sleep() -> impl Strategy<Value = InSleep> {
    prop_oneof![
        Just(InSleep::CountsOn),
        Just(InSleep::StandsStill),
        any::<u64>().prop_map(InSleep::RestartsAt),
    ]
}

fn cause() -> impl Strategy<Value = Cause> {
    proptest::sample::select(&Cause::ALL)
}

fn happening() -> impl Strategy<Value = Happening> {
    let moved = prop_oneof![Just(Cause::Snapshot), Just(Cause::Migration)];
    prop_oneof![
        4 => length().prop_map(Happening::Run),
        4 => (0..VCPUS, any::<bool>(), 0u32..64, any::<i64>()).prop_map(
            |(vcpu, physical, shift, ticks)| {
                Happening::Arm { vcpu, physical, ticks: ticks >> shift }
            }
        ),
        1 => length().prop_map(Happening::Steal),
        2 => (cause(), length()).prop_map(|(cause, ns)| Happening::Pause(cause, ns)),
        4 => (moved, length(), 0..HOSTS).prop_map(|(cause, away_ns, host)| {
            Happening::Save { cause, away_ns, host }
        }),
        1 => (length(), in_sleep()).prop_map(|(ns, how)| Happening::Sleep(ns, how)),
        1 => (length(), 0u64..=100).prop_map(|(ns, percent)| Happening::Stall {
            certain_ns: u64::try_from(u128::from(ns) * u128::from(percent) / 100).unwrap(),
            ns,
        }),
        1 => Just(Happening::Observe),
    ]
}

fn policy() -> impl Strategy<Value = Policy> {
    prop_oneof![Just(Policy::Freeze), Just(Policy::Advance)]
}

fn config() -> impl Strategy<Value = Config> {
    let policies = (policy(), policy(), policy(), policy(), any::<bool>()).prop_map(
        |(pause, restore, migrate, suspend, freezes)| Policies {
            pause,
            restore,
            migrate,
            suspend,
            stall: if freezes {
                StallPolicy::Freeze
            } else {
                StallPolicy::Report
            },
        },
    );
    let live = proptest::option::weighted(0.7, 1u64..=u64::from(u32::MAX));
    (policies, live, any::<bool>(), any::<bool>()).prop_map(
        |(policies, pv_hz, paused_time, clamps)| Config {
            policies: match pv_hz {
                Some(_) => Policies {
                    stall: policies.stall,
                    ..Policies::default()
                },
                None => policies,
            },
            negative_elapsed: if clamps {
                NegativeElapsed::Clamp
            } else {
                NegativeElapsed::Refuse
            },
            live_physical_time: pv_hz.map(|hz| Frequency::from_hz(hz).unwrap()),
            paused_time,
            ..Config::default()
        },
    )
}

fn host() -> impl Strategy<Value = Host> {
    let hz = prop_oneof![
        proptest::sample::select(&[
            1,
            2,
            3,
            24_000_000,
            25_000_000,
            1_000_000_000,
            4_000_000_000
        ]),
        (0u32..32, any::<u32>()).prop_map(|(shift, hz)| u64::from(hz >> shift).max(1)),
    ];
    (
        hz,
        any::<u64>(),
        0u64..1 << 40,
        -(1i64 << 32)..1 << 32,
        -90_000i64..90_000,
        -900i64..900,
    )
        .prop_map(
            |(hz, counter_base, up_ns, wall_skew_ns, slew_ppm, drift_ppm)| Host {
                counter_base,
                counter_since_ns: BEGIN_NS - up_ns,
                booted_at_ns: BEGIN_NS - up_ns,
                wall_skew_ns,
                wall_error_ns: wall_skew_ns.unsigned_abs() / 2,
                slew_ppm,
                drift_ppm,
                ..Host::new(hz)
            },
        )
}

/// A timer that the guest waits for.
#[derive(Clone, Copy, Debug)]
struct Armed {
    /// In the guest's own clock: PV ticks with live physical time, else native ticks.
    deadline: u64,
    /// How late it may be there; grows with each change of frequency.
    slack: u64,
    /// It fired, so it fires until it is armed anew.
    fired: bool,
}

/// What happened in all histories together.
#[derive(Debug, Default)]
struct Tally {
    fired: Cell<u32>,
    reads: Cell<u32>,
    translated: Cell<u32>,
    held: Cell<u32>,
    moved: Cell<u32>,
    refused_frequency: Cell<u32>,
    negative_elapsed: Cell<u32>,
    advanced: Cell<u32>,
    frozen: Cell<u32>,
    restarted: Cell<u32>,
    stalled: Cell<u32>,
}

impl Tally {
    fn counts(&self) -> [(&'static str, &Cell<u32>); 11] {
        [
            ("timers that fired", &self.fired),
            ("readings", &self.reads),
            ("translations", &self.translated),
            ("holds", &self.held),
            ("moves", &self.moved),
            ("refusals of a frequency", &self.refused_frequency),
            ("negative elapsed times", &self.negative_elapsed),
            ("gaps advanced over", &self.advanced),
            ("gaps frozen over", &self.frozen),
            ("restarts under a running VM", &self.restarted),
            ("stalls taken out", &self.stalled),
        ]
    }
}

fn count_one(counter: &Cell<u32>) {
    counter.set(counter.get() + 1);
}

struct Vm<'a> {
    tally: &'a Tally,
    timeline: Timeline,
    hosts: [Host; HOSTS],
    on: usize,
    now_ns: u64,
    /// As the VMM set it.
    offset: CounterOffset,
    held_until: Option<HostCount>,
    timers: [VcpuTimers; VCPUS],
    stolen: StolenAccount,
    run_delay_ns: u64,
    /// As the guest has it.
    published: Option<LivePhysicalTime>,
    armed: [[Option<Armed>; 2]; VCPUS],
    seen_clock: u64,
    seen_stolen: u64,
    seen_told: PausedTime,
}

/// A native tick, in PV ticks, rounded up, and the rounding of the PV count.
fn tick(mapping: &LivePhysicalTime) -> u64 {
    let (native, pv) = (mapping.native_frequency_hz, mapping.pv_frequency_hz);
    u64::from(pv.get().div_ceil(native.get())) + 1
}

type Checked<T = ()> = Result<T, TestCaseError>;

impl<'a> Vm<'a> {
    fn start(config: Config, hosts: &[Host; HOSTS], tally: &'a Tally) -> Checked<Self> {
        let never = Timer {
            control: TimerControl(0),
            compare_value: CompareValue::NEVER,
        };
        let timers = VcpuTimers::new(never, never, 0);
        let mut vm = Self {
            tally,
            timeline: Timeline::new(config)?,
            hosts: *hosts,
            on: 0,
            now_ns: BEGIN_NS,
            offset: CounterOffset(0),
            held_until: None,
            timers: [timers; VCPUS],
            stolen: StolenAccount::attach(0),
            run_delay_ns: 0,
            published: None,
            armed: [[None; 2]; VCPUS],
            seen_clock: 0,
            seen_stolen: 0,
            seen_told: PausedTime::default(),
        };
        vm.step(Event::Start)?;
        vm.step(Event::LivePhysicalTimeFound)?;
        Ok(vm)
    }

    fn sample(&self) -> HostSample {
        self.hosts[self.on].sample(self.now_ns)
    }

    fn count(&self) -> GuestCount {
        self.sample().counter.to_guest(self.offset)
    }

    /// Steps, and carries the actions out in their order.
    fn step(&mut self, event: Event<'_>) -> Result<(), TimelineError> {
        let step = self.timeline.step(self.sample(), event)?;
        self.timeline = step.timeline;
        for action in step.actions.iter() {
            match action {
                Action::SetCounterOffset(offset) => {
                    self.offset = offset;
                    self.held_until = None;
                }
                Action::TranslateTimers(translation) => {
                    count_one(&self.tally.translated);
                    for timers in &mut self.timers {
                        *timers = translation.apply(timers).timers;
                    }
                    let tick = tick(&translation.to);
                    for armed in self.armed.iter_mut().flatten().flatten() {
                        armed.slack = armed.slack.saturating_add(tick);
                    }
                }
                Action::PublishLivePhysicalTime(value) => self.published = Some(value),
                Action::PublishPausedTime { value, .. } => {
                    assert!(value.paused_ns >= self.seen_told.paused_ns);
                    assert!(value.events >= self.seen_told.events);
                    self.seen_told = value;
                }
                Action::HoldUntil(count) => {
                    count_one(&self.tally.held);
                    self.held_until = Some(count);
                }
            }
        }
        if let Some(Adjustment {
            event,
            policy: Some(policy),
            ..
        }) = step.adjustment
        {
            count_one(match (event, policy) {
                (EventKind::Resume, Policy::Freeze) => &self.tally.frozen,
                (EventKind::Resume, Policy::Advance) => &self.tally.advanced,
                _ => &self.tally.stalled,
            });
        }
        if self.timeline.is_running() {
            assert_eq!(self.timeline.offset(), Some(self.offset));
        }
        Ok(())
    }

    /// The guest's own clock at a count.
    fn clock(&self, count: GuestCount) -> Checked<u64> {
        Ok(match &self.published {
            Some(mapping) => mapping.to_pv.apply(count.0)?,
            None => count.0,
        })
    }

    /// What a vCPU sees that runs now, if one may.
    fn look(&mut self) -> Checked {
        if let Some(until) = self.held_until {
            // Held for less than half of the counter's range.
            if self.sample().counter.since(until) > u64::MAX / 2 {
                return Ok(());
            }
            self.held_until = None;
        }
        self.look_at(self.count())
    }

    fn look_at(&mut self, count: GuestCount) -> Checked {
        count_one(&self.tally.reads);
        let clock = self.clock(count)?;
        prop_assert!(
            clock >= self.seen_clock,
            "from {} back to {clock}",
            self.seen_clock
        );
        self.seen_clock = clock;
        for (timers, armed) in self.timers.iter().zip(&mut self.armed) {
            for (timer, armed) in [timers.virtual_timer, timers.physical_timer]
                .iter()
                .zip(armed)
            {
                let Some(armed) = armed else { continue };
                let fires = timer.is_firing(count.0);
                if fires && !armed.fired {
                    count_one(&self.tally.fired);
                }
                prop_assert!(
                    !fires || clock >= armed.deadline,
                    "{clock} is early: {armed:?}"
                );
                let due = armed.deadline.saturating_add(armed.slack);
                let never = armed.deadline == u64::MAX;
                prop_assert!(fires || never || clock < due, "{clock} and lost: {armed:?}");
                prop_assert!(
                    fires || !armed.fired,
                    "{clock} and expired no more: {armed:?}"
                );
                armed.fired |= fires;
            }
        }
        self.stolen.count(self.run_delay_ns)?;
        let stolen = self.stolen.value().stolen_ns;
        prop_assert!(stolen >= self.seen_stolen);
        self.seen_stolen = stolen;
        Ok(())
    }

    /// Runs for a while: the guest looks at once, or as soon as it is let, and at the end.
    fn run(&mut self, ns: u64) -> Checked {
        if let Some(until) = self.held_until {
            let held = until.since(self.sample().counter);
            let ticks = self.hosts[self.on]
                .frequency()
                .ns_to_ticks(ns, crate::scale::Rounding::Down)?;
            if held <= ticks {
                self.held_until = None;
                self.look_at(until.to_guest(self.offset))?;
            }
        } else {
            self.look()?;
        }
        self.now_ns += ns;
        self.look()
    }

    fn arm(&mut self, vcpu: usize, physical: bool, ticks: i64) -> Checked {
        let clock = self.clock(self.count())?;
        let deadline = match ticks {
            i64::MAX => u64::MAX,
            ticks => clock.saturating_add_signed(ticks),
        };
        let count = match &self.published {
            Some(mapping) => mapping.to_pv.first_reaching(deadline).unwrap_or(u64::MAX),
            None => deadline,
        };
        let deadline = if count == u64::MAX {
            u64::MAX
        } else {
            deadline
        };
        let timer = Timer {
            control: TimerControl(TimerControl::ENABLE),
            compare_value: CompareValue(count),
        };
        let timers = &mut self.timers[vcpu];
        if physical {
            timers.physical_timer = timer;
        } else {
            timers.virtual_timer = timer;
        }
        let armed = Armed {
            deadline,
            slack: self.published.as_ref().map_or(0, tick),
            fired: false,
        };
        self.armed[vcpu][usize::from(physical)] = Some(armed);
        Ok(())
    }

    /// Goes on; the two refusals that a history can meet are those of an operator.
    fn resume(&mut self) -> Checked {
        match self.step(Event::Resume) {
            Err(TimelineError::NegativeElapsed { .. }) => {
                count_one(&self.tally.negative_elapsed);
                // The clocks are set right, and it is tried again.
                self.hosts[self.on].wall_skew_ns = 1 << 33;
                self.step(Event::Resume)?;
            }
            other => other?,
        }
        self.look()
    }

    fn save(&mut self, cause: Cause, away_ns: u64, host: usize) -> Checked {
        self.step(Event::Pause(cause))?;
        let stopped = self.count();
        let saved = self.timeline.save(Sequences::default())?;
        let bytes = saved.emit();
        self.now_ns += away_ns;
        let (from, frequency) = (self.on, self.hosts[self.on].frequency());
        let config = *self.timeline.config();
        let (source, timers) = (self.timeline, self.saved_timers()?);
        self.on = host;
        self.timeline = Timeline::new(config)?;
        let saved = SavedVm::parse(&bytes)?;
        let admits = source.admits(self.hosts[host].frequency());
        let restored = self.step(Event::Restore {
            saved: &saved,
            cause,
        });
        prop_assert_eq!(restored, admits, "asked before, and answered the same");
        if restored.is_err() {
            count_one(&self.tally.refused_frequency);
            // The source goes on, as if nothing had been.
            (self.on, self.timeline) = (from, source);
            return self.resume();
        }
        count_one(&self.tally.moved);
        self.offset = CounterOffset(0xa5a5_a5a5_a5a5_a5a5);
        self.timers = timers;
        self.held_until = None;
        self.run_delay_ns = away_ns;
        self.stolen = StolenAccount::restore(self.stolen.value().stolen_ns, away_ns);
        self.resume()?;
        let freezes = match cause {
            Cause::Snapshot => config.policies.restore == Policy::Freeze,
            _ => config.policies.migrate == Policy::Freeze,
        };
        if freezes && frequency == self.hosts[host].frequency() {
            prop_assert_eq!(self.count(), stopped, "frozen");
        }
        Ok(())
    }

    /// Every vCPU's timers, to bytes and back.
    fn saved_timers(&self) -> Checked<[VcpuTimers; VCPUS]> {
        let mut timers = self.timers;
        for timers in &mut timers {
            let saved = SavedVcpu {
                timers: *timers,
                stolen: Some(self.stolen.value()),
                accounts: Accounts::default(),
            };
            *timers = SavedVcpu::parse(&saved.emit())?.timers;
        }
        Ok(timers)
    }

    fn happen(&mut self, happening: Happening) -> Checked {
        match happening {
            Happening::Run(ns) => {
                self.step(Event::Observe)?;
                self.run(ns)
            }
            Happening::Arm {
                vcpu,
                physical,
                ticks,
            } if self.held_until.is_none() => self.arm(vcpu, physical, ticks),
            Happening::Arm { .. } => Ok(()),
            Happening::Steal(ns) => {
                self.run_delay_ns += ns;
                self.run(ns)
            }
            Happening::Pause(cause, ns) => {
                self.step(Event::Pause(cause))?;
                let stopped = self.count();
                self.now_ns += ns;
                self.resume()?;
                prop_assert!(self.count() >= stopped);
                Ok(())
            }
            Happening::Save {
                cause,
                away_ns,
                host,
            } => self.save(cause, away_ns, host),
            Happening::Sleep(ns, how) => {
                self.look()?;
                self.hosts[self.on].sleep(self.now_ns, ns, how);
                if matches!(how, InSleep::RestartsAt(_)) {
                    count_one(&self.tally.restarted);
                }
                self.now_ns += ns;
                self.step(Event::Slept(Evidence::Clocks { error_ns: 0 }))?;
                self.look()
            }
            Happening::Stall { certain_ns, ns } => {
                self.look()?;
                self.now_ns += ns;
                self.step(Event::Slept(Evidence::Stall {
                    certain_ns,
                    possible_ns: ns,
                }))?;
                self.look()
            }
            Happening::Observe => Ok(self.step(Event::Observe)?),
        }
    }
}

#[test]
fn law_1_law_6_nothing_goes_back_and_no_timer_is_early_or_lost() {
    let strategy = (
        config(),
        [host(), host(), host(), host()],
        any::<bool>(),
        proptest::collection::vec(happening(), EVENTS),
    );
    let tally = Tally::default();
    let mut runner = TestRunner::new(ProptestConfig {
        cases: HISTORIES,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let outcome = runner.run(&strategy, |(config, mut hosts, alike, happenings)| {
        if alike {
            let hz = hosts[0].hz;
            for host in &mut hosts {
                host.hz = hz;
            }
        }
        let mut vm = Vm::start(config, &hosts, &tally)?;
        for happening in happenings {
            vm.happen(happening)?;
        }
        Ok(())
    });
    if let Err(failure) = outcome {
        panic!("{failure}");
    }
    // Of each of these there was enough for the histories to mean something.
    for (what, count) in tally.counts() {
        assert!(count.get() > HISTORIES / 100, "{what}: {}", count.get());
    }
}
