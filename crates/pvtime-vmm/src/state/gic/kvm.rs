//! Reading and writing the interrupt controller through KVM
//! (`Documentation/virt/kvm/devices/arm-vgic-v3.rst`).
//!
//! # Order of restoring
//!
//! 1. `GICD_IIDR`, before all others, as the interface demands: it says how they behave.
//! 2. `GICD_CTLR`: an interrupt that becomes pending while the distributor is off is queued for no
//!    vCPU, and turning the distributor on does not make up for it.
//! 3. The routes, so that what becomes pending is queued for the right vCPU.
//! 4. Each redistributor, then the distributor: group, priority, edge or level, enabled; then the
//!    input line, the latch and active, which make it pending.
//! 5. The CPU interfaces, `ICC_CTLR_EL1` before the active priorities: its number of priority bits
//!    says how many of these there are.

use std::io;

use kvm_ioctls::DeviceFd;

use super::device::{Attributes, Gic};
use super::registers::{
    Array, Bank, GICD_CTLR, GICD_IIDR, GICD_IROUTER, GICD_TYPER, ICC_BPR0, ICC_BPR1, ICC_CTLR,
    ICC_IGRPEN0, ICC_IGRPEN1, ICC_PMR, ICC_SRE, ICENABLER, ICFGR, IGROUPR, IPRIORITYR, ISACTIVER,
    ISENABLER, ISPENDR, Name, active_priorities,
};
use super::{GicCpuState, GicState, Interface, Interrupts};

/// The interrupt controller's state could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A register could not be read.
    #[error("cannot read {register} of the GICv3: {source}; stop every vCPU first")]
    Read {
        /// The register.
        register: Name,
        /// What the kernel said.
        source: io::Error,
    },
    /// A register could not be written.
    #[error(
        "cannot set {register} of the GICv3 to {value:#x}: {source}; restore on a host with the \
         same GIC and the same kernel or a newer one, while no vCPU runs"
    )]
    Write {
        /// The register.
        register: Name,
        /// The saved value.
        value: u64,
        /// What the kernel said.
        source: io::Error,
    },
    /// The saved controller is not of this machine's size.
    #[error(
        "the saved GICv3 has {saved}, and this machine's has {here}; restore it with the version \
         of pvtime that saved it"
    )]
    Shape {
        /// What it has.
        saved: String,
        /// What was made.
        here: String,
    },
}

/// `GICD_IIDR`: which revision of KVM's implementation the guest sees.
///
/// # Errors
///
/// What KVM refuses: everything, while a vCPU runs.
pub fn implementation(gic: &DeviceFd) -> Result<u32, Error> {
    Gic::new(gic, &Attributes::new()).read(&Bank::shared(0), GICD_IIDR, 0)
}

/// Whether the guest of a controller that was just made can see that revision, which it does then.
///
/// # Errors
///
/// Where KVM does not have it.
pub fn try_implementation(gic: &DeviceFd, implementation: u32) -> Result<(), Error> {
    Gic::new(gic, &Attributes::new()).write(&Bank::shared(0), GICD_IIDR, 0, implementation)
}

impl GicState {
    /// Reads the state of a controller whose vCPUs have these affinities.
    ///
    /// # Errors
    ///
    /// What KVM refuses: everything, while a vCPU runs.
    pub fn save(gic: &DeviceFd, affinities: &[u64]) -> Result<Self, Error> {
        Self::read(&Gic::new(gic, &Attributes::new()), affinities)
    }

    fn read(gic: &Gic<'_>, affinities: &[u64]) -> Result<Self, Error> {
        let interrupts = count(gic)?;
        let shared = Bank::shared(interrupts);
        let save_cpu = |&affinity: &u64| {
            Ok(GicCpuState {
                affinity,
                private: save_bank(gic, &Bank::private(affinity))?,
                interface: save_interface(gic, affinity)?,
            })
        };
        Ok(Self {
            interrupts,
            implementation: gic.read(&shared, GICD_IIDR, 0)?,
            control: gic.read(&shared, GICD_CTLR, 0)?,
            routes: save_routes(gic, &shared)?,
            shared: save_bank(gic, &shared)?,
            cpus: affinities.iter().map(save_cpu).collect::<Result<_, _>>()?,
        })
    }

