//! A machine that goes to another host.

use anyhow::{Context, Result};
use kvm_bindings::KVM_MEM_LOG_DIRTY_PAGES;
use pvtime::host::timeline::CounterScope;
use pvtime::scale::Frequency;
use pvtime_kvm::{StolenTimeProvider, clock, counter};
use vm_memory::GuestMemoryMmap;

use super::saved::frequency;
use super::{Machine, RAM_SLOT, set_memory_slot};
use crate::cli::{LivePhysicalTimeArg, StolenTimeArg, SwitchArg};
use crate::layout::RAM;
use crate::migration::dirty::DirtyPages;
use crate::migration::message::{Host, LiveOffer, Offer};
use crate::snapshot::{ranges, total_bytes};
use crate::state::MachineState;

impl Machine {
    /// What it needs of the host that it goes to.
    ///
    /// # Errors
    ///
    /// Where this host's counter has no frequency.
    pub fn offer(&self, id: &str, dry_run: bool) -> Result<Offer> {
        let mut time = self.time_args;
        // What was decided here when the VM began is not for the other host to decide anew.
        time.stolen_time = match self.time.stolen_time_provider() {
            StolenTimeProvider::Off => StolenTimeArg::Off,
            _ if time.stolen_time == StolenTimeArg::User => StolenTimeArg::User,
            _ => StolenTimeArg::On,
        };
        let live = self.time.live_physical_time();
        let frequency_hz = live.as_ref().map(|live| live.frequency_hz);
        let pv = frequency_hz.map(Frequency::from_hz).transpose()?;
        time.live_physical_time =
            Some(pv.map_or(LivePhysicalTimeArg::Off, LivePhysicalTimeArg::On));
        time.paused_time = Some(match self.time.paused_time() {
            Some(_) => SwitchArg::On,
            None => SwitchArg::Off,
        });
        time.suspend_guest.get_or_insert(SwitchArg::Off);
        Ok(Offer {
            who: Host::who(id),
            id: id.into(),
            dry_run,
            architecture: std::env::consts::ARCH.into(),
            counter_frequency_hz: frequency()?.hz(),
            wall_error_ns: wall_error_ns(),
            counter_offset: self.time.counters() == CounterScope::Both,
            live: live.map(|live| LiveOffer {
                pv_frequency_hz: live.frequency_hz,
                found: live.claimed,
            }),
            time,
            memory: ranges(&self.memory),
            vcpus: self.affinities.len() as u64,
            cpu: self.profiles[0].clone(),
            gic_implementation: self.gic_implementation,
            system_suspend: self.keys.is_some(),
        })
    }

    /// Its memory.
    pub fn memory(&self) -> &GuestMemoryMmap {
        &self.memory
    }

    /// Has KVM log which pages the guest writes to, or no longer.
    ///
    /// # Errors
    ///
    /// What KVM refuses.
    pub fn log_dirty(&self, on: bool) -> Result<()> {
        let flags = if on { KVM_MEM_LOG_DIRTY_PAGES } else { 0 };
        set_memory_slot(&self.vm, RAM_SLOT, &self.memory, flags)
            .context("cannot log the guest's writes")
    }

    /// The pages that were written to since the log began, or since this was asked last. Nothing
    /// but the guest writes to its memory: the devices have none of it.
    ///
    /// # Errors
    ///
    /// What KVM refuses.
    ///
    /// # Panics
    ///
    /// Never: the memory is mapped.
    pub fn dirty(&self) -> Result<DirtyPages> {
        let bytes = total_bytes(&ranges(&self.memory)).expect("what is mapped");
        let bits = self.vm.get_dirty_log(RAM_SLOT, usize::try_from(bytes)?);
        let bits = bits.context("cannot ask KVM what the guest wrote")?;
        let page_bytes = rustix::param::page_size() as u64;
        Ok(DirtyPages::new(RAM, page_bytes, bits))
    }

    /// All of a stopped machine but its memory.
    ///
    /// # Errors
    ///
    /// If it runs; what KVM refuses.
    pub fn leave(&self) -> Result<(MachineState, Vec<u8>)> {
        Ok((self.state()?, self.time.save()?))
    }
}

/// The kernel's bound on the error of the wall clock, where it knows one.
pub(super) fn wall_error_ns() -> Option<u64> {
    let sample = clock::sample(counter::frequency()?);
    (sample.wall_error_ns != u64::MAX).then_some(sample.wall_error_ns)
}
