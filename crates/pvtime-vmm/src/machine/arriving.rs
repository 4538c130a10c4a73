//! A machine that comes from another host.

use anyhow::{Context, Result};
use pvtime::host::Cause;
use pvtime::scale::Frequency;
use pvtime_kvm::record::Record;
use pvtime_kvm::{StolenTimeChoice, VmTime, counter};

use super::leaving::wall_error_ns;
use super::suspending::take_suspends;
use super::{Blank, Host as Kvm, Machine, MachineConfig, guest_memory, trial};
use crate::layout::{MAX_VCPUS, RAM};
use crate::migration::message::{Answer, Host, Offer};
use crate::state::gic::FreshGic;

impl Blank {
    /// Makes a machine with memory that is all zero. What its interrupt controller holds is read, so
    /// that a state that comes later is put into it in little time.
    ///
    /// # Errors
    ///
    /// What the host refuses.
    pub fn prepare(config: MachineConfig) -> Result<Self> {
        let host = Kvm::open(&config)?;
        let memory = guest_memory(config.memory_mib)?;
        let mut blank = Self::new(&host, config, memory)?;
        blank.fresh.gic = FreshGic::read(&blank.gic, &blank.affinities)?;
        Ok(blank)
    }

    /// Whether it can become the machine that is offered, as far as KVM tells before anything of
    /// that has come.
    ///
    /// # Errors
    ///
    /// What KVM does not have.
    pub fn try_out(&self, offer: &Offer) -> Result<()> {
        if offer.system_suspend {
            take_suspends(&self.vm)?;
        }
        Ok(())
    }
}

/// This host's answer to an offer, with every reason against it. One is that KVM cannot be asked.
pub fn answer(offer: &Offer) -> Answer {
    let refusals = refusals(offer);
    Answer {
        who: Host::who("pvtime receive"),
        counter_frequency_hz: counter::frequency().map_or(0, Frequency::hz),
        wall_error_ns: wall_error_ns(),
        refusals: refusals.unwrap_or_else(|error| vec![crate::failure::in_one_line(&error)]),
    }
}

fn refusals(offer: &Offer) -> Result<Vec<String>> {
    let kvm = crate::kvm::open()?;
    let time = pvtime_kvm::HostTime::probe(&kvm)?;
    let counter_frequency = counter::frequency().context("this host's counter has no frequency")?;
    let host = Host {
        architecture: std::env::consts::ARCH,
        counter_frequency,
        max_vcpus: MAX_VCPUS.min(time.max_vcpus as u64),
        max_memory_bytes: (1u64 << kvm.get_host_ipa_limit()) - RAM,
        available_bytes: available_bytes(),
        counter_offset: time.counter_offset.clone(),
        smccc_filter: time.smccc_filter.clone(),
    };
    let mut refusals = offer.refusals(&host);
    let stolen_time: StolenTimeChoice = offer.time.stolen_time.into();
    if let Err(error) = stolen_time.provider(&time) {
        refusals.push(error.to_string());
    }
    let cpus = [offer.cpu.clone()];
    refusals.extend(trial::refusals(&kvm, cpus, offer.gic_implementation)?);
    Ok(refusals)
}

/// What the kernel says that can be had without swapping.
fn available_bytes() -> Option<u64> {
    let info = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = info
        .lines()
        .find_map(|it| it.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kib << 10)
}

/// Lets the time of a VM that arrived go on, and says what was done to it.
///
/// # Errors
///
/// Where the host's clocks contradict the policy; the VM is stopped still.
pub fn resume(machine: &Machine) -> Result<Option<Record>> {
    machine.resume()?;
    let time = &machine.time;
    let last = time.records().last();
    let records = time
        .records()
        .after(last.saturating_sub(1), std::time::Duration::ZERO);
    Ok(records.into_iter().next_back())
}

/// Brings its time to a machine whose vCPUs have threads.
///
/// # Errors
///
/// What is wrong with it, or cannot go on here.
pub fn restore(time: &VmTime, saved: &[u8]) -> Result<()> {
    Ok(time.restore(saved, Cause::Migration)?)
}
