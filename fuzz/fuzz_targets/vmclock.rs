//! Any bytes as a VMClock structure: refused, or a value that says the same when it is written.
#![no_main]

use core::ops::Range;
use libfuzzer_sys::fuzz_target;
use pvtime::abi::vmclock::{SIZE_BYTES, VmClock, VmClockLayout};
use zerocopy::FromBytes;

const SEQUENCE: Range<usize> = 0x0c..0x10;
const FLAGS: Range<usize> = 0x18..0x20;
/// Magic, size, version, time type, disruption marker: there in every structure.
const ALWAYS: [Range<usize>; 5] = [0x00..0x04, 0x04..0x08, 0x08..0x0a, 0x0b..0x0c, 0x10..0x18];
/// Counter, its value, period and its shift, time: there with a reference.
const WITH_REFERENCE: [Range<usize>; 6] = [
    0x0a..0x0b,
    0x27..0x28,
    0x28..0x30,
    0x30..0x38,
    0x48..0x50,
    0x50..0x58,
];
/// Status, hint, TAI offset, leap indicator, error bounds, generation: may be absent, then zero.
const OPTIONAL: [Range<usize>; 9] = [
    0x22..0x23,
    0x23..0x24,
    0x24..0x26,
    0x26..0x27,
    0x38..0x40,
    0x40..0x48,
    0x58..0x60,
    0x60..0x68,
    0x68..0x70,
];

fuzz_target!(|input: (&[u8], u64)| {
    let (bytes, counter) = input;
    let Ok(value) = VmClock::parse(bytes) else {
        return;
    };
    let mut emitted = value.emit();
    assert_eq!(emitted[SEQUENCE], [0; 4]);
    emitted[SEQUENCE].copy_from_slice(&2u32.to_le_bytes());
    // The size that the structure says is that of its region.
    let (layout, _) = VmClockLayout::read_from_prefix(&emitted).unwrap();
    assert_eq!(layout.validate(value.region_bytes as usize), Ok(value));

    let mut given = [0; SIZE_BYTES];
    for (to, from) in given.iter_mut().zip(bytes) {
        *to = *from;
    }
    let same = |field: &Range<usize>| emitted[field.clone()] == given[field.clone()];
    let zero = |field: &Range<usize>| emitted[field.clone()].iter().all(|byte| *byte == 0);
    assert!(ALWAYS.iter().all(same));
    assert!(value.reference.is_none() || WITH_REFERENCE.iter().all(same));
    assert!(OPTIONAL.iter().all(|field| same(field) || zero(field)));
    let flags = |bytes: &[u8]| u64::from_le_bytes(bytes[FLAGS].try_into().unwrap());
    assert_eq!(flags(&emitted) & !flags(&given), 0, "a flag out of nothing");

    if let Some(reference) = value.reference {
        let ticks = counter.wrapping_sub(reference.counter_value);
        let span = reference.period.elapsed(ticks);
        assert!(ticks == u64::MAX || reference.period.elapsed(ticks + 1) >= span);
    }
});
