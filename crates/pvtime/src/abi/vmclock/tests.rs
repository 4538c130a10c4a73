use super::*;
use proptest::prelude::*;
use std::vec::Vec;

const STRUCTURE: Structure = Structure::VmClock;

/// 24 MHz, everything stated.
fn value() -> VmClock {
    let frac_sec = NonZeroU64::new(0xB2F4_FC07_9490_8CF2).unwrap();
    VmClock {
        disruption_marker: 5,
        next_disruption: Disruption::Soon,
        status: ClockStatus::SYNCHRONIZED,
        time_type: TimeType::Tai,
        reference: Some(Reference {
            counter_id: CounterId::ARM_VCNT,
            counter_value: 0x0102_0304_0506_0708,
            period: Period::new(frac_sec, 24).unwrap(),
            period_esterror_frac_sec: Some(0x11),
            period_maxerror_frac_sec: Some(0x22),
            time_sec: 1_790_000_000,
            time_frac_sec: 1 << 63,
            time_esterror_ns: Some(40),
            time_maxerror_ns: Some(1000),
        }),
        monotonic: true,
        tai_offset_sec: Some(-37),
        leap_indicator: LeapIndicator::PRE_NEG,
        smearing_hint: SmearingHint::UTC_SLS,
        vm_generation: Some(9),
        notifies: true,
        ..VmClock::without_time(0x70)
    }
}

/// The published bytes with some at `offset` replaced.
fn with<const N: usize>(offset: usize, bytes: [u8; N]) -> [u8; SIZE_BYTES] {
    let mut all = value().emit();
    all[offset..offset + N].copy_from_slice(&bytes);
    all
}

#[test]
fn v1_the_bytes_are_those_of_the_header() {
    let mut expected = [0; SIZE_BYTES];
    expected[..0x10].copy_from_slice(b"VCLK\x70\0\0\0\x01\0\0\x01\0\0\0\0");
    expected[0x10] = 5;
    expected[0x18..0x1A].copy_from_slice(&0b11_1111_1011u16.to_le_bytes());
    expected[0x22] = 2;
    expected[0x23] = 2;
    expected[0x24..0x26].copy_from_slice(&(-37i16).to_le_bytes());
    expected[0x26] = 2;
    expected[0x27] = 24;
    expected[0x28..0x30].copy_from_slice(&[8, 7, 6, 5, 4, 3, 2, 1]);
    expected[0x30..0x38].copy_from_slice(&0xB2F4_FC07_9490_8CF2u64.to_le_bytes());
    expected[0x38] = 0x11;
    expected[0x40] = 0x22;
    expected[0x48..0x50].copy_from_slice(&1_790_000_000u64.to_le_bytes());
    expected[0x57] = 0x80;
    expected[0x58] = 40;
    expected[0x60..0x62].copy_from_slice(&1000u16.to_le_bytes());
    expected[0x68] = 9;
    assert_eq!(value().emit(), expected);
}

#[test]
fn v2_the_flags_are_those_of_the_header_not_of_specification_1_0() {
    let base = VmClock::without_time(0x1000);
    let flags = |clock: VmClock| clock.layout().flags.get();
    assert_eq!(
        flags(VmClock {
            monotonic: true,
            ..base
        }),
        1 << 7
    );
    assert_eq!(
        flags(VmClock {
            vm_generation: Some(0),
            ..base
        }),
        1 << 8
    );
    assert_eq!(
        flags(VmClock {
            notifies: true,
            ..base
        }),
        1 << 9
    );
    let generation = VmClock {
        vm_generation: Some(u64::MAX),
        ..base
    };
    assert_eq!(
        generation.emit()[0x64..],
        [0, 0, 0, 0, 255, 255, 255, 255, 255, 255, 255, 255]
    );
}

