//! Taking a running VM's vCPUs out of the guest, with its time right.

use std::sync::MutexGuard;
use std::thread::sleep;
use std::time::{Duration, Instant};

use pvtime::host::Cause;
use pvtime::host::timeline::{Event, HostSample};

use super::{Error, State, VmTime};
use crate::sleep::BEAT;

/// How long a vCPU may take to come out of the guest and of the handling of an exit.
pub(super) const CLOSE_LIMIT: Duration = Duration::from_secs(10);

impl VmTime {
    /// Takes every vCPU of a running VM out of the guest, for this cause, once its time is right: a
    /// stop that was not dealt with, or could not be, is for the watch. A VM that does not run is as
    /// it was. The clocks are of the moment when the last was out.
    pub(super) fn close_for(
        &self,
        cause: Cause,
    ) -> Result<(MutexGuard<'_, State>, HostSample), Error> {
        let start = Instant::now();
        loop {
            let mut state = self.lock();
            if !state.timeline.is_running() {
                return Ok((state, self.now()));
            }
            // Where it is not settled the gate is closed, and whoever opened it would let vCPUs in
            // on what could not be set right.
            if self.watch.is_settled() {
                self.closed_for.set(cause);
                let now = self.gate.close(CLOSE_LIMIT, || self.now())?;
                if !self.gate.lease().has_ended() {
                    return match self.record_shown_sleep(&mut state, now) {
                        Ok(now) => Ok((state, now)),
                        Err(error) => {
                            self.gate.open();
                            Err(error)
                        }
                    };
                }
                self.gate.leave_to_lease();
            }
            drop(state);
            let held_up = self
                .watch
                .held_up()
                .filter(|_| start.elapsed() > CLOSE_LIMIT);
            if let Some(reason) = held_up {
                return Err(Error::HeldUp { reason });
            }
            sleep(BEAT);
        }
    }

    /// Deals with a sleep that the clocks show and that nobody kept the vCPUs out of the guest for:
    /// nobody watches, or it was shorter than the lease. Returns the clocks to go on with.
    fn record_shown_sleep(&self, state: &mut State, now: HostSample) -> Result<HostSample, Error> {
        let Some(evidence) = state.timeline.shown_sleep(&now) else {
            return Ok(now);
        };
        let slept_ns = state.timeline.slept_ns(&now).unwrap_or_default();
        let slept_ns = u64::try_from(slept_ns).unwrap_or_default();
        let since_ns = now.boottime_ns.saturating_sub(slept_ns);
        state.enter_sleep(since_ns, now.boottime_ns);
        let record = self.step(state, now, Event::Slept(evidence))?;
        self.keep_sleep(state, record);
        Ok(self.now())
    }
}
