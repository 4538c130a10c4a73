//! A value of stolen time that was lowered, before KVM adds to it what nobody stole.

/// What stands in a structure, and what it means until KVM has added to it.
#[expect(clippy::struct_field_names, reason = "units last")]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Lowered {
    /// What it is to the guest.
    from_ns: u64,
    /// What stands there until KVM has added to it.
    to_ns: u64,
    /// What could not be taken from the value since it started, because it was less.
    surplus_ns: u64,
}

impl Lowered {
    /// What stands in the structure.
    pub const fn to_ns(self) -> u64 {
        self.to_ns
    }

    /// What is in a value and nobody stole.
    pub fn surplus(self, value_ns: u64) -> u64 {
        self.surplus_ns.min(value_ns)
    }

    /// What a value is to the guest, which sees it only after KVM has added to it.
    pub fn shown(self, value_ns: u64) -> u64 {
        if value_ns == self.to_ns && self.from_ns != self.to_ns {
            self.from_ns
        } else {
            value_ns
        }
    }

    /// Lowers a value, once more where KVM has not added to it since. It never wraps, and does not
    /// become 0, which a guest's own call leaves: what is more than that stays stolen.
    pub fn further(self, value_ns: u64, by_ns: u64) -> Self {
        let taken_ns = by_ns.min(value_ns.saturating_sub(1));
        let restarted = value_ns < self.to_ns;
        let surplus_before_ns = if restarted { 0 } else { self.surplus_ns };
        Self {
            from_ns: self.shown(value_ns),
            to_ns: value_ns - taken_ns,
            surplus_ns: surplus_before_ns.saturating_add(by_ns - taken_ns),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn m6_a_lowered_value_is_shown_as_the_guest_will_see_it() {
        let lowered = Lowered::default().further(100, 40);
        assert_eq!(lowered.to_ns(), 60);
        assert_eq!(lowered.shown(60), 100, "KVM has not added the 40 yet");
        assert_eq!(lowered.shown(107), 107);
        assert_eq!(lowered.shown(0), 0, "the guest has restarted it");
        assert_eq!(Lowered::default().shown(0), 0);
    }

    #[test]
    fn m6_a_value_that_kvm_has_not_added_to_is_lowered_once_more() {
        let once = Lowered::default().further(100, 40);
        let twice = once.further(once.to_ns(), 25);
        assert_eq!(twice.to_ns(), 35, "KVM will add both");
        assert_eq!(twice.shown(35), 100, "the guest has not run meanwhile");
        let added = twice.to_ns() + 65;
        assert_eq!(twice.shown(added), 100);

        let later = once.further(once.to_ns() + 40 + 7, 25);
        assert_eq!((later.from_ns, later.to_ns()), (107, 82), "it has");
    }

    #[test]
    fn m4_a_value_that_is_less_than_the_wait_does_not_wrap() {
        let lowered = Lowered::default().further(30, 1_000);
        assert_eq!(lowered.to_ns(), 1);
        assert_eq!(lowered.shown(1), 30);
        assert_eq!(
            lowered.surplus(5_000),
            971,
            "what nobody stole and is shown as stolen"
        );
        assert_eq!(lowered.to_ns() + 1_000, 30 + lowered.surplus(5_000));
        assert_eq!(lowered.further(5_000, 10).surplus(5_000), 971);
        assert_eq!(lowered.shown(0), 0, "the guest has restarted it");
        assert_eq!(lowered.further(0, 10).surplus(50), 10);
        assert_eq!(Lowered::default().further(0, 10).to_ns(), 0);
    }
}
