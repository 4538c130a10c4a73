//! Chains of migrations against exact live time, and states that no history leads to.

use super::*;
use crate::scale::exact::{cntfrq, int, magnitude, power};
use num_bigint::BigInt;
use proptest::prelude::*;
use std::vec::Vec;

fn hz(hz: u64) -> Frequency {
    Frequency::from_hz(hz).unwrap()
}

/// A small generator of numbers (splitmix64), so that a chain is its seed.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// 0 to `below - 1`, small values as often as large ones.
    fn scattered(&mut self, below: u64) -> u64 {
        let shift = self.next() % 64;
        (self.next() >> shift) % below
    }
}

/// Live time of a VM in unbounded integers, in units of `1 / scale` seconds, where `scale` is a
/// multiple of every host's frequency: nothing is ever rounded.
struct Exact {
    scale: BigInt,
    live: BigInt,
}

impl Exact {
    fn new(hosts: &[Frequency]) -> Self {
        let gcd = |mut a: BigInt, mut b: BigInt| {
            while b != BigInt::ZERO {
                (a, b) = (b.clone(), a % b);
            }
            a
        };
        let lcm = |a: BigInt, b: &Frequency| {
            let b = int(b.hz());
            &a / gcd(a.clone(), b.clone()) * b
        };
        Self {
            scale: hosts.iter().fold(int(1), lcm),
            live: BigInt::ZERO,
        }
    }

    fn run(&mut self, ticks: u64, native: Frequency) {
        self.live += int(ticks) * (&self.scale / int(native.hz()));
    }

    /// `|pv - live|` is at most one tick of `native` and one of `pv`: all times `scale * native`.
    fn check(&self, pv_count: u64, native: Frequency, pv: Frequency) {
        let distance = int(pv_count) * &self.scale - &self.live * int(pv.hz());
        let scaled = magnitude(&distance) * int(native.hz());
        let bound = &self.scale * (int(pv.hz()) + int(native.hz()));
        assert!(
            scaled <= bound,
            "{} native ticks of {native} and PV ticks of {pv} apart, times 1000",
            scaled * 1000 / bound
        );
    }
}

/// Migrates `hops` times between `hosts`, running up to `longest_s` seconds on each, and checks at
/// each resume, first read and stop what the guest reads. Returns its last reading.
fn chain(seed: u64, hosts: &[Frequency], pv: Frequency, hops: u32, longest_s: u64) -> u64 {
    let mut numbers = Numbers(seed);
    let mut exact = Exact::new(hosts);
    let mut live = LiveState::start(hosts[0], pv).unwrap();
    let mut count = GuestCount(0);
    let mut last_read = 0;
    for _ in 0..hops {
        let ticks = numbers.scattered(longest_s * live.native().hz());
        let first = count.0 + live.hold_ticks(count).unwrap();
        count.0 += ticks;
        exact.run(ticks, live.native());
        if count.0 >= first {
            let first_pv = live.pv_at(GuestCount(first)).unwrap();
            assert!(
                first_pv >= last_read,
                "from {last_read} back to {first_pv}, seed {seed}"
            );
            let pv_count = live.pv_at(count).unwrap();
            exact.check(pv_count, live.native(), pv);
            last_read = pv_count;
        }
        live = live.stopped_at(count).unwrap();
        let choice = usize::try_from(numbers.next() % hosts.len() as u64).unwrap();
        (live, count) = live.rebase(count, hosts[choice]).unwrap();
        live = LiveState::from_parts(live.parts()).unwrap();
        live.check_seen(count).unwrap();
        exact.check(live.pv_at(count).unwrap(), live.native(), pv);
    }
    last_read
}

#[test]
fn l3_a_million_migrations_stay_within_one_native_and_one_pv_tick() {
    let hosts = [
        1,
        2,
        3,
        19_200_000,
        24_000_000,
        25_000_000,
        31_250_000,
        54_000_000,
        62_500_000,
        99_999_989,
        100_000_000,
        1_000_000_000,
        1_049_999_999,
        2_500_000_001,
        4_000_000_000,
        4_294_967_295,
    ]
    .map(hz);
    let seen = chain(1, &hosts, hz(1_000_000_000), 1_000_000, 1_000);
    assert!(seen > 1_000_000_000, "the VM ran");
}

#[test]
fn l3_random_hosts_and_pv_frequencies_stay_within_the_bound() {
    for seed in 0..200 {
        let mut numbers = Numbers(seed);
        let mut rate = || hz(numbers.scattered(u64::from(u32::MAX)) + 1);
        let hosts: Vec<_> = (0..8).map(|_| rate()).collect();
        let pv = hz(rate().hz().max(1_000_000));
        chain(seed, &hosts, pv, 500, 100);
    }
}

