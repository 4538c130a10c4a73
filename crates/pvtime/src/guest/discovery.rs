//! Finding the time calls of a hypervisor.

use crate::abi::Ipa;
use crate::abi::smccc::{CallResult, Dialect, FunctionId, PvTimeCall, Version};

/// The addresses that the time calls return are multiples of this.
const ADDRESS_ALIGNMENT_BYTES: u64 = 64;

/// A way to call the hypervisor: `HVC`, `SMC`, or a fake of a test.
///
/// The conduit speaks SMCCC 1.1 or later: a guest knows that from PSCI 1.0's
/// `PSCI_FEATURES(SMCCC_VERSION)` or from its firmware tables. Older firmware may not return from
/// an unknown call.
pub trait Conduit {
    /// Issues the call with `id` in `w0` and `argument` in `x1`, and returns `x0`.
    fn call(&mut self, id: FunctionId, argument: u64) -> CallResult;
}

impl<C: Conduit + ?Sized> Conduit for &mut C {
    fn call(&mut self, id: FunctionId, argument: u64) -> CallResult {
        (**self).call(id, argument)
    }
}

/// The version of the calling convention, `None` if the conduit cannot say.
pub fn smccc_version(conduit: &mut impl Conduit) -> Option<Version> {
    Version::parse(conduit.call(FunctionId::SMCCC_VERSION, 0))
}

/// Why a time interface cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DiscoveryError {
    /// The hypervisor has no time calls at all.
    #[error(
        "the hypervisor has no paravirtualized time: SMCCC_ARCH_FEATURES({id}) returned {result}; \
         go on without it, or turn it on in the VMM"
    )]
    NoPvTime {
        /// The id that was asked about.
        id: FunctionId,
        /// What the probe returned.
        result: CallResult,
    },
    /// The dialect has no number for the call.
    #[error(
        "{call} has no number in the {dialect} dialect: choose the dialect that the VMM serves"
    )]
    NotInDialect {
        /// The call that was wanted.
        call: PvTimeCall,
        /// The dialect in use.
        dialect: Dialect,
    },
    /// The call is not there for this vCPU.
    #[error(
        "{call} is not offered to this vCPU: PV_TIME_FEATURES({id}) returned {result}; \
         go on without it, or turn it on in the VMM"
    )]
    NotOffered {
        /// The call that was wanted.
        call: PvTimeCall,
        /// Its id.
        id: FunctionId,
        /// What `PV_TIME_FEATURES` returned.
        result: CallResult,
    },
    /// The call gave no address, or none that a structure can have.
    #[error(
        "{call} ({id}) returned {result}, not a positive multiple of 64: go on without it, \
         and check the VMM's configuration of this vCPU"
    )]
    NoAddress {
        /// The call that was made.
        call: PvTimeCall,
        /// Its id.
        id: FunctionId,
        /// What it returned.
        result: CallResult,
    },
}

/// The time calls of a hypervisor that has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PvTime {
    dialect: Dialect,
}

impl PvTime {
    /// Asks whether the hypervisor has time calls: one `SMCCC_ARCH_FEATURES`, and no time call
    /// before it.
    ///
    /// # Errors
    ///
    /// [`DiscoveryError::NoPvTime`].
    pub fn discover(conduit: &mut impl Conduit, dialect: Dialect) -> Result<Self, DiscoveryError> {
        let id = FunctionId::PV_TIME_FEATURES;
        let result = conduit.call(FunctionId::SMCCC_ARCH_FEATURES, id.0.into());
        if result.as_32_bit() < 0 {
            return Err(DiscoveryError::NoPvTime { id, result });
        }
        Ok(Self { dialect })
    }

    /// Starts the calling CPU's stolen time at 0 and returns where its structure is.
    ///
    /// Each CPU calls this for itself, once it is online; the result holds for no other.
    ///
    /// # Errors
    ///
    /// [`DiscoveryError::NotOffered`] and [`DiscoveryError::NoAddress`].
    pub fn stolen_time(self, conduit: &mut impl Conduit) -> Result<Ipa, DiscoveryError> {
        self.address(conduit, PvTimeCall::StolenTime)
    }

    /// Returns where the VM's live-physical-time structure is; the same on every CPU.
    ///
    /// # Errors
    ///
    /// [`DiscoveryError::NotInDialect`], [`DiscoveryError::NotOffered`] and
    /// [`DiscoveryError::NoAddress`].
    pub fn live_physical_time(self, conduit: &mut impl Conduit) -> Result<Ipa, DiscoveryError> {
        self.address(conduit, PvTimeCall::LivePhysicalTime)
    }