#[test]
fn v4_each_wrong_field_is_named() {
    let size = |found, most| ParseError::Size {
        structure: STRUCTURE,
        found,
        least: 32,
        most,
    };
    let range = |field, found, most| ParseError::OutOfRange {
        structure: STRUCTURE,
        field,
        found,
        most,
    };
    for (bytes, error) in [
        (
            with(0, *b"PVPT"),
            ParseError::Magic {
                structure: STRUCTURE,
                found: 0x5450_5650,
                expected: MAGIC,
            },
        ),
        (with(4, [0x1F]), size(0x1F, 0x70)),
        (with(4, [0x71]), size(0x71, 0x70)),
        (
            with(8, [2]),
            ParseError::Version {
                structure: STRUCTURE,
                found: 2,
                known: 1,
            },
        ),
        (with(0x0B, [5]), range("time_type", 5, 2)),
        (
            with(0x0C, [7]),
            ParseError::BeingWritten {
                structure: STRUCTURE,
                sequence: 7,
            },
        ),
        (with(0x27, [64]), range("counter_period_shift", 64, 63)),
        (
            with(0x30, [0; 8]),
            ParseError::Zero {
                structure: STRUCTURE,
                field: "counter_period_frac_sec",
            },
        ),
    ] {
        assert_eq!(VmClock::parse(&bytes), Err(error));
    }
    assert_eq!(VmClock::parse(&value().emit()), Ok(value()));
    assert_eq!(
        VmClock::parse(&value().emit()[..0x1F]),
        Err(ParseError::TooShort {
            structure: STRUCTURE,
            needed_bytes: 32,
            actual_bytes: 31
        })
    );
}

#[test]
fn v4_a_size_larger_than_the_mapping_is_refused() {
    let page = VmClock {
        region_bytes: 0x1000,
        ..value()
    };
    let mut region = [0xa5; 0x1000];
    region[..SIZE_BYTES].copy_from_slice(&page.emit());
    assert_eq!(VmClock::parse(&region), Ok(page));
    assert_eq!(
        VmClock::parse(&region[..0xFFF]),
        Err(ParseError::Size {
            structure: STRUCTURE,
            found: 0x1000,
            least: 32,
            most: 0xFFF
        })
    );
}

#[test]
fn v5_flags_gate_fields() {
    let clock = VmClock::parse(&with(0x18, [0; 8])).unwrap();
    let reference = clock.reference.unwrap();
    assert_eq!(reference.period_esterror_frac_sec, None);
    assert_eq!(reference.period_maxerror_frac_sec, None);
    assert_eq!(
        (reference.time_esterror_ns, reference.time_maxerror_ns),
        (None, None)
    );
    assert_eq!((clock.tai_offset_sec, clock.vm_generation), (None, None));
    assert!(!clock.monotonic && !clock.notifies);
    assert_eq!(clock.next_disruption, Disruption::None);
}

#[test]
fn v5_fields_beyond_the_size_are_absent() {
    let parse = |size: u8| VmClock::parse(&with(4, [size])).unwrap();
    assert_eq!(parse(0x70).vm_generation, Some(9));
    assert_eq!(parse(0x6F).vm_generation, None);
    assert_eq!(parse(0x68).reference.unwrap().time_maxerror_ns, Some(1000));
    assert_eq!(parse(0x67).reference.unwrap().time_maxerror_ns, None);
    assert_eq!(parse(0x60).reference.unwrap().time_esterror_ns, Some(40));
    assert_eq!(parse(0x5F).reference.unwrap().time_esterror_ns, None);
    assert!(parse(0x58).reference.is_some());
    assert!(parse(0x57).reference.is_none());
    assert_eq!(parse(0x28).tai_offset_sec, Some(-37));
    let least = parse(0x20);
    assert_eq!(least.disruption_marker, 5);
    assert_eq!(
        (least.tai_offset_sec, least.status),
        (None, ClockStatus::UNKNOWN)
    );
    assert_eq!(least.leap_indicator, LeapIndicator::NONE);
}

#[test]
fn v6_shifts_up_to_63_and_no_more() {
    assert!(Period::new(NonZeroU64::MAX, 63).is_some());
    assert_eq!(Period::new(NonZeroU64::MAX, 64), None);
    let period = Period::new(NonZeroU64::MAX, 63).unwrap();
    assert_eq!((period.frac_sec(), period.shift()), (NonZeroU64::MAX, 63));
}

