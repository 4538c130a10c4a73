use super::*;
use crate::abi::ParseError;
use crate::abi::vmclock::CounterId;
use crate::scale::{Frequency, Rounding};
use crate::seqlock::{ReadError, SequenceWriter, WriteWords};
use core::cell::Cell;
use core::sync::atomic::AtomicU32;
use proptest::prelude::*;

/// A counter that is set, and that moves by a step with each unordered read.
#[derive(Clone, Copy, Debug)]
struct Set<'a> {
    count: &'a Cell<u64>,
    step: u64,
}

impl Counter for Set<'_> {
    fn read_ordered(&self) -> u64 {
        self.count.get()
    }

    fn read_unordered(&self) -> u64 {
        self.count.set(self.count.get() + self.step);
        self.count.get()
    }

    fn id(&self) -> CounterId {
        CounterId::ARM_VCNT
    }
}

/// The period of a rate, as the structure has it.
fn period(hz: u64) -> Period {
    Period::of(Frequency::from_hz(hz).unwrap(), Rounding::Down).unwrap()
}

/// TAI second 1000 at count 5000 of 100 MHz.
fn clock() -> VmClock {
    let region_bytes = u32::try_from(SIZE_BYTES).unwrap();
    VmClock {
        status: ClockStatus::SYNCHRONIZED,
        time_type: TimeType::Tai,
        tai_offset_sec: Some(-37),
        disruption_marker: 3,
        reference: Some(Reference {
            counter_id: CounterId::ARM_VCNT,
            counter_value: 5000,
            period: period(100_000_000),
            period_esterror_frac_sec: None,
            period_maxerror_frac_sec: None,
            time_sec: 1000,
            time_frac_sec: 0,
            time_esterror_ns: None,
            time_maxerror_ns: None,
        }),
        ..VmClock::without_time(region_bytes)
    }
}

fn with_reference(change: impl FnOnce(&mut Reference)) -> VmClock {
    let mut clock = clock();
    change(clock.reference.as_mut().unwrap());
    clock
}

/// What a reader makes of a published clock at a count.
fn now(clock: &VmClock, count: u64) -> Result<RealTime, GuestError> {
    let memory = [const { AtomicU32::new(0xa5a5_a5a5) }; WORDS];
    SequenceWriter::start(SHAPE)
        .publish(&memory[..], &clock.emit())
        .unwrap();
    let count = Cell::new(count);
    VmClockReader::attach(
        &memory[..],
        Set {
            count: &count,
            step: 0,
        },
    )?
    .now()
}

#[test]
fn v6_time_goes_on_from_the_reference_and_back_from_it() {
    let later = now(&clock(), 5000 + 150_000_000).unwrap();
    assert_eq!(later.time.to_ns(Rounding::Nearest), Ok(1_001_500_000_000));
    let earlier = now(&clock(), 4999).unwrap();
    assert_eq!(earlier.time.to_ns(Rounding::Nearest), Ok(999_999_999_990));
    let wrapped = with_reference(|reference| reference.counter_value = u64::MAX - 49);
    assert_eq!(
        now(&wrapped, 50).unwrap().time.to_ns(Rounding::Nearest),
        Ok(1_000_000_001_000)
    );
    assert_eq!(later.disruption_marker, 3);
}

#[test]
fn v6_a_time_out_of_range_is_an_error() {
    let start = with_reference(|reference| reference.time_sec = 0);
    assert_eq!(now(&start, 4999), Err(ScaleError::TimestampTooEarly.into()));
    let end = with_reference(|reference| reference.time_sec = u64::MAX);
    assert_eq!(
        now(&end, 5000 + 100_000_001),
        Err(ScaleError::TimestampTooLate.into())
    );
}

#[test]
fn v7_errors_grow_with_the_distance_from_the_reference() {
    let exact = now(&clock(), 6000).unwrap();
    assert_eq!((exact.esterror_ns, exact.maxerror_ns), (None, None));
    // One millionth of the period: 1 us a second.
    let rate = period(100_000_000).frac_sec().get() / 1_000_000;
    let bounded = with_reference(|reference| {
        reference.period_maxerror_frac_sec = Some(rate);
        reference.time_maxerror_ns = Some(40);
        reference.period_esterror_frac_sec = Some(0);
        reference.time_esterror_ns = Some(7);
    });
    let second = now(&bounded, 5000 + 100_000_000).unwrap();
    assert_eq!(
        (second.esterror_ns, second.maxerror_ns),
        (Some(7), Some(1040))
    );
    let before = now(&bounded, 5000 - 100).unwrap();
    assert_eq!(before.maxerror_ns, Some(41), "rounded up");
    let half_known = with_reference(|reference| reference.time_maxerror_ns = Some(40));
    assert_eq!(now(&half_known, 6000).unwrap().maxerror_ns, None);
}

