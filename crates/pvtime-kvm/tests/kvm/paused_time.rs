//! Paused time against real KVM: what the guest reads after a pause, and when it is interrupted.

use std::thread::sleep;
use std::time::Duration;

use crate::machine::{Machine, RAM, REGION, distributor, set_distributor};
use crate::reporter::{Report, Reporter};
use pvtime::abi::paused_time::{self, PausedTime};
use pvtime::host::Cause;
use pvtime::host::timeline::{Policies, Policy};
use pvtime_kvm::{Error, SavedTime, Support, VmTime, VmTimeConfig};

const PAUSED: u64 = REGION + 0x2_0000;
const STOPPED: Duration = Duration::from_millis(200);

fn config(policy: Policy) -> VmTimeConfig {
    VmTimeConfig {
        paused_time: true,
        policies: Policies {
            pause: policy,
            restore: policy,
            ..Policies::default()
        },
        ..Machine::config(1)
    }
}

fn address(time: &VmTime) -> u64 {
    time.paused_time().unwrap().address
}

fn started(policy: Policy) -> Reporter {
    Reporter::started(config(policy), &[], address)
}

fn parse(report: &Report) -> PausedTime {
    assert!(report.is_whole(), "{report:?}");
    PausedTime::parse(&report.bytes()).unwrap()
}

fn count(report: &Report) -> u64 {
    report.timers[0].before
}

/// Stops the guest for a while, and returns its reports from before and after. One round straddles
/// the stop: it has its counts from one side, and may have the structure from the other.
fn pause(guest: &Reporter, cause: Cause) -> (Vec<Report>, Vec<Report>) {
    guest.take(3);
    guest.time.pause(cause).unwrap();
    sleep(STOPPED);
    let before = guest.rest();
    guest.time.resume().unwrap();
    let after = guest.take(4);
    (before, after)
}

#[test]
fn s1_s5_a_guest_reads_each_pause_as_soon_as_it_goes_on() {
    let guest = started(Policy::Freeze);
    let first = parse(&guest.take(1)[0]);
    assert_eq!(first, PausedTime::default());
    let mut told_ns = 0;
    for (events, cause) in (1..).zip([Cause::Operator, Cause::Snapshot, Cause::HostSuspend]) {
        let (before, after) = pause(&guest, cause);
        for report in before {
            assert_eq!(parse(&report).events, events - 1);
        }
        let resumed = guest.time.records().after(0, Duration::ZERO).pop().unwrap();
        let gap = resumed.gap.unwrap();
        let stopped_at = resumed.after.guest;
        for report in after {
            if count(&report) <= stopped_at || !report.is_whole() {
                // It was under way when the guest was stopped.
                continue;
            }
            let told = parse(&report);
            assert_eq!(told.events, events);
            assert_eq!(i128::from(told.paused_ns - told_ns), gap.ns);
            assert_eq!(i128::from(told.last.physical_ns), gap.ns);
            assert_eq!(Some(told.last.error_ns), gap.error_ns);
            assert_eq!((told.last.frozen, told.last.counter), (true, stopped_at));
            assert_eq!(told.last.cause, cause.into());
        }
        let (_, told) = (guest.rest(), parse(&guest.take(1)[0]));
        assert_eq!(told.events, events, "and it stays");
        assert!(told.paused_ns - told_ns >= 200_000_000, "{told:?}");
        told_ns = told.paused_ns;
        let sample = guest.time.paused_time().unwrap();
        assert_eq!(
            (sample.address, sample.events, sample.paused_ns),
            (PAUSED, events, told_ns)
        );
    }
}

#[test]
fn s7_a_pause_that_the_counters_show_adds_an_event_and_no_time() {
    let guest = started(Policy::Advance);
    pause(&guest, Cause::Operator);
    guest.rest();
    let told = parse(&guest.take(1)[0]);
    assert_eq!((told.events, told.paused_ns), (1, 0));
    assert!(!told.last.frozen);
    assert!(told.last.physical_ns >= 200_000_000, "{told:?}");
}

#[test]
fn s5_the_interrupt_follows_the_data() {
    let guest = started(Policy::Freeze);
    let interrupt = guest.time.paused_time_interrupt().unwrap();
    guest.take(1);
    assert!(interrupt.read().is_err(), "nothing to learn at the start");
    for _ in 0..3 {
        pause(&guest, Cause::Operator);
    }
    assert_eq!(interrupt.read().unwrap(), 3);
    assert!(interrupt.read().is_err());
}

