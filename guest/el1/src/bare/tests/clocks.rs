//! Counters and the clock on them.

use pvtime::guest::Counter;
use pvtime::guest::arm64::{PhysicalCounter, VirtualCounter, counter_frequency};

use super::{NotPassed, Verdict, absent, ensure, failed, message, test};
use crate::bare::interfaces;

const READS: usize = 10_000;

test!(the_physical_counter_is_the_virtual_one);
/// T2: between two reads of the virtual counter the physical one shows a count between theirs.
fn the_physical_counter_is_the_virtual_one() -> Verdict {
    let mut widest = 0;
    for _ in 0..READS / 10 {
        let before = VirtualCounter.read_ordered();
        let physical = PhysicalCounter.read_ordered();
        let after = VirtualCounter.read_ordered();
        ensure!(
            (before..=after).contains(&physical),
            "{physical} is not between {before} and {after}"
        );
        widest = widest.max(after - before);
    }
    Ok(message(format_args!("within at most {widest} ticks")))
}

test!(counters_never_go_back_and_move);
fn counters_never_go_back_and_move() -> Verdict {
    never_goes_back("virtual", &VirtualCounter)?;
    never_goes_back("physical", &PhysicalCounter)?;
    Ok(message(format_args!("{READS} reads of each")))
}

fn never_goes_back(name: &str, counter: &impl Counter) -> Result<(), NotPassed> {
    let first = counter.read_ordered();
    let mut last = first;
    for _ in 0..READS {
        let next = counter.read_ordered();
        ensure!(next >= last, "{name}: {next} after {last}");
        last = next;
    }
    ensure!(last > first, "{name} stands at {first}");
    Ok(())
}

test!(live_time_follows_the_counter_by_its_mapping);
/// L12 and the reader's side of L1: what the clock shows between two reads of the counter lies
/// between what the mapping makes of these two, and its rate is what it says.
fn live_time_follows_the_counter_by_its_mapping() -> Verdict {
    let Some(live) = interfaces::live() else {
        return Err(absent(format_args!("no live physical time")));
    };
    let mapping = live
        .mapping()
        .map_err(|error| failed(format_args!("{error}")))?;
    let to_pv = |count| {
        let pv = mapping.to_pv.apply(count);
        pv.map_err(|error| failed(format_args!("{error}")))
    };
    let mut last = 0;
    for _ in 0..READS {
        let before = VirtualCounter.read_ordered();
        let now = live
            .now()
            .map_err(|error| failed(format_args!("{error}")))?;
        let after = VirtualCounter.read_ordered();
        let range = to_pv(before)?..=to_pv(after)?;
        ensure!(range.contains(&now), "{now} is not in {range:?}");
        ensure!(now >= last, "{now} after {last}");
        last = now;
    }
    let native_hz = mapping.native_frequency_hz.get();
    let register_hz = counter_frequency().map_or(0, pvtime::scale::Frequency::hz);
    ensure!(
        u64::from(native_hz) == register_hz,
        "the mapping is from {native_hz} Hz, the register says {register_hz} Hz"
    );
    Ok(message(format_args!(
        "{native_hz} Hz to {} Hz",
        mapping.pv_frequency_hz
    )))
}
