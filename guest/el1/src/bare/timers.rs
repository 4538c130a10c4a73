//! Timers: armed on request, on the counter or on live physical time, and what became of each.

use guest_protocol::report::{MAX_BARE_CPUS, Timer, TimerState};
use guest_protocol::request::ArmTimer;
use pvtime::guest::arm64::{PhysicalCounter, VirtualCounter};
use pvtime::guest::{Counter, GuestError};
use spin::Mutex;

use super::interfaces::{self, number};
use super::registers::{self, without_interrupts};

/// A timer that was armed.
#[derive(Clone, Copy)]
struct Armed {
    order: ArmTimer,
    frequency_hz: u64,
    /// The clock before it was.
    since: u64,
    deadline: Option<u64>,
    interrupts: u32,
    fired_at: Option<u64>,
}

/// Locked with interrupts masked, since the interrupt locks it too.
static TIMERS: [[Mutex<Option<Armed>>; 2]; MAX_BARE_CPUS] =
    [const { [const { Mutex::new(None) }; 2] }; MAX_BARE_CPUS];

const ENABLED: u64 = 1;
const MASKED: u64 = 1 << 1;
const DUE: u64 = 1 << 2;

/// Stands for never: what no run of this program reaches, and still far from where an emulator's
/// arithmetic ends.
const NEVER_S: u64 = 10 * 365 * 86_400;

/// Why a timer was not armed.
#[derive(Debug, thiserror::Error)]
pub enum ArmError {
    /// Live physical time is not there.
    #[error("there is no live physical time; arm the timer on the counter")]
    NoLiveTime,
    /// It cannot be read.
    #[error(transparent)]
    Guest(#[from] GuestError),
}

/// Both timers, with their registers.
impl Armed {
    fn now(live: bool, timer: Timer) -> Result<u64, ArmError> {
        if live {
            return Ok(interfaces::live().ok_or(ArmError::NoLiveTime)?.now()?);
        }
        Ok(match timer {
            Timer::Virtual => VirtualCounter.read_ordered(),
            Timer::Physical => PhysicalCounter.read_ordered(),
        })
    }
}

fn index(timer: Timer) -> usize {
    match timer {
        Timer::Virtual => 0,
        Timer::Physical => 1,
    }
}

fn control(timer: Timer) -> u64 {
    match timer {
        Timer::Virtual => registers::virtual_control(),
        Timer::Physical => registers::physical_control(),
    }
}

fn set_control(timer: Timer, control: u64) {
    match timer {
        Timer::Virtual => registers::set_virtual_control(control),
        Timer::Physical => registers::set_physical_control(control),
    }
}

fn compare(timer: Timer) -> u64 {
    match timer {
        Timer::Virtual => registers::virtual_compare(),
        Timer::Physical => registers::physical_compare(),
    }
}

fn set_compare(timer: Timer, compare: u64) {
    match timer {
        Timer::Virtual => registers::set_virtual_compare(compare),
        Timer::Physical => registers::set_physical_compare(compare),
    }
}

/// Arms a timer of this CPU.
///
/// # Errors
/// [`ArmError`]; the timer is then off.
pub fn arm(order: &ArmTimer) -> Result<(), ArmError> {
    without_interrupts(|| {
        let mut place = TIMERS[registers::cpu()][index(order.timer)].lock();
        *place = None;
        set_control(order.timer, 0);
        *place = Some(start(order)?);
        let masked = if order.masked { MASKED } else { 0 };
        set_control(order.timer, ENABLED | masked);
        Ok(())
    })
}

fn start(order: &ArmTimer) -> Result<Armed, ArmError> {
    let live = if order.live {
        Some(interfaces::live().ok_or(ArmError::NoLiveTime)?)
    } else {
        None
    };
    let native_hz = interfaces::native_hz();
    let frequency_hz = live.map_or(native_hz, |live| live.frequency().hz());
    let armed_at = Armed::now(order.live, order.timer)?;
    let ticks = |us: u64| {
        let ticks = u128::from(us) * u128::from(frequency_hz) / 1_000_000;
        u64::try_from(ticks).unwrap_or(u64::MAX)
    };
    let deadline = order.delay_us.map(|us| {
        let distance = ticks(us.unsigned_abs());
        if us < 0 {
            armed_at.saturating_sub(distance)
        } else {
            armed_at.saturating_add(distance)
        }
    });
    let target = deadline.unwrap_or(armed_at.saturating_add(frequency_hz.saturating_mul(NEVER_S)));
    match live {
        Some(live) => live.set_timer(target, |compare| set_compare(order.timer, compare.0))?,
        None => set_compare(order.timer, target),
    }
    Ok(Armed {
        order: *order,
        frequency_hz,
        since: armed_at,
        deadline,
        interrupts: 0,
        fired_at: None,
    })
}

/// The interrupt of a timer of this CPU.
pub fn fired(cpu: usize, timer: Timer) {
    // Before anything takes time.
    let native = Armed::now(false, timer);
    let live = Armed::now(true, timer);
    let control_now = control(timer);
    if control_now & DUE == 0 {
        // It was armed anew, or its line fell, while the interrupt was on its way.
        return;
    }
    set_control(timer, control_now & ENABLED | MASKED);
    let mut place = TIMERS[cpu][index(timer)].lock();
    if let Some(armed) = place.as_mut() {
        armed.interrupts += 1;
        let now = if armed.order.live { live } else { native };
        armed.fired_at = armed.fired_at.or(now.ok());
    }
}

/// Both timers' registers on each CPU, from before it was turned off.
static KEPT: [Mutex<[Registers; 2]>; MAX_BARE_CPUS] =
    [const { Mutex::new([Registers::OFF; 2]) }; MAX_BARE_CPUS];

/// A timer's control and compare value.
#[derive(Clone, Copy)]
struct Registers {
    control: u64,
    compare: u64,
}

impl Registers {
    const OFF: Self = Self {
        control: 0,
        compare: 0,
    };
}

/// Keeps the timers of this CPU, which is about to lose them. No interrupt of it comes any more.
pub fn keep(cpu: usize) {
    *KEPT[cpu].lock() = [Timer::Virtual, Timer::Physical].map(|timer| Registers {
        control: control(timer) & (ENABLED | MASKED),
        compare: compare(timer),
    });
}

/// Sets the timers of this CPU to what was kept, or off: one that was due meanwhile fires now.
pub fn put_back(cpu: usize) {
    let kept = *KEPT[cpu].lock();
    for (timer, kept) in [Timer::Virtual, Timer::Physical].into_iter().zip(kept) {
        set_compare(timer, kept.compare);
        set_control(timer, kept.control);
    }
}

/// What became of a timer of this CPU; none if it was never armed.
pub fn look(timer: Timer) -> Option<TimerState> {
    let cpu = registers::cpu();
    without_interrupts(|| {
        let place = TIMERS[cpu][index(timer)].lock();
        let armed = (*place)?;
        // In this order, so that a timer which is due has a clock not below its deadline.
        let is_due = control(timer) & DUE != 0;
        let now = Armed::now(armed.order.live, timer).ok()?;
        Some(TimerState {
            cpu: number(cpu),
            timer,
            live: armed.order.live,
            frequency_hz: armed.frequency_hz,
            armed_at: armed.since,
            deadline: armed.deadline,
            masked: armed.order.masked,
            interrupts: armed.interrupts,
            fired_at: armed.fired_at,
            now,
            is_due,
        })
    })
}

/// Whether a timer of a CPU was armed.
pub fn is_armed(cpu: usize, timer: Timer) -> bool {
    without_interrupts(|| TIMERS[cpu][index(timer)].lock().is_some())
}