    /// Puts the state into a controller that was just made, before any vCPU ran. What is as in
    /// `fresh`, which was read from it, is left alone.
    ///
    /// # Errors
    ///
    /// [`Error::Shape`]; what KVM refuses, because the host's GIC has less, or a vCPU runs.
    pub fn restore(
        &self,
        gic: &DeviceFd,
        affinities: &[u64],
        fresh: &FreshGic,
    ) -> Result<(), Error> {
        let gic = Gic::new(gic, &fresh.0);
        self.check_shape(count(&gic)?, affinities)?;
        let shared = Bank::shared(self.interrupts);
        gic.write(&shared, GICD_IIDR, 0, self.implementation)?;
        gic.write(&shared, GICD_CTLR, 0, self.control)?;
        restore_routes(&gic, &shared, &self.routes)?;
        for cpu in &self.cpus {
            restore_bank(&gic, &Bank::private(cpu.affinity), &cpu.private)?;
        }
        restore_bank(&gic, &shared, &self.shared)?;
        for cpu in &self.cpus {
            restore_interface(&gic, cpu.affinity, &cpu.interface)?;
        }
        Ok(())
    }

    fn check_shape(&self, interrupts: u32, affinities: &[u64]) -> Result<(), Error> {
        let saved: Vec<u64> = self.cpus.iter().map(|cpu| cpu.affinity).collect();
        let shared = Bank::shared(self.interrupts);
        let is_whole = shared.fits(&self.shared)
            && self.routes.len() == shared.interrupts.len()
            && self.cpus.iter().all(GicCpuState::is_whole);
        if is_whole && interrupts == self.interrupts && saved == affinities {
            return Ok(());
        }
        let shape = |interrupts, affinities: &[u64]| {
            format!("{interrupts} interrupts and vCPUs of the affinities {affinities:x?}")
        };
        let parts = if is_whole { "" } else { " with parts missing" };
        Err(Error::Shape {
            saved: shape(self.interrupts, &saved) + parts,
            here: shape(interrupts, affinities),
        })
    }
}

/// What is in an interrupt controller that was just made; by default nothing is known of it.
#[derive(Clone, Debug, Default)]
pub struct FreshGic(Attributes);

impl FreshGic {
    /// Reads it.
    ///
    /// # Errors
    ///
    /// What KVM refuses.
    pub fn read(gic: &DeviceFd, affinities: &[u64]) -> Result<Self, Error> {
        let nothing = Attributes::new();
        let gic = Gic::new(gic, &nothing);
        GicState::read(&gic, affinities)?;
        Ok(Self(gic.into_read()))
    }
}

impl GicCpuState {
    fn is_whole(&self) -> bool {
        let (group0, group1) = active_priorities(self.interface.ctlr);
        Bank::private(self.affinity).fits(&self.private)
            && self.interface.ap0r.len() == group0.len()
            && self.interface.ap1r.len() == group1.len()
    }
}

/// The interrupts of the EL2 physical, virtual, EL2 virtual and physical timers. Their lines are
/// outputs of the timers, and in a machine that was just made both agree that they are low. One
/// that was saved high would stay so without its timer, if that is an emulated one, until the
/// timer fires and is turned off: an early interrupt, and a storm of them.
const TIMER_LINES: u32 = 1 << 26 | 1 << 27 | 1 << 28 | 1 << 30;

/// Whether there can be affinities whose level 3 is not zero.
fn has_affinity_3(gic: &Gic<'_>) -> Result<bool, Error> {
    const A3V: u32 = 1 << 24;
    Ok(gic.read(&Bank::shared(0), GICD_TYPER, 0)? & A3V != 0)
}

/// How many interrupts a controller was made for.
fn count(gic: &Gic<'_>) -> Result<u32, Error> {
    let lines = gic.read(&Bank::shared(0), GICD_TYPER, 0)? & 0x1f;
    Ok((lines + 1) * 32)
}

fn save_bank(gic: &Gic<'_>, bank: &Bank) -> Result<Interrupts, Error> {
    let save = |array| save_array(gic, bank, array);
    Ok(Interrupts {
        groups: save(IGROUPR)?,
        priorities: save(IPRIORITYR)?,
        configurations: save(ICFGR)?,
        enabled: save(ISENABLER)?,
        lines: save_lines(gic, bank)?,
        latched: save(ISPENDR)?,
        active: save(ISACTIVER)?,
    })
}

fn restore_bank(gic: &Gic<'_>, bank: &Bank, state: &Interrupts) -> Result<(), Error> {
    let restore = |array, values: &[u32]| restore_array(gic, bank, array, values);
    restore(IGROUPR, &state.groups)?;
    restore(IPRIORITYR, &state.priorities)?;
    restore(ICFGR, &state.configurations)?;
    // KVM starts with SGIs enabled.
    let disabled: Vec<u32> = state.enabled.iter().map(|enabled| !enabled).collect();
    restore(ICENABLER, &disabled)?;
    restore(ISENABLER, &state.enabled)?;
    restore_lines(gic, bank, &state.lines)?;
    restore(ISPENDR, &state.latched)?;
    restore(ISACTIVER, &state.active)
}

