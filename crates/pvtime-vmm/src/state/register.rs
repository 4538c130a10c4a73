//! A vCPU's registers as `KVM_GET_ONE_REG` and `KVM_SET_ONE_REG` name them.

use std::fmt;
use std::num::ParseIntError;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_bytes::{ByteBuf, Bytes};

/// What KVM calls a register. The numbers are ABI (`arch/arm64/include/uapi/asm/kvm.h`): bits 63 to
/// 60 the architecture, 55 to 52 the size, 27 to 16 the kind, 15 to 0 the register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RegisterId(pub u64);

/// When a register is restored; the kernel's order is kept within a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// Firmware pseudo-registers: which calls KVM answers and which version of PSCI it is. First,
    /// because the kernel accepts changes only before anything ran, and the rest may depend on it.
    Firmware,
    /// What the CPU says that it is. The features in there decide which other registers exist.
    Identity,
    /// Everything else.
    Rest,
}

/// A register and what is in it: two numbers with all their digits where people read them, else an
/// integer and bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Register {
    /// Its id.
    pub id: RegisterId,
    /// As many bytes as [`RegisterId::size`] says, little-endian.
    pub value: Vec<u8>,
}

/// The kinds of [`RegisterId`].
mod kind {
    pub const CORE: u64 = 0x10;
    pub const SYSTEM: u64 = 0x13;
    pub const FIRMWARE: u64 = 0x14;
    pub const SVE: u64 = 0x15;
    pub const FIRMWARE_CALLS: u64 = 0x16;
}

impl RegisterId {
    /// Bytes of the register.
    #[must_use]
    pub fn size(self) -> usize {
        1 << (self.0 >> 52 & 0xf)
    }

    /// When it is restored.
    #[must_use]
    pub fn step(self) -> Step {
        match self.kind() {
            kind::FIRMWARE | kind::FIRMWARE_CALLS => Step::Firmware,
            kind::SYSTEM if self.is_identity() => Step::Identity,
            _ => Step::Rest,
        }
    }

    fn kind(self) -> u64 {
        self.0 >> 16 & 0xfff
    }

    /// op0, op1, `CRn`, `CRm`, op2 of a system register.
    fn encoding(self) -> [u64; 5] {
        let id = self.0;
        [
            id >> 14 & 3,
            id >> 11 & 7,
            id >> 7 & 15,
            id >> 3 & 15,
            id & 7,
        ]
    }

    /// Whether a system register is of those that describe the CPU. `CSSELR_EL1` (op1 2) and
    /// `VPIDR_EL2` (op1 4) have the same `CRn` and do not.
    fn is_identity(self) -> bool {
        let [op0, op1, crn, ..] = self.encoding();
        op0 == 3 && crn == 0 && matches!(op1, 0 | 1 | 3)
    }
}

/// The identity registers that differ between CPUs, by the low 16 bits of their ids.
const IDENTITY_NAMES: [(u64, &str); 26] = [
    (0xc000, "MIDR_EL1"),
    (0xc005, "MPIDR_EL1"),
    (0xc006, "REVIDR_EL1"),
    (0xc020, "ID_AA64PFR0_EL1"),
    (0xc021, "ID_AA64PFR1_EL1"),
    (0xc022, "ID_AA64PFR2_EL1"),
    (0xc024, "ID_AA64ZFR0_EL1"),
    (0xc025, "ID_AA64SMFR0_EL1"),
    (0xc027, "ID_AA64FPFR0_EL1"),
    (0xc028, "ID_AA64DFR0_EL1"),
    (0xc029, "ID_AA64DFR1_EL1"),
    (0xc02c, "ID_AA64AFR0_EL1"),
    (0xc030, "ID_AA64ISAR0_EL1"),
    (0xc031, "ID_AA64ISAR1_EL1"),
    (0xc032, "ID_AA64ISAR2_EL1"),
    (0xc033, "ID_AA64ISAR3_EL1"),
    (0xc038, "ID_AA64MMFR0_EL1"),
    (0xc039, "ID_AA64MMFR1_EL1"),
    (0xc03a, "ID_AA64MMFR2_EL1"),
    (0xc03b, "ID_AA64MMFR3_EL1"),
    (0xc03c, "ID_AA64MMFR4_EL1"),
    (0xc800, "CCSIDR_EL1"),
    (0xc801, "CLIDR_EL1"),
    (0xc807, "AIDR_EL1"),
    (0xd801, "CTR_EL0"),
    (0xd807, "DCZID_EL0"),
];

