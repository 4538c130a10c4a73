//! The timers of the first CPU: conditions, interrupts, masks (T10), on the counter and on live
//! physical time.

use guest_protocol::report::{Timer, TimerState};
use guest_protocol::request::ArmTimer;
use pvtime::guest::Counter;
use pvtime::guest::arm64::VirtualCounter;

use super::{NotPassed, Verdict, absent, ensure, failed, message, test};
use crate::bare::{interfaces, registers, timers};

const TIMERS: [Timer; 2] = [Timer::Virtual, Timer::Physical];

fn order(timer: Timer, live: bool, delay_us: Option<i64>) -> ArmTimer {
    ArmTimer {
        cpu: 0,
        timer,
        live,
        delay_us,
        masked: false,
        period_us: None,
        put_off: false,
    }
}

fn arm(order: &ArmTimer) -> Result<(), NotPassed> {
    timers::arm(order).map_err(|error| failed(format_args!("{error}")))
}

fn look(timer: Timer) -> Result<TimerState, NotPassed> {
    timers::look(timer).ok_or_else(|| failed(format_args!("no {timer:?} timer is armed")))
}

/// Lets some time of the counter pass.
fn wait_us(us: u64) {
    let ticks = us * interfaces::native_hz() / 1_000_000;
    let start = VirtualCounter.read_ordered();
    while VirtualCounter.read_ordered().wrapping_sub(start) < ticks {}
}

/// Waits for a timer's interrupt, for at most a second.
fn await_interrupt(timer: Timer) -> Result<TimerState, NotPassed> {
    for _ in 0..1000 {
        let state = look(timer)?;
        if state.interrupts > 0 {
            return Ok(state);
        }
        wait_us(1000);
    }
    look(timer)
}

test!(a_timer_fires_once_and_never_early);
fn a_timer_fires_once_and_never_early() -> Verdict {
    fire(false)
}

test!(a_timer_on_live_time_fires_once_and_never_early);
fn a_timer_on_live_time_fires_once_and_never_early() -> Verdict {
    if interfaces::live().is_none() {
        return Err(absent(format_args!("no live physical time")));
    }
    fire(true)
}

fn fire(live: bool) -> Verdict {
    let mut latest_us = 0;
    for timer in TIMERS {
        for delay_us in [-1_000_000, -1, 0, 1, 10, 100, 1000, 5000, 20_000] {
            arm(&order(timer, live, Some(delay_us)))?;
            let state = await_interrupt(timer)?;
            ensure!(
                state.interrupts == 1 && !state.is_wrong(),
                "{delay_us} us: {state:?}"
            );
            if delay_us >= 0 {
                let late = state.late_ticks().unwrap_or(0);
                latest_us = latest_us.max(late * 1_000_000 / state.frequency_hz);
            }
        }
    }
    Ok(message(format_args!(
        "9 delays on each timer, at most {latest_us} us late"
    )))
}

test!(a_masked_timer_is_due_without_an_interrupt);
fn a_masked_timer_is_due_without_an_interrupt() -> Verdict {
    for timer in TIMERS {
        for (delay_us, is_due) in [(-1000, true), (3_600_000_000, false)] {
            let masked = ArmTimer {
                masked: true,
                ..order(timer, false, Some(delay_us))
            };
            arm(&masked)?;
            wait_us(200);
            let state = look(timer)?;
            ensure!(
                state.interrupts == 0 && state.is_due == is_due,
                "{delay_us} us: {state:?}"
            );
        }
    }
    Ok(message(format_args!(
        "an expired and a far one on each timer"
    )))
}

test!(never_does_not_come);
fn never_does_not_come() -> Verdict {
    for timer in TIMERS {
        for live in [false, true] {
            if live && interfaces::live().is_none() {
                continue;
            }
            arm(&order(timer, live, None))?;
            wait_us(2000);
            let state = look(timer)?;
            ensure!(state.interrupts == 0 && !state.is_due, "{state:?}");
        }
    }
    Ok(message(format_args!("2 ms of it")))
}

test!(a_timer_ends_a_wait_for_interrupts);
fn a_timer_ends_a_wait_for_interrupts() -> Verdict {
    for timer in TIMERS {
        arm(&order(timer, false, Some(3000)))?;
        while look(timer)?.interrupts == 0 {
            registers::wait_for_interrupt_unless(|| {
                timers::look(timer).is_none_or(|state| state.is_due)
            });
        }
        let state = look(timer)?;
        ensure!(!state.is_wrong(), "{state:?}");
    }
    Ok(message(format_args!("both timers")))
}
