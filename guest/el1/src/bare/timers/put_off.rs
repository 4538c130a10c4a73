//! Timers that are never due on the host where they were armed.

use super::super::interfaces;
use super::super::registers::without_interrupts;
use super::{ArmError, Armed, Moment, TIMERS, index, set};
use guest_protocol::report::Timer;

/// What share of its period is left when a timer is put off, as a fraction.
const PUT_OFF_BELOW: (u64, u64) = (4, 5);

/// Puts off those timers of this CPU that are to be, and are near. For a CPU that does little else: the
/// VM stops while this is so, whenever it stops.
pub fn put_off(cpu: usize) {
    for timer in [Timer::Virtual, Timer::Physical] {
        without_interrupts(|| {
            let mut place = TIMERS[cpu][index(timer)].lock();
            if let Some(armed) = place.as_mut().filter(|armed| armed.order.put_off) {
                // One that cannot be read fires when it was due.
                let _as_it_was = armed.put_off(cpu);
            }
        });
    }
}

impl Armed {
    /// Arms a timer anew that is near, unless it is due, or the frequency has changed since it was armed.
    fn put_off(&mut self, cpu: usize) -> Result<(), ArmError> {
        let (Some(periods), Some(deadline)) = (self.periods, self.deadline) else {
            return Ok(());
        };
        let now = Moment::now(self.order.live, self.order.timer)?;
        // Each time costs an exit where the hypervisor keeps the timer.
        let near_ticks = periods.period_ticks / PUT_OFF_BELOW.1 * PUT_OFF_BELOW.0;
        let left_ticks = deadline.saturating_sub(now.count);
        if now.era != self.since.era || !(1..near_ticks).contains(&left_ticks) {
            return Ok(());
        }
        let next = now.count.saturating_add(periods.period_ticks);
        (self.since, self.stolen_ns) = (now, interfaces::stolen_ns(cpu));
        self.deadline = Some(next);
        set(self.order.timer, self.order.live, next)
    }
}