/// Those of `Documentation/virt/kvm/arm/fw-pseudo-registers.rst`, by the low bits of their ids.
const FIRMWARE_NAMES: [(u64, &str); 8] = [
    (0x14_0000, "KVM_REG_ARM_PSCI_VERSION"),
    (0x14_0001, "KVM_REG_ARM_SMCCC_ARCH_WORKAROUND_1"),
    (0x14_0002, "KVM_REG_ARM_SMCCC_ARCH_WORKAROUND_2"),
    (0x14_0003, "KVM_REG_ARM_SMCCC_ARCH_WORKAROUND_3"),
    (0x16_0000, "KVM_REG_ARM_STD_BMAP"),
    (0x16_0001, "KVM_REG_ARM_STD_HYP_BMAP"),
    (0x16_0002, "KVM_REG_ARM_VENDOR_HYP_BMAP"),
    (0x16_0003, "KVM_REG_ARM_VENDOR_HYP_BMAP_2"),
];

/// A name where there is one, by Arm's rule for those without (`S3_0_C0_C4_0`), and the number.
impl fmt::Display for RegisterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named = |names: &[(u64, &'static str)], id| {
            names
                .iter()
                .find_map(|(known, name)| (*known == id).then_some(*name))
        };
        let kind = self.kind();
        let name = match kind {
            kind::SYSTEM => named(&IDENTITY_NAMES, self.0 & 0xffff),
            kind::FIRMWARE | kind::FIRMWARE_CALLS => named(&FIRMWARE_NAMES, self.0 & 0xfff_ffff),
            kind::CORE => Some("core register"),
            kind::SVE => Some("SVE register"),
            _ => Some("register"),
        };
        match name {
            Some(name) => f.write_str(name)?,
            None if kind == kind::SYSTEM => {
                let [op0, op1, crn, crm, op2] = self.encoding();
                write!(f, "S{op0}_{op1}_C{crn}_C{crm}_{op2}")?;
            }
            None => f.write_str("firmware register")?,
        }
        write!(f, " ({:#018x})", self.0)
    }
}

/// A register in a file is not one.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// The id.
    #[error("{text:?} is no register id: {source}")]
    Id {
        /// What is there.
        text: String,
        /// What is wrong with it.
        source: ParseIntError,
    },
    /// The value as bytes.
    #[error("{bytes} bytes are no value for {id}, which has {}", id.size())]
    Length {
        /// The register.
        id: RegisterId,
        /// How many there are.
        bytes: usize,
    },
    /// The value.
    #[error("{text:?} is no value of {bytes} bytes for {id}")]
    Value {
        /// The register.
        id: RegisterId,
        /// What is there.
        text: String,
        /// The register's size.
        bytes: usize,
    },
}

/// The number of an id or a value, most significant digit first, after `0x`.
fn digits(text: &str) -> &str {
    text.strip_prefix("0x").unwrap_or_default()
}

impl TryFrom<(String, String)> for Register {
    type Error = ParseError;

    fn try_from((id, text): (String, String)) -> Result<Self, ParseError> {
        let id = match u64::from_str_radix(digits(&id), 16) {
            Ok(number) => RegisterId(number),
            Err(source) => return Err(ParseError::Id { text: id, source }),
        };
        let mut value = vec![0; id.size()];
        if hex::decode_to_slice(digits(&text), &mut value).is_err() {
            let bytes = id.size();
            return Err(ParseError::Value { id, text, bytes });
        }
        value.reverse();
        Ok(Self { id, value })
    }
}

impl From<Register> for (String, String) {
    fn from(register: Register) -> Self {
        let mut value = register.value;
        value.reverse();
        (
            format!("{:#018x}", register.id.0),
            format!("0x{}", hex::encode(value)),
        )
    }
}

impl Serialize for Register {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            <(String, String)>::from(self.clone()).serialize(serializer)
        } else {
            (self.id.0, Bytes::new(&self.value)).serialize(serializer)
        }
    }
}