fn save_array(gic: &Gic<'_>, bank: &Bank, array: Array) -> Result<Vec<u32>, Error> {
    let words = array.words(&bank.interrupts);
    words.map(|word| gic.read(bank, array, word)).collect()
}

fn restore_array(gic: &Gic<'_>, bank: &Bank, array: Array, values: &[u32]) -> Result<(), Error> {
    let mut words = array.words(&bank.interrupts).zip(values);
    words.try_for_each(|(word, &value)| gic.write(bank, array, word, value))
}

fn save_lines(gic: &Gic<'_>, bank: &Bank) -> Result<Vec<u32>, Error> {
    let words = IGROUPR.words(&bank.interrupts);
    let save = |word| {
        let outputs = if word == 0 { TIMER_LINES } else { 0 };
        Ok(gic.read_lines(bank, word)? & !outputs)
    };
    words.map(save).collect()
}

fn restore_lines(gic: &Gic<'_>, bank: &Bank, lines: &[u32]) -> Result<(), Error> {
    let mut words = IGROUPR.words(&bank.interrupts).zip(lines);
    words.try_for_each(|(word, &lines)| gic.write_lines(bank, word, lines))
}

/// Each has 64 bits and is accessed in halves, the lower one first. The upper one is for level 3 of the
/// affinity alone, and zero where there is none: half of all that there is to read.
fn save_routes(gic: &Gic<'_>, bank: &Bank) -> Result<Vec<u64>, Error> {
    let has_upper = has_affinity_3(gic)?;
    let words = GICD_IROUTER.words(&bank.interrupts).step_by(2);
    let read = |word| gic.read(bank, GICD_IROUTER, word);
    let save = |word| {
        let lower = read(word)?;
        let upper = if has_upper { read(word + 1)? } else { 0 };
        Ok(u64::from(upper) << 32 | u64::from(lower))
    };
    words.map(save).collect()
}

fn restore_routes(gic: &Gic<'_>, bank: &Bank, routes: &[u64]) -> Result<(), Error> {
    let has_upper = has_affinity_3(gic)?;
    let words = GICD_IROUTER.words(&bank.interrupts).step_by(2);
    for (word, &route) in words.zip(routes) {
        #[expect(clippy::cast_possible_truncation, reason = "the lower half")]
        let (lower, upper) = (route as u32, (route >> 32) as u32);
        gic.write(bank, GICD_IROUTER, word, lower)?;
        if has_upper || upper != 0 {
            gic.write(bank, GICD_IROUTER, word + 1, upper)?;
        }
    }
    Ok(())
}

fn save_interface(gic: &Gic<'_>, affinity: u64) -> Result<Interface, Error> {
    let save = |register| gic.read_interface(affinity, register);
    let ctlr = save(ICC_CTLR)?;
    let (group0, group1) = active_priorities(ctlr);
    Ok(Interface {
        sre: save(ICC_SRE)?,
        ctlr,
        pmr: save(ICC_PMR)?,
        bpr0: save(ICC_BPR0)?,
        bpr1: save(ICC_BPR1)?,
        ap0r: group0.iter().copied().map(save).collect::<Result<_, _>>()?,
        ap1r: group1.iter().copied().map(save).collect::<Result<_, _>>()?,
        igrpen0: save(ICC_IGRPEN0)?,
        igrpen1: save(ICC_IGRPEN1)?,
    })
}

fn restore_interface(gic: &Gic<'_>, affinity: u64, state: &Interface) -> Result<(), Error> {
    let restore = |register, value| gic.write_interface(affinity, register, value);
    restore(ICC_SRE, state.sre)?;
    restore(ICC_CTLR, state.ctlr)?;
    restore(ICC_PMR, state.pmr)?;
    restore(ICC_BPR0, state.bpr0)?;
    restore(ICC_BPR1, state.bpr1)?;
    let (group0, group1) = active_priorities(state.ctlr);
    for (&register, &value) in group0.iter().zip(&state.ap0r) {
        restore(register, value)?;
    }
    for (&register, &value) in group1.iter().zip(&state.ap1r) {
        restore(register, value)?;
    }
    restore(ICC_IGRPEN0, state.igrpen0)?;
    restore(ICC_IGRPEN1, state.igrpen1)
}
