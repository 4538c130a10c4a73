//! Live physical time of one VM, across hosts whose counters run at different frequencies.
//!
//! The guest computes `PV(n) = (n * mult) >> fracbits` from its native count `n`; the structure
//! has no base, so on another host the count itself must be set such that PV goes on. The host
//! keeps the *ideal*: for how long the VM really ran, in PV ticks with 64 fraction bits, computed
//! from native ticks of each host and never from what the guest reads. The native count on a new
//! host is the one whose PV count is nearest to the ideal, so an error is never inherited.
//!
//! # Never backwards, and no drift
//!
//! The nearest count may be one whose PV count the guest has passed already, by a part of a tick.
//! Raising the count instead would be no way out: every change of host can need it, nothing ever
//! takes it back, and two hosts at 2 Hz and 3 Hz are enough to gain a sixth of a second each time.
//! So the count stays nearest to the ideal, and the vCPUs are held back until it has reached the
//! highest PV count that one of them may have read ([`hold_ticks`](LiveState::hold_ticks)): less
//! than two native ticks and half a tick of the host on which it was read, 100 ns on hosts of
//! 25 MHz, less than an entry into the guest takes.
//!
//! # Error bound
//!
//! With the native count `n`, `n0` when the VM came to this host, and `f` fraction bits, what the
//! guest reads is at most half a native tick ahead of the ideal, and behind it by less than half a
//! native tick, one PV tick and `(n - n0) / 2^f` PV ticks. The last term is the published
//! multiplier's truncation. It stays below half a native tick for `2^62 * min(1, pv / native)`
//! native ticks: 146 years at 1 GHz, 80 days for a PV frequency of 24 MHz on a host of 4 GHz.
//! Each change of host adds at most 2^-65 PV ticks to the ideal itself.

use super::GuestCount;
use crate::abi::live_physical_time::LivePhysicalTime;
use crate::scale::{Frequency, LiveDistance, LiveTime, ScaleError};

/// Live physical time of a VM on its present host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LiveState {
    mapping: LivePhysicalTime,
    base_count: GuestCount,
    base: LiveTime,
    seen_pv: u64,
    ran: bool,
    found: bool,
}

/// What a VM's live physical time is made of, for [`LiveState::from_parts`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LiveParts {
    /// Frequency of the host's counter.
    pub native: Frequency,
    /// Frequency of the PV counter.
    pub pv: Frequency,
    /// Guest count when the VM came to this host.
    pub base_count: GuestCount,
    /// The ideal at that count.
    pub base: LiveTime,
    /// The highest PV count that a vCPU may have read.
    pub seen_pv: u64,
    /// Whether a vCPU may have run since the VM came to this host.
    pub ran: bool,
    /// Whether the guest asked for the structure.
    pub found: bool,
}

/// Why live physical time has no value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LiveError {
    /// A conversion does not fit.
    #[error(transparent)]
    Scale(#[from] ScaleError),
    /// A count from before the VM came to this host.
    #[error("guest count {count} is below {base}, where this host began: its counter went back")]
    BeforeBase {
        /// The count.
        count: GuestCount,
        /// The first count on this host.
        base: GuestCount,
    },
    /// Parts that no history leads to.
    #[error("{what} of the saved live physical time contradicts the rest: the state is damaged")]
    Inconsistent {
        /// Which part.
        what: &'static str,
    },
}

impl LiveState {
    /// Live physical time that starts now, at guest count 0.
    ///
    /// # Errors
    ///
    /// [`ScaleError::AboveCntfrq`] if a rate does not fit the structure.
    pub fn start(native: Frequency, pv: Frequency) -> Result<Self, LiveError> {
        Ok(Self {
            mapping: LivePhysicalTime::between(native, pv)?,
            base_count: GuestCount(0),
            base: LiveTime::ZERO,
            seen_pv: 0,
            ran: false,
            found: false,
        })
    }

    /// A state from its parts, which may come from anywhere.
    ///
    /// # Errors
    ///
    /// [`LiveError::Inconsistent`] where the first count is not the nearest to the ideal;
    /// [`LiveError::Scale`].
    pub fn from_parts(parts: LiveParts) -> Result<Self, LiveError> {
        let LiveParts {
            native,
            pv,
            base_count,
            base,
            seen_pv,
            ran,
            found,
        } = parts;
        let mapping = LivePhysicalTime::between(native, pv)?;
        if mapping.to_pv.nearest(base)? != base_count.0 {
            return Err(LiveError::Inconsistent {
                what: "the first count",
            });
        }
        mapping.to_pv.position(base_count.0)?;
        Ok(Self {
            mapping,
            base_count,
            base,
            seen_pv,
            ran,
            found,
        })
    }

    /// The parts, for a state that is saved.
    #[must_use]
    pub fn parts(&self) -> LiveParts {
        let (native, pv) = (self.native(), self.pv());
        let Self {
            mapping: _,
            base_count,
            base,
            seen_pv,
            ran,
            found,
        } = *self;
        LiveParts {
            native,
            pv,
            base_count,
            base,
            seen_pv,
            ran,
            found,
        }
    }