impl<'de> Deserialize<'de> for Register {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            let text = <(String, String)>::deserialize(deserializer)?;
            return Self::try_from(text).map_err(D::Error::custom);
        }
        let (id, value) = <(u64, ByteBuf)>::deserialize(deserializer)?;
        let (id, value) = (RegisterId(id), value.into_vec());
        if value.len() != id.size() {
            let bytes = value.len();
            return Err(D::Error::custom(ParseError::Length { id, bytes }));
        }
        Ok(Self { id, value })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIDR: RegisterId = RegisterId(0x6030_0000_0013_c000);
    const X0: RegisterId = RegisterId(0x6030_0000_0010_0000);
    const PSCI_VERSION: RegisterId = RegisterId(0x6030_0000_0014_0000);
    const STD_HYP_BMAP: RegisterId = RegisterId(0x6030_0000_0016_0001);

    #[test]
    fn sizes_are_those_of_the_id() {
        for (id, bytes) in [
            (0x6020_0000_0010_00d4, 4),   // FPSR
            (0x6030_0000_0010_0000, 8),   // x0
            (0x6040_0000_0010_0054, 16),  // v0
            (0x6060_0000_0015_ffff, 64),  // KVM_REG_ARM64_SVE_VLS
            (0x6080_0000_0015_0000, 256), // z0
        ] {
            assert_eq!(RegisterId(id).size(), bytes, "{id:#x}");
        }
    }

    #[test]
    fn firmware_comes_first_and_identity_second() {
        let csselr = RegisterId(0x6030_0000_0013_d000);
        let vpidr = RegisterId(0x6030_0000_0013_e000);
        let sctlr = RegisterId(0x6030_0000_0013_c080);
        let ctr = RegisterId(0x6030_0000_0013_d801);
        let mut ids = [
            X0,
            csselr,
            STD_HYP_BMAP,
            MIDR,
            sctlr,
            PSCI_VERSION,
            ctr,
            vpidr,
        ];
        ids.sort_by_key(|id| id.step());
        let sorted = [
            STD_HYP_BMAP,
            PSCI_VERSION,
            MIDR,
            ctr,
            X0,
            csselr,
            sctlr,
            vpidr,
        ];
        assert_eq!(ids, sorted);
    }

    #[test]
    fn registers_are_named() {
        for (id, name) in [
            (MIDR.0, "MIDR_EL1 (0x603000000013c000)"),
            (
                0x6030_0000_0013_c038,
                "ID_AA64MMFR0_EL1 (0x603000000013c038)",
            ),
            (0x6030_0000_0013_c080, "S3_0_C1_C0_0 (0x603000000013c080)"),
            (
                STD_HYP_BMAP.0,
                "KVM_REG_ARM_STD_HYP_BMAP (0x6030000000160001)",
            ),
            (
                0x6030_0000_0016_0009,
                "firmware register (0x6030000000160009)",
            ),
            (X0.0, "core register (0x6030000000100000)"),
        ] {
            assert_eq!(RegisterId(id).to_string(), name);
        }
    }

    #[test]
    fn a_register_is_the_same_after_a_file() {
        let registers = [
            Register {
                id: X0,
                value: 0x0123_4567_89ab_cdefu64.to_le_bytes().into(),
            },
            Register {
                id: RegisterId(0x6020_0000_0010_00d4),
                value: vec![1, 2, 3, 4],
            },
        ];
        let json = serde_json::to_string(&registers).unwrap();
        assert_eq!(
            json,
            r#"[["0x6030000000100000","0x0123456789abcdef"],["0x60200000001000d4","0x04030201"]]"#
        );
        let read: Vec<Register> = serde_json::from_str(&json).unwrap();
        assert_eq!(read, registers);
    }

    #[test]
    fn a_register_is_the_same_after_a_stream() {
        let register = Register {
            id: X0,
            value: 0x0123_4567_89ab_cdefu64.to_le_bytes().into(),
        };
        let packed = rmp_serde::to_vec_named(&register).unwrap();
        let (array, id, bytes) = (1, 9, 2 + 8);
        assert_eq!(packed.len(), array + id + bytes);
        let read: Register = rmp_serde::from_slice(&packed).unwrap();
        assert_eq!(read, register);
        let packed = rmp_serde::to_vec_named(&(X0.0, vec![0u8; 7])).unwrap();
        let error = rmp_serde::from_slice::<Register>(&packed).unwrap_err();
        assert_eq!(
            error.to_string(),
            "7 bytes are no value for core register (0x6030000000100000), which has 8"
        );
    }

    #[test]
    fn what_is_no_register_is_refused() {
        for (id, value) in [
            ("6030000000100000", "0x0123456789abcdef"),
            ("0xg", "0x0123456789abcdef"),
            ("0x6030000000100000", "0x0123456789abcde"),
            ("0x6030000000100000", "0x0123456789abcdef00"),
            ("0x6030000000100000", "0123456789abcdef"),
            ("0x6030000000100000", "0x0123456789abcdeg"),
        ] {
            let parsed = Register::try_from((id.to_owned(), value.to_owned()));
            assert!(parsed.is_err(), "{id} {value}");
        }
        let error = Register::try_from(("0x6020000000100000".into(), "0x00".into())).unwrap_err();
        assert_eq!(
            error.to_string(),
            "\"0x00\" is no value of 4 bytes for core register (0x6020000000100000)"
        );
    }
}
