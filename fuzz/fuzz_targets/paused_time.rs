//! Any bytes as a paused-time structure: refused, or the same bytes again in every field that has
//! a meaning.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pvtime::abi::paused_time::{FLAG_FROZEN, PausedTime, SIZE_BYTES};

const FLAGS: usize = 10;
const SEQUENCE: core::ops::Range<usize> = 12..16;
const RESERVED: core::ops::Range<usize> = 60..64;

fuzz_target!(|bytes: &[u8]| {
    let Ok(value) = PausedTime::parse(bytes) else {
        return;
    };
    let mut expected = [0xa5; SIZE_BYTES];
    expected.copy_from_slice(&bytes[..SIZE_BYTES]);
    let frozen = u16::from_le_bytes([bytes[FLAGS], bytes[FLAGS + 1]]) & FLAG_FROZEN;
    expected[FLAGS..FLAGS + 2].copy_from_slice(&frozen.to_le_bytes());
    expected[SEQUENCE].fill(0);
    expected[RESERVED].fill(0);
    assert_eq!(value.emit(), expected);
});
