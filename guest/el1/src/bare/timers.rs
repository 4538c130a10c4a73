//! Timers: armed on request, on the counter or on live physical time, once or again and again, and what
//! became of each.

mod put_off;

pub use self::put_off::put_off;

use guest_protocol::report::{Firing, MAX_BARE_CPUS, Periods, Timer, TimerState};
use guest_protocol::request::ArmTimer;
use pvtime::guest::arm64::{PhysicalCounter, VirtualCounter};
use pvtime::guest::{Counter, GuestError};
use spin::Mutex;

use super::interfaces::{self, Era, number};
use super::registers::{self, without_interrupts};

/// A timer that was armed.
#[derive(Clone, Copy)]
struct Armed {
    order: ArmTimer,
    frequency_hz: u64,
    /// The clock before it was.
    since: Moment,
    /// What had been stolen from the CPU just after that.
    stolen_ns: u64,
    deadline: Option<u64>,
    interrupts: u32,
    fired_at: Option<u64>,
    periods: Option<Periods>,
}

/// A count, and the era that it was read in.
#[derive(Clone, Copy)]
struct Moment {
    count: u64,
    era: Era,
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

/// A shorter period would leave a slow machine no time for anything else.
const LEAST_PERIOD_US: u64 = 1000;

/// Why a timer was not armed.
#[derive(Debug, thiserror::Error)]
pub enum ArmError {
    /// It was to be put off, and nobody does that.
    #[error("only a timer on live physical time with a period can be put off")]
    PutOff,
    /// Live physical time is not there.
    #[error("there is no live physical time; arm the timer on the counter")]
    NoLiveTime,
    /// It was to be armed again and again, and cannot.
    #[error(
        "a timer with a period needs a deadline, its interrupt, and {LEAST_PERIOD_US} us or more \
         between two"
    )]
    Period,
    /// It cannot be read.
    #[error(transparent)]
    Guest(#[from] GuestError),
}

fn now(live: bool, timer: Timer) -> Result<u64, ArmError> {
    if live {
        return Ok(interfaces::live().ok_or(ArmError::NoLiveTime)?.now()?);
    }
    Ok(match timer {
        Timer::Virtual => VirtualCounter.read_ordered(),
        Timer::Physical => PhysicalCounter.read_ordered(),
    })
}

impl Moment {
    /// Reads the clock anew if the era changed meanwhile.
    fn now(live: bool, timer: Timer) -> Result<Self, ArmError> {
        loop {
            let era = interfaces::era();
            let count = now(live, timer)?;
            if interfaces::era() == era {
                return Ok(Self { count, era });
            }
        }
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

/// What a timer's compare value comes to on a clock.
fn compare_on(timer: Timer, live: bool) -> Option<u64> {
    if !live {
        return Some(compare(timer));
    }
    let mapping = interfaces::live()?.mapping().ok()?;
    mapping.to_pv.apply(compare(timer)).ok()
}

/// Sets a timer for a count of a clock.
fn set(timer: Timer, live: bool, count: u64) -> Result<(), ArmError> {
    if live {
        let live = interfaces::live().ok_or(ArmError::NoLiveTime)?;
        live.set_timer(count, |compare| set_compare(timer, compare.0))?;
    } else {
        set_compare(timer, count);
    }
    Ok(())
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
        *place = Some(start(order, registers::cpu())?);
        let masked = if order.masked { MASKED } else { 0 };
        set_control(order.timer, ENABLED | masked);
        Ok(())
    })
}

