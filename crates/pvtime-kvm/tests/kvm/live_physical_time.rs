//! Live physical time against real KVM: what a guest's calls return, what it reads, and how it goes
//! on after a host of another frequency.

use std::time::Duration;

use crate::caller::{Vcpu, caller};
use crate::machine::{Machine, RAM, REGION, get};
use crate::reporter::{ENABLE, IMASK, Report, Reporter};
use pvtime::abi::live_physical_time::LivePhysicalTime;
use pvtime::host::ledger::Accounts;
use pvtime::host::saved::{SavedVcpu, SavedVm, Sequences};
use pvtime::host::timeline::{
    Config, Event, HostSample, Policies, Policy, Timeline, TimelineError, WallStandard,
};
use pvtime::host::timers::{Timer, TimerControl, VcpuTimers};
use pvtime::host::{Cause, HostCount};
use pvtime::scale::{CompareValue, Frequency};
use pvtime_kvm::registers::{PTIMER_CVAL, TIMER_CVAL};
use pvtime_kvm::{
    Error, PV_FREQUENCY_HZ, SavedTime, StolenTimeChoice, Support, VmTime, VmTimeConfig, clock,
    counter,
};
use vm_memory::GuestAddress;

const LIVE: u64 = REGION + 0x1_0000;
const GHZ: u64 = 1_000_000_000;
const SUCCESS: u64 = 0;
const NOT_SUPPORTED: u64 = u64::MAX;

fn hz(hz: u64) -> Frequency {
    Frequency::from_hz(hz).unwrap()
}

fn native() -> Frequency {
    counter::frequency().unwrap()
}

/// A frequency that this host's counter does not have.
fn another() -> Frequency {
    if native().hz() == 50_000_000 {
        hz(100_000_000)
    } else {
        hz(50_000_000)
    }
}

fn config(pv_hz: u64) -> VmTimeConfig {
    VmTimeConfig {
        live_physical_time: Some(hz(pv_hz)),
        ..Machine::config(1)
    }
}

fn address(time: &VmTime) -> u64 {
    time.live_physical_time().unwrap().address
}

/// `PV_TIME_LPT` at the start of each round: `movz w0, #0x22; movk w0, #0xc500, lsl #16; hvc #0`.
const ASK: [u32; 3] = [0x5280_0440, 0x72b8_a000, 0xd400_0002];

/// What a call must return, written from the specification and the series of 2020.
fn expected(call: u64, argument: u64, stolen: Option<u64>) -> u64 {
    // Arguments are 32 bits.
    let argument = argument & 0xffff_ffff;
    match (call, argument) {
        (0xC500_0020, 0xC500_0020 | 0xC500_0022) => SUCCESS,
        (0xC500_0020, 0xC500_0021) if stolen.is_some() => SUCCESS,
        (0xC500_0021, _) => stolen.unwrap_or(NOT_SUPPORTED),
        (0xC500_0022, _) => LIVE,
        _ => NOT_SUPPORTED,
    }
}

#[test]
fn d2_d3_d4_d8_l11_every_id_with_every_kind_of_argument() {
    let arguments = [
        0,
        0xC500_0020,
        0xC500_0021,
        0xC500_0022,
        0xC500_0023,
        0x8500_0022,
        0xFFFF_FFFF_C500_0022,
        u64::MAX,
    ];
    for (choice, stolen) in [
        (StolenTimeChoice::Off, None),
        (StolenTimeChoice::On, Some(REGION)),
        (StolenTimeChoice::User, Some(REGION)),
    ] {
        let machine = caller();
        let time = machine.time(VmTimeConfig {
            stolen_time: choice,
            ..config(GHZ)
        });
        let time = time.unwrap();
        let mut vcpu = Vcpu::attached(&machine, &time, 0);
        assert_eq!(
            vcpu.call_with(0x8000_0001, 0xC500_0020).as_32_bit(),
            0,
            "{choice:?}"
        );
        for call in 0xC500_0000..=0xC500_00FF_u64 {
            for argument in arguments {
                assert_eq!(
                    vcpu.call_with(call, argument).0,
                    expected(call, argument, stolen),
                    "{choice:?}: {call:#x}({argument:#x})"
                );
            }
        }
    }
}

#[test]
fn d6_d13_the_32_bit_forms_are_refused_and_no_other_register_changes() {
    let machine = caller();
    let time = machine.time(config(GHZ)).unwrap();
    let mut vcpu = Vcpu::attached(&machine, &time, 0);
    for number in 0x20..=0x22 {
        assert_eq!(vcpu.call_with(0x8500_0000 | number, 0).as_32_bit(), -1);
    }
    for number in 4..19 {
        vcpu.set_general(number, 0xa5a5_0000 + number);
    }
    assert_eq!(vcpu.call_with(0xDEAD_BEEF_C500_0022, 7).0, LIVE, "d8");
    for number in 4..19 {
        assert_eq!(vcpu.general(number), 0xa5a5_0000 + number, "x{number}");
    }
}

