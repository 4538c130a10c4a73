//! The calls of the SMC calling convention (Arm DEN0028) that paravirtualized time uses (DEN0057).
//!
//! A guest issues a call by `HVC` or `SMC` with the [`FunctionId`] in `w0` and one argument in
//! `x1`; the [`CallResult`] comes back in `x0`. Registers above `x3` keep their values.
//!
//! The numbers of the time calls moved between drafts: `0xC5000021` is live physical time in the
//! drafts of 2019 and stolen time since the final text. A [`Dialect`] says which numbering holds,
//! and nothing here guesses it.

use super::Ipa;
use core::fmt;

/// A function identifier, as in `w0`.
///
/// Any 32 bits: bit 31 fast call, bit 30 64-bit convention, bits 29 to 24 owner, bits 15 to 0
/// number (DEN0028, section 2).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FunctionId(pub u32);

impl FunctionId {
    /// Asks for the version of the calling convention.
    pub const SMCCC_VERSION: Self = Self(0x8000_0000);
    /// Asks whether the function whose id is in `w1` exists.
    pub const SMCCC_ARCH_FEATURES: Self = Self(0x8000_0001);
    /// Asks whether the time call whose id is in `w1` is there for the calling vCPU.
    pub const PV_TIME_FEATURES: Self = Self(0xC500_0020);

    /// The id in the lower half of a 64-bit register; the upper half means nothing.
    #[must_use]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "ids are 32 bits, DEN0028 section 2"
    )]
    pub const fn from_register(register: u64) -> Self {
        Self(register as u32)
    }

    /// A call that completes without being preempted: bit 31.
    #[must_use]
    pub const fn is_fast(self) -> bool {
        self.0 & (1 << 31) != 0
    }

    /// A call of the 64-bit convention: bit 30.
    #[must_use]
    pub const fn is_64_bit(self) -> bool {
        self.0 & (1 << 30) != 0
    }

    /// Who defines the function: bits 29 to 24.
    #[must_use]
    pub const fn owner(self) -> Owner {
        Owner((self.0 >> 24) as u8 & 0x3f)
    }

    /// The function's number within its owner: bits 15 to 0.
    #[must_use]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the low half is the number"
    )]
    pub const fn number(self) -> u16 {
        self.0 as u16
    }
}

impl fmt::Debug for FunctionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FunctionId({self})")
    }
}

impl fmt::Display for FunctionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#010x}", self.0)
    }
}

/// Who defines a function: the six bits 29 to 24 of its id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Owner(pub u8);

impl Owner {
    /// Arm architecture calls.
    pub const ARCHITECTURE: Self = Self(0);
    /// Standard hypervisor services, among them paravirtualized time.
    pub const STANDARD_HYPERVISOR: Self = Self(5);
}

/// What a call returned in `x0`.
///
/// Any 64 bits. What they mean depends on the call: a call of the 32-bit convention defines the
/// lower half alone, so ask through [`as_32_bit`](Self::as_32_bit) there.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct CallResult(pub u64);

impl CallResult {
    /// The function exists, or did what was asked.
    pub const SUCCESS: Self = Self(0);
    /// The function does not exist, or not for this vCPU: -1 in all 64 bits.
    pub const NOT_SUPPORTED: Self = Self(u64::MAX);

    /// The result of a call of the 32-bit convention: the lower half, signed.
    #[must_use]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "a 32-bit call defines w0 alone"
    )]
    pub const fn as_32_bit(self) -> i32 {
        self.0 as i32
    }

    /// The result of a call of the 64-bit convention: all of it, signed.
    #[must_use]
    pub const fn as_64_bit(self) -> i64 {
        self.0.cast_signed()
    }
}

impl From<Ipa> for CallResult {
    fn from(address: Ipa) -> Self {
        Self(address.0)
    }
}

impl fmt::Debug for CallResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CallResult({self})")
    }
}

impl fmt::Display for CallResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.as_64_bit() < 0 {
            self.as_64_bit().fmt(f)
        } else {
            write!(f, "{:#x}", self.0)
        }
    }
}

/// Version of the calling convention: 15 bits of major, 16 of minor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// Versions of one major number are compatible.
    pub major: u16,
    /// Grows with each addition.
    pub minor: u16,
}

