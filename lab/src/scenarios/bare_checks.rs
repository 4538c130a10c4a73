//! What scenarios with the bare-metal guest ask of it and check alike.

use super::pauses::backwards_steps;
use crate::bare::{Bare, TIMERS, Tests};
use crate::report::{Check, Limit};
use anyhow::Result;
use guest_protocol::report::{Outcome, Spin, TimerState};
use guest_protocol::request::ArmTimer;

/// A timer that is this late by its own clock is lost: the emulator may not run for so long.
pub const PATIENCE_S: u64 = 2;

/// Arms timers with these delays: each on both timers, on one CPU and on the next. Where there are
/// more delays than CPUs, the later ones take the place of the first.
pub fn arm_all(
    guest: &mut impl Bare,
    cpus: u32,
    live: bool,
    delays_us: &[Option<i64>],
) -> Result<()> {
    for (number, delay_us) in (0_u32..).zip(delays_us) {
        for (which, timer) in (0_u32..).zip(TIMERS) {
            guest.arm(ArmTimer {
                cpu: (number + which) % cpus,
                timer,
                live,
                delay_us: *delay_us,
                // An expired timer stays expired, which its status shows: its interrupt would come
                // before anything can happen to it.
                masked: delay_us.is_some_and(i64::is_negative),
                period_us: None,
                put_off: false,
            })?;
        }
    }
    Ok(())
}

/// No timer was early or lost, and so many fired at least.
pub fn check_timers(timers: &[TimerState], fired_least: usize, what: &str) -> Vec<Check> {
    let is_lost = |timer: &&TimerState| timer.is_lost(PATIENCE_S * timer.frequency_hz);
    let lost: Vec<_> = timers.iter().filter(is_lost).collect();
    let wrong: Vec<_> = timers.iter().filter(|timer| timer.is_wrong()).collect();
    let fired = timers.iter().filter(|timer| timer.interrupts > 0).count();
    let latest_us = late_us(timers).into_iter().fold(0.0, f64::max);
    vec![
        count("early", wrong.len() as u64, "timers").with_detail(format!("{what}: {wrong:?}")),
        count("lost", lost.len() as u64, "timers").with_detail(format!("{what}: {lost:?}")),
        at_least("fired", fired, fired_least, "timers").with_detail(format!(
            "{what}: of {}; at most {latest_us:.0} us late",
            timers.len()
        )),
    ]
}

/// By how much each timer that fired was late.
pub fn late_us(timers: &[TimerState]) -> Vec<f64> {
    let late = |timer: &TimerState| {
        #[expect(clippy::cast_precision_loss, reason = "for people")]
        let us = timer.late_ticks()? as f64 / timer.frequency_hz as f64 * 1e6;
        Some(us)
    };
    timers.iter().filter_map(late).collect()
}

/// No counter that these CPUs read went backwards, on them or across them.
pub fn check_spins(
    name: &'static str,
    spins: &[Spin],
    least_cpus: usize,
    what: &str,
) -> Vec<Check> {
    let reads = spins.iter().map(|spin| spin.reads).sum::<u64>();
    let spinning = spins.iter().filter(|spin| spin.reads > 0).count();
    vec![
        count(name, backwards_steps(spins), "steps").with_detail(format!("{what}, {reads} reads")),
        at_least("spinning_cpus", spinning, least_cpus, "CPUs").with_detail(what),
    ]
}

/// None of the guest's own tests failed, and so many passed at least.
pub fn check_tests(tests: &Tests, least: usize, machine: &str) -> Vec<Check> {
    let failed = tests.count(Outcome::Failed) as u64;
    let absent = tests.list(Outcome::Absent);
    vec![
        count("tests_failed", failed, "tests").with_detail(tests.list(Outcome::Failed)),
        at_least("tests_passed", tests.count(Outcome::Passed), least, "tests")
            .with_detail(format!("{machine}; not there: {absent}")),
    ]
}

/// A count that has to be 0.
#[expect(clippy::cast_precision_loss, reason = "0, or it fails")]
pub fn count(name: &'static str, measured: u64, unit: &'static str) -> Check {
    Check::new(name, measured as f64, Limit::Equals(0.0), unit)
}

/// A count that has to be so much at least.
#[expect(clippy::cast_precision_loss, reason = "counts of a few")]
pub fn at_least(name: &'static str, measured: usize, least: usize, unit: &'static str) -> Check {
    Check::new(name, measured as f64, Limit::AtLeast(least as f64), unit)
}