#[test]
fn d5_off_is_not_discovered() {
    for (choice, found) in [(StolenTimeChoice::Off, -1), (StolenTimeChoice::On, 0)] {
        let machine = caller();
        let time = machine.time(VmTimeConfig {
            stolen_time: choice,
            ..Machine::config(1)
        });
        let time = time.unwrap();
        assert_eq!(time.live_physical_time(), None);
        let mut vcpu = Vcpu::attached(&machine, &time, 0);
        assert_eq!(
            vcpu.call_with(0x8000_0001, 0xC500_0020).as_32_bit(),
            found,
            "{choice:?}"
        );
        assert_eq!(vcpu.call_with(0xC500_0020, 0xC500_0022).0, NOT_SUPPORTED);
        assert_eq!(vcpu.call_with(0xC500_0022, 0).0, NOT_SUPPORTED);
    }
}

#[test]
fn l11_kvm_keeps_stolen_time_beside_it() {
    let machine = caller();
    let time = machine.time(VmTimeConfig {
        stolen_time: StolenTimeChoice::On,
        ..config(GHZ)
    });
    let time = time.unwrap();
    let mut vcpu = Vcpu::attached(&machine, &time, 0);
    let claimed = |time: &VmTime| time.sample().unwrap().vcpus[0].stolen_time.unwrap().claimed;
    assert!(!claimed(&time));
    assert_eq!(vcpu.call_with(0xC500_0021, 0).0, REGION);
    assert!(claimed(&time), "KVM wrote the structure");
    assert!(!time.live_physical_time().unwrap().claimed);
    assert_eq!(vcpu.call_with(0xC500_0022, 0).0, LIVE);
    assert!(time.live_physical_time().unwrap().claimed);
    let blocks: Vec<_> = time
        .reserved_memory()
        .iter()
        .map(|block| (block.name, block.base, block.size))
        .collect();
    assert_eq!(
        blocks,
        [
            ("stolen-time", REGION, 0x1_0000),
            ("live-physical-time", LIVE, 0x1_0000)
        ]
    );
}

fn parse(report: &Report) -> LivePhysicalTime {
    assert!(report.is_whole(), "{report:?}");
    LivePhysicalTime::parse(&report.bytes()).unwrap()
}

#[test]
fn l1_the_guest_reads_how_its_counter_maps() {
    for pv_hz in [24_000_000, GHZ] {
        let guest = Reporter::started(config(pv_hz), &[], address);
        let reports = guest.take(20);
        let mut last = 0;
        for report in &reports {
            let mapping = parse(report);
            assert_eq!(
                mapping,
                LivePhysicalTime::between(native(), hz(pv_hz)).unwrap()
            );
            let pv = mapping.to_pv.apply(report.timers[0].before).unwrap();
            assert!(pv > last, "{pv} after {last}");
            last = pv;
        }
        // A pause changes neither the mapping nor the count of its publications.
        let words = reports[0].words;
        guest.time.pause(Cause::Operator).unwrap();
        guest.rest();
        guest.time.resume().unwrap();
        let reports = guest.take(5);
        assert!(reports.iter().all(|report| report.words == words));
        assert!(
            parse(&reports[0])
                .to_pv
                .apply(reports[0].timers[0].after)
                .unwrap()
                > last
        );
    }
}

#[test]
fn l9_a_guest_that_writes_to_it_changes_nothing() {
    let write = [0xf900_0a95]; // str x21, [x20, #16]
    let guest = Reporter::started(config(GHZ), &write, address);
    for report in guest.take(10) {
        assert_eq!(
            parse(&report),
            LivePhysicalTime::between(native(), hz(GHZ)).unwrap()
        );
    }
    let stores = guest.stores();
    assert!(stores.len() >= 10, "each store left the guest");
    assert!(stores.iter().all(|address| *address == LIVE + 16));
}

/// The time of a VM that ran for 1000.12345678 s on a host of another frequency, with timers in
/// ticks from its stop.
struct Elsewhere {
    native: Frequency,
    pv: Frequency,
    vm: SavedVm,
}

const SEQUENCES: Sequences = Sequences {
    live_physical_time: 6,
    paused_time: 0,
};