/// Two hosts between which every migration would gain a sixth of a second, were the count raised
/// until the guest does not go back.
#[test]
fn l3_no_pair_of_hosts_makes_the_clock_gain() {
    let (two, three, pv) = (hz(2), hz(3), hz(6));
    let mut live = LiveState::start(two, pv).unwrap();
    let mut count = GuestCount(1);
    for _ in 0..1_000 {
        live = live.stopped_at(count).unwrap();
        (live, count) = live.rebase(count, three).unwrap();
        count.0 += 2;
        live = live.stopped_at(count).unwrap();
        (live, count) = live.rebase(count, two).unwrap();
    }
    // Half a second and a thousand times two thirds.
    let ideal = live.ideal_at(count).unwrap();
    assert!(
        ideal
            .distance_from(LiveTime::from_parts(3 + 4_000, 0))
            .magnitude()
            .ticks()
            == 0
    );
    assert!(live.distance_at(count).unwrap().magnitude().ticks() <= 3);
    assert!(live.hold_ticks(count).unwrap() <= 2);
}

#[test]
fn counts_that_do_not_fit_are_refused() {
    let live = LiveState::start(hz(1), hz(4)).unwrap();
    let quarter = GuestCount(1 << 62);
    assert!(matches!(
        live.pv_at(quarter),
        Err(LiveError::Scale(ScaleError::PvCountTooLarge { .. }))
    ));
    let last = GuestCount((1 << 62) - 1);
    assert!(live.stopped_at(last).is_ok());
    assert!(live.rebase(last, hz(4)).is_ok());
    assert!(matches!(
        live.rebase(last, hz(5)),
        Err(LiveError::Scale(ScaleError::Unreachable { .. }))
    ));
    assert!(matches!(
        live.rebase(last, hz(1 << 32)),
        Err(LiveError::Scale(ScaleError::AboveCntfrq { .. }))
    ));
    let (rebased, count) = live.rebase(GuestCount(100), hz(7)).unwrap();
    assert_eq!(count, GuestCount(700));
    let early = GuestCount(699);
    let error = LiveError::BeforeBase {
        count: early,
        base: count,
    };
    assert_eq!(rebased.ideal_at(early), Err(error));
    assert_eq!(rebased.distance_at(early), Err(error));
}

#[test]
fn parts_that_contradict_each_other_are_refused() {
    let (live, _) = LiveState::start(hz(24_000_000), hz(1_000_000_000))
        .unwrap()
        .stopped_at(GuestCount(77))
        .unwrap()
        .rebase(GuestCount(77), hz(1_000_000))
        .unwrap();
    let parts = live.parts();
    assert_eq!(LiveState::from_parts(parts), Ok(live));
    assert_eq!(live.base_count, GuestCount(3));
    let shifted = LiveParts {
        base_count: GuestCount(4),
        ..parts
    };
    assert_eq!(
        LiveState::from_parts(shifted),
        Err(LiveError::Inconsistent {
            what: "the first count"
        })
    );
    let ahead = LiveParts {
        seen_pv: 3_208 + 500_000_002,
        ..parts
    };
    assert_eq!(
        LiveState::from_parts(ahead)
            .unwrap()
            .check_seen(GuestCount(3)),
        Err(LiveError::Inconsistent {
            what: "the highest count read"
        })
    );
    let late = LiveParts {
        base: LiveTime::from_parts(u64::MAX, u64::MAX),
        ..parts
    };
    assert!(LiveState::from_parts(late).is_err());
}

proptest! {
    #[test]
    fn a_change_of_host_is_nearest_and_held_until_it_is_not_backwards(
        from in cntfrq(),
        to in cntfrq(),
        pv in cntfrq(),
        ran in any::<u64>(),
        shift in 32u32..64,
    ) {
        let (from, to, pv) = (from.into(), to.into(), pv.into());
        let live = LiveState::start(from, pv)?;
        let count = GuestCount(ran >> shift);
        let seen = live.pv_at(count)?;
        let ideal = live.ideal_at(count)?;
        let (live, count) = live.stopped_at(count)?.rebase(count, to)?;

        prop_assert_eq!(live.ideal_at(count)?, ideal, "no time passes");
        let step = live.mapping().to_pv.step();
        let fixed = |live: LiveTime| int(live.ticks()) * power(64) + int(live.fraction());
        let position = live.mapping().to_pv.position(count.0)?;
        let off = magnitude(&(fixed(position) - fixed(ideal)));
        prop_assert!(off * 2 <= int(step), "not the nearest count");

        let hold = live.hold_ticks(count)?;
        let first = GuestCount(count.0 + hold);
        prop_assert!(live.pv_at(first)? >= seen, "backwards");
        if hold > 0 {
            prop_assert!(live.pv_at(GuestCount(first.0 - 1))? < seen, "held too long");
        }
        // Less than two ticks here and half a tick there, and what the truncated multiplier is off.
        let allowed = 2 + to.hz().div_ceil(2 * from.hz());
        prop_assert!(hold <= allowed, "{hold} of {allowed}");
    }
}
