//! Any registers as a call, against a table of what each dialect has.
#![no_main]

use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use pvtime::abi::Ipa;
use pvtime::abi::smccc::Dialect;
use pvtime::host::hypercalls::{Effect, ExecutionState, Request, Services};

#[derive(Arbitrary, Debug)]
struct Input {
    dialect: u8,
    is_aarch32: bool,
    stolen_time: Option<u64>,
    live_physical_time: Option<u64>,
    x0: u64,
    x1: u64,
}

const NOT_SUPPORTED: u64 = u64::MAX;

/// What is there, by the number of its call: none, or an address and what is to be done.
fn offered(input: &Input, dialect: Dialect, id: u32) -> Option<(u64, Effect)> {
    let stolen = input
        .stolen_time
        .map(|address| (address, Effect::RestartStolenTime));
    let live = input
        .live_physical_time
        .map(|address| (address, Effect::LivePhysicalTimeFound));
    match (dialect, id) {
        (Dialect::Draft2019, 0xC500_0021) | (Dialect::FinalWithLpt, 0xC500_0022) => live,
        (Dialect::Draft2019, 0xC500_0022) | (_, 0xC500_0021) => stolen,
        _ => None,
    }
}

fn expected(input: &Input, dialect: Dialect) -> (u64, Option<Effect>) {
    let low = |register: u64| (register & 0xffff_ffff) as u32;
    let (id, argument) = (low(input.x0), low(input.x1));
    let has = |id| offered(input, dialect, id).is_some();
    let any = has(0xC500_0021) || has(0xC500_0022);
    let yes = |yes| (if yes { 0 } else { NOT_SUPPORTED }, None);
    match id {
        0x8000_0000 => (0x1_0001, None),
        0x8000_0001 => yes(match argument {
            0x8000_0000 | 0x8000_0001 => true,
            0xC500_0020 => any && !input.is_aarch32,
            _ => false,
        }),
        _ if input.is_aarch32 => yes(false),
        0xC500_0020 => yes(has(argument) || (argument == 0xC500_0020 && any)),
        id => match offered(input, dialect, id) {
            Some((address, effect)) => (address, Some(effect)),
            None => yes(false),
        },
    }
}

fuzz_target!(|input: Input| {
    let dialects = [Dialect::Final, Dialect::FinalWithLpt, Dialect::Draft2019];
    let dialect = dialects[usize::from(input.dialect) % 3];
    let services = Services {
        dialect,
        stolen_time: input.stolen_time.map(Ipa),
        live_physical_time: input.live_physical_time.map(Ipa),
    };
    let state = match input.is_aarch32 {
        true => ExecutionState::AArch32,
        false => ExecutionState::AArch64,
    };
    // The numbers that mean something are few: every third input is near them.
    let x0 = match input.dialect / 3 % 3 {
        0 => input.x0,
        1 => 0xC500_0020 | input.x0 & 0xffff_ffff_0000_0003,
        _ => 0x8000_0000 | input.x0 & 0xffff_ffff_0000_0001,
    };
    let x1 = match input.dialect / 9 % 2 {
        0 => input.x1,
        _ => 0xC500_0020 | input.x1 & 0xffff_ffff_0000_0003,
    };
    let input = Input { x0, x1, ..input };
    let answer = services.answer(Request::from_registers(state, x0, x1));
    let (result, effect) = expected(&input, dialect);
    assert_eq!(answer.results.map(|result| result.0), [result, 0, 0, 0]);
    assert_eq!(answer.effect, effect);
});