#[test]
fn v4_a_clock_that_the_host_does_not_vouch_for_is_not_used() {
    for (status, trusted) in [
        (0, false),
        (1, false),
        (2, true),
        (3, true),
        (4, false),
        (5, false),
    ] {
        let status = ClockStatus(status);
        let result = now(&VmClock { status, ..clock() }, 5000);
        assert_eq!(result.is_ok(), trusted);
        if !trusted {
            assert_eq!(result, Err(GuestError::Untrusted { status }));
        }
    }
}

#[test]
fn no_time_and_another_counter_are_told_apart() {
    let timeless = VmClock {
        reference: None,
        ..clock()
    };
    assert_eq!(now(&timeless, 5000), Err(GuestError::NoTime));
    let (published, ours) = (CounterId::X86_TSC, CounterId::ARM_VCNT);
    let tsc = with_reference(|reference| reference.counter_id = published);
    assert_eq!(
        now(&tsc, 5000),
        Err(GuestError::OtherCounter { published, ours })
    );
}

#[test]
fn v4_a_structure_larger_than_its_mapping_is_refused() {
    let large = VmClock {
        region_bytes: 0x1000,
        ..clock()
    };
    let (found, least, most) = (0x1000, 0x20, SIZE_BYTES);
    let structure = crate::abi::Structure::VmClock;
    assert_eq!(
        now(&large, 0),
        Err(ParseError::Size {
            structure,
            found,
            least,
            most
        }
        .into())
    );
}

#[test]
fn v8_utc_is_tai_plus_the_offset() {
    let utc = now(&clock(), 5000 + 50_000_000).unwrap().utc().unwrap();
    assert_eq!((utc.sec, utc.leap_second), (963, false));
    assert_eq!(
        utc.frac_sec >> 32,
        (1 << 31) - 1,
        "half a second, rounded down"
    );
}

#[test]
fn v8_without_a_way_to_utc_there_is_none() {
    let error = |time_type| Err(GuestError::NotUtc { time_type });
    let tai = VmClock {
        tai_offset_sec: None,
        ..clock()
    };
    assert_eq!(now(&tai, 5000).unwrap().utc(), error(TimeType::Tai));
    let monotonic = VmClock {
        time_type: TimeType::Monotonic,
        ..clock()
    };
    assert_eq!(
        now(&monotonic, 5000).unwrap().utc(),
        error(TimeType::Monotonic)
    );
    let early = with_reference(|reference| reference.time_sec = 36);
    assert_eq!(
        now(&early, 5000).unwrap().utc(),
        Err(ScaleError::TimestampTooEarly.into())
    );
}

#[test]
fn v10_a_leap_second_after_the_reference_is_put_in() {
    let new_year_2017 = 1_483_228_800;
    let utc = VmClock {
        time_type: TimeType::Utc,
        leap_indicator: LeapIndicator::PRE_POS,
        ..with_reference(|reference| reference.time_sec = new_year_2017 - 1)
    };
    let at = |seconds: u64| {
        now(&utc, 5000 + seconds * 100_000_000 + 10)
            .unwrap()
            .utc()
            .unwrap()
    };
    assert_eq!((at(0).sec, at(0).leap_second), (new_year_2017 - 1, false));
    assert_eq!((at(1).sec, at(1).leap_second), (new_year_2017 - 1, true));
    assert_eq!((at(2).sec, at(2).leap_second), (new_year_2017, false));
}

#[test]
fn v3_patience_ends_a_wait_for_an_update() {
    let memory = [const { AtomicU32::new(0xa5a5_a5a5) }; WORDS];
    SequenceWriter::start(SHAPE)
        .publish(&memory[..], &clock().emit())
        .unwrap();
    let count = Cell::new(0);
    let reader = VmClockReader::attach(
        &memory[..],
        Set {
            count: &count,
            step: 10,
        },
    )
    .unwrap();
    memory[..].store(3, 3);
    let error = |attempts| {
        Err(ReadError::StaysOdd {
            sequence: 3,
            attempts,
        }
        .into())
    };
    assert_eq!(reader.with_patience_ticks(95).read(), error(10));

    let standing = VmClockReader {
        counter: Set {
            count: &count,
            step: 0,
        },
        ..reader
    };
    assert_eq!(standing.with_patience_ticks(95).read(), error(ATTEMPTS));
}

proptest! {
    #[test]
    fn v6_time_is_exact_to_2_to_the_minus_64_s(
        hz in 2..u64::from(u32::MAX),
        seconds in 0..1u64 << 30,
        offset in any::<i32>(),
    ) {
        let mut clock = with_reference(|reference| {
            reference.period = period(hz);
            reference.time_sec = 1 << 40;
            reference.counter_value = seconds;
        });
        clock.time_type = TimeType::Monotonic;
        let count = seconds.wrapping_add_signed(offset.into());
        let time = now(&clock, count)?.time;
        let (frac_sec, shift) = (i128::from(period(hz).frac_sec().get()), period(hz).shift());
        // Truncated towards the reference on both sides of it.
        let product = i128::from(offset) * frac_sec;
        let span = if product < 0 { -(-product >> shift) } else { product >> shift };
        let fixed = i128::from(time.sec()) << 64 | i128::from(time.frac_sec());
        prop_assert_eq!(fixed - (1 << 104), span);
    }
}
