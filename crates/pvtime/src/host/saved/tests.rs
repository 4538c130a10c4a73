//! What is taken back, and everything that is not.

use super::layout::{
    ASKED_STREAM, FLAG_LIVE_FOUND, FLAG_LIVE_RAN, FLAG_TOLD, VcpuLayout, VmLayout, open, seal,
};
use super::*;
use crate::abi::paused_time::{self, Pause, PausedTime};
use crate::abi::stolen_time::StolenTime;
use crate::host::ledger::Accounts;
use crate::host::live::{LiveParts, LiveState};
use crate::host::timeline::{CounterScope, HostSample, WallStandard};
use crate::host::timers::{Asked, AskedStream, Timer, TimerControl, VcpuTimers};
use crate::host::{Cause, GuestCount, HostCount, PausedNs};
use crate::scale::exact::{cntfrq, edgy};
use crate::scale::{CompareValue, EventStream, Frequency, LiveTime, PvDeadline};
use proptest::prelude::*;
use std::string::ToString;
use std::vec::Vec;
use zerocopy::IntoBytes;

/// A VM that went from 100 MHz to 24 MHz at PV 1 GHz and was then paused.
fn vm() -> SavedVm {
    SavedVm {
        sample: HostSample {
            counter: HostCount(0x0102_0304_0506_0708),
            frequency: Frequency::from_hz(24_000_000).unwrap(),
            wall_ns: 1_700_000_000_123_456_789,
            wall_standard: WallStandard::Tai,
            wall_error_ns: 2_000,
            boottime_ns: 77_000_000_000,
            monotonic_ns: 75_000_000_000,
            monotonic_raw_ns: 75_000_000_111,
            span_ns: 300,
        },
        count: GuestCount(24_007),
        cause: Cause::Snapshot,
        guest_suspended: false,
        counters: CounterScope::Both,
        live: Some(LiveParts {
            native: Frequency::from_hz(24_000_000).unwrap(),
            pv: Frequency::from_hz(1_000_000_000).unwrap(),
            base_count: GuestCount(7),
            base: LiveTime::from_parts(290, 0x4000_0000_0000_0000),
            seen_pv: 1_000_291,
            ran: true,
            found: true,
        }),
        paused: PausedNs::new([1_000, 0, 500, 2_000]),
        paused_time: Some(PausedTime {
            paused_ns: 2_500,
            events: 2,
            last: Pause {
                frozen: true,
                physical_ns: 500,
                error_ns: 40,
                counter: 7,
                cause: paused_time::Cause::MIGRATION,
            },
        }),
        sequences: Sequences {
            live_physical_time: 4,
            paused_time: 6,
        },
    }
}

fn suspended_vm() -> SavedVm {
    SavedVm {
        cause: Cause::HostSuspend,
        guest_suspended: true,
        ..plain_vm()
    }
}

fn plain_vm() -> SavedVm {
    SavedVm {
        live: None,
        paused_time: None,
        sequences: Sequences::default(),
        ..vm()
    }
}

fn vcpu() -> SavedVcpu {
    let timer = |control, value| Timer {
        control: TimerControl(control),
        compare_value: CompareValue(value),
    };
    SavedVcpu {
        timers: VcpuTimers {
            asked: Some(Asked {
                virtual_deadline: PvDeadline(0x1_0000_0000_0000_0001),
                physical_deadline: PvDeadline::NEVER,
                stream: Some(AskedStream {
                    pv_bit: -3,
                    programmed: EventStream::from_bit(17).unwrap(),
                }),
            }),
            ..VcpuTimers::new(timer(1, 24_100), timer(3, u64::MAX), 0x2_0097)
        },
        stolen: Some(StolenTime {
            stolen_ns: 123_456_789,
        }),
        accounts: Accounts {
            physical_ns: 10_000,
            run_ns: 5_000,
            idle_ns: 1_000,
            stolen_ns: 400,
            paused: PausedNs::new([1_000, 0, 500, 2_000]),
        },
    }
}

/// The record with some fields changed and a checksum that is right all the same.
fn vm_with(change: impl FnOnce(&mut VmLayout)) -> Result<SavedVm, SavedError> {
    let mut layout: VmLayout = open(&vm().emit()).unwrap();
    change(&mut layout);
    SavedVm::parse(seal(layout).as_bytes())
}

