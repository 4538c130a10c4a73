//! Any bytes as a live-physical-time structure: refused, or the same bytes again; and any mapping
//! in them is one that arithmetic can be done with.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pvtime::abi::live_physical_time::{LivePhysicalTime, SIZE_BYTES};
use pvtime::scale::{CompareValue, TranslatedDeadline};

const SEQUENCE: core::ops::Range<usize> = 8..16;

fuzz_target!(|input: (&[u8], u64)| {
    let (bytes, count) = input;
    let Ok(value) = LivePhysicalTime::parse(bytes) else {
        return;
    };
    let mut emitted = value.emit();
    assert_eq!(emitted[SEQUENCE], [0; 8]);
    emitted[SEQUENCE].copy_from_slice(&bytes[SEQUENCE]);
    assert_eq!(emitted, bytes[..SIZE_BYTES]);

    if let Ok(pv) = value.to_pv.apply(count) {
        let first = value.to_pv.first_reaching(pv).unwrap();
        assert!(first <= count && value.to_pv.apply(first) == Ok(pv));
        assert_eq!(value.to_pv.position(count).unwrap().ticks(), pv);
    }
    // To itself: the smallest count with the same PV count.
    if let TranslatedDeadline::At(moved) = value.translate(CompareValue(count), &value) {
        assert!(moved.0 <= count);
        assert_eq!(
            value.pv_deadline(moved),
            value.pv_deadline(CompareValue(count))
        );
    }
});
