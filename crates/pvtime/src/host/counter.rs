//! Counts of the host's and the guest's counter, which are never mixed up, and the offset between.
//!
//! Offsets are modulo 2^64, as the hardware has them: an offset above the host's count is legal
//! and makes a guest that is ahead of its host.

use core::fmt;

/// A count of the host's counter, in ticks of its frequency: any 64 bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct HostCount(pub u64);

/// A count of the guest's counters, in native ticks of the host that it runs on: any 64 bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GuestCount(pub u64);

/// What is subtracted from the host's counter to give the guest's, modulo 2^64; one per VM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct CounterOffset(pub u64);

impl HostCount {
    /// What the guest reads when the host reads this.
    #[must_use]
    pub const fn to_guest(self, offset: CounterOffset) -> GuestCount {
        GuestCount(self.0.wrapping_sub(offset.0))
    }

    /// The offset with which the guest reads `count` when the host reads this.
    #[must_use]
    pub const fn offset_for(self, count: GuestCount) -> CounterOffset {
        CounterOffset(self.0.wrapping_sub(count.0))
    }

    /// Ticks from `earlier` to this, modulo 2^64.
    #[must_use]
    pub const fn since(self, earlier: Self) -> u64 {
        self.0.wrapping_sub(earlier.0)
    }

    /// The count `ticks` later, modulo 2^64.
    #[must_use]
    pub const fn after(self, ticks: u64) -> Self {
        Self(self.0.wrapping_add(ticks))
    }
}

impl fmt::Display for HostCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for GuestCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for CounterOffset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scale::exact::edgy;
    use proptest::prelude::*;
    use std::string::ToString;

    #[test]
    fn t15_a_guest_may_be_ahead_of_its_host() {
        let offset = HostCount(5).offset_for(GuestCount(7));
        assert_eq!(offset, CounterOffset(u64::MAX - 1));
        assert_eq!(HostCount(6).to_guest(offset), GuestCount(8));
        assert_eq!(HostCount(3).since(HostCount(u64::MAX)), 4);
        assert_eq!(HostCount(u64::MAX).after(4), HostCount(3));
    }

    #[test]
    fn counts_are_shown_in_decimal_and_offsets_in_hexadecimal() {
        let shown = [HostCount(10).to_string(), GuestCount(11).to_string()];
        assert_eq!(shown, ["10", "11"]);
        assert_eq!(
            CounterOffset(u64::MAX - 1).to_string(),
            "0xfffffffffffffffe"
        );
    }

    proptest! {
        #[test]
        fn t15_offsets_work_modulo_two_to_the_64(host in edgy(), guest in edgy(), ticks in edgy()) {
            let offset = HostCount(host).offset_for(GuestCount(guest));
            prop_assert_eq!(HostCount(host).to_guest(offset), GuestCount(guest));
            let later = HostCount(host).after(ticks);
            prop_assert_eq!(later.since(HostCount(host)), ticks);
            prop_assert_eq!(later.to_guest(offset), GuestCount(guest.wrapping_add(ticks)));
        }
    }
}
