//! Reading and writing a vCPU's state through KVM.

use std::collections::HashMap;
use std::io;

use kvm_bindings::{
    KVM_ARM_VCPU_POWER_OFF, RegList, kvm_mp_state, kvm_vcpu_events, kvm_vcpu_events__bindgen_ty_1,
    kvm_vcpu_init,
};
use kvm_ioctls::VcpuFd;
use pvtime_kvm::registers::is_time_register;
use rustix::io::Errno;

use super::{SError, VcpuState};
use crate::state::profile::CpuProfile;
use crate::state::register::{Register, RegisterId, Step};

/// A vCPU's state could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The last exit could not be finished.
    #[error("KVM does not finish what the vCPU was doing: {0}; save it once no thread runs it")]
    Unfinished(String),
    /// Its registers could not be listed.
    #[error("cannot list the vCPU's registers: {0}; initialize the vCPU first")]
    List(io::Error),
    /// A register could not be read.
    #[error("cannot read {register}: {source}")]
    Read {
        /// The register.
        register: RegisterId,
        /// What the kernel said.
        source: io::Error,
    },
    /// What is not a register could not be read or written.
    #[error("cannot {access} the vCPU's {what}: {source}")]
    Other {
        /// `get` or `set`.
        access: &'static str,
        /// What it is.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The vCPU was made with other features.
    #[error(
        "the vCPU was saved with the features {saved:x?} and is made with {here:x?}; restore it \
         with the version of pvtime that saved it"
    )]
    Features {
        /// Those of the state.
        saved: [u32; 7],
        /// Those of this vCPU.
        here: [u32; 7],
    },
    /// The host has no such register.
    #[error(
        "this host's KVM has no {register}, which the saved vCPU has; restore it on a host with \
         the same CPU and the same kernel or a newer one"
    )]
    NoSuchRegister {
        /// The register.
        register: RegisterId,
    },
    /// The host has the register, and KVM keeps another value in it.
    #[error(
        "{register} was {saved} in the saved vCPU and is {here} on this host, where KVM does not \
         change it: {source}; restore it on a host with the same CPU and firmware"
    )]
    Foreign {
        /// The register.
        register: RegisterId,
        /// Its saved value.
        saved: String,
        /// Its value here.
        here: String,
        /// What the kernel said.
        source: io::Error,
    },
}

impl VcpuState {
    /// Reads the state of a vCPU of this profile that no thread runs. What is in the profile is not
    /// read again: its VM stands still meanwhile.
    ///
    /// # Errors
    ///
    /// What KVM refuses.
    pub fn save(vcpu: &mut VcpuFd, profile: &CpuProfile) -> Result<Self, Error> {
        finish_exit(vcpu)?;
        // Registers before the rest: a vCPU that another one just turned on is reset by reading
        // the first.
        let others = profile.others.iter().map(|&id| read(vcpu, RegisterId(id)));
        let identity = profile.identity.iter().cloned().map(Ok);
        Ok(Self {
            registers: identity.chain(others).collect::<Result<_, _>>()?,
            features: profile.features,
            mp_state: vcpu
                .get_mp_state()
                .map_err(other("get", MP_STATE))?
                .mp_state,
            serror: read_serror(vcpu)?,
        })
    }

    /// Puts the state into a vCPU that was just made, with the same features as the saved one, and
    /// says what the vCPU is then. Registers that are as in `fresh`, which was read from it, are left
    /// alone.
    ///
    /// # Errors
    ///
    /// [`Error::Features`]; [`Error::NoSuchRegister`] and [`Error::Foreign`] where the host's CPU,
    /// firmware or kernel cannot go on with this state; what else KVM refuses.
    pub fn restore(
        &self,
        vcpu: &VcpuFd,
        init: &kvm_vcpu_init,
        fresh: Option<&FreshRegisters>,
    ) -> Result<CpuProfile, Error> {
        let (saved, here) = (self.features, lasting_features(init));
        if saved != here {
            return Err(Error::Features { saved, here });
        }
        // What the vCPU is, unless it is told to be something else.
        let mut profile = fresh.map(|fresh| &fresh.profile);
        for register in &self.registers {
            // However it came in there: a VM's time has another owner.
            if is_time_register(register.id.0) || fresh.is_some_and(|fresh| fresh.has(register)) {
                continue;
            }
            write(vcpu, register)?;
            if register.id.step() != Step::Rest {
                // KVM hides the registers of what it is told not to have.
                profile = None;
            }
        }
        let mp_state = kvm_mp_state {
            mp_state: self.mp_state,
        };
        vcpu.set_mp_state(mp_state)
            .map_err(other("set", MP_STATE))?;
        vcpu.set_vcpu_events(&events(self.serror))
            .map_err(other("set", EVENTS))?;
        profile
            .cloned()
            .map_or_else(|| CpuProfile::read(vcpu, init), Ok)
    }
}

/// What is in the registers of a vCPU that was just made: all that a VM that arrives stands still
/// for is to write the others.
#[derive(Clone, Debug)]
pub struct FreshRegisters {
    profile: CpuProfile,
    values: HashMap<RegisterId, Vec<u8>>,
}

