//! Calls of the hypervisor.
#![expect(unsafe_code, reason = "a call of the hypervisor may do anything")]

use pvtime::abi::smccc::{CallResult, FunctionId};
use pvtime::guest::arm64::{Hvc, Smc};

use super::machine::Conduit;

/// The conduit that the device tree names, for the time calls.
#[derive(Debug)]
pub enum Caller {
    /// `HVC`.
    Hvc(Hvc),
    /// `SMC`.
    Smc(Smc),
}

impl Caller {
    /// The conduit, if PSCI says that it speaks SMCCC 1.1: what is older may not return from an
    /// unknown call.
    pub fn find(conduit: Conduit) -> Option<Self> {
        let id = FunctionId::SMCCC_VERSION.0;
        let known = match conduit {
            Conduit::Hvc => smccc::psci::psci_features::<smccc::Hvc>(id),
            Conduit::Smc => smccc::psci::psci_features::<smccc::Smc>(id),
        };
        known.ok()?;
        // SAFETY: the CPU is at EL1, PSCI named the conduit and the version above, and time calls
        // alone go through the value, and ids that a test knows for none.
        Some(unsafe {
            match conduit {
                Conduit::Hvc => Self::Hvc(Hvc::new()),
                Conduit::Smc => Self::Smc(Smc::new()),
            }
        })
    }
}

impl pvtime::guest::Conduit for Caller {
    fn call(&mut self, id: FunctionId, argument: u64) -> CallResult {
        match self {
            Self::Hvc(hvc) => hvc.call(id, argument),
            Self::Smc(smc) => smc.call(id, argument),
        }
    }
}