#[test]
fn v14_the_smeared_time_types_are_refused() {
    for code in 3..=255u8 {
        assert!(matches!(
            VmClock::parse(&with(0x0B, [code])),
            Err(ParseError::OutOfRange {
                field: "time_type",
                ..
            })
        ));
    }
    for (code, time_type) in [TimeType::Utc, TimeType::Tai, TimeType::Monotonic]
        .iter()
        .enumerate()
    {
        let clock = VmClock::parse(&with(0x0B, [u8::try_from(code).unwrap()])).unwrap();
        assert_eq!(clock.time_type, *time_type);
    }
}

#[test]
fn a_clock_without_counter_needs_no_period() {
    let clock = VmClock {
        vm_generation: Some(1),
        notifies: true,
        ..VmClock::without_time(0x1000)
    };
    let mut region = std::vec![0; 0x1000];
    region[..SIZE_BYTES].copy_from_slice(&clock.emit());
    assert_eq!(region[0x0A], 0xFF);
    assert_eq!(VmClock::parse(&region), Ok(clock));
}

fn any_reference() -> impl Strategy<Value = Reference> {
    let errors = any::<[Option<u64>; 4]>();
    let period = (any::<NonZeroU64>(), 0..64u8);
    (0..255u8, any::<[u64; 3]>(), period, errors).prop_map(|(counter, words, period, errors)| {
        Reference {
            counter_id: CounterId(counter),
            counter_value: words[0],
            period: Period::new(period.0, period.1).unwrap(),
            period_esterror_frac_sec: errors[0],
            period_maxerror_frac_sec: errors[1],
            time_sec: words[1],
            time_frac_sec: words[2],
            time_esterror_ns: errors[2],
            time_maxerror_ns: errors[3],
        }
    })
}

fn any_clock() -> impl Strategy<Value = VmClock> {
    const DISRUPTIONS: &[Disruption] = &[Disruption::None, Disruption::Soon, Disruption::Imminent];
    const TYPES: &[TimeType] = &[TimeType::Utc, TimeType::Tai, TimeType::Monotonic];
    (
        (
            0x70u32..,
            any::<u64>(),
            proptest::sample::select(DISRUPTIONS),
        ),
        (any::<[u8; 3]>(), proptest::sample::select(TYPES)),
        (
            any::<[bool; 2]>(),
            any::<Option<i16>>(),
            any::<Option<u64>>(),
        ),
        proptest::option::of(any_reference()),
    )
        .prop_map(
            |(head, (codes, time_type), (flags, tai, generation), reference)| VmClock {
                region_bytes: head.0,
                disruption_marker: head.1,
                next_disruption: head.2,
                status: ClockStatus(codes[0]),
                time_type,
                reference,
                monotonic: flags[0],
                tai_offset_sec: tai,
                leap_indicator: LeapIndicator(codes[1]),
                smearing_hint: SmearingHint(codes[2]),
                vm_generation: generation,
                notifies: flags[1],
            },
        )
        .boxed()
}

proptest! {
    #[test]
    fn any_value_round_trips(clock in any_clock()) {
        prop_assert_eq!(clock.layout().validate(usize::MAX), Ok(clock));
    }

    #[test]
    fn any_bytes_parse_or_are_refused(
        body: [u8; SIZE_BYTES],
        length in 0..=SIZE_BYTES,
        tame in proptest::option::weighted(0.9, (0..=SIZE_BYTES, 0..5u8)),
    ) {
        let mut bytes = Vec::from(body);
        if let Some((size, time_type)) = tame {
            bytes[..0x0C].copy_from_slice(&value().emit()[..0x0C]);
            bytes[4..8].copy_from_slice(&u32::try_from(size).unwrap().to_le_bytes());
            bytes[0x0B] = time_type;
            bytes[0x0C] &= !1;
            bytes[0x27] &= 0x7F;
        }
        bytes.truncate(length);
        if let Ok(clock) = VmClock::parse(&bytes) {
            // What was understood says the same when it is said again.
            prop_assert_eq!(clock.layout().validate(usize::MAX), Ok(clock));
            prop_assert_eq!(&clock.emit()[0x10..0x18], &bytes[0x10..0x18]);
        }
    }
}
