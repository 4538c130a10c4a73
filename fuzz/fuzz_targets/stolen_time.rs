//! Any bytes as a stolen-time structure: refused, or the same 16 bytes again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pvtime::abi::ParseError;
use pvtime::abi::stolen_time::{MEANINGFUL_BYTES, StolenTime};

fuzz_target!(|bytes: &[u8]| {
    match StolenTime::parse(bytes) {
        Ok(value) => {
            assert_eq!(value.emit()[..MEANINGFUL_BYTES], bytes[..MEANINGFUL_BYTES]);
            assert!(
                value.emit()[MEANINGFUL_BYTES..]
                    .iter()
                    .all(|byte| *byte == 0)
            );
        }
        Err(ParseError::TooShort { .. }) => assert!(bytes.len() < MEANINGFUL_BYTES),
        Err(_) => assert!(bytes[..8].iter().any(|byte| *byte != 0)),
    }
});