fn vcpu_with(change: impl FnOnce(&mut VcpuLayout)) -> Result<SavedVcpu, SavedError> {
    let mut layout: VcpuLayout = open(&vcpu().emit()).unwrap();
    change(&mut layout);
    SavedVcpu::parse(seal(layout).as_bytes())
}

#[test]
fn records_come_back() {
    for saved in [vm(), plain_vm(), suspended_vm()] {
        assert_eq!(SavedVm::parse(&saved.emit()), Ok(saved));
    }
    let never_translated = SavedVcpu {
        timers: VcpuTimers {
            asked: None,
            ..vcpu().timers
        },
        ..vcpu()
    };
    for saved in [vcpu(), never_translated] {
        assert_eq!(SavedVcpu::parse(&saved.emit()), Ok(saved));
    }
}

/// Version 1 is these bytes, on every host, for ever.
#[test]
fn version_1_has_these_bytes() {
    let words = |bytes: &[u8]| -> Vec<u64> {
        let words = bytes.chunks_exact(8);
        words
            .map(|word| u64::from_be_bytes(word.try_into().unwrap()))
            .collect()
    };
    assert_eq!(words(&vm().emit()), VM_WORDS);
    assert_eq!(words(&vcpu().emit()), VCPU_WORDS);
}

/// Big-endian, so that they read like a dump of the bytes.
const VM_WORDS: [u64; 29] = [
    0x5056_5453_0100_0100,
    0xe800_0000_a88e_3f54,
    0x0036_6e01_0000_0000,
    0x0807_0605_0403_0201,
    0xc75d_0000_0000_0000,
    0x15cd_853d_fe9c_9717,
    0xd007_0000_0000_0000,
    0x00c2_8eed_1100_0000,
    0x002e_5976_1100_0000,
    0x6f2e_5976_1100_0000,
    0x2c01_0000_0000_0000,
    0x0100_0000_0200_0000,
    0x1e00_0000_00ca_9a3b,
    0x0700_0000_0000_0000,
    0x2201_0000_0000_0000,
    0x0000_0000_0000_0040,
    0x6343_0f00_0000_0000,
    0x0400_0000_0000_0000,
    0xe803_0000_0000_0000,
    0x0000_0000_0000_0000,
    0xf401_0000_0000_0000,
    0xd007_0000_0000_0000,
    0xc409_0000_0000_0000,
    0x0200_0000_0000_0000,
    0xf401_0000_0000_0000,
    0x0700_0000_0000_0000,
    0x2800_0000_0000_0000,
    0x0300_0000_0100_0000,
    0x0600_0000_0000_0000,
];

const VCPU_WORDS: [u64; 20] = [
    0x5056_5453_0200_0100,
    0xa000_0000_fb8d_ec24,
    0x0100_0000_0300_0000,
    0x245e_0000_0000_0000,
    0xffff_ffff_ffff_ffff,
    0x9700_0200_0000_0000,
    0xfdff_1103_0100_0000,
    0x15cd_5b07_0000_0000,
    0x1027_0000_0000_0000,
    0x8813_0000_0000_0000,
    0xe803_0000_0000_0000,
    0x9001_0000_0000_0000,
    0xe803_0000_0000_0000,
    0x0000_0000_0000_0000,
    0xf401_0000_0000_0000,
    0xd007_0000_0000_0000,
    0x0100_0000_0000_0000,
    0x0100_0000_0000_0000,
    0xffff_ffff_ffff_ffff,
    0xffff_ffff_ffff_ffff,
];

#[test]
fn another_length_is_refused() {
    let bytes = vm().emit();
    let mut longer = bytes.to_vec();
    longer.push(0);
    for actual in (0..bytes.len()).chain([bytes.len() + 1]) {
        let length = SavedError::Length {
            record: Record::Vm,
            expected: bytes.len(),
            actual,
        };
        assert_eq!(SavedVm::parse(&longer[..actual]), Err(length));
    }
    let bytes = vcpu().emit();
    for actual in 0..bytes.len() {
        let length = SavedError::Length {
            record: Record::Vcpu,
            expected: bytes.len(),
            actual,
        };
        assert_eq!(SavedVcpu::parse(&bytes[..actual]), Err(length));
    }
}