#[test]
fn s5_the_interrupt_reaches_the_guests_interrupt_controller() {
    const SPI: u32 = 3;
    const GICD_ISPENDR1: u32 = 0x204;
    const GICD_ICFGR2: u32 = 0xc08;
    let guest = Reporter::new(config(Policy::Freeze), &[], address);
    let interrupt = guest.time.paused_time_interrupt().unwrap();
    guest.machine.vm.register_irqfd(interrupt, SPI).unwrap();
    // Triggered by an edge, as the device tree says: it stays until the guest takes it.
    set_distributor(&guest.gic, GICD_ICFGR2, 0b10 << (2 * SPI));
    let is_pending = || distributor(&guest.gic, GICD_ISPENDR1) & 1 << SPI != 0;
    guest.time.start().unwrap();
    guest.take(1);
    guest.time.pause(Cause::Operator).unwrap();
    assert!(!is_pending(), "nothing to learn yet");
    // KVM delivers it from a kernel thread.
    let delivered = (0..100).any(|_| {
        guest.time.resume().unwrap();
        sleep(Duration::from_millis(10));
        guest.time.pause(Cause::Operator).unwrap();
        is_pending()
    });
    assert!(delivered, "it did not arrive within a second");
}

#[test]
fn s6_s14_a_restored_guest_is_told_the_sum() {
    let guest = started(Policy::Freeze);
    pause(&guest, Cause::Operator);
    guest.time.pause(Cause::Snapshot).unwrap();
    let saved = guest.time.save().unwrap();
    let told_ns = guest.time.paused_time().unwrap().paused_ns;
    let last = guest.rest().pop();
    drop(guest);
    assert!(SavedTime::parse(&saved).unwrap().has_paused_time());

    let restored = Reporter::new(config(Policy::Freeze), &[], address);
    restored.time.restore(&saved, Cause::Snapshot).unwrap();
    // Saved again before the guest looked: nothing is counted twice, nothing is lost.
    assert_eq!(restored.time.paused_time().unwrap().paused_ns, told_ns);
    let again = restored.time.save().unwrap();
    assert_eq!(again.len(), saved.len());
    drop(restored);

    let restored = Reporter::new(config(Policy::Freeze), &[], address);
    restored.time.restore(&again, Cause::Snapshot).unwrap();
    let interrupt = restored.time.paused_time_interrupt().unwrap();
    assert!(interrupt.read().is_err());
    sleep(STOPPED);
    restored.time.resume().unwrap();
    assert_eq!(interrupt.read().unwrap(), 1);
    let report = restored.take(1).remove(0);
    let told = parse(&report);
    assert_eq!(
        (told.events, told.last.cause),
        (2, paused_time::Cause::SNAPSHOT)
    );
    assert!(told.paused_ns >= told_ns + 200_000_000, "{told:?}");
    if let Some(last) = last {
        let sequence = |report: &Report| report.words[1] >> 32;
        assert_eq!(sequence(&report), sequence(&last) + 2);
    }
}

#[test]
fn s16_a_guest_that_knows_of_it_does_not_lose_it() {
    let guest = started(Policy::Freeze);
    guest.take(1);
    guest.time.pause(Cause::Snapshot).unwrap();
    let saved = guest.time.save().unwrap();
    let without = Reporter::new(Machine::config(1), &[], |_| RAM);
    let error = without.time.restore(&saved, Cause::Snapshot).unwrap_err();
    assert!(matches!(error, Error::PausedTimeLost), "{error}");
    assert!(error.to_string().contains("--paused-time on"), "{error}");
}

#[test]
fn s15_turned_on_late_it_starts_at_0() {
    let guest = Reporter::started(Machine::config(1), &[], |_| RAM);
    guest.take(1);
    assert_eq!(guest.time.paused_time(), None);
    assert!(guest.time.paused_time_interrupt().is_none());
    guest.time.pause(Cause::Snapshot).unwrap();
    let saved = guest.time.save().unwrap();
    let with = Reporter::new(config(Policy::Freeze), &[], address);
    with.time.restore(&saved, Cause::Snapshot).unwrap();
    assert_eq!(with.time.paused_time().unwrap().events, 0);
    with.time.resume().unwrap();
    assert_eq!(parse(&with.take(1)[0]).events, 1);
}

#[test]
fn l9_a_guest_that_writes_to_it_changes_nothing() {
    let write = [0xf900_0a95]; // str x21, [x20, #16]
    let guest = Reporter::started(config(Policy::Freeze), &write, address);
    pause(&guest, Cause::Operator);
    guest.rest();
    let told = parse(&guest.take(1)[0]);
    assert_eq!(told.paused_ns, guest.time.paused_time().unwrap().paused_ns);
    let stores = guest.stores();
    assert!(stores.len() >= 3 && stores.iter().all(|address| *address == PAUSED + 16));
}

#[test]
fn on_is_on_or_an_error_with_a_way_out() {
    let guest = Machine::new(&[]);
    let mut host = guest.host();
    host.readonly_memory = Support::no("this kernel's KVM does not offer KVM_CAP_READONLY_MEM");
    let error = VmTime::new(&guest.vm, &host, config(Policy::Freeze)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "paused time cannot be turned on: this kernel's KVM does not offer KVM_CAP_READONLY_MEM; \
         run on a host that has it, or leave --paused-time off"
    );
}
