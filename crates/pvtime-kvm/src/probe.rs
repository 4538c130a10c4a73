//! What a host can do with a VM's time, each with its reason.

use std::io;

use kvm_ioctls::Kvm;
use serde::Serialize;

use crate::{REGISTER_LIMITS, thread_stat};

/// Whether the host has something, and if not, what is missing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase", tag = "support")]
pub enum Support {
    /// It is there.
    Yes,
    /// It is not.
    No {
        /// What is missing, as part of a sentence.
        reason: String,
    },
}

impl Support {
    /// `No`, with its reason.
    pub fn no(reason: impl Into<String>) -> Self {
        Self::No {
            reason: reason.into(),
        }
    }

    /// `Yes` where `there`, else `No` with the reason.
    pub fn when(there: bool, reason: impl Into<String>) -> Self {
        if there { Self::Yes } else { Self::no(reason) }
    }

    /// Whether it is there.
    #[must_use]
    pub fn is_yes(&self) -> bool {
        *self == Self::Yes
    }
}

/// What this host's KVM and CPU can do with time. Everything is asked of the kernel, nothing is
/// concluded from a version number.
#[derive(Clone, Debug, Serialize)]
pub struct HostTime {
    /// `KVM_GET_API_VERSION`; 12 since 2007.
    pub kvm_api_version: i32,
    /// vCPUs that one VM may have.
    pub max_vcpus: usize,
    /// Stolen time kept by KVM (`KVM_CAP_STEAL_TIME` and `KVM_ARM_VCPU_PVTIME_IPA`).
    pub stolen_time: Support,
    /// One offset for all counters of a VM (`KVM_CAP_COUNTER_OFFSET`, Linux 6.4).
    pub counter_offset: Support,
    /// The scheduler's run delay of a thread (`/proc/PID/task/TID/schedstat`).
    pub run_delay: Support,
    /// Hypercalls handed to the VMM (`KVM_ARM_VM_SMCCC_FILTER`, Linux 6.4).
    pub smccc_filter: Support,
    /// A guest may suspend itself through PSCI (`KVM_CAP_ARM_SYSTEM_SUSPEND`, Linux 5.19).
    pub system_suspend: Support,
    /// The guest can ask for the host's wall clock and counter together (`KVM_CAP_PTP_KVM`).
    pub ptp_kvm: Support,
    /// Memory that a guest may read and not write (`KVM_CAP_READONLY_MEM`).
    pub readonly_memory: Support,
    /// A vCPU thread can be made to leave `KVM_RUN` at once (`KVM_CAP_IMMEDIATE_EXIT`).
    pub immediate_exit: Support,
}

/// One line of what was probed.
#[derive(Clone, Debug, Serialize)]
pub struct Capability {
    /// Its name, in words.
    pub name: &'static str,
    /// Whether it is there.
    #[serde(flatten)]
    pub support: Support,
    /// What a VM on a host without it loses.
    pub without_it: &'static str,
}