#[test]
fn every_flipped_bit_is_found() {
    for bit in 0..vm().emit().len() * 8 {
        let mut bytes = vm().emit();
        bytes[bit / 8] ^= 1 << (bit % 8);
        assert!(SavedVm::parse(&bytes).is_err(), "bit {bit}");
    }
    for bit in 0..vcpu().emit().len() * 8 {
        let mut bytes = vcpu().emit();
        bytes[bit / 8] ^= 1 << (bit % 8);
        assert!(SavedVcpu::parse(&bytes).is_err(), "bit {bit}");
    }
}

#[test]
fn what_is_wrong_is_said() {
    let altered = |offset: usize, value: u8| {
        let mut bytes = vm().emit();
        bytes[offset] = value;
        SavedVm::parse(&bytes).unwrap_err()
    };
    assert_eq!(
        altered(0, b'X'),
        SavedError::Magic {
            found: u32::from_le_bytes(*b"XVTS")
        }
    );
    let (record, found) = (Record::Vm, 2);
    assert_eq!(altered(4, 2), SavedError::Kind { record, found });
    assert_eq!(altered(6, 2), SavedError::Version { record, found });
    assert_eq!(altered(6, 0), SavedError::Version { record, found: 0 });
    assert_eq!(
        altered(8, 0),
        SavedError::Field {
            record,
            field: "the size"
        }
    );
    assert!(matches!(altered(231, 1), SavedError::Checksum { .. }));
    assert_eq!(
        altered(6, 9).to_string(),
        "this saved VM time has version 9, known is 1: update this program, or save with the \
         version that is to read it"
    );
    assert!(matches!(
        SavedVcpu::parse(&vm().emit()),
        Err(SavedError::Kind { found: 1, .. })
    ));
    assert!(
        SavedVcpu::parse(&[])
            .unwrap_err()
            .to_string()
            .contains("a saved vCPU time has 160")
    );
}

#[test]
fn bytes_that_mean_nothing_are_refused() {
    type Change = fn(&mut VmLayout);
    let changes: [(&str, Change); 9] = [
        ("a flag", |vm| vm.flags = (vm.flags.get() | 1 << 6).into()),
        ("a reserved field", |vm| vm.reserved = 1.into()),
        ("the counter's frequency", |vm| vm.frequency_hz = 0.into()),
        ("the wall clock", |vm| vm.wall_standard = 2.into()),
        ("the cause", |vm| vm.cause = 0.into()),
        ("the cause", |vm| vm.cause = 5.into()),
        ("the PV frequency", |vm| vm.pv_frequency_hz = 0.into()),
        ("whether the last pause froze", |vm| {
            vm.told_last_frozen = 2.into();
        }),
        ("paused time, which it does not have,", |vm| {
            vm.flags = (vm.flags.get() & !FLAG_TOLD).into();
        }),
    ];
    for (field, change) in changes {
        let record = Record::Vm;
        assert_eq!(vm_with(change), Err(SavedError::Field { record, field }));
    }
    for flag in [FLAG_LIVE_FOUND, FLAG_LIVE_RAN] {
        let mut layout: VmLayout = open(&plain_vm().emit()).unwrap();
        layout.flags = flag.into();
        let field = "live physical time, which it does not have,";
        let error = SavedError::Field {
            record: Record::Vm,
            field,
        };
        assert_eq!(SavedVm::parse(seal(layout).as_bytes()), Err(error));
    }
    let unused = vm_with(|vm| vm.flags = FLAG_TOLD.into());
    assert!(matches!(unused, Err(SavedError::Field { .. })));
}

