//! What a guest's call is, and what to answer.
//!
//! A [`Request`] is the registers of one call; [`Services`] is what the calling vCPU is offered;
//! the [`Answer`] is what the registers become and what the hypervisor still has to do. No
//! request panics: what is not a time call of the dialect in force is answered "not supported".
//!
//! A hypervisor that has further services looks at [`Request::call`] first and hands over what is
//! not [`Call::Unknown`].

use crate::abi::Ipa;
use crate::abi::smccc::{CallResult, Dialect, FunctionId, PvTimeCall, Version};

/// The state of the CPU that issued a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ExecutionState {
    /// 64-bit.
    AArch64,
    /// 32-bit, for which paravirtualized time does not exist.
    AArch32,
}

/// A call as a vCPU issued it, by `HVC` or `SMC`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// The state of the caller.
    pub state: ExecutionState,
    /// Lower half of `x0`.
    pub function: FunctionId,
    /// Lower half of `x1`: the one argument that any of these calls has, an id.
    pub argument: FunctionId,
}

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Call {
    /// The version of the calling convention.
    Version,
    /// Whether a function exists.
    ArchFeatures(FunctionId),
    /// Whether a time call is there for the calling vCPU.
    Features(FunctionId),
    /// Start the calling vCPU's stolen time at 0, and where its structure is.
    StolenTime,
    /// Where the VM's live-physical-time structure is.
    LivePhysicalTime,
    /// Nothing that this dialect knows.
    Unknown(FunctionId),
}

impl Request {
    /// The request in a caller's registers, whose upper halves mean nothing.
    #[must_use]
    pub const fn from_registers(state: ExecutionState, x0: u64, x1: u64) -> Self {
        Self {
            state,
            function: FunctionId::from_register(x0),
            argument: FunctionId::from_register(x1),
        }
    }

    /// What is asked for in `dialect`.
    #[must_use]
    pub fn call(self, dialect: Dialect) -> Call {
        if self.function == FunctionId::SMCCC_VERSION {
            return Call::Version;
        }
        if self.function == FunctionId::SMCCC_ARCH_FEATURES {
            return Call::ArchFeatures(self.argument);
        }
        match dialect.call(self.function) {
            Some(_) if self.state == ExecutionState::AArch32 => Call::Unknown(self.function),
            Some(PvTimeCall::Features) => Call::Features(self.argument),
            Some(PvTimeCall::StolenTime) => Call::StolenTime,
            Some(PvTimeCall::LivePhysicalTime) => Call::LivePhysicalTime,
            None => Call::Unknown(self.function),
        }
    }
}

/// The time calls that the calling vCPU is offered.
///
/// Stolen time and live physical time are independent: either may be there without the other, and
/// one vCPU may lack what another has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Services {
    /// The numbering in force.
    pub dialect: Dialect,
    /// Where the calling vCPU's stolen-time structure is; `None` where it has none.
    pub stolen_time: Option<Ipa>,
    /// Where the VM's live-physical-time structure is; `None` where it has none, and of no effect
    /// in a dialect without that call.
    pub live_physical_time: Option<Ipa>,
}

/// What becomes of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// `x0` to `x3`; no other register changes. All but the first are 0.
    pub results: [CallResult; 4],
    /// What to do before the guest goes on.
    pub effect: Option<Effect>,
}

/// What a call asks of the hypervisor beside its result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Effect {
    /// Restart the calling vCPU's stolen time and write its structure anew:
    /// [`StolenAccount::restart`](super::stolen::StolenAccount::restart).
    RestartStolenTime,
    /// Remember that the guest knows live physical time:
    /// [`Event::LivePhysicalTimeFound`](super::timeline::Event::LivePhysicalTimeFound).
    LivePhysicalTimeFound,
}

impl Services {
    /// Answers a request.
    ///
    /// Discovery says yes only to what the vCPU really has: with no structure at all,
    /// `SMCCC_ARCH_FEATURES` denies the features call too, where KVM affirms it.
    #[must_use]
    pub fn answer(&self, request: Request) -> Answer {
        let (result, effect) = match request.call(self.dialect) {
            Call::Version => (Version::V1_1.emit(), None),
            Call::ArchFeatures(id) => (supported(self.exists(id, request.state)), None),
            Call::Features(id) => (supported(self.has(id)), None),
            Call::StolenTime => address(self.stolen_time, Effect::RestartStolenTime),
            Call::LivePhysicalTime => {
                address(self.live_physical_time, Effect::LivePhysicalTimeFound)
            }
            Call::Unknown(_) => (CallResult::NOT_SUPPORTED, None),
        };
        let unused = CallResult(0);
        Answer {
            results: [result, unused, unused, unused],
            effect,
        }
    }