impl Elsewhere {
    fn new(native: Frequency, pv: Frequency, has_asked: bool) -> Self {
        let wall_ns = clock::sample(native).wall_ns;
        let at = |ticks: u64, s: u64| HostSample {
            counter: HostCount(ticks),
            frequency: native,
            wall_ns: wall_ns - GHZ,
            wall_standard: WallStandard::Realtime,
            wall_error_ns: 0,
            boottime_ns: s * GHZ,
            monotonic_ns: s * GHZ,
            monotonic_raw_ns: s * GHZ,
            // Seconds are near enough for what was read within one.
            span_ns: GHZ,
        };
        let ran = native.hz() * 1000 + native.hz() / 8 + 1;
        let config = Config {
            live_physical_time: Some(pv),
            ..Config::default()
        };
        let vm = Timeline::new(config).unwrap();
        let mut vm = vm.step(at(7, 0), Event::Start).unwrap().timeline;
        if has_asked {
            let found = vm.step(at(7, 0), Event::LivePhysicalTimeFound);
            vm = found.unwrap().timeline;
        }
        let stopped = vm.step(at(7 + ran, 1000), Event::Pause(Cause::Migration));
        let vm = stopped.unwrap().timeline.save(SEQUENCES).unwrap();
        assert_eq!(vm.count.0, ran);
        Self { native, pv, vm }
    }

    fn mapping(&self) -> LivePhysicalTime {
        LivePhysicalTime::between(self.native, self.pv).unwrap()
    }

    fn saved(&self, timers: [(u64, u64); 2]) -> Vec<u8> {
        self.saved_with(timers, 0)
    }

    fn saved_with(&self, timers: [(u64, u64); 2], event_control: u64) -> Vec<u8> {
        let [virtual_timer, physical_timer] = timers.map(|(control, compare_value)| Timer {
            control: TimerControl(u32::try_from(control).unwrap()),
            compare_value: CompareValue(compare_value),
        });
        let vcpu = SavedVcpu {
            timers: VcpuTimers::new(virtual_timer, physical_timer, event_control),
            stolen: None,
            accounts: Accounts::default(),
        };
        [&self.vm.emit()[..], &vcpu.emit()].concat()
    }

    /// A guest that goes on here.
    fn restored(&self, timers: [(u64, u64); 2]) -> Reporter {
        let guest = Reporter::new(config(self.pv.hz()), &[], address);
        let restored = guest.time.restore(&self.saved(timers), Cause::Migration);
        restored.unwrap();
        guest.time.resume().unwrap();
        guest
    }
}

/// Every pair of another frequency and a PV frequency.
fn elsewhere() -> impl Iterator<Item = Elsewhere> {
    let natives = [24_000_000, 50_000_000, 100_000_000, GHZ];
    let natives = natives.into_iter().filter(|hz| *hz != native().hz());
    natives.flat_map(|native| [24_000_000, GHZ].map(|pv| Elsewhere::new(hz(native), hz(pv), true)))
}

#[test]
fn l2_l3_pv_time_goes_on_from_a_host_of_another_frequency() {
    for before in elsewhere() {
        let off = [(0, u64::MAX); 2];
        let guest = before.restored(off);
        let to_here = LivePhysicalTime::between(native(), before.pv).unwrap();
        let pv_before = before.mapping().to_pv.apply(before.vm.count.0).unwrap();

        let record = guest.time.records().after(1, Duration::ZERO).remove(0);
        assert_eq!(record.event, "resume");
        let (count, live) = (record.after.guest, record.live.unwrap());
        assert_eq!(live.pv_before, pv_before);
        assert_eq!(live.pv_after, to_here.to_pv.apply(count).unwrap());
        // The ideal in 2^-32 PV ticks.
        let ideal = (u128::from(before.vm.count.0) * u128::from(before.pv.hz())) << 32;
        let ideal = ideal / u128::from(before.native.hz());
        let off = (u128::from(live.pv_after) << 32).abs_diff(ideal) >> 32;
        let tick = u128::from(before.pv.hz().div_ceil(native().hz()));
        assert!(off <= tick + 1, "{off} PV ticks from the ideal");

        let mut last = pv_before;
        for report in guest.take(20) {
            assert_eq!(parse(&report), to_here);
            assert_eq!(report.words[1], SEQUENCES.live_physical_time + 2, "l12");
            for count in [report.timers[0].before, report.timers[1].after] {
                let pv = to_here.to_pv.apply(count).unwrap();
                assert!(pv >= last, "{pv} after {last}, from {}", before.native);
                last = pv;
            }
        }
    }
}

