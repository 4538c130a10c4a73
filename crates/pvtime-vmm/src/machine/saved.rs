//! A machine into a snapshot, and out of one.

use std::path::Path;
use std::sync::{Arc, PoisonError};

use anyhow::{Context, Result, bail};
use kvm_ioctls::VcpuFd;
use pvtime::host::timeline::TimelineError;
use pvtime::scale::Frequency;
use pvtime_kvm::{SavedTime, StolenTimeProvider, counter};

use super::{Blank, Host, Machine, MachineConfig, Port, guest_memory, time_config, trial};
use crate::snapshot::{self, Contents, Loaded, Progress, Snapshot};
use crate::state::MachineState;
use crate::state::devices::DeviceStates;
use crate::state::gic::GicState;
use crate::state::profile::CpuProfile;
use crate::state::vcpu::VcpuState;

impl Machine {
    /// Writes a paused machine into a directory that must not exist yet. It may go on afterwards.
    ///
    /// # Errors
    ///
    /// If it runs; what KVM or the file system refuses.
    pub fn save(&self, directory: &Path, progress: &mut dyn FnMut(Progress)) -> Result<()> {
        let _still = self.stays();
        let machine = self.state()?;
        let time = self.time.save()?;
        let contents = Contents {
            machine: &machine,
            time: &time,
            memory: &self.memory,
            counter_frequency_hz: frequency()?.hz(),
        };
        Ok(snapshot::save(directory, &contents, progress)?)
    }

    /// Builds a machine from a snapshot, whose facts `config` was made of. Its time is returned, to
    /// be restored once its vCPUs have threads.
    ///
    /// # Errors
    ///
    /// What does not verify, and a CPU or an interrupt controller that this host's KVM does not have,
    /// before any vCPU of the machine is made; what else this host cannot go on with.
    ///
    /// # Panics
    ///
    /// If `config` has other vCPUs than the snapshot.
    pub fn restore(
        config: MachineConfig,
        snapshot: Snapshot,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<(Self, Vec<u8>)> {
        snapshot.check_host(frequency()?)?;
        let host = Host::open(&config)?;
        host.check_saved(&config, &snapshot.time()?)?;
        let refusals = trial::refusals(&host.kvm, snapshot.cpus(), snapshot.gic_implementation())?;
        snapshot.check_refusals(refusals)?;
        let memory = guest_memory(config.memory_mib)?;
        let Loaded {
            machine: state,
            time,
        } = snapshot.load(&memory, progress)?;
        let generation = state.generation.next()?;
        let machine = Blank::new(&host, config, memory)?.finish(generation, Some(&state))?;
        machine.announce_generation()?;
        Ok((machine, time))
    }

    /// All but memory and time.
    pub(super) fn state(&self) -> Result<MachineState> {
        let profiles = Arc::clone(&self.profiles);
        let save = move |index: usize, vcpu: &mut VcpuFd| VcpuState::save(vcpu, &profiles[index]);
        let Some(vcpus) = self.time.on_each_vcpu(save) else {
            bail!("the VM runs, or is being shut down; pause it first");
        };
        let vcpus = vcpus
            .into_iter()
            .enumerate()
            .map(|(index, state)| state.with_context(|| format!("cannot save vCPU {index}")));
        Ok(MachineState {
            vcpus: vcpus.collect::<Result<_>>()?,
            gic: GicState::save(&self.gic, &self.affinities)?,
            devices: self.devices(),
            generation: self.generation,
            suspend_call: self.suspension.call(),
        })
    }

    fn devices(&self) -> DeviceStates {
        let port = |port: &Port| {
            let port = port.port.lock().unwrap_or_else(PoisonError::into_inner);
            port.state()
        };
        let rtc = self.rtc.lock().unwrap_or_else(PoisonError::into_inner);
        DeviceStates {
            console: port(&self.console),
            serial: port(&self.serial),
            rtc: rtc.state(),
            keys: self.keys.as_ref().map(|keys| keys.gpio().state()),
        }
    }
}

impl MachineConfig {
    /// Refuses options that a saved VM cannot go on with.
    ///
    /// # Errors
    ///
    /// Another PV frequency than it was saved with, and no paused time where its guest has it.
    pub fn check_saved(&self, time: &SavedTime) -> Result<()> {
        let (saved, configured) = (time.live_physical_time(), self.live_physical_time);
        if saved != configured {
            bail!(TimelineError::PvFrequencyDiffers { saved, configured });
        }
        if time.has_paused_time() && !self.paused_time {
            bail!(pvtime_kvm::Error::PausedTimeLost);
        }
        Ok(())
    }
}

impl Host {
    /// Refuses a saved VM that cannot go on here with these options.
    ///
    /// # Errors
    ///
    /// Counters that would be set in another way, and no stolen time where its guest uses it.
    fn check_saved(&self, config: &MachineConfig, time: &SavedTime) -> Result<()> {
        let config = time_config(config)?;
        time.admits_counters(config.counters.plan(&self.time).scope)?;
        let provider = config.stolen_time.provider(&self.time)?;
        if time.has_stolen_time() && provider == StolenTimeProvider::Off {
            bail!(pvtime_kvm::Error::StolenTimeLost);
        }
        Ok(())
    }
}

impl Blank {
    /// Puts saved states into vCPUs that were just made, and says what those are then.
    pub(super) fn restore_vcpus(&self, states: &[VcpuState]) -> Result<Vec<CpuProfile>> {
        assert_eq!(
            self.vcpus.len(),
            states.len(),
            "a machine made by its facts"
        );
        let vcpus = self.vcpus.iter().zip(&self.fresh.vcpus);
        let restored = vcpus.zip(states).enumerate();
        restored
            .map(|(index, (((vcpu, _), fresh), state))| {
                state
                    .restore(vcpu, &self.vcpu_init, Some(fresh))
                    .with_context(|| format!("cannot restore vCPU {index}"))
            })
            .collect()
    }
}

pub(super) fn frequency() -> Result<Frequency> {
    counter::frequency().context("this host's counter has no frequency")
}