    /// Checks the highest PV count read against the ideal at `count`, where the VM is stopped: it
    /// is ahead by half a tick of the slowest counter there is, 1 Hz, at most.
    ///
    /// # Errors
    ///
    /// [`LiveError::Inconsistent`]: waiting for that count would keep the VM from running.
    pub fn check_seen(&self, count: GuestCount) -> Result<(), LiveError> {
        let ahead = LiveTime::from_parts(self.seen_pv, 0).distance_from(self.ideal_at(count)?);
        if !ahead.is_behind() && ahead.magnitude().ticks() > self.pv().hz() / 2 {
            return Err(LiveError::Inconsistent {
                what: "the highest count read",
            });
        }
        Ok(())
    }

    /// What is to be published on this host.
    #[must_use]
    pub const fn mapping(&self) -> &LivePhysicalTime {
        &self.mapping
    }

    /// Frequency of this host's counter.
    #[must_use]
    pub fn native(&self) -> Frequency {
        self.mapping.native_frequency_hz.into()
    }

    /// Frequency of the PV counter, constant for the life of the VM.
    #[must_use]
    pub fn pv(&self) -> Frequency {
        self.mapping.pv_frequency_hz.into()
    }

    /// Whether the guest asked for the structure, and so survives a change of frequency.
    #[must_use]
    pub const fn is_found(&self) -> bool {
        self.found
    }

    /// Whether a vCPU may have run since the VM came to this host, as far as the last stop knows.
    #[must_use]
    pub const fn has_run(&self) -> bool {
        self.ran
    }

    /// Remembers whether the guest asked for the structure.
    pub fn set_found(&mut self, found: bool) {
        self.found = found;
    }

    /// What the guest computes at `count`: PV ticks, rounded down.
    ///
    /// # Errors
    ///
    /// [`ScaleError::PvCountTooLarge`].
    pub fn pv_at(&self, count: GuestCount) -> Result<u64, LiveError> {
        Ok(self.mapping.to_pv.apply(count.0)?)
    }

    /// For how long the VM has run at `count`, to 2^-65 PV ticks and those of earlier hosts.
    ///
    /// # Errors
    ///
    /// [`LiveError::BeforeBase`], [`ScaleError::LiveTimeTooLong`].
    pub fn ideal_at(&self, count: GuestCount) -> Result<LiveTime, LiveError> {
        let (base, error) = (
            self.base_count,
            LiveError::BeforeBase {
                count,
                base: self.base_count,
            },
        );
        let ran = count.0.checked_sub(base.0).ok_or(error)?;
        Ok(self.base.after(ran, self.native(), self.pv())?)
    }

    /// How far what the guest reads at `count` is ahead of the ideal.
    ///
    /// # Errors
    ///
    /// As [`pv_at`](Self::pv_at) and [`ideal_at`](Self::ideal_at).
    pub fn distance_at(&self, count: GuestCount) -> Result<LiveDistance, LiveError> {
        let read = LiveTime::from_parts(self.pv_at(count)?, 0);
        Ok(read.distance_from(self.ideal_at(count)?))
    }

    /// The state of a VM that was stopped at `count`: no vCPU has read a later one.
    ///
    /// # Errors
    ///
    /// As [`pv_at`](Self::pv_at).
    pub fn stopped_at(mut self, count: GuestCount) -> Result<Self, LiveError> {
        self.ran |= self.hold_ticks(count)? == 0;
        self.seen_pv = self.seen_pv.max(self.pv_at(count)?);
        Ok(self)
    }

    /// The same VM, stopped at `count`, on a host whose counter runs at `native`; and the count at
    /// which it goes on there, the nearest to the ideal.
    ///
    /// # Errors
    ///
    /// [`LiveError::Scale`] where a rate or a count does not fit.
    pub fn rebase(
        self,
        count: GuestCount,
        native: Frequency,
    ) -> Result<(Self, GuestCount), LiveError> {
        let base = self.ideal_at(count)?;
        let mapping = LivePhysicalTime::between(native, self.pv())?;
        let base_count = GuestCount(mapping.to_pv.nearest(base)?);
        mapping.to_pv.position(base_count.0)?;
        let rebased = Self {
            mapping,
            base_count,
            base,
            ran: false,
            ..self
        };
        Ok((rebased, base_count))
    }

    /// How many native ticks after `count` a vCPU may first run, so that none reads less than one
    /// has read before.
    ///
    /// # Errors
    ///
    /// [`ScaleError::Unreachable`].
    pub fn hold_ticks(&self, count: GuestCount) -> Result<u64, LiveError> {
        let first = self.mapping.to_pv.first_reaching(self.seen_pv)?;
        Ok(first.saturating_sub(count.0))
    }
}

#[cfg(test)]
mod tests;
