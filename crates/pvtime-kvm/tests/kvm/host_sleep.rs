//! Sleeps that the host's clocks show, restarted counters, and corrections that fail: real KVM and
//! real stops of the VMM, on a host whose clocks say what it is told.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use crate::bent_host::{self, Bend};
use crate::machine::Machine;
use crate::sleep::{Vm, config, records, run_on};
use crate::stopper::Stopper;
use pvtime::host::Cause;
use pvtime::host::ledger::Accounts;
use pvtime::host::timeline::{Policies, Policy, StallPolicy, TimelineError};
use pvtime::scale::Frequency;
use pvtime_kvm::offset::SetOffsetError;
use pvtime_kvm::record::Record;
use pvtime_kvm::{Error, VmTime, VmTimeConfig, counter};

const SHOWN_BY_CLOCKS: &str = "CLOCK_BOOTTIME against CLOCK_MONOTONIC";
const INFERRED: &str = "inferred from a stall";

fn vm(config: VmTimeConfig) -> (Vm<(u64, u64)>, Arc<Bend>) {
    let bend = Arc::new(Bend::default());
    let time = |machine: &Machine| bent_host::time(machine, config, &bend).unwrap();
    let vm = Vm::start_with(config, time, run_on);
    thread::sleep(Duration::from_millis(400));
    // Whoever asks for the accounts waits until the VM's time is right.
    vm.time.ledger().unwrap();
    (vm, bend)
}

/// The records of sleeps that are known in this way, among all.
fn sleeps(time: &VmTime, source: &str) -> Vec<Record> {
    let is_one = |record: &Record| {
        let gap = record.gap.as_ref().filter(|_| record.event == "host sleep");
        gap.is_some_and(|gap| gap.source == source)
    };
    records(time).into_iter().filter(is_one).collect()
}

fn ms(ns: impl TryInto<u64>) -> u64 {
    ns.try_into().unwrap_or(u64::MAX) / 1_000_000
}

fn ticks_in_ms(ticks: u64) -> u64 {
    let ms = u128::from(ticks) * 1_000 / u128::from(counter::frequency().unwrap().hz());
    u64::try_from(ms).unwrap()
}

/// No guest of the VM has seen its counter go back.
fn end(vm: Vm<(u64, u64)>) {
    for (backwards_steps, _) in vm.end() {
        assert_eq!(backwards_steps, 0);
    }
}

fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    let limit = Instant::now() + Duration::from_secs(10);
    while !is_so() {
        assert!(Instant::now() < limit, "{what}");
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn s3_a_sleep_that_the_clocks_show_is_hidden_to_the_millisecond() {
    let (vm, bend) = vm(config(2, StallPolicy::Report));
    let before = bend.offset();
    bend.sleep_and_stop(&mut Stopper::start(), Duration::from_millis(400), false);
    let accounts = vm.time.ledger().unwrap();
    let [record] = &sleeps(&vm.time, SHOWN_BY_CLOCKS)[..] else {
        panic!("{:?}", records(&vm.time));
    };
    let gap = record.gap.as_ref().unwrap();
    assert!((399..=400).contains(&ms(gap.ns)), "{record:?}");
    assert_eq!(record.policy.as_deref(), Some("freeze"));
    assert!((399..=400).contains(&ms(record.hidden_ns)), "{record:?}");
    let hidden_ms = ticks_in_ms(bend.offset() - before);
    assert!((399..=400).contains(&hidden_ms), "{hidden_ms} {record:?}");
    for account in accounts {
        assert!(ms(account.paused.of(Cause::HostSuspend)) >= 399);
    }
    end(vm);
}

#[test]
fn s13_g4_after_a_hibernation_no_guest_sees_the_new_counter_with_the_old_offset() {
    let (vm, bend) = vm(config(2, StallPolicy::Report));
    let before = bend.offset();
    bend.sleep_and_stop(&mut Stopper::start(), Duration::from_millis(1_300), true);
    vm.time.ledger().unwrap();
    let [record] = &sleeps(&vm.time, SHOWN_BY_CLOCKS)[..] else {
        panic!("{:?}", records(&vm.time));
    };
    assert_ne!(record.before.offset, record.after.offset);
    // The kernel asked an RTC, which shows seconds.
    let gap = record.gap.as_ref().unwrap();
    assert!(ms(gap.error_ns.unwrap()) >= 1_000, "{record:?}");
    assert!((290..=300).contains(&ms(record.hidden_ns)), "{record:?}");
    // What the guest lacks of the machine's counter is what was slept, less the clocks' drift.
    let hidden_ms = ticks_in_ms(bend.offset() - before);
    assert!(
        (1_290..=1_300).contains(&hidden_ms),
        "{hidden_ms} {record:?}"
    );
    end(vm);
}

#[test]
fn g4_a_counter_that_restarts_in_a_stop_and_no_other_clock_is_set_right() {
    let (vm, bend) = vm(config(1, StallPolicy::Freeze));
    let before = bend.offset();
    let stop = bend.sleep_and_stop(&mut Stopper::start(), Duration::ZERO, true);
    vm.time.ledger().unwrap();
    let [record] = &sleeps(&vm.time, INFERRED)[..] else {
        panic!("{:?}", records(&vm.time));
    };
    assert_ne!(record.before.offset, record.after.offset);
    let (hidden_ms, stop_ms) = (ticks_in_ms(bend.offset() - before), ms(stop.whole_ns));
    let recorded_ms = ms(record.hidden_ns);
    assert!(
        recorded_ms > 0 && hidden_ms.abs_diff(recorded_ms) <= 10,
        "{record:?}"
    );
    let gap = record.gap.as_ref().unwrap();
    let possible_ms = ms(gap.ns) + ms(gap.error_ns.unwrap());
    assert!(possible_ms + 1 >= stop_ms, "{stop:?} {record:?}");
    end(vm);
}

#[test]
fn s2_a_correction_that_fails_once_is_made_at_the_next_beat() {
    for asleep_ms in [0, 400] {
        let (vm, bend) = vm(config(2, StallPolicy::Freeze));
        let before = records(&vm.time)[0].after.offset;
        bend.fail(1);
        let asleep = Duration::from_millis(asleep_ms);
        let stop = bend.sleep_and_stop(&mut Stopper::start(), asleep, false);
        vm.time.ledger().unwrap();
        assert_eq!(bend.failed(), 1);
        let source = if asleep_ms > 0 {
            SHOWN_BY_CLOCKS
        } else {
            INFERRED
        };
        let records = sleeps(&vm.time, source);
        assert!(!records.is_empty(), "{stop:?}");
        let recorded_ns: u64 = records.iter().map(|it| it.hidden_ns).sum();
        assert!(recorded_ns > 0, "{records:?}");
        let hidden_ms = ticks_in_ms(bend.offset() - before);
        assert!(hidden_ms.abs_diff(ms(recorded_ns)) <= 1, "{records:?}");
        end(vm);
    }
}

#[test]
fn s2_nobody_opens_the_gate_while_the_time_is_not_right() {
    let (vm, bend) = vm(config(2, StallPolicy::Freeze));
    let before = bend.offset();
    bend.fail(u32::MAX);
    bend.sleep_and_stop(&mut Stopper::start(), Duration::ZERO, false);
    wait_until("the watch has tried", || vm.time.held_up_by().is_some());
    let shown = vm.shown.load(Ordering::SeqCst);
    let queries: [fn(&VmTime); 3] = [
        |time| drop(time.ledger()),
        |time| drop(time.pause(Cause::Operator)),
        |time| drop(time.suspend(|_, _| ())),
    ];
    let queries = queries.map(|query| {
        let time = Arc::clone(&vm.time);
        thread::spawn(move || query(&time))
    });
    let tries = bend.failed();
    wait_until("it is tried again", || bend.failed() >= tries + 20);
    assert_eq!(vm.shown.load(Ordering::SeqCst), shown, "the guest ran");
    assert_eq!(bend.offset(), before);

    bend.fail(0);
    for query in queries {
        query.join().unwrap();
    }
    wait_until("it is right", || vm.time.held_up_by().is_none());
    let records = sleeps(&vm.time, INFERRED);
    assert!(records.iter().any(|it| it.hidden_ns > 0), "{records:?}");
    assert!(bend.offset() > before);
    if !vm.time.is_running() {
        vm.time.resume().unwrap();
    }
    end(vm);
}

#[test]
fn t9_what_a_vcpu_that_is_in_the_way_delays_is_part_of_the_pause() {
    let (vm, bend) = vm(config(1, StallPolicy::Report));
    vm.time.pause(Cause::Operator).unwrap();
    bend.is_busy.store(true, Ordering::SeqCst);
    bend.fail(5);
    vm.time.resume().unwrap();
    assert_eq!(bend.failed(), 5);
    let of_resume = |record: &Record| record.event == "resume";
    let record = records(&vm.time).into_iter().find(of_resume).unwrap();
    assert!(record.after.host > bend.failed_at(), "{record:?}");
    assert_eq!(record.after.guest, record.before.guest);
    assert_eq!(record.after.offset, bend.offset());
    // Nobody waits for ever.
    vm.time.pause(Cause::Operator).unwrap();
    bend.fail(u32::MAX);
    let error = vm.time.resume().unwrap_err();
    assert!(
        matches!(error, Error::Offset(SetOffsetError::Busy)),
        "{error}"
    );
    bend.fail(0);
    vm.time.resume().unwrap();
    end(vm);
}

#[test]
fn what_passes_between_the_last_vcpu_that_is_ready_and_the_guest_is_paused() {
    const PAUSES: u32 = 5;
    // No lease ends in it.
    const DELAY: Duration = Duration::from_millis(30);
    let (vm, bend) = vm(config(2, StallPolicy::Freeze));
    bend.delay(DELAY);
    let started = vm.time.ledger().unwrap();
    for _ in 0..PAUSES {
        vm.time.pause(Cause::Operator).unwrap();
        vm.time.resume().unwrap();
    }
    let paused = vm.time.ledger().unwrap();
    bend.sleep_and_stop(&mut Stopper::start(), Duration::ZERO, false);
    let slept = vm.time.ledger().unwrap();
    bend.delay(Duration::ZERO);

    let missing_ms = |before: &[Accounts], after: &[Accounts]| {
        let grown =
            |(before, after): (&Accounts, &Accounts)| after.residual_ns() - before.residual_ns();
        let most_ns = before.iter().zip(after).map(grown).max().unwrap();
        u64::try_from(most_ns.max(0)).unwrap() / 1_000_000
    };
    let delay_ms = ms(DELAY.as_nanos());
    let of_pauses_ms = u64::from(PAUSES) * delay_ms;
    for account in &paused {
        assert!(
            ms(account.paused.of(Cause::Operator)) >= of_pauses_ms,
            "{account:?}"
        );
    }
    assert!(
        missing_ms(&started, &paused) < of_pauses_ms / 2,
        "{started:?} {paused:?}"
    );
    assert!(
        missing_ms(&paused, &slept) < delay_ms / 2,
        "{paused:?} {slept:?}"
    );
    end(vm);
}

/// A sleep that everybody ran through: shown, recorded, and nothing hidden.
fn check_shown(time: &VmTime, length_ms: u64) {
    let records = sleeps(time, SHOWN_BY_CLOCKS);
    let mut slept_ns = 0;
    for record in &records {
        let gap = record.gap.as_ref().unwrap();
        slept_ns += u64::try_from(gap.ns).unwrap();
        assert!(i128::from(gap.error_ns.unwrap()) >= gap.ns, "{record:?}");
        assert_eq!((record.hidden_ns, &record.before), (0, &record.after));
        assert_eq!(record.policy.as_deref(), Some("advance"));
    }
    // One that was looked at in its midst has several, of which the least are none.
    assert!(
        (length_ms - 2..=length_ms).contains(&ms(slept_ns)),
        "{records:?}"
    );
}

#[test]
fn a_sleep_that_is_shorter_than_the_lease_is_on_record() {
    let (vm, bend) = vm(config(1, StallPolicy::Report));
    bend.sleep(Duration::ZERO, Duration::from_millis(30), false);
    thread::sleep(Duration::from_millis(40));
    wait_until("the watch looks at the clocks", || {
        !sleeps(&vm.time, SHOWN_BY_CLOCKS).is_empty()
    });
    vm.time.ledger().unwrap();
    check_shown(&vm.time, 30);
    end(vm);
}

#[test]
fn a_sleep_that_nobody_watches_for_keeps_nobody_from_a_pause() {
    let config = VmTimeConfig {
        watches_host_sleep: false,
        ..config(1, StallPolicy::Report)
    };
    let (vm, bend) = vm(config);
    bend.sleep(Duration::ZERO, Duration::from_millis(300), false);
    thread::sleep(Duration::from_millis(310));
    vm.time.pause(Cause::Operator).unwrap();
    vm.time.save().unwrap();
    check_shown(&vm.time, 300);
    vm.time.resume().unwrap();
    assert!(ms(vm.time.sample().unwrap().paused_ns) >= 299);
    end(vm);
}

#[test]
fn s11_l14_a_vcpu_that_can_be_a_hypervisor_is_attached_where_nothing_is_hidden() {
    let attach = |config: VmTimeConfig| {
        let machine = Machine::new(&[]);
        let bend = Arc::new(Bend::default());
        bend.is_nested.store(true, Ordering::SeqCst);
        let time = bent_host::time(&machine, config, &bend).unwrap();
        time.attach(&machine.vcpu(0), 0).map(drop)
    };
    let error = attach(Machine::config(1)).unwrap_err();
    assert!(
        matches!(
            error,
            Error::Timeline(TimelineError::FreezeWithNested { .. })
        ),
        "{error}"
    );
    let live = VmTimeConfig {
        live_physical_time: Some(Frequency::from_hz(1_000_000_000).unwrap()),
        ..Machine::config(1)
    };
    let error = attach(live).unwrap_err();
    assert!(
        matches!(error, Error::Timeline(TimelineError::LiveWithNested)),
        "{error}"
    );
    let advance = Policy::Advance;
    let policies = Policies {
        pause: advance,
        restore: advance,
        migrate: advance,
        suspend: advance,
        ..Policies::default()
    };
    let shown = VmTimeConfig {
        policies,
        ..Machine::config(1)
    };
    attach(shown).unwrap();
}
