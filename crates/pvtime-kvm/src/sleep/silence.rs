//! What can be told of a time in which nobody renewed the lease.

use pvtime::host::timeline::{Evidence, HostSample, RTC_ERROR_NS, Timeline};

use super::MARGIN_NS;

/// What a vCPU's thread did up to some moment, both in ns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Activity {
    /// `CLOCK_BOOTTIME`.
    pub physical_ns: u64,
    /// As much of all time before as the thread ran, waited for a CPU, or had its vCPU halted: the
    /// guest ran in no other time.
    pub busy_ns: u64,
}

impl Activity {
    /// When the thread cannot have been in the guest any more, if it slept for no other reason
    /// than the one in question between then and `now`.
    fn until_ns(&self, now: &Self) -> u64 {
        self.physical_ns + now.busy_ns.saturating_sub(self.busy_ns)
    }

    /// Whether the thread was not stopped up to `now`, but for the margin.
    pub fn ran_until(&self, now: &Self) -> bool {
        self.until_ns(now).saturating_add(MARGIN_NS) >= now.physical_ns
    }
}

/// A time in which nobody renewed the lease; all in ns on `CLOCK_BOOTTIME`.
#[derive(Clone, Debug)]
pub struct Silence {
    /// The lease was renewed last at this time.
    pub since_ns: u64,
    /// It ended then.
    pub ended_ns: u64,
    /// The VM's time was set or looked at last.
    pub stepped_ns: u64,
    /// Each vCPU's thread some time before, and now that it waits outside the guest. `None` where
    /// nothing is known.
    pub vcpus: Vec<Option<(Activity, Activity)>>,
}

impl Silence {
    /// For how long, up to `now_ns`, no vCPU can have been in the guest.
    ///
    /// Two reasons must agree: the lease had ended, so that everybody was sent out and nobody let
    /// in; and each thread's own statistics, which tell a stop of all threads from a lack of CPU
    /// time for the one that renews. Both are exact but for the margin.
    pub fn certain_ns(&self, now_ns: u64) -> u64 {
        let mut last_ns = self.ended_ns.max(self.stepped_ns);
        for vcpu in &self.vcpus {
            let Some((before, now)) = vcpu else {
                return 0;
            };
            last_ns = last_ns.max(before.until_ns(now));
        }
        now_ns.saturating_sub(last_ns.saturating_add(MARGIN_NS))
    }

    /// What to tell the VM's time about it; `None` where nothing was the matter. `before` is some
    /// earlier sample of the same clocks.
    pub fn evidence(
        &self,
        timeline: &Timeline,
        before: &HostSample,
        now: &HostSample,
    ) -> Option<Evidence> {
        let certain_ns = self.certain_ns(now.boottime_ns);
        if let Some(slept_ns) = timeline.slept_ns(now) {
            let slept_ns = u64::try_from(slept_ns).unwrap_or(u64::MAX);
            let error_ns = if has_counted(before, now) {
                // Of a sleep that was hardly longer than the lease, a vCPU may have seen the rest.
                slept_ns.saturating_sub(certain_ns)
            } else {
                RTC_ERROR_NS
            };
            return Some(Evidence::Clocks { error_ns });
        }
        let passed_ns = now.boottime_ns.saturating_sub(self.since_ns);
        (certain_ns > 0).then(|| Evidence::Stall {
            certain_ns,
            // It lasts until the first vCPU is in the guest again.
            possible_ns: passed_ns.max(certain_ns).saturating_add(MARGIN_NS),
        })
    }
}

/// Whether the counter ran all the time, so that the kernel knows a sleep from it, and a vCPU may
/// have seen it there.
fn has_counted(before: &HostSample, now: &HostSample) -> bool {
    const DRIFT: u64 = 1_000;
    let passed_ns = now.boottime_ns.saturating_sub(before.boottime_ns);
    let ticks = u128::from(now.counter.since(before.counter));
    let counted_ns = ticks * 1_000_000_000 / u128::from(now.frequency.hz());
    let slack_ns = u128::from(passed_ns / DRIFT + 1_000_000);
    counted_ns.abs_diff(passed_ns.into()) <= slack_ns
}

#[cfg(test)]
mod tests;
