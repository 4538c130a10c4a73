//! A machine into a snapshot, and out of one.

use std::path::Path;
use std::sync::PoisonError;

use anyhow::{Context, Result, bail};
use kvm_bindings::kvm_vcpu_init;
use kvm_ioctls::VcpuFd;
use pvtime::scale::Frequency;
use pvtime_kvm::{VcpuTime, counter};

use super::{Blank, Host, Machine, MachineConfig, Port, guest_memory};
use crate::snapshot::{self, Contents, Loaded, Progress, Snapshot};
use crate::state::MachineState;
use crate::state::devices::DeviceStates;
use crate::state::gic::GicState;
use crate::state::vcpu::VcpuState;

impl Machine {
    /// Writes a paused machine into a directory that must not exist yet. It may go on afterwards.
    ///
    /// # Errors
    ///
    /// If it runs; what KVM or the file system refuses.
    pub fn save(&self, directory: &Path, progress: &mut dyn FnMut(Progress)) -> Result<()> {
        let machine = self.state()?;
        let time = self.time.save()?;
        let contents = Contents {
            machine: &machine,
            time: &time,
            memory: &self.memory,
            counter_frequency_hz: frequency_hz()?,
        };
        Ok(snapshot::save(directory, &contents, progress)?)
    }

    /// Builds a machine from a snapshot, whose facts `config` was made of. Its time is returned, to
    /// be restored once its vCPUs have threads.
    ///
    /// # Errors
    ///
    /// What does not verify, before any vCPU is made; what this host cannot go on with.
    ///
    /// # Panics
    ///
    /// If `config` has other vCPUs than the snapshot.
    pub fn restore(
        config: MachineConfig,
        snapshot: Snapshot,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<(Self, Vec<u8>)> {
        snapshot.require_frequency(frequency_hz()?)?;
        let host = Host::open(&config)?;
        let memory = guest_memory(config.memory_mib)?;
        let Loaded { machine, time } = snapshot.load(&memory, progress)?;
        let blank = Blank::new(&host, config, memory)?;
        Ok((blank.finish(Some(&machine))?, time))
    }

    /// All but memory and time.
    pub(super) fn state(&self) -> Result<MachineState> {
        let init = self.vcpu_init;
        let save = move |_, vcpu: &mut VcpuFd| VcpuState::save(vcpu, &init);
        let Some(vcpus) = self.time.on_each_vcpu(save) else {
            bail!("the VM runs; pause it first");
        };
        let vcpus = vcpus
            .into_iter()
            .enumerate()
            .map(|(index, state)| state.with_context(|| format!("cannot save vCPU {index}")));
        Ok(MachineState {
            vcpus: vcpus.collect::<Result<_>>()?,
            gic: GicState::save(&self.gic, &self.affinities)?,
            devices: self.devices(),
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
        }
    }
}

/// Puts saved states into vCPUs that were just made.
pub(super) fn restore_vcpus(
    vcpus: &[(VcpuFd, VcpuTime)],
    states: &[VcpuState],
    init: &kvm_vcpu_init,
) -> Result<()> {
    assert_eq!(vcpus.len(), states.len(), "a machine made by its facts");
    for (index, ((vcpu, _), state)) in vcpus.iter().zip(states).enumerate() {
        state
            .restore(vcpu, init)
            .with_context(|| format!("cannot restore vCPU {index}"))?;
    }
    Ok(())
}

pub(super) fn frequency_hz() -> Result<u64> {
    let frequency = counter::frequency().map(Frequency::hz);
    frequency.context("this host's counter has no frequency")
}
