//! Reading a vCPU's profile, and comparing it with what this host can have.

use kvm_bindings::kvm_vcpu_init;
use kvm_ioctls::VcpuFd;

use super::CpuProfile;
use crate::state::register::{RegisterId, Step};
use crate::state::vcpu::{Error, lasting_features, read, saved_ids, write};

impl CpuProfile {
    /// Reads the profile of a vCPU that was made with `init` and that no thread runs.
    ///
    /// # Errors
    ///
    /// What KVM refuses.
    pub fn read(vcpu: &VcpuFd, init: &kvm_vcpu_init) -> Result<Self, Error> {
        let (identity, others): (Vec<_>, Vec<_>) = saved_ids(vcpu)?
            .into_iter()
            .partition(|id| id.step() != Step::Rest);
        let identity = identity.into_iter().map(|id| read(vcpu, id));
        Ok(Self {
            features: lasting_features(init),
            identity: identity.collect::<Result<_, _>>()?,
            others: others.into_iter().map(|id| id.0).collect(),
        })
    }

    /// Every reason why a vCPU of this host, made with `init` to be tried and thrown away, cannot
    /// be such a one.
    pub fn refusals(&self, vcpu: &VcpuFd, init: &kvm_vcpu_init) -> Vec<Error> {
        let (saved, here) = (self.features, lasting_features(init));
        if saved != here {
            return vec![Error::Features { saved, here }];
        }
        let written = self.identity.iter().map(|it| write(vcpu, it));
        let mut refusals: Vec<_> = written.filter_map(Result::err).collect();
        match saved_ids(vcpu) {
            Ok(here) => {
                let others = self.others.iter().copied().map(RegisterId);
                let missing = others.filter(|id| !here.contains(id));
                refusals.extend(missing.map(|register| Error::NoSuchRegister { register }));
            }
            Err(error) => refusals.push(error),
        }
        refusals
    }
}
