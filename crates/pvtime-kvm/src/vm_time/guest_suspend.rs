//! A guest that suspends itself (PSCI `SYSTEM_SUSPEND`), so that nothing has to be hidden from it.
//!
//! What the call needs of a VMM: it takes the vCPU that made it for off, has
//! [`VmTime::suspend`] called on another thread than a vCPU's, and to wake the guest puts that vCPU
//! at the entry point that the call named, with [`VmTime::on_each_vcpu`], before
//! [`VmTime::resume`].

use std::time::Duration;

use kvm_ioctls::VcpuFd;
use pvtime::host::Cause;
use pvtime::host::timeline::Event;

use super::vcpu::is_off;
use super::{Error, VmTime};

impl VmTime {
    /// Stops a VM whose guest suspends itself: none of its vCPUs is on any more. Whatever passes up
    /// to [`resume`](Self::resume), a sleep of the host too, its counters show, since the guest knows
    /// the time from them. False for a VM that does not run: nothing happens.
    ///
    /// Where it cannot be, `deny` is called on every vCPU, on its own thread, before any goes on:
    /// it answers the guest.
    ///
    /// # Errors
    ///
    /// [`Error::VcpuOn`], [`Error::Timeline`] for a VM with live physical time, and as
    /// [`pause`](Self::pause). After [`Error::Close`] and [`Error::HeldUp`] nobody was denied
    /// anything.
    pub fn suspend(
        &self,
        deny: impl Fn(usize, &mut VcpuFd) + Send + Sync + 'static,
    ) -> Result<bool, Error> {
        let (mut state, now) = self.close_for(Cause::HostSuspend)?;
        if !state.timeline.is_running() {
            return Ok(false);
        }
        let off = self.on_stopped(state.vcpus.len(), |_, vcpu| is_off(vcpu));
        let all_off = off.and_then(|off| match off.iter().position(|is_off| !is_off) {
            Some(index) => Err(Error::VcpuOn { index }),
            None => self.stolen.publish(),
        });
        let suspended = all_off.and_then(|()| self.step(&mut state, now, Event::GuestSuspend));
        if suspended.is_err() {
            // Members wait at the closed gate, so each is asked.
            let _ = self.gate.on_each(deny);
            self.gate.open();
        }
        self.keep(suspended?);
        Ok(true)
    }

    /// Pauses a VM whose host is about to sleep, and whose guest was asked to suspend itself
    /// and has not for as long as this: the record says so.
    ///
    /// # Errors
    ///
    /// As [`pause`](Self::pause).
    pub fn pause_unanswered(&self, asked_for: Duration) -> Result<(), Error> {
        self.pause_with(Cause::HostSuspend, Some(asked_for))
    }

    /// Whether the VM is stopped because its guest suspended itself.
    #[must_use]
    pub fn is_guest_suspended(&self) -> bool {
        self.lock().timeline.is_guest_suspended()
    }
}