/// The host could not be probed.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// A VM or vCPU to ask could not be made.
    #[error("cannot create a virtual machine to probe KVM with ({step}): {source}")]
    Scratch {
        /// What was tried.
        step: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

impl HostTime {
    /// Asks KVM, on a VM with one vCPU that is made for it and thrown away.
    ///
    /// # Errors
    ///
    /// [`ProbeError::Scratch`] where KVM is there but makes no VM.
    pub fn probe(kvm: &Kvm) -> Result<Self, ProbeError> {
        let vm_attributes = arch::VmAttributes::probe(kvm)?;
        Ok(Self {
            kvm_api_version: kvm.get_api_version(),
            max_vcpus: kvm.get_max_vcpus(),
            stolen_time: vm_attributes.stolen_time,
            counter_offset: extension(kvm, cap::COUNTER_OFFSET, "KVM_CAP_COUNTER_OFFSET"),
            run_delay: run_delay(),
            smccc_filter: vm_attributes.smccc_filter,
            system_suspend: extension(kvm, cap::ARM_SYSTEM_SUSPEND, "KVM_CAP_ARM_SYSTEM_SUSPEND"),
            ptp_kvm: extension(kvm, cap::PTP_KVM, "KVM_CAP_PTP_KVM"),
            readonly_memory: extension(kvm, cap::READONLY_MEM, "KVM_CAP_READONLY_MEM"),
            immediate_exit: extension(kvm, cap::IMMEDIATE_EXIT, "KVM_CAP_IMMEDIATE_EXIT"),
        })
    }

    /// Everything that was probed, with what each is needed for.
    #[must_use]
    pub fn capabilities(&self) -> Vec<Capability> {
        let line = |name, support: &Support, without_it| Capability {
            name,
            support: support.clone(),
            without_it,
        };
        vec![
            line(
                "stolen time",
                &self.stolen_time,
                "guests take time that the host's scheduler withheld for their own",
            ),
            line(
                "live physical time",
                &self.live_physical_time(),
                "a VM cannot go to a host whose counter has another frequency",
            ),
            line(
                "paused time",
                &self.paused_time(),
                "a guest is not told for how long it was stopped",
            ),
            line(
                "run delay of threads",
                &self.run_delay,
                "nobody on this host can say what was stolen",
            ),
            line(
                "VM-wide counter offset",
                &self.counter_offset,
                REGISTER_LIMITS,
            ),
            line(
                "SMCCC filter",
                &self.smccc_filter,
                "no hypercall reaches the VMM: no live physical time",
            ),
            line(
                "PSCI SYSTEM_SUSPEND",
                &self.system_suspend,
                "a guest cannot sleep together with its host",
            ),
            line(
                "PTP_KVM",
                &self.ptp_kvm,
                "a guest cannot set its wall clock from the host's without a network",
            ),
            line(
                "read-only guest memory",
                &self.readonly_memory,
                "a guest could write into the time pages that the VMM keeps",
            ),
            line(
                "immediate exit",
                &self.immediate_exit,
                "a vCPU may enter the guest once more after it was told to stop",
            ),
        ]
    }

    /// Whether a thread of the VMM can keep stolen time: it answers the guest's calls, and needs
    /// the scheduler's accounts.
    #[must_use]
    pub fn user_stolen_time(&self) -> Support {
        if self.run_delay.is_yes() {
            self.smccc_filter.clone()
        } else {
            self.run_delay.clone()
        }
    }

    /// Whether a guest can have live physical time: the VMM answers its calls, sets both of its
    /// counters, and publishes into memory that it cannot write.
    #[must_use]
    pub fn live_physical_time(&self) -> Support {
        let needed = [
            &self.smccc_filter,
            &self.counter_offset,
            &self.readonly_memory,
        ];
        let missing = needed.into_iter().find(|support| !support.is_yes());
        missing.unwrap_or(&Support::Yes).clone()
    }

    /// Whether a guest can have paused time: it is published into memory that it cannot write.
    #[must_use]
    pub fn paused_time(&self) -> Support {
        self.readonly_memory.clone()
    }
}

fn run_delay() -> Support {
    match thread_stat::run_delay_ns(rustix::thread::gettid()) {
        Ok(_) => Support::Yes,
        Err(error) => Support::no(error.to_string()),
    }
}

/// Capability numbers (include/uapi/linux/kvm.h). kvm-ioctls names some of them only.
mod cap {
    pub const READONLY_MEM: u64 = 81;
    pub const IMMEDIATE_EXIT: u64 = 136;
    #[cfg(target_arch = "aarch64")]
    pub const STEAL_TIME: u64 = 187;
    pub const PTP_KVM: u64 = 198;
    pub const ARM_SYSTEM_SUSPEND: u64 = 216;
    pub const COUNTER_OFFSET: u64 = 227;
}

fn extension(kvm: &Kvm, number: u64, name: &str) -> Support {
    Support::when(
        kvm.check_extension_raw(number) > 0,
        format!("this kernel's KVM does not offer {name}"),
    )
}

#[cfg(target_arch = "aarch64")]
mod arch {
    use kvm_bindings::{
        KVM_ARM_VCPU_PVTIME_CTRL, KVM_ARM_VCPU_PVTIME_IPA, KVM_ARM_VM_SMCCC_CTRL,
        KVM_ARM_VM_SMCCC_FILTER, kvm_device_attr,
    };
    use kvm_ioctls::Kvm;

    use super::{ProbeError, Support, cap};

    /// What only a VM and a vCPU can answer.
    pub struct VmAttributes {
        pub stolen_time: Support,
        pub smccc_filter: Support,
    }

    impl VmAttributes {
        pub fn probe(kvm: &Kvm) -> Result<Self, ProbeError> {
            let failed = |step| {
                move |error: kvm_ioctls::Error| ProbeError::Scratch {
                    step,
                    source: error.into(),
                }
            };
            let vm = kvm.create_vm().map_err(failed("KVM_CREATE_VM"))?;
            let vcpu = vm.create_vcpu(0).map_err(failed("KVM_CREATE_VCPU"))?;
            let stolen_time = if kvm.check_extension_raw(cap::STEAL_TIME) <= 0 {
                Support::no("this host's scheduler keeps no run delay (KVM_CAP_STEAL_TIME is 0)")
            } else {
                Support::when(
                    vcpu.has_device_attr(&attribute(
                        KVM_ARM_VCPU_PVTIME_CTRL,
                        KVM_ARM_VCPU_PVTIME_IPA,
                    ))
                    .is_ok(),
                    "this kernel's KVM has no KVM_ARM_VCPU_PVTIME_IPA",
                )
            };
            let smccc_filter = Support::when(
                vm.has_device_attr(&attribute(KVM_ARM_VM_SMCCC_CTRL, KVM_ARM_VM_SMCCC_FILTER))
                    .is_ok(),
                "this kernel's KVM has no KVM_ARM_VM_SMCCC_FILTER",
            );
            Ok(Self {
                stolen_time,
                smccc_filter,
            })
        }
    }

    fn attribute(group: u32, attr: u32) -> kvm_device_attr {
        kvm_device_attr {
            group,
            attr: attr.into(),
            ..kvm_device_attr::default()
        }
    }
}

#[cfg(not(target_arch = "aarch64"))]
mod arch {
    use kvm_ioctls::Kvm;

    use super::{ProbeError, Support};

    pub struct VmAttributes {
        pub stolen_time: Support,
        pub smccc_filter: Support,
    }

    impl VmAttributes {
        #[expect(clippy::unnecessary_wraps, reason = "the arm64 twin can fail")]
        pub fn probe(_: &Kvm) -> Result<Self, ProbeError> {
            let reason = "it is an interface of arm64 hosts";
            Ok(Self {
                stolen_time: Support::no(reason),
                smccc_filter: Support::no(reason),
            })
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    #[test]
    fn l15_live_physical_time_names_what_it_lacks() {
        let with = |change: fn(&mut HostTime)| {
            let mut host = host(Support::Yes, Support::Yes);
            change(&mut host);
            host.live_physical_time()
        };
        assert_eq!(with(|_| {}), Support::Yes);
        for (change, reason) in [
            (
                (|host| host.smccc_filter = Support::no("no filter")) as fn(&mut HostTime),
                "no filter",
            ),
            (
                |host| host.counter_offset = Support::no("no offset"),
                "no offset",
            ),
            (
                |host| host.readonly_memory = Support::no("no such slots"),
                "no such slots",
            ),
        ] {
            assert_eq!(with(change), Support::no(reason));
        }
        let stolen = host(Support::no("no run delay"), Support::Yes);
        assert_eq!(stolen.live_physical_time(), Support::Yes, "l11");
    }

    /// A host whose only open questions are the two providers of stolen time.
    pub(crate) fn host(stolen_time: Support, smccc_filter: Support) -> HostTime {
        HostTime {
            kvm_api_version: 12,
            max_vcpus: 8,
            stolen_time,
            counter_offset: Support::Yes,
            run_delay: Support::Yes,
            smccc_filter,
            system_suspend: Support::Yes,
            ptp_kvm: Support::Yes,
            readonly_memory: Support::Yes,
            immediate_exit: Support::Yes,
        }
    }

    #[test]
    fn a_missing_capability_keeps_its_reason_and_its_consequence() {
        let host = host(Support::no("no run delay"), Support::Yes);
        let lines = host.capabilities();
        let missing: Vec<_> = lines.iter().filter(|line| !line.support.is_yes()).collect();
        assert_eq!(missing.len(), 1);
        let json = serde_json::to_value(missing[0]).unwrap();
        assert_eq!(json["name"], "stolen time");
        assert_eq!(json["support"], "no");
        assert_eq!(json["reason"], "no run delay");
        assert!(json["without_it"].as_str().unwrap().contains("scheduler"));
    }
}
