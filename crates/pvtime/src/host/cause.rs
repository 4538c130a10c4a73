//! Why a VM was stopped, and nanoseconds by cause.

use crate::abi::paused_time;
use core::fmt;

/// Why the whole VM was stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cause {
    /// The operator paused it.
    Operator,
    /// It was stopped for a snapshot, or came out of one.
    Snapshot,
    /// It moved to another host.
    Migration,
    /// The host slept.
    HostSuspend,
}

impl Cause {
    /// Every cause.
    pub const ALL: [Self; 4] = [
        Self::Operator,
        Self::Snapshot,
        Self::Migration,
        Self::HostSuspend,
    ];

    const fn index(self) -> usize {
        match self {
            Self::Operator => 0,
            Self::Snapshot => 1,
            Self::Migration => 2,
            Self::HostSuspend => 3,
        }
    }

    /// The cause with the code that paused time publishes; `None` for another code.
    #[must_use]
    pub fn from_code(code: paused_time::Cause) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|&cause| paused_time::Cause::from(cause) == code)
    }
}

impl From<Cause> for paused_time::Cause {
    fn from(cause: Cause) -> Self {
        match cause {
            Cause::Operator => Self::OPERATOR,
            Cause::Snapshot => Self::SNAPSHOT,
            Cause::Migration => Self::MIGRATION,
            Cause::HostSuspend => Self::HOST_SUSPEND,
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        paused_time::Cause::from(*self).fmt(f)
    }
}

/// Nanoseconds, by the cause of the pause that took them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PausedNs([u64; 4]);

impl PausedNs {
    /// Amounts in the order of [`Cause::ALL`].
    #[must_use]
    pub const fn new(by_cause_ns: [u64; 4]) -> Self {
        Self(by_cause_ns)
    }

    /// The amounts in the order of [`Cause::ALL`].
    #[must_use]
    pub const fn by_cause_ns(self) -> [u64; 4] {
        self.0
    }

    /// The amount of one cause.
    #[must_use]
    pub const fn of(self, cause: Cause) -> u64 {
        self.0[cause.index()]
    }

    /// With `ns` more for `cause`; `None` past 2^64 ns.
    #[must_use]
    pub fn plus(mut self, cause: Cause, ns: u64) -> Option<Self> {
        let amount = &mut self.0[cause.index()];
        *amount = amount.checked_add(ns)?;
        Some(self)
    }

    /// The sum over all causes, which needs up to 66 bits.
    #[must_use]
    pub fn total_ns(self) -> u128 {
        self.0.into_iter().map(u128::from).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;

    #[test]
    fn causes_have_the_published_codes() {
        let codes = Cause::ALL.map(|cause| paused_time::Cause::from(cause).0);
        assert_eq!(codes, [1, 2, 3, 4]);
        for cause in Cause::ALL {
            assert_eq!(Cause::from_code(cause.into()), Some(cause));
        }
        assert_eq!(Cause::from_code(paused_time::Cause::NONE), None);
        assert_eq!(Cause::from_code(paused_time::Cause(5)), None);
        assert_eq!(Cause::HostSuspend.to_string(), "host suspend");
    }

    #[test]
    fn amounts_add_up_by_cause() {
        let mut paused = PausedNs::default();
        for (cause, ns) in Cause::ALL.into_iter().zip([1, 20, 300, 4000]) {
            paused = paused.plus(cause, ns).unwrap();
        }
        assert_eq!(paused, PausedNs::new([1, 20, 300, 4000]));
        assert_eq!(paused.by_cause_ns(), [1, 20, 300, 4000]);
        assert_eq!(Cause::ALL.map(|cause| paused.of(cause)), [1, 20, 300, 4000]);
        assert_eq!(paused.total_ns(), 4321);
        let full = PausedNs::new([u64::MAX; 4]);
        assert_eq!(full.plus(Cause::Snapshot, 1), None);
        assert_eq!(full.total_ns(), 4 * u128::from(u64::MAX));
    }
}
