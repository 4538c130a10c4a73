//! Comparing a vCPU's profile with what this host can have.

use kvm_bindings::kvm_vcpu_init;
use kvm_ioctls::VcpuFd;

use super::CpuProfile;
use crate::state::register::RegisterId;
use crate::state::vcpu::{Error, lasting_features, saved_ids, write};

impl CpuProfile {
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