impl Version {
    /// The first version with `SMCCC_ARCH_FEATURES`, on which discovery rests.
    pub const V1_1: Self = Self { major: 1, minor: 1 };

    /// The version in the result of [`FunctionId::SMCCC_VERSION`]; `None` if that is an error code.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "the two halves of 32 bits")]
    pub const fn parse(result: CallResult) -> Option<Self> {
        if result.as_32_bit() < 0 {
            return None;
        }
        Some(Self {
            major: (result.0 >> 16) as u16,
            minor: result.0 as u16,
        })
    }

    /// The result that answers [`FunctionId::SMCCC_VERSION`].
    ///
    /// # Panics
    ///
    /// If `major` does not fit its 15 bits.
    #[must_use]
    pub const fn emit(self) -> CallResult {
        assert!(self.major < 1 << 15, "an SMCCC major version has 15 bits");
        CallResult((self.major as u64) << 16 | self.minor as u64)
    }
}

/// The calls of paravirtualized time, whatever their numbers are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PvTimeCall {
    /// Whether a time call is there for the calling vCPU.
    Features,
    /// Starts the calling vCPU's stolen time at 0 and returns the address of its structure.
    StolenTime,
    /// Returns the address of the VM's live-physical-time structure.
    LivePhysicalTime,
}

impl fmt::Display for PvTimeCall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Features => "PV_TIME_FEATURES",
            Self::StolenTime => "PV_TIME_ST",
            Self::LivePhysicalTime => "PV_TIME_LPT",
        })
    }
}

/// Which document's numbers the time calls have.
///
/// Two ends that assume different dialects take each other's stolen time for live physical time,
/// so both must be told the same one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Dialect {
    /// DEN0057A 1.0 and Linux since 5.5: stolen time at `0xC5000021`, no live physical time.
    #[default]
    Final,
    /// As [`Final`](Self::Final), and live physical time at `0xC5000022` (KVM LPT series, 2020).
    FinalWithLpt,
    /// DEN0057A beta and the KVM drafts of August 2019: live physical time at `0xC5000021`,
    /// stolen time at `0xC5000022`.
    Draft2019,
}

impl Dialect {
    /// The id of a call, `None` where the dialect has no such call.
    #[must_use]
    pub const fn id(self, call: PvTimeCall) -> Option<FunctionId> {
        Some(match (self, call) {
            (_, PvTimeCall::Features) => FunctionId::PV_TIME_FEATURES,
            (Self::Final | Self::FinalWithLpt, PvTimeCall::StolenTime)
            | (Self::Draft2019, PvTimeCall::LivePhysicalTime) => FunctionId(0xC500_0021),
            (Self::FinalWithLpt, PvTimeCall::LivePhysicalTime)
            | (Self::Draft2019, PvTimeCall::StolenTime) => FunctionId(0xC500_0022),
            (Self::Final, PvTimeCall::LivePhysicalTime) => return None,
        })
    }

    /// The call of an id, `None` where the dialect gives it no meaning.
    #[must_use]
    pub fn call(self, id: FunctionId) -> Option<PvTimeCall> {
        use PvTimeCall::{Features, LivePhysicalTime, StolenTime};
        [Features, StolenTime, LivePhysicalTime]
            .into_iter()
            .find(|&call| self.id(call) == Some(id))
    }
}