fn start(order: &ArmTimer, cpu: usize) -> Result<Armed, ArmError> {
    let frequency_hz = if order.live {
        let live = interfaces::live().ok_or(ArmError::NoLiveTime)?;
        live.frequency().hz()
    } else {
        interfaces::native_hz()
    };
    let ticks = |us: u64| {
        let ticks = u128::from(us) * u128::from(frequency_hz) / 1_000_000;
        u64::try_from(ticks).unwrap_or(u64::MAX)
    };
    let can_repeat = order.delay_us.is_some() && !order.masked;
    if order
        .period_us
        .is_some_and(|us| us < LEAST_PERIOD_US || !can_repeat)
    {
        return Err(ArmError::Period);
    }
    if order.put_off && !(order.live && order.period_us.is_some()) {
        return Err(ArmError::PutOff);
    }
    let since = Moment::now(order.live, order.timer)?;
    let stolen_ns = interfaces::stolen_ns(cpu);
    let deadline = order.delay_us.map(|us| {
        let distance = ticks(us.unsigned_abs());
        if us < 0 {
            since.count.saturating_sub(distance)
        } else {
            since.count.saturating_add(distance)
        }
    });
    let never = || {
        since
            .count
            .saturating_add(frequency_hz.saturating_mul(NEVER_S))
    };
    set(order.timer, order.live, deadline.unwrap_or_else(never))?;
    Ok(Armed {
        order: *order,
        frequency_hz,
        since,
        stolen_ns,
        deadline,
        interrupts: 0,
        fired_at: None,
        periods: order.period_us.map(|us| Periods {
            period_ticks: ticks(us).max(1),
            fired: 0,
            early: 0,
            moved: None,
        }),
    })
}

/// The interrupt of a timer of this CPU.
pub fn fired(cpu: usize, timer: Timer) {
    // In this order, as in `look`: one that was put off while its interrupt was on its way may become due
    // in here, and the clock from before that would have it early.
    let control_now = control(timer);
    if control_now & DUE == 0 {
        // It was armed anew, or its line fell, while the interrupt was on its way.
        return;
    }
    // Before anything else takes time. What is stolen between the two looks counts for neither period.
    let stolen_before_ns = interfaces::stolen_ns(cpu);
    let live = Moment::now(true, timer);
    let native = Moment::now(false, timer);
    let stolen_ns = [stolen_before_ns, interfaces::stolen_ns(cpu)];
    set_control(timer, control_now & ENABLED | MASKED);
    let mut place = TIMERS[cpu][index(timer)].lock();
    let Some(armed) = place.as_mut() else { return };
    armed.interrupts += 1;
    let now = if armed.order.live { live } else { native };
    let Ok(now) = now else { return };
    armed.fired_at = armed.fired_at.or(Some(now.count));
    if armed.rearm(now, stolen_ns).is_ok_and(|is_again| is_again) {
        set_control(timer, ENABLED);
    }
}

impl Armed {
    /// Sets a timer with a period for the first of its deadlines after now, where it has just fired.
    ///
    /// It counts as armed from now on, not from when its register is written: so at every moment, and
    /// wherever a move of the VM falls, there is one that is armed.
    /// `stolen_ns` is what had been stolen from the CPU before now and after it.
    fn rearm(&mut self, now: Moment, stolen_ns: [u64; 2]) -> Result<bool, ArmError> {
        let (Some(periods), Some(deadline)) = (self.periods.as_mut(), self.deadline) else {
            return Ok(false);
        };
        periods.fired += 1;
        periods.early += u64::from(now.count < deadline);
        if now.era != self.since.era {
            periods.moved = Some(Firing {
                armed_at: self.since.count,
                deadline,
                compare: compare_on(self.order.timer, self.order.live),
                fired_at: now.count,
                stolen_before_ns: self.stolen_ns,
                stolen_ns: stolen_ns[0].saturating_sub(self.stolen_ns),
            });
        }
        let passed = now.count.saturating_sub(deadline) / periods.period_ticks;
        let next = deadline.saturating_add((passed + 1).saturating_mul(periods.period_ticks));
        (self.since, self.stolen_ns, self.deadline) = (now, stolen_ns[1], Some(next));
        (self.interrupts, self.fired_at) = (0, None);
        set(self.order.timer, self.order.live, next)?;
        Ok(true)
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
        let now = now(armed.order.live, timer).ok()?;
        Some(TimerState {
            cpu: number(cpu),
            timer,
            live: armed.order.live,
            frequency_hz: armed.frequency_hz,
            armed_at: armed.since.count,
            deadline: armed.deadline,
            masked: armed.order.masked,
            interrupts: armed.interrupts,
            fired_at: armed.fired_at,
            now,
            is_due,
            compare: compare_on(timer, armed.order.live),
            periods: armed.periods,
        })
    })
}

/// Whether a timer of a CPU was armed.
pub fn is_armed(cpu: usize, timer: Timer) -> bool {
    without_interrupts(|| TIMERS[cpu][index(timer)].lock().is_some())
}