impl FreshRegisters {
    /// Reads them from a vCPU that was made with `init`.
    ///
    /// # Errors
    ///
    /// What KVM refuses.
    pub fn read(vcpu: &VcpuFd, init: &kvm_vcpu_init) -> Result<Self, Error> {
        let registers = saved_ids(vcpu)?.into_iter().map(|id| read(vcpu, id));
        let registers = registers.collect::<Result<Vec<_>, _>>()?;
        Ok(Self {
            profile: CpuProfile::new(lasting_features(init), &registers),
            values: registers.into_iter().map(|it| (it.id, it.value)).collect(),
        })
    }

    /// What the vCPU is while no state was put into it.
    #[must_use]
    pub fn profile(&self) -> &CpuProfile {
        &self.profile
    }

    fn has(&self, register: &Register) -> bool {
        self.values.get(&register.id) == Some(&register.value)
    }
}

const MP_STATE: &str = "power state";
const EVENTS: &str = "pending system error";

fn other(access: &'static str, what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> Error {
    move |error| Error::Other {
        access,
        what,
        source: error.into(),
    }
}

/// Whether it starts turned off says nothing about what it is.
pub(crate) fn lasting_features(init: &kvm_vcpu_init) -> [u32; 7] {
    let mut features = init.features;
    features[0] &= !(1 << KVM_ARM_VCPU_POWER_OFF);
    features
}

/// A vCPU that left the guest for a device's register has the result yet to take, which it does
/// where it enters again (`Documentation/virt/kvm/api.rst`, `KVM_RUN`).
fn finish_exit(vcpu: &mut VcpuFd) -> Result<(), Error> {
    vcpu.set_kvm_immediate_exit(1);
    let result = match vcpu.run() {
        Err(error) if error.errno() == Errno::INTR.raw_os_error() => Ok(()),
        Err(error) => Err(Error::Unfinished(error.to_string())),
        Ok(exit) => Err(Error::Unfinished(format!("it left with {exit:?}"))),
    };
    vcpu.set_kvm_immediate_exit(0);
    result
}

/// The registers that are saved, in the order in which they are restored.
pub(crate) fn saved_ids(vcpu: &VcpuFd) -> Result<Vec<RegisterId>, Error> {
    let mut ids = list(vcpu)?;
    ids.retain(|id| !is_time_register(id.0));
    ids.sort_by_key(|id| id.step());
    Ok(ids)
}

fn list(vcpu: &VcpuFd) -> Result<Vec<RegisterId>, Error> {
    /// The most that fits; the kernel says E2BIG where it has more.
    const MOST: usize = 500;
    let mut list = RegList::new(MOST).expect("within the type's own limit");
    vcpu.get_reg_list(&mut list)
        .map_err(|error| Error::List(error.into()))?;
    Ok(list.as_slice().iter().copied().map(RegisterId).collect())
}

pub(crate) fn read(vcpu: &VcpuFd, id: RegisterId) -> Result<Register, Error> {
    let mut value = vec![0; id.size()];
    match vcpu.get_one_reg(id.0, &mut value) {
        Ok(_) => Ok(Register { id, value }),
        Err(error) => Err(Error::Read {
            register: id,
            source: error.into(),
        }),
    }
}

/// Writes a register, and for those that describe the machine looks whether that had any effect.
pub(crate) fn write(vcpu: &VcpuFd, register: &Register) -> Result<(), Error> {
    let source = match vcpu.set_one_reg(register.id.0, &register.value) {
        Ok(_) if register.id.step() == Step::Rest => return Ok(()),
        Ok(_) if read(vcpu, register.id)? == *register => return Ok(()),
        Ok(_) => io::Error::other("it ignores the write"),
        Err(error) if error.errno() == Errno::NOENT.raw_os_error() => {
            return Err(Error::NoSuchRegister {
                register: register.id,
            });
        }
        Err(error) => error.into(),
    };
    let here = read(vcpu, register.id)?;
    let (_, saved) = register.clone().into();
    let (_, here) = here.into();
    Err(Error::Foreign {
        register: register.id,
        saved,
        here,
        source,
    })
}

fn read_serror(vcpu: &VcpuFd) -> Result<Option<SError>, Error> {
    let exception = vcpu
        .get_vcpu_events()
        .map_err(other("get", EVENTS))?
        .exception;
    Ok((exception.serror_pending != 0).then_some(SError {
        syndrome: (exception.serror_has_esr != 0).then_some(exception.serror_esr),
    }))
}

fn events(serror: Option<SError>) -> kvm_vcpu_events {
    let syndrome = serror.and_then(|serror| serror.syndrome);
    kvm_vcpu_events {
        exception: kvm_vcpu_events__bindgen_ty_1 {
            serror_pending: serror.is_some().into(),
            serror_has_esr: syndrome.is_some().into(),
            serror_esr: syndrome.unwrap_or_default(),
            ..Default::default()
        },
        ..Default::default()
    }
}
