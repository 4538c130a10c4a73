//! Where the registers of a GICv3 are, as attributes of KVM's device name them.

use std::fmt;
use std::ops::Range;

use kvm_bindings::{KVM_DEV_ARM_VGIC_GRP_DIST_REGS, KVM_DEV_ARM_VGIC_GRP_REDIST_REGS};

use super::Interrupts;

/// A register by name; of several, which one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Name {
    pub(super) name: &'static str,
    pub(super) index: Option<usize>,
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.index {
            None => f.write_str(self.name),
            Some(index) => write!(f, "{}[{index}]", self.name),
        }
    }
}

/// Registers of the distributor alone.
pub(super) const GICD_CTLR: Array = Array::new("GICD_CTLR", 0x0000, 0);
pub(super) const GICD_TYPER: Array = Array::new("GICD_TYPER", 0x0004, 0);
pub(super) const GICD_IIDR: Array = Array::new("GICD_IIDR", 0x0008, 0);
pub(super) const GICD_IROUTER: Array = Array::new("GICD_IROUTER", 0x6000, 64);

/// Registers of the distributor and, for the private interrupts, of each redistributor.
pub(super) const IGROUPR: Array = Array::new("IGROUPR", 0x0080, 1);
pub(super) const ISENABLER: Array = Array::new("ISENABLER", 0x0100, 1);
pub(super) const ICENABLER: Array = Array::new("ICENABLER", 0x0180, 1);
pub(super) const ISPENDR: Array = Array::new("ISPENDR", 0x0200, 1);
pub(super) const ISACTIVER: Array = Array::new("ISACTIVER", 0x0300, 1);
pub(super) const IPRIORITYR: Array = Array::new("IPRIORITYR", 0x0400, 8);
pub(super) const ICFGR: Array = Array::new("ICFGR", 0x0c00, 2);

/// Words of 32 bits with a number of bits for each interrupt; 0 for a register on its own.
#[derive(Clone, Copy)]
pub(super) struct Array {
    name: &'static str,
    pub(super) offset: u64,
    bits: usize,
}

impl Array {
    const fn new(name: &'static str, offset: u64, bits: usize) -> Self {
        Self { name, offset, bits }
    }

    pub(super) fn name(self, word: usize) -> Name {
        Name {
            name: self.name,
            index: (self.bits > 0).then_some(word),
        }
    }

    /// The words of a range of interrupts, as indices from interrupt 0 on.
    pub(super) fn words(self, interrupts: &Range<usize>) -> Range<usize> {
        interrupts.start * self.bits / 32..interrupts.end * self.bits / 32
    }
}

/// Where the registers of a range of interrupts are.
pub(super) struct Bank {
    pub(super) group: u32,
    /// What to add to the offset of a register.
    pub(super) base: u64,
    pub(super) interrupts: Range<usize>,
}

impl Bank {
    pub(super) fn shared(interrupts: u32) -> Self {
        Self {
            group: KVM_DEV_ARM_VGIC_GRP_DIST_REGS,
            base: 0,
            interrupts: 32..interrupts as usize,
        }
    }

    pub(super) fn private(affinity: u64) -> Self {
        /// A redistributor's second frame.
        const SGI_BASE: u64 = 0x1_0000;
        Self {
            group: KVM_DEV_ARM_VGIC_GRP_REDIST_REGS,
            base: of_cpu(affinity) | SGI_BASE,
            interrupts: 0..32,
        }
    }

    /// Whether a state has as many words as there are.
    pub(super) fn fits(&self, state: &Interrupts) -> bool {
        [
            (IGROUPR, &state.groups),
            (IPRIORITYR, &state.priorities),
            (ICFGR, &state.configurations),
            (ISENABLER, &state.enabled),
            (IGROUPR, &state.lines),
            (ISPENDR, &state.latched),
            (ISACTIVER, &state.active),
        ]
        .iter()
        .all(|(array, values)| array.words(&self.interrupts).len() == values.len())
    }
}

/// A vCPU in an attribute: its affinity fields, packed, in the upper half.
pub(super) fn of_cpu(affinity: u64) -> u64 {
    ((affinity >> 8 & 0xff00_0000) | (affinity & 0x00ff_ffff)) << 32
}

/// A register of a CPU interface, by the encoding of its instruction.
#[derive(Clone, Copy)]
pub(super) struct SystemRegister {
    pub(super) name: Name,
    pub(super) encoding: u64,
}

pub(super) const ICC_SRE: SystemRegister = icc("ICC_SRE_EL1", 12, 12, 5);
pub(super) const ICC_CTLR: SystemRegister = icc("ICC_CTLR_EL1", 12, 12, 4);
pub(super) const ICC_PMR: SystemRegister = icc("ICC_PMR_EL1", 4, 6, 0);
pub(super) const ICC_BPR0: SystemRegister = icc("ICC_BPR0_EL1", 12, 8, 3);
pub(super) const ICC_BPR1: SystemRegister = icc("ICC_BPR1_EL1", 12, 12, 3);
pub(super) const ICC_IGRPEN0: SystemRegister = icc("ICC_IGRPEN0_EL1", 12, 12, 6);
pub(super) const ICC_IGRPEN1: SystemRegister = icc("ICC_IGRPEN1_EL1", 12, 12, 7);
const ICC_AP0R: [SystemRegister; 4] = [
    icc("ICC_AP0R0_EL1", 12, 8, 4),
    icc("ICC_AP0R1_EL1", 12, 8, 5),
    icc("ICC_AP0R2_EL1", 12, 8, 6),
    icc("ICC_AP0R3_EL1", 12, 8, 7),
];
const ICC_AP1R: [SystemRegister; 4] = [
    icc("ICC_AP1R0_EL1", 12, 9, 0),
    icc("ICC_AP1R1_EL1", 12, 9, 1),
    icc("ICC_AP1R2_EL1", 12, 9, 2),
    icc("ICC_AP1R3_EL1", 12, 9, 3),
];

/// The active priorities of group 0 and of group 1: a bit for each preemption level, of which there
/// are half as many as priorities. `ICC_CTLR_EL1` says how many these are.
pub(super) fn active_priorities(
    icc_ctlr: u64,
) -> (&'static [SystemRegister], &'static [SystemRegister]) {
    let registers = match (icc_ctlr >> 8 & 7) + 1 {
        ..=5 => 1,
        6 => 2,
        _ => 4,
    };
    (&ICC_AP0R[..registers], &ICC_AP1R[..registers])
}

/// op0 is 3 and op1 0 in all of them.
const fn icc(name: &'static str, crn: u64, crm: u64, op2: u64) -> SystemRegister {
    SystemRegister {
        name: Name { name, index: None },
        encoding: 3 << 14 | crn << 7 | crm << 3 | op2,
    }
}
