//! What a VM lost to pauses and to others, at one moment.

use super::{Error, Vcpu, VmTime};
use crate::clock;

/// Physical time and what parts live physical time and virtual time from it, all in ns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LostTime {
    /// Physical time since the VM's time was made.
    pub elapsed_ns: u64,
    /// As much of it as the VM was stopped for.
    pub paused_ns: u64,
    /// Stolen time of each vCPU, in order, since the VM was started first.
    pub stolen_ns: Vec<u64>,
}

impl VmTime {
    /// What the VM lost so far. The guest is left alone for it, so that a wait for a CPU is in it
    /// when it has ended.
    ///
    /// # Errors
    ///
    /// [`Error::Account`] where a vCPU's thread has ended.
    pub fn lost(&self) -> Result<LostTime, Error> {
        let state = self.lock();
        let stolen_ns = state
            .vcpus
            .iter()
            .enumerate()
            .map(|(index, vcpu)| match vcpu {
                Vcpu::Bound(bound) => bound
                    .account
                    .stolen_ns()
                    .map_err(|source| Error::Account { index, source }),
                Vcpu::New | Vcpu::Attached(_) => Ok(0),
            });
        let stolen_ns = stolen_ns.collect::<Result<_, _>>()?;
        let now_ns = clock::boottime_ns();
        Ok(LostTime {
            elapsed_ns: now_ns - self.created_ns,
            paused_ns: state.stops.up_to(now_ns),
            stolen_ns,
        })
    }
}
