//! What saved time says before a VM is made for it.

use pvtime::host::saved::{SavedError, SavedVcpu, SavedVm};
use pvtime::host::timeline::{CounterScope, TimelineError};
use pvtime::scale::Frequency;

/// What a VM's saved time asks of the host and of the VM that goes on with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedTime {
    pub(crate) vm: SavedVm,
    pub(crate) vcpus: Vec<SavedVcpu>,
}

impl SavedTime {
    /// What `VmTime::save` returned, all of it.
    ///
    /// # Errors
    ///
    /// [`SavedError`] where it is damaged, of another version, or not whole.
    pub fn parse(bytes: &[u8]) -> Result<Self, SavedError> {
        let (vm, vcpus) = bytes
            .split_at_checked(SavedVm::SIZE_BYTES)
            .unwrap_or((bytes, &[]));
        let vm = SavedVm::parse(vm)?;
        let vcpus = vcpus.chunks(SavedVcpu::SIZE_BYTES).map(SavedVcpu::parse);
        Ok(Self {
            vm,
            vcpus: vcpus.collect::<Result<_, _>>()?,
        })
    }

    /// vCPUs that the VM has.
    #[must_use]
    pub fn vcpus(&self) -> usize {
        self.vcpus.len()
    }

    /// Rate of the counter that it was saved on.
    #[must_use]
    pub fn frequency(&self) -> Frequency {
        self.vm.sample.frequency
    }

    /// Which counters the VM's offset is for; it goes on where a VM's is for the same.
    #[must_use]
    pub fn counters(&self) -> CounterScope {
        self.vm.counters
    }

    /// Whether its guest uses stolen time.
    #[must_use]
    pub fn has_stolen_time(&self) -> bool {
        self.vcpus.iter().any(|vcpu| vcpu.stolen.is_some())
    }

    /// The PV frequency, if the VM has live physical time; it keeps it for life.
    #[must_use]
    pub fn live_physical_time(&self) -> Option<Frequency> {
        self.vm.live.map(|live| live.pv)
    }

    /// Whether the VM is told of its pauses.
    #[must_use]
    pub fn has_paused_time(&self) -> bool {
        self.vm.paused_time.is_some()
    }

    /// Whether its guest has suspended itself, so that it goes on only when it is resumed.
    #[must_use]
    pub fn is_guest_suspended(&self) -> bool {
        self.vm.guest_suspended
    }

    /// Whether the VM can go on at a host whose counter runs at `host`: at the same frequency, or
    /// with live physical time that its guest asked for.
    ///
    /// # Errors
    ///
    /// [`TimelineError::FrequencyDiffers`], with both and the way out.
    pub fn admits(&self, host: Frequency) -> Result<(), TimelineError> {
        self.vm.admits(host)
    }

    /// Whether the VM can go on where a VM's offset is for these counters.
    ///
    /// # Errors
    ///
    /// [`TimelineError::ScopeDiffers`], with both and the way out.
    pub fn admits_counters(&self, configured: CounterScope) -> Result<(), TimelineError> {
        match self.counters() {
            saved if saved == configured => Ok(()),
            saved => Err(TimelineError::ScopeDiffers { saved, configured }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pvtime::abi::stolen_time::StolenTime;
    use pvtime::host::ledger::Accounts;
    use pvtime::host::saved::Sequences;
    use pvtime::host::timeline::{Config, Event, HostSample, Timeline, WallStandard};
    use pvtime::host::timers::{Timer, TimerControl, VcpuTimers};
    use pvtime::host::{Cause, HostCount};
    use pvtime::scale::CompareValue;

    fn saved(counters: CounterScope, vcpus: &[Option<u64>]) -> Vec<u8> {
        let sample = HostSample {
            counter: HostCount(1_000),
            frequency: Frequency::from_hz(25_000_000).unwrap(),
            wall_ns: 1,
            wall_standard: WallStandard::Realtime,
            wall_error_ns: 0,
            boottime_ns: 1,
            monotonic_ns: 1,
            monotonic_raw_ns: 1,
            span_ns: 0,
        };
        let timeline = Timeline::new(Config {
            counters,
            ..Config::default()
        });
        let timeline = timeline
            .unwrap()
            .step(sample, Event::Start)
            .unwrap()
            .timeline;
        let paused = timeline.step(sample, Event::Pause(Cause::Snapshot));
        let vm = paused.unwrap().timeline.save(Sequences::default()).unwrap();
        let timer = Timer {
            control: TimerControl(0),
            compare_value: CompareValue(0),
        };
        let records = vcpus.iter().map(|stolen_ns| SavedVcpu {
            timers: VcpuTimers::new(timer, timer, 0),
            stolen: stolen_ns.map(|stolen_ns| StolenTime { stolen_ns }),
            accounts: Accounts::default(),
        });
        let records = records.flat_map(|vcpu| vcpu.emit());
        vm.emit().into_iter().chain(records).collect()
    }

    #[test]
    fn it_says_what_would_be_refused_when_it_is_restored() {
        use CounterScope::{Both, VirtualOnly};
        let time = SavedTime::parse(&saved(Both, &[None, Some(7)])).unwrap();
        assert_eq!((time.vcpus(), time.counters()), (2, Both));
        assert!(time.has_stolen_time());
        time.admits_counters(Both).unwrap();
        let error = time.admits_counters(VirtualOnly).unwrap_err();
        let differs = TimelineError::ScopeDiffers {
            saved: Both,
            configured: VirtualOnly,
        };
        assert_eq!(error, differs);

        let time = SavedTime::parse(&saved(VirtualOnly, &[None])).unwrap();
        assert_eq!((time.vcpus(), time.counters()), (1, VirtualOnly));
        assert!(!time.has_stolen_time());
    }

    #[test]
    fn every_byte_of_every_record_is_looked_at() {
        let bytes = saved(CounterScope::Both, &[None, Some(7)]);
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x10;
            SavedTime::parse(&damaged).unwrap_err();
            let records = at.checked_sub(SavedVm::SIZE_BYTES);
            let is_whole = records.is_some_and(|it| it.is_multiple_of(SavedVcpu::SIZE_BYTES));
            assert_eq!(SavedTime::parse(&bytes[..at]).is_ok(), is_whole, "{at}");
        }
    }
}