#[test]
fn values_that_contradict_each_other_are_refused() {
    let told = vm().paused_time.unwrap();
    let with_told = |told| SavedVm {
        paused_time: Some(told),
        ..vm()
    };
    let with_last = |last| with_told(PausedTime { last, ..told });
    let sequences = |live_physical_time, paused_time| Sequences {
        live_physical_time,
        paused_time,
    };
    let cases = [
        (
            "a guest that suspended itself",
            SavedVm {
                cause: Cause::Operator,
                ..suspended_vm()
            },
        ),
        (
            "a guest that suspended itself",
            SavedVm {
                cause: Cause::HostSuspend,
                guest_suspended: true,
                ..vm()
            },
        ),
        (
            "an odd sequence",
            SavedVm {
                sequences: sequences(3, 6),
                ..vm()
            },
        ),
        (
            "an odd sequence",
            SavedVm {
                sequences: sequences(4, 1),
                ..vm()
            },
        ),
        (
            "the sequence of live physical time, which it does not have,",
            SavedVm {
                sequences: sequences(4, 0),
                ..plain_vm()
            },
        ),
        (
            "the sequence of paused time, which it does not have,",
            SavedVm {
                sequences: sequences(0, 6),
                ..plain_vm()
            },
        ),
        (
            "the paused time",
            with_told(PausedTime {
                paused_ns: 3_501,
                ..told
            }),
        ),
        (
            "a pause that never was",
            with_told(PausedTime { events: 0, ..told }),
        ),
        (
            "the last cause",
            with_last(Pause {
                cause: paused_time::Cause(0),
                ..told.last
            }),
        ),
        (
            "the last cause",
            with_last(Pause {
                cause: paused_time::Cause(5),
                ..told.last
            }),
        ),
        (
            "the last pause's counter",
            with_last(Pause {
                counter: 24_008,
                ..told.last
            }),
        ),
    ];
    for (field, saved) in cases {
        let error = SavedError::Field {
            record: Record::Vm,
            field,
        };
        assert_eq!(SavedVm::parse(&saved.emit()), Err(error));
    }
}

#[test]
fn live_time_that_no_history_leads_to_is_refused() {
    let live = vm().live.unwrap();
    let other = |hz| Frequency::from_hz(hz).unwrap();
    let cases = [
        LiveParts {
            base_count: GuestCount(8),
            ..live
        },
        LiveParts {
            base: LiveTime::from_parts(1_000_000, 0),
            ..live
        },
        LiveParts {
            seen_pv: u64::MAX,
            ..live
        },
        LiveParts {
            native: other(25_000_000),
            ..live
        },
    ];
    for (index, live) in cases.into_iter().enumerate() {
        let saved = SavedVm {
            live: Some(live),
            ..vm()
        };
        // The record has one frequency, so that the last of them cannot be said in bytes.
        assert!(saved.checked_live().is_err(), "{index}");
        let parsed = SavedVm::parse(&saved.emit());
        assert_eq!(
            matches!(parsed, Err(SavedError::Live(_))),
            index < 3,
            "{index}"
        );
    }
    let early = SavedVm {
        count: GuestCount(6),
        ..vm()
    };
    assert!(matches!(
        SavedVm::parse(&early.emit()),
        Err(SavedError::Live(_))
    ));
    let fast = SavedVm {
        sample: HostSample {
            frequency: other(1 << 32),
            ..vm().sample
        },
        ..vm()
    };
    assert!(matches!(
        SavedVm::parse(&fast.emit()),
        Err(SavedError::Live(_))
    ));
}

#[test]
fn impossible_vcpus_are_refused() {
    type Change = fn(&mut VcpuLayout);
    let changes: [(&str, Change); 7] = [
        ("stolen time that was not asked for", |vcpu| {
            vcpu.stolen_asked_for = 0.into();
        }),
        ("stolen time that was not asked for", |vcpu| {
            vcpu.stolen_asked_for = 2.into();
        }),
        ("the event stream", |vcpu| vcpu.stream_programmed = 24),
        ("an event stream that is off", |vcpu| {
            vcpu.asked &= !ASKED_STREAM;
        }),
        ("a deadline that was not asked for", |vcpu| {
            vcpu.asked = ASKED_STREAM;
        }),
        ("a deadline that was not asked for", |vcpu| vcpu.asked |= 4),
        ("a deadline that was not asked for", |vcpu| {
            vcpu.asked = 0;
            vcpu.stream_pv_bit = 0.into();
            vcpu.stream_programmed = 0;
        }),
    ];
    for (field, change) in changes {
        let record = Record::Vcpu;
        assert_eq!(vcpu_with(change), Err(SavedError::Field { record, field }));
    }
}

fn timer() -> impl Strategy<Value = Timer> {
    (any::<u32>(), edgy()).prop_map(|(control, value)| Timer {
        control: TimerControl(control),
        compare_value: CompareValue(value),
    })
}