    fn address(self, conduit: &mut impl Conduit, call: PvTimeCall) -> Result<Ipa, DiscoveryError> {
        let dialect = self.dialect;
        let id = dialect
            .id(call)
            .ok_or(DiscoveryError::NotInDialect { call, dialect })?;
        let result = conduit.call(FunctionId::PV_TIME_FEATURES, id.0.into());
        if result != CallResult::SUCCESS {
            return Err(DiscoveryError::NotOffered { call, id, result });
        }
        let result = conduit.call(id, 0);
        let address = Ipa(result.0);
        if result.as_64_bit() <= 0 || !address.is_aligned(ADDRESS_ALIGNMENT_BYTES) {
            return Err(DiscoveryError::NoAddress { call, id, result });
        }
        Ok(address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;
    use std::vec::Vec;

    /// Answers from a list of (id, argument, result), -1 otherwise, and keeps what was asked.
    struct Script {
        answers: Vec<(u32, u64, u64)>,
        asked: Vec<(u32, u64)>,
    }

    impl Script {
        fn new(answers: &[(u32, u64, u64)]) -> Self {
            Self {
                answers: answers.to_vec(),
                asked: Vec::new(),
            }
        }
    }

    impl Conduit for Script {
        fn call(&mut self, id: FunctionId, argument: u64) -> CallResult {
            self.asked.push((id.0, argument));
            let answer = self.answers.iter().find(|a| (a.0, a.1) == (id.0, argument));
            answer.map_or(CallResult::NOT_SUPPORTED, |a| CallResult(a.2))
        }
    }

    const ARCH_FEATURES: (u32, u64, u64) = (0x8000_0001, 0xC500_0020, 0);

    #[test]
    fn d2_the_first_probe_is_arch_features_then_features_then_the_call() {
        let mut hypervisor = Script::new(&[
            ARCH_FEATURES,
            (0xC500_0020, 0xC500_0021, 0),
            (0xC500_0021, 0, 0x4_0040),
        ]);
        let pv_time = PvTime::discover(&mut hypervisor, Dialect::Final).unwrap();
        assert_eq!(pv_time.stolen_time(&mut hypervisor), Ok(Ipa(0x4_0040)));
        assert_eq!(
            hypervisor.asked,
            [
                (0x8000_0001, 0xC500_0020),
                (0xC500_0020, 0xC500_0021),
                (0xC500_0021, 0)
            ]
        );
    }

    #[test]
    fn d2_no_time_call_follows_a_negative_first_probe() {
        // A 32-bit call defines the lower half of x0 alone.
        for refusal in [u64::MAX, 0xffff_ffff, 0x1234_5678_ffff_ffff] {
            let mut hypervisor = Script::new(&[(0x8000_0001, 0xC500_0020, refusal)]);
            let error = PvTime::discover(&mut hypervisor, Dialect::Final).unwrap_err();
            let (id, result) = (FunctionId(0xC500_0020), CallResult(refusal));
            assert_eq!(error, DiscoveryError::NoPvTime { id, result });
            assert_eq!(hypervisor.asked.len(), 1);
        }
    }

    #[test]
    fn d1_the_draft_dialect_asks_for_its_own_numbers() {
        let mut hypervisor = Script::new(&[
            ARCH_FEATURES,
            (0xC500_0020, 0xC500_0022, 0),
            (0xC500_0022, 0, 0x1_0000),
        ]);
        let draft = PvTime::discover(&mut hypervisor, Dialect::Draft2019).unwrap();
        assert_eq!(draft.stolen_time(&mut hypervisor), Ok(Ipa(0x1_0000)));
        assert!(matches!(
            draft.live_physical_time(&mut hypervisor),
            Err(DiscoveryError::NotOffered {
                id: FunctionId(0xC500_0021),
                ..
            })
        ));
    }

    #[test]
    fn d5_lpt_is_not_asked_for_in_the_final_dialect() {
        let mut hypervisor = Script::new(&[ARCH_FEATURES]);
        let pv_time = PvTime::discover(&mut hypervisor, Dialect::Final).unwrap();
        let (call, dialect) = (PvTimeCall::LivePhysicalTime, Dialect::Final);
        assert_eq!(
            pv_time.live_physical_time(&mut hypervisor),
            Err(DiscoveryError::NotInDialect { call, dialect })
        );
        assert_eq!(hypervisor.asked.len(), 1);
    }

    #[test]
    fn d10_a_vcpu_without_structure_gets_no_address() {
        for bad in [u64::MAX, 0, 0x4_0020, 1 << 63] {
            let mut hypervisor = Script::new(&[
                ARCH_FEATURES,
                (0xC500_0020, 0xC500_0022, 0),
                (0xC500_0022, 0, bad),
            ]);
            let pv_time = PvTime::discover(&mut hypervisor, Dialect::FinalWithLpt).unwrap();
            let error = pv_time.live_physical_time(&mut hypervisor).unwrap_err();
            let (call, id) = (PvTimeCall::LivePhysicalTime, FunctionId(0xC500_0022));
            assert_eq!(
                error,
                DiscoveryError::NoAddress {
                    call,
                    id,
                    result: CallResult(bad)
                }
            );
        }
    }

    #[test]
    fn each_error_names_the_call_and_the_way_out() {
        let (id, result) = (FunctionId(0xC500_0021), CallResult::NOT_SUPPORTED);
        let (call, dialect) = (PvTimeCall::StolenTime, Dialect::Final);
        for (error, message) in [
            (
                DiscoveryError::NoPvTime {
                    id: FunctionId::PV_TIME_FEATURES,
                    result,
                },
                "the hypervisor has no paravirtualized time: SMCCC_ARCH_FEATURES(0xc5000020) \
                 returned -1; go on without it, or turn it on in the VMM",
            ),
            (
                DiscoveryError::NotInDialect {
                    call: PvTimeCall::LivePhysicalTime,
                    dialect,
                },
                "PV_TIME_LPT has no number in the final dialect: choose the dialect that the VMM \
                 serves",
            ),
            (
                DiscoveryError::NotOffered { call, id, result },
                "PV_TIME_ST is not offered to this vCPU: PV_TIME_FEATURES(0xc5000021) returned -1; \
                 go on without it, or turn it on in the VMM",
            ),
            (
                DiscoveryError::NoAddress {
                    call,
                    id,
                    result: CallResult(0x20),
                },
                "PV_TIME_ST (0xc5000021) returned 0x20, not a positive multiple of 64: go on \
                 without it, and check the VMM's configuration of this vCPU",
            ),
        ] {
            assert_eq!(error.to_string(), message);
        }
    }

    #[test]
    fn the_version_comes_from_the_conduit() {
        let mut hypervisor = Script::new(&[(0x8000_0000, 0, 0x1_0001)]);
        assert_eq!(smccc_version(&mut hypervisor), Some(Version::V1_1));
        assert_eq!(smccc_version(&mut Script::new(&[])), None);
    }
}
