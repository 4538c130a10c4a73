//! One VM's stolen time, whoever keeps it.

use std::sync::Arc;

use kvm_ioctls::{VcpuFd, VmFd};
use pvtime::abi::Ipa;
use pvtime::abi::stolen_time::StolenTime;
use rustix::thread::Pid;
use vm_memory::Address;

use super::kernel;
use super::publisher::{PublishError, Publisher};
use super::structures::Structures;
use crate::StolenTimeProvider;
use crate::region::Access;
use crate::vm_time::{Error, VmTimeConfig};

/// A VM's stolen time.
#[derive(Debug)]
pub(crate) enum Stolen {
    Off,
    Kernel(Structures),
    User(Publisher),
}

impl Stolen {
    /// Makes what the provider needs.
    pub fn new(
        vm: &Arc<VmFd>,
        provider: StolenTimeProvider,
        config: &VmTimeConfig,
    ) -> Result<Self, Error> {
        let structures = |access| {
            let (slot, base) = (config.first_slot, config.region);
            Structures::new(Arc::clone(vm), slot, base, access).map_err(|source| Error::Region {
                address: base.raw_value(),
                slot,
                source,
            })
        };
        Ok(match provider {
            StolenTimeProvider::Off => Self::Off,
            StolenTimeProvider::Kernel => Self::Kernel(structures(Access::ReadWrite)?),
            StolenTimeProvider::User => {
                let structures = structures(Access::ReadOnly)?;
                let period = config.stolen_time_period;
                let publisher = Publisher::start(structures, config.vcpus, period);
                Self::User(publisher.map_err(Error::Publisher)?)
            }
        })
    }

    pub fn provider(&self) -> StolenTimeProvider {
        match self {
            Self::Off => StolenTimeProvider::Off,
            Self::Kernel(_) => StolenTimeProvider::Kernel,
            Self::User(_) => StolenTimeProvider::User,
        }
    }

    pub fn structures(&self) -> Option<&Structures> {
        match self {
            Self::Off => None,
            Self::Kernel(structures) => Some(structures),
            Self::User(publisher) => Some(publisher.structures()),
        }
    }

    /// Prepares a vCPU that was not run yet.
    pub fn attach(&self, vcpu: &VcpuFd, index: usize) -> Result<(), Error> {
        match self {
            // KVM affirms the features call by itself, and forwards the rest.
            Self::Off | Self::User(_) => Ok(()),
            Self::Kernel(structures) => {
                let address = structures.address(index);
                let attach = |source| Error::Attach {
                    index,
                    address: address.raw_value(),
                    source,
                };
                kernel::register(vcpu, address).map_err(attach)
            }
        }
    }

    /// Makes the calling thread the one of a vCPU.
    pub fn bind(&self, index: usize, thread: Pid) -> Result<(), Error> {
        match self {
            Self::Off | Self::Kernel(_) => Ok(()),
            Self::User(publisher) => publisher.bind(index, thread, None).map_err(publish(index)),
        }
    }

    /// Where a vCPU's structure is.
    pub fn address(&self, index: usize) -> Option<Ipa> {
        let structures = self.structures()?;
        Some(Ipa(structures.address(index).raw_value()))
    }

    /// A vCPU's thread is at the gate from now on, where nothing is stolen from it.
    pub fn arrive(&self, index: usize) {
        if let Self::User(publisher) = self {
            publisher.arrive(index);
        }
    }

    /// It leaves the gate, where it waited for a CPU for so long.
    pub fn leave(&self, index: usize, waited_ns: u64) {
        match self {
            Self::Off => {}
            Self::Kernel(structures) => structures.excuse(index, waited_ns),
            Self::User(publisher) => publisher.leave(index),
        }
    }

    /// It enters the guest at once.
    pub fn enter(&self, index: usize) {
        if let Self::Kernel(structures) = self {
            structures.take_back(index);
        }
    }

    /// Starts a vCPU's value at 0 because its guest asked for the structure.
    pub fn restart(&self, index: usize) -> Result<(), Error> {
        match self {
            Self::Off | Self::Kernel(_) => Ok(()),
            Self::User(publisher) => publisher.restart(index).map_err(publish(index)),
        }
    }

    /// Brings the structures up to now. KVM does it by itself.
    pub fn publish(&self) -> Result<(), Error> {
        match self {
            Self::Off | Self::Kernel(_) => Ok(()),
            Self::User(publisher) => publisher
                .publish()
                .map_err(|(index, source)| Error::Publish { index, source }),
        }
    }

    /// Why stolen time could not be brought up to date at last, where user space keeps it.
    pub fn failure(&self) -> Option<String> {
        match self {
            Self::Off | Self::Kernel(_) => None,
            Self::User(publisher) => publisher.failure(),
        }
    }

    /// A stopped vCPU's value, for saving; `None` where its guest has not asked for it.
    pub fn value(&self, index: usize) -> Option<StolenTime> {
        let sample = self.structures()?.load(index);
        sample.claimed.then_some(StolenTime {
            stolen_ns: sample.stolen_ns,
        })
    }

    /// Continues a vCPU's value, which its guest had asked for, on a new thread, which has waited for
    /// so long since it began.
    pub fn restore(
        &self,
        index: usize,
        thread: Pid,
        value: StolenTime,
        waited_ns: u64,
    ) -> Result<(), Error> {
        match self {
            Self::Off => Ok(()),
            Self::Kernel(structures) => {
                structures.restore(index, value, waited_ns);
                Ok(())
            }
            Self::User(publisher) => publisher
                .bind(index, thread, Some(value))
                .map_err(publish(index)),
        }
    }
}

fn publish(index: usize) -> impl Fn(PublishError) -> Error {
    move |source| Error::Publish { index, source }
}