fn asked() -> impl Strategy<Value = Asked> {
    let stream = (any::<i16>(), 0u8..24).prop_map(|(pv_bit, bit)| AskedStream {
        pv_bit,
        programmed: EventStream::from_bit(bit).unwrap(),
    });
    (any::<u128>(), any::<u128>(), proptest::option::of(stream)).prop_map(
        |(virtual_deadline, physical_deadline, stream)| Asked {
            virtual_deadline: PvDeadline(virtual_deadline),
            physical_deadline: PvDeadline(physical_deadline),
            stream,
        },
    )
}

proptest! {
    #[test]
    fn any_vcpu_comes_back(
        timers in (timer(), timer(), any::<u64>(), proptest::option::of(asked())),
        stolen_ns: Option<u64>,
        accounts: [u64; 4],
        paused: [u64; 4],
    ) {
        let (virtual_timer, physical_timer, event_control, asked) = timers;
        let [physical_ns, run_ns, idle_ns, ledger_stolen_ns] = accounts;
        let saved = SavedVcpu {
            timers: VcpuTimers { virtual_timer, physical_timer, event_control, asked },
            stolen: stolen_ns.map(|stolen_ns| StolenTime { stolen_ns }),
            accounts: Accounts {
                physical_ns,
                run_ns,
                idle_ns,
                stolen_ns: ledger_stolen_ns,
                paused: PausedNs::new(paused),
            },
        };
        prop_assert_eq!(SavedVcpu::parse(&saved.emit()), Ok(saved));
    }

    #[test]
    fn any_vm_with_a_history_comes_back(
        rates in (cntfrq(), cntfrq(), cntfrq()),
        ran in (0u64..1 << 30, 0u64..1 << 30),
        clocks: [u64; 7],
        wall_is_tai: bool,
        told: [u64; 4],
    ) {
        let (from, native, pv) = rates;
        let live = LiveState::start(from.into(), pv.into())?;
        let (live, count) = live.stopped_at(GuestCount(ran.0))?.rebase(GuestCount(ran.0), native.into())?;
        let count = GuestCount(count.0 + ran.1);
        let live = live.stopped_at(count)?;
        let [counter, wall_ns, wall_error_ns, boottime_ns, monotonic_ns, monotonic_raw_ns, span_ns] =
            clocks;
        let [paused_ns, events, physical_ns, error_ns] = told;
        let last = Pause {
            frozen: true,
            physical_ns,
            error_ns,
            counter: count.0,
            cause: paused_time::Cause::OPERATOR,
        };
        let saved = SavedVm {
            sample: HostSample {
                counter: HostCount(counter),
                frequency: native.into(),
                wall_ns,
                wall_standard: if wall_is_tai { WallStandard::Tai } else { WallStandard::Realtime },
                wall_error_ns,
                boottime_ns,
                monotonic_ns,
                monotonic_raw_ns,
                span_ns,
            },
            count,
            cause: Cause::Operator,
            guest_suspended: false,
            counters: CounterScope::Both,
            live: Some(live.parts()),
            paused: PausedNs::new([paused_ns, 0, 0, 1]),
            paused_time: Some(PausedTime { paused_ns, events: events | 1, last }),
            sequences: Sequences { live_physical_time: 2 * ran.0, paused_time: 0 },
        };
        prop_assert_eq!(SavedVm::parse(&saved.emit()), Ok(saved));
    }

    #[test]
    fn any_bytes_are_refused_or_come_back(
        bytes in proptest::collection::vec(any::<u8>(), 0..256),
        changes in proptest::collection::vec((16usize..232, any::<u8>()), 0..4),
    ) {
        prop_assert!(SavedVm::parse(&bytes).is_err() && SavedVcpu::parse(&bytes).is_err());
        // Close to a record, with a checksum that is right.
        let mut near = vm().emit();
        for (offset, value) in changes {
            near[offset] = value;
        }
        let layout: VmLayout = zerocopy::transmute!(near);
        let sealed = seal(layout);
        if let Ok(saved) = SavedVm::parse(sealed.as_bytes()) {
            prop_assert_eq!(&saved.emit()[..], sealed.as_bytes());
        }
    }
}