/// The compare values of a guest, which is stopped for it.
fn compare_values(guest: &Reporter) -> [u64; 2] {
    guest.time.pause(Cause::Operator).unwrap();
    let read = |_, vcpu: &mut kvm_ioctls::VcpuFd| [get(vcpu, TIMER_CVAL), get(vcpu, PTIMER_CVAL)];
    guest.time.on_each_vcpu(read).unwrap().remove(0)
}

#[test]
fn l4_l5_l7_both_timers_are_moved_to_this_hosts_ticks() {
    for before in elsewhere() {
        let count = before.vm.count.0;
        let old = [count + (1 << 35) + 1, count / 2 + 1];
        let guest = before.restored(old.map(|value| (0, value)));
        let to_here = LivePhysicalTime::between(native(), before.pv).unwrap();
        for (old, new) in old.into_iter().zip(compare_values(&guest)) {
            let deadline = before.mapping().to_pv.apply(old).unwrap();
            let pv = |count| to_here.to_pv.apply(count).unwrap();
            assert!(
                pv(new) >= deadline && pv(new - 1) < deadline,
                "{old} of {} became {new}",
                before.native
            );
        }
        let guest = before.restored([(0, u64::MAX); 2]);
        assert_eq!(compare_values(&guest), [u64::MAX; 2], "never stays never");
    }
}

#[test]
fn l4_l5_timers_fire_when_pv_time_says() {
    for before in elsewhere() {
        let count = before.vm.count.0;
        let on = ENABLE | IMASK;
        let in_300_ms = count + before.native.hz() * 3 / 10 + 1;
        let to_here = LivePhysicalTime::between(native(), before.pv).unwrap();
        for (pending, expired) in [(0, 1), (1, 0)] {
            let mut timers = [(on, in_300_ms); 2];
            timers[expired] = (on, count - 1);
            let guest = before.restored(timers);
            let deadline = before.mapping().to_pv.apply(in_300_ms).unwrap();
            let pv = |count| to_here.to_pv.apply(count).unwrap();
            let mut waited = 0;
            let mut last_count = 0;
            loop {
                let report = guest.take(1).remove(0);
                assert!(report.timers[expired].is_due, "it was, and stays so");
                let timer = report.timers[pending];
                if timer.is_due {
                    assert!(pv(timer.after) >= deadline, "early: {timer:?}");
                    break;
                }
                // An emulated timer may tell a moment late that it is due. KVM sets it anew when the
                // guest is entered, which it was since the last report.
                assert!(pv(last_count) < deadline, "late: {last_count}, {timer:?}");
                last_count = report.timers[1].after;
                waited += 1;
            }
            assert!(waited > 0, "it was pending when the guest went on");
        }
    }
}

#[test]
fn l13_what_of_the_timers_is_lost_is_told() {
    // A stream on bit 15, the last without FEAT_ECV, of a counter four times slower: bit 17.
    const EVENTS_AT_BIT_15: u64 = 1 << 2 | 15 << 4;
    const CNTKCTL_EL1: u64 = 0x6030_0000_0013_c708;
    let has_bit_17 = counter::has_ecv() == Some(true);
    let before = Elsewhere::new(hz(native().hz() / 4), hz(GHZ), true);
    // Masked, and so far away that the emulator's own timer must not be set to it.
    let saved = before.saved_with([(0, 1 << 63), (0, u64::MAX)], EVENTS_AT_BIT_15);
    let guest = Reporter::new(config(GHZ), &[], address);
    guest.time.restore(&saved, Cause::Migration).unwrap();
    guest.time.resume().unwrap();
    let resumed = guest.time.records().after(1, Duration::ZERO).remove(0);
    let timers = resumed.timers.unwrap();
    let lost_bits = if has_bit_17 { 0 } else { 2 };
    assert_eq!(
        (timers.unreachable, timers.lost_stream_bits),
        (0, lost_bits)
    );
    guest.take(1);
    guest.time.pause(Cause::Operator).unwrap();
    let control = guest.time.on_each_vcpu(|_, vcpu| get(vcpu, CNTKCTL_EL1));
    let control = control.unwrap().remove(0);
    assert!(has_bit_17 || control == EVENTS_AT_BIT_15, "{control:#x}");
    assert_eq!(
        guest.time.records().after(2, Duration::ZERO)[0].timers,
        None
    );
}

