//! Any bytes as a vCPU's record: refused, or the same bytes again; and its timers can be taken to
//! another host without a panic.
#![no_main]

use core::num::NonZeroU32;
use libfuzzer_sys::fuzz_target;
use pvtime::abi::live_physical_time::LivePhysicalTime;
use pvtime::host::saved::SavedVcpu;
use pvtime::host::timers::Translation;

mod sealed;

fuzz_target!(|input: (&[u8], [NonZeroU32; 3], bool, bool)| {
    let (bytes, rates, has_run, has_ecv) = input;
    if let Ok(saved) = SavedVcpu::parse(bytes) {
        assert_eq!(saved.emit(), bytes);
    }
    let sealed = sealed::sealed::<{ SavedVcpu::SIZE_BYTES }>(bytes, 2);
    let Ok(saved) = SavedVcpu::parse(&sealed) else {
        return;
    };
    assert_eq!(saved.emit(), sealed);

    let [from, to, pv] = rates.map(Into::into);
    let from = LivePhysicalTime::between(from, pv).unwrap();
    let to = LivePhysicalTime::between(to, pv).unwrap();
    let moved = Translation {
        from,
        to,
        has_run,
        has_ecv,
    }
    .apply(&saved.timers);
    let saved = SavedVcpu {
        timers: moved.timers,
        ..saved
    };
    assert_eq!(SavedVcpu::parse(&saved.emit()), Ok(saved));
});