impl fmt::Display for Dialect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Final => "final",
            Self::FinalWithLpt => "final with live physical time",
            Self::Draft2019 => "draft of 2019",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use PvTimeCall::{Features, LivePhysicalTime, StolenTime};
    use proptest::prelude::*;
    use std::string::ToString;

    const DIALECTS: [Dialect; 3] = [Dialect::Final, Dialect::FinalWithLpt, Dialect::Draft2019];

    #[test]
    fn d1_ids_of_each_dialect() {
        let ids =
            |d: Dialect| [Features, StolenTime, LivePhysicalTime].map(|c| d.id(c).map(|i| i.0));
        assert_eq!(
            ids(Dialect::Final),
            [Some(0xC500_0020), Some(0xC500_0021), None]
        );
        assert_eq!(
            ids(Dialect::FinalWithLpt),
            [Some(0xC500_0020), Some(0xC500_0021), Some(0xC500_0022)]
        );
        assert_eq!(
            ids(Dialect::Draft2019),
            [Some(0xC500_0020), Some(0xC500_0022), Some(0xC500_0021)]
        );
        assert_eq!(Dialect::default(), Dialect::Final);
    }

    #[test]
    fn d5_the_final_dialect_has_no_lpt() {
        assert_eq!(Dialect::Final.call(FunctionId(0xC500_0022)), None);
    }

    #[test]
    fn d6_ids_of_the_32_bit_convention_are_no_time_calls() {
        for dialect in DIALECTS {
            for number in 0x20..0x30 {
                assert_eq!(dialect.call(FunctionId(0x8500_0000 | number)), None);
            }
        }
    }

    #[test]
    fn d8_the_upper_half_of_an_id_register_is_ignored() {
        let id = FunctionId::from_register(0xdead_beef_c500_0021);
        assert_eq!(id, FunctionId(0xC500_0021));
    }

    #[test]
    fn an_id_has_its_parts() {
        let id = FunctionId::PV_TIME_FEATURES;
        assert!(id.is_fast() && id.is_64_bit());
        assert_eq!(
            (id.owner(), id.number()),
            (Owner::STANDARD_HYPERVISOR, 0x20)
        );
        let id = FunctionId::SMCCC_ARCH_FEATURES;
        assert!(id.is_fast() && !id.is_64_bit());
        assert_eq!((id.owner(), id.number()), (Owner::ARCHITECTURE, 1));
        assert!(!FunctionId(0x0400_0000).is_fast());
    }

    #[test]
    fn results_read_in_their_convention() {
        assert_eq!(CallResult(0xffff_ffff).as_32_bit(), -1);
        assert_eq!(CallResult(0xffff_ffff).as_64_bit(), 0xffff_ffff);
        assert_eq!(CallResult::NOT_SUPPORTED.as_64_bit(), -1);
        assert_eq!(CallResult::from(Ipa(0x4000)).as_64_bit(), 0x4000);
        assert_eq!(CallResult::NOT_SUPPORTED.to_string(), "-1");
        assert_eq!(CallResult(0x4000).to_string(), "0x4000");
    }

    #[test]
    fn ids_calls_and_dialects_have_names() {
        let id = FunctionId::SMCCC_VERSION;
        assert_eq!(
            std::format!("{id} {id:?}"),
            "0x80000000 FunctionId(0x80000000)"
        );
        assert_eq!(
            std::format!("{:?}", CallResult::NOT_SUPPORTED),
            "CallResult(-1)"
        );
        let calls = [Features, StolenTime, LivePhysicalTime].map(|call| call.to_string());
        assert_eq!(calls, ["PV_TIME_FEATURES", "PV_TIME_ST", "PV_TIME_LPT"]);
        let dialects = DIALECTS.map(|dialect| dialect.to_string());
        assert_eq!(
            dialects,
            ["final", "final with live physical time", "draft of 2019"]
        );
    }

    #[test]
    #[should_panic(expected = "15 bits")]
    fn a_major_version_of_16_bits_is_a_mistake() {
        let _ = Version {
            major: 1 << 15,
            minor: 0,
        }
        .emit();
    }

    #[test]
    fn versions_compare_and_refuse_error_codes() {
        assert_eq!(Version::parse(CallResult(0x1_0001)), Some(Version::V1_1));
        assert!(Version { major: 1, minor: 0 } < Version::V1_1);
        assert!(Version { major: 2, minor: 0 } > Version::V1_1);
        assert_eq!(Version::parse(CallResult::NOT_SUPPORTED), None);
        assert_eq!(Version::parse(CallResult(0xffff_ffff)), None);
    }

    proptest! {
        #[test]
        fn a_dialect_decodes_what_it_encodes_and_nothing_else(raw: u32) {
            for dialect in DIALECTS {
                for call in [Features, StolenTime, LivePhysicalTime] {
                    if let Some(id) = dialect.id(call) {
                        prop_assert_eq!(dialect.call(id), Some(call));
                    }
                }
                if !(0xC500_0020..=0xC500_0022).contains(&raw) {
                    prop_assert_eq!(dialect.call(FunctionId(raw)), None);
                }
            }
        }

        #[test]
        fn versions_round_trip(major in 0u16..1 << 15, minor: u16) {
            let version = Version { major, minor };
            prop_assert_eq!(Version::parse(version.emit()), Some(version));
        }
    }
}
