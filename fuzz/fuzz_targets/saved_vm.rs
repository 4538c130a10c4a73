//! Any bytes as a VM's record: refused, or the same bytes again; and what is accepted can be
//! restored, resumed and saved without a panic.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pvtime::abi::live_physical_time::LivePhysicalTime;
use pvtime::host::Cause;
use pvtime::host::live::LiveState;
use pvtime::host::saved::SavedVm;
use pvtime::host::timeline::{Config, Event, Timeline};
use pvtime::scale::{Frequency, LiveTime};

mod sealed;

/// Puts the guest's first count on the host where its live time says, which random bytes hardly do.
fn make_live_consistent(record: &mut [u8]) {
    let word = |offset: usize| u64::from_le_bytes(record[offset..offset + 8].try_into().unwrap());
    let low = |word: u64| word & 0xffff_ffff;
    let (native_hz, count, pv_hz) = (low(word(16)), word(32), low(word(100)));
    let base = LiveTime::from_parts(word(112) >> 16, word(120));
    let [Ok(native), Ok(pv)] = [native_hz, pv_hz].map(Frequency::from_hz) else {
        return;
    };
    if let Ok(Ok(first)) = LivePhysicalTime::between(native, pv).map(|it| it.to_pv.nearest(base)) {
        let mut set = |offset: usize, word: u64| {
            record[offset..offset + 8].copy_from_slice(&word.to_le_bytes());
        };
        set(16, native_hz);
        set(32, first.saturating_add(count >> 32));
        set(104, first);
        set(112, base.ticks());
    }
}

fuzz_target!(|bytes: &[u8]| {
    if let Ok(saved) = SavedVm::parse(bytes) {
        assert_eq!(saved.emit(), bytes);
    }
    let mut bytes = bytes.to_vec();
    if bytes.len().is_multiple_of(2) {
        bytes.resize(SavedVm::SIZE_BYTES, 0);
        make_live_consistent(&mut bytes);
    }
    let sealed = sealed::sealed::<{ SavedVm::SIZE_BYTES }>(&bytes, 1);
    let Ok(saved) = SavedVm::parse(&sealed) else {
        return;
    };
    assert_eq!(saved.emit(), sealed);
    if let Some(parts) = saved.live {
        let live = LiveState::from_parts(parts).unwrap();
        let distance = live
            .distance_at(parts.base_count)
            .unwrap()
            .magnitude()
            .ticks();
        assert!(
            distance <= parts.pv.hz() / parts.native.hz() / 2 + 1,
            "not the nearest count"
        );
    }

    let config = Config {
        counters: saved.counters,
        live_physical_time: saved.live.map(|live| live.pv),
        paused_time: saved.paused_time.is_some(),
        ..Config::default()
    };
    let Ok(vm) = Timeline::new(config) else {
        return;
    };
    let restore = Event::Restore {
        saved: &saved,
        cause: Cause::Snapshot,
    };
    if let Ok(step) = vm.step(saved.sample, restore) {
        let again = step.timeline.save(saved.sequences).unwrap();
        assert_eq!(again.count, saved.count);
        let again = SavedVm::parse(&again.emit()).unwrap();
        assert_eq!(
            (again.live, again.paused_time),
            (saved.live, saved.paused_time)
        );
        if let Ok(step) = step.timeline.step(saved.sample, Event::Resume) {
            assert_eq!(step.adjustment.unwrap().after.guest, saved.count);
        }
    }
});