#[test]
fn t13_l15_a_guest_that_did_not_ask_stays() {
    let before = Elsewhere::new(another(), hz(GHZ), false);
    let saved = before.saved([(0, u64::MAX); 2]);
    let error = SavedTime::parse(&saved)
        .unwrap()
        .admits(native())
        .unwrap_err();
    let guest = Reporter::new(config(GHZ), &[], address);
    let refused = guest.time.restore(&saved, Cause::Migration).unwrap_err();
    assert_eq!(refused.to_string(), error.to_string());
    assert!(
        matches!(
            refused,
            Error::Timeline(TimelineError::FrequencyDiffers { has_live: true, .. })
        ),
        "{refused}"
    );
    // The VM is as it was.
    guest.time.start().unwrap();
    guest.take(1);
}

#[test]
fn l15_whether_the_guest_asked_is_kept() {
    let silent = Reporter::started(config(GHZ), &[], address);
    silent.take(1);
    assert!(silent.time.admits(another()).is_err());
    let asking = Reporter::started(config(GHZ), &ASK, address);
    asking.take(2);
    asking.time.admits(another()).unwrap();
    asking.time.admits(native()).unwrap();
    asking.time.pause(Cause::Snapshot).unwrap();
    let saved = asking.time.save().unwrap();
    SavedTime::parse(&saved).unwrap().admits(another()).unwrap();

    let restored = Reporter::new(config(GHZ), &[], address);
    restored.time.restore(&saved, Cause::Snapshot).unwrap();
    restored.time.resume().unwrap();
    restored.take(1);
    assert!(restored.time.live_physical_time().unwrap().claimed);
    restored.time.admits(another()).unwrap();
}

#[test]
fn l15_a_kernel_that_begins_has_not_asked() {
    let guest = Reporter::started(config(GHZ), &ASK, address);
    let has_asked = || guest.time.live_physical_time().unwrap().claimed;
    guest.take(2);
    guest.time.pause(Cause::Operator).unwrap();
    assert!(has_asked());
    guest.time.guest_reset().unwrap();
    assert!(!has_asked());
    assert!(guest.time.admits(another()).is_err());
    guest.time.resume().unwrap();
    // The first reports may be of before the reset.
    let asks = (0..20).any(|_| {
        guest.take(1);
        has_asked()
    });
    assert!(asks, "it asks itself");
    guest.time.admits(another()).unwrap();
    let unstarted = Reporter::new(config(GHZ), &[], address);
    assert!(unstarted.time.guest_reset().is_err());
}

#[test]
fn l1_the_pv_frequency_is_for_life() {
    let before = Elsewhere::new(native(), hz(GHZ), true);
    let saved = before.saved([(0, u64::MAX); 2]);
    for other in [config(24_000_000), Machine::config(1)] {
        let guest = Reporter::new(other, &[], |_| RAM);
        let error = guest.time.restore(&saved, Cause::Snapshot).unwrap_err();
        assert!(
            matches!(
                error,
                Error::Timeline(TimelineError::PvFrequencyDiffers { .. })
            ),
            "{error}"
        );
    }
}

#[test]
fn l10_on_is_on_or_an_error_with_a_way_out() {
    let machine = caller();
    let refused = |config| machine.time(config).unwrap_err().to_string();
    for pv_hz in [1, PV_FREQUENCY_HZ.start() - 1, PV_FREQUENCY_HZ.end() + 1] {
        let said = refused(config(pv_hz));
        assert!(
            said.contains("give --live-physical-time 1000000 to"),
            "{said}"
        );
    }
    let advance = |policies| {
        refused(VmTimeConfig {
            policies,
            ..config(GHZ)
        })
    };
    let policies = Policies::default();
    for (policies, option) in [
        (
            Policies {
                pause: Policy::Advance,
                ..policies
            },
            "--on-pause",
        ),
        (
            Policies {
                restore: Policy::Advance,
                ..policies
            },
            "--on-restore",
        ),
    ] {
        let said = advance(policies);
        assert!(
            said.contains(option) && said.contains("use freeze, or do without"),
            "{said}"
        );
    }
    let said = refused(VmTimeConfig {
        counters: pvtime_kvm::CounterChoice::Registers,
        ..config(GHZ)
    });
    assert!(
        said.contains("an offset for the physical counter"),
        "{said}"
    );
    let mut host = machine.host();
    host.smccc_filter = Support::no("this kernel's KVM has no filter");
    let error = VmTime::new(&machine.vm, &host, config(GHZ)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "live physical time cannot be turned on: this kernel's KVM has no filter; run on a host \
         that has it, or leave --live-physical-time off"
    );
    // Nothing of all that took a slot or a call.
    machine.time(config(GHZ)).unwrap();
    let said = refused(VmTimeConfig {
        region: GuestAddress(0x2_0000_0000),
        first_slot: 8,
        ..config(GHZ)
    });
    assert!(
        said.contains("leave the calls from 0xc5000020 to it"),
        "{said}"
    );
}