    /// Whether `SMCCC_ARCH_FEATURES` affirms a function.
    fn exists(&self, id: FunctionId, state: ExecutionState) -> bool {
        match id {
            FunctionId::SMCCC_VERSION | FunctionId::SMCCC_ARCH_FEATURES => true,
            FunctionId::PV_TIME_FEATURES => state == ExecutionState::AArch64 && self.has(id),
            _ => false,
        }
    }

    /// Whether `PV_TIME_FEATURES` affirms a time call.
    fn has(&self, id: FunctionId) -> bool {
        let offers = |call| match call {
            PvTimeCall::Features => false,
            PvTimeCall::StolenTime => self.stolen_time.is_some(),
            PvTimeCall::LivePhysicalTime => {
                self.live_physical_time.is_some() && self.dialect.id(call).is_some()
            }
        };
        match self.dialect.call(id) {
            Some(PvTimeCall::Features) => {
                offers(PvTimeCall::StolenTime) || offers(PvTimeCall::LivePhysicalTime)
            }
            Some(call) => offers(call),
            None => false,
        }
    }
}

const fn supported(yes: bool) -> CallResult {
    if yes {
        CallResult::SUCCESS
    } else {
        CallResult::NOT_SUPPORTED
    }
}

fn address(structure: Option<Ipa>, effect: Effect) -> (CallResult, Option<Effect>) {
    match structure {
        Some(address) => (address.into(), Some(effect)),
        None => (CallResult::NOT_SUPPORTED, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ST: Ipa = Ipa(0x4000_0040);
    const LPT: Ipa = Ipa(0x4001_0000);
    const DIALECTS: [Dialect; 3] = [Dialect::Final, Dialect::FinalWithLpt, Dialect::Draft2019];
    const SUCCESS: u64 = 0;
    const NOT_SUPPORTED: u64 = u64::MAX;

    fn services(dialect: Dialect) -> Services {
        Services {
            dialect,
            stolen_time: Some(ST),
            live_physical_time: Some(LPT),
        }
    }

    fn answer(services: Services, x0: u64, x1: u64) -> Answer {
        services.answer(Request::from_registers(ExecutionState::AArch64, x0, x1))
    }

    /// `x0` after a call that has no effect.
    fn x0(services: Services, x0: u64, x1: u64) -> u64 {
        let answer = answer(services, x0, x1);
        assert_eq!(answer.effect, None);
        answer.results[0].0
    }

    #[test]
    fn d1_each_dialect_has_its_numbers() {
        let of = |dialect, id| answer(services(dialect), id, 0).results[0].0;
        assert_eq!(of(Dialect::Final, 0xC500_0021), ST.0);
        assert_eq!(of(Dialect::FinalWithLpt, 0xC500_0021), ST.0);
        assert_eq!(of(Dialect::FinalWithLpt, 0xC500_0022), LPT.0);
        assert_eq!(of(Dialect::Draft2019, 0xC500_0021), LPT.0);
        assert_eq!(of(Dialect::Draft2019, 0xC500_0022), ST.0);
    }

    #[test]
    fn d2_the_first_probe_says_whether_there_is_any() {
        let probe = |services| x0(services, 0x8000_0001, 0xC500_0020);
        for dialect in DIALECTS {
            assert_eq!(probe(services(dialect)), SUCCESS);
            assert_eq!(
                probe(Services {
                    dialect,
                    ..Services::default()
                }),
                NOT_SUPPORTED,
                "d12"
            );
        }
        assert_eq!(x0(services(Dialect::Final), 0x8000_0000, 0), 0x1_0001);
        assert_eq!(
            x0(services(Dialect::Final), 0x8000_0001, 0x8000_0000),
            SUCCESS
        );
        assert_eq!(
            x0(services(Dialect::Final), 0x8000_0001, 0x8000_0001),
            SUCCESS
        );
        assert_eq!(
            x0(services(Dialect::Final), 0x8000_0001, 0xC500_0021),
            NOT_SUPPORTED
        );
    }

    #[test]
    fn d3_every_other_number_is_not_supported() {
        for dialect in DIALECTS {
            for number in (0..0x20).chain(0x23..0x100) {
                let answer = answer(services(dialect), 0xC500_0000 | number, 0xC500_0021);
                assert_eq!(answer.results[0], CallResult::NOT_SUPPORTED);
                assert_eq!(answer.effect, None);
            }
        }
    }

    #[test]
    fn d4_features_are_those_of_the_calling_vcpu() {
        let features = |services, id| x0(services, 0xC500_0020, id);
        let both = services(Dialect::FinalWithLpt);
        for id in [0xC500_0020, 0xC500_0021, 0xC500_0022] {
            assert_eq!(features(both, id), SUCCESS);
            let none = Services {
                dialect: both.dialect,
                ..Services::default()
            };
            assert_eq!(features(none, id), NOT_SUPPORTED);
        }
        for id in [0, 0xC500_0023, 0x8500_0021, 0x8000_0000, 0xffff_ffff] {
            assert_eq!(features(both, id), NOT_SUPPORTED);
        }
    }

    #[test]
    fn d5_the_final_dialect_has_no_live_physical_time() {
        let last = Services {
            stolen_time: None,
            ..services(Dialect::Final)
        };
        assert_eq!(x0(last, 0xC500_0022, 0), NOT_SUPPORTED);
        assert_eq!(x0(last, 0xC500_0020, 0xC500_0022), NOT_SUPPORTED);
        assert_eq!(
            x0(last, 0xC500_0020, 0xC500_0020),
            NOT_SUPPORTED,
            "no call that works"
        );
        assert_eq!(x0(last, 0x8000_0001, 0xC500_0020), NOT_SUPPORTED);
    }

    #[test]
    fn d6_32_bit_forms_are_not_supported() {
        for dialect in DIALECTS {
            for number in 0x20..0x30 {
                assert_eq!(
                    x0(services(dialect), 0x8500_0000 | number, 0),
                    NOT_SUPPORTED
                );
            }
        }
    }

    #[test]
    fn d7_32_bit_callers_have_no_time_calls() {
        let call = |x0, x1| {
            let request = Request::from_registers(ExecutionState::AArch32, x0, x1);
            services(Dialect::FinalWithLpt).answer(request)
        };
        for id in [0xC500_0020, 0xC500_0021, 0xC500_0022] {
            let answer = call(id, 0xC500_0021);
            assert_eq!(answer.results[0], CallResult::NOT_SUPPORTED);
            assert_eq!(answer.effect, None, "nothing restarts");
        }
        assert_eq!(
            call(0x8000_0001, 0xC500_0020).results[0],
            CallResult::NOT_SUPPORTED
        );
        assert_eq!(
            call(0x8000_0000, 0).results[0].0,
            0x1_0001,
            "which it may ask"
        );
    }

    #[test]
    fn d8_upper_halves_are_ignored() {
        let both = services(Dialect::FinalWithLpt);
        assert_eq!(
            x0(both, 0xdead_beef_c500_0020, 0xffff_ffff_c500_0021),
            SUCCESS
        );
    }

    #[test]
    fn d9_d10_each_vcpu_has_its_own_structure_or_none() {
        for address in [Some(Ipa(0x40)), Some(Ipa(0x80)), None] {
            let vcpu = Services {
                stolen_time: address,
                ..Services::default()
            };
            let answer = answer(vcpu, 0xC500_0021, 0);
            assert_eq!(
                answer.results[0].0,
                address.map_or(NOT_SUPPORTED, |ipa| ipa.0)
            );
            let effect = address.map(|_| Effect::RestartStolenTime);
            assert_eq!(answer.effect, effect, "m7");
        }
    }

    #[test]
    fn l11_stolen_time_and_live_physical_time_are_independent() {
        let all = services(Dialect::FinalWithLpt);
        let stolen = Services {
            live_physical_time: None,
            ..all
        };
        let live = Services {
            stolen_time: None,
            ..all
        };
        assert_eq!(answer(stolen, 0xC500_0021, 0).results[0].0, ST.0);
        assert_eq!(answer(stolen, 0xC500_0022, 0).results[0].0, NOT_SUPPORTED);
        assert_eq!(answer(live, 0xC500_0021, 0).results[0].0, NOT_SUPPORTED);
        let found = answer(live, 0xC500_0022, 0);
        assert_eq!(found.results[0].0, LPT.0);
        assert_eq!(found.effect, Some(Effect::LivePhysicalTimeFound));
        assert_eq!(x0(stolen, 0xC500_0020, 0xC500_0022), NOT_SUPPORTED);
        assert_eq!(x0(live, 0xC500_0020, 0xC500_0022), SUCCESS);
    }

    proptest! {
        #[test]
        fn d3_d13_any_registers_are_answered(
            x0: u64,
            near in 0u64..0x100,
            x1: u64,
            stolen_time in proptest::option::of(any::<u64>().prop_map(Ipa)),
            live in proptest::option::of(any::<u64>().prop_map(Ipa)),
        ) {
            for dialect in DIALECTS {
                let services = Services { dialect, stolen_time, live_physical_time: live };
                for x0 in [x0, 0xC500_0000 | near, 0x8000_0000 | near] {
                    let answer = answer(services, x0, x1);
                    prop_assert_eq!(answer.results[1..].iter().map(|x| x.0).max(), Some(0));
                    let effect = answer.effect.is_some();
                    let known = [stolen_time, live].into_iter().flatten().any(|ipa| {
                        CallResult::from(ipa) == answer.results[0]
                    });
                    prop_assert!(!effect || known, "an effect without an address");
                }
            }
        }
    }
}
