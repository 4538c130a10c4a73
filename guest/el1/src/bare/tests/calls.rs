//! Calls that a hypervisor must bear: ids that nobody defined, and arguments that mean nothing.

use guest_protocol::report::MAX_BARE_CPUS;
use pvtime::abi::smccc::{CallResult, FunctionId};
use pvtime::guest::Conduit;

use super::{Verdict, absent, ensure, message, test};
use crate::bare::{cpus, interfaces, registers, vectors};

const ARGUMENTS: [u64; 5] = [0, 1, u64::MAX, 0xC500_0021, 1 << 63];

test!(every_call_of_the_hypervisor_range_returns);
/// D3, D4 of the requirements: whatever is asked, an answer comes, and it is -1 for what nobody
/// defined.
fn every_call_of_the_hypervisor_range_returns() -> Verdict {
    let Ok((mut caller, _)) = interfaces::pv_time() else {
        return Err(absent(format_args!("no conduit with time calls")));
    };
    let before = interfaces::stolen(registers::cpu()).map(|(address, _)| address.0);
    let mut answered = 0;
    for id in 0xC500_0000..=0xC500_00FF_u32 {
        for argument in ARGUMENTS {
            let result = caller.call(FunctionId(id), argument);
            let is_defined = (0xC500_0020..=0xC500_0022).contains(&id);
            ensure!(
                is_defined || result == CallResult::NOT_SUPPORTED,
                "{id:#x} with {argument:#x} returned {result}"
            );
            answered += u32::from(result != CallResult::NOT_SUPPORTED);
        }
    }
    let stolen = caller.call(FunctionId(0xC500_0021), 0);
    let same = before.is_none_or(|address| stolen == CallResult(address));
    ensure!(same, "PV_TIME_ST moved from {before:?} to {stolen}");
    Ok(message(format_args!(
        "256 ids with {} arguments each; {answered} calls were answered, and all of a defined id",
        ARGUMENTS.len()
    )))
}

test!(every_call_by_either_conduit_returns);
/// The same with nonsense in every register that a call can have an argument in, by `HVC` and by
/// `SMC`: the one that is not the VM's is undefined or answers nothing but what the other does.
fn every_call_by_either_conduit_returns() -> Verdict {
    let Ok((mut caller, _)) = interfaces::pv_time() else {
        return Err(absent(format_args!("no conduit with time calls")));
    };
    let stolen = interfaces::stolen(registers::cpu()).map(|(address, _)| address.0);
    let mapping = interfaces::live().map(interfaces::Live::mapping);
    let [mut undefined, mut answered] = [[0_u32; 2]; 2];
    for (index, call) in [smccc::hvc64, smccc::smc64].into_iter().enumerate() {
        for id in 0xC500_0000..=0xC500_00FF_u32 {
            for argument in ARGUMENTS {
                let mut result = CallResult::NOT_SUPPORTED.0;
                let fault = vectors::catch(|| [result, ..] = call(id, [argument; 17]));
                undefined[index] += u32::from(fault.is_some());
                if fault.is_some() || result == CallResult::NOT_SUPPORTED.0 {
                    continue;
                }
                answered[index] += 1;
                ensure!(
                    (0xC500_0020..=0xC500_0022).contains(&id),
                    "{id:#x} with {argument:#x} everywhere returned {result:#x}"
                );
            }
        }
    }
    let again = caller.call(FunctionId(0xC500_0021), 0);
    let same = stolen.is_none_or(|address| again == CallResult(address));
    ensure!(same, "PV_TIME_ST moved from {stolen:x?} to {again}");
    let after = interfaces::live().map(interfaces::Live::mapping);
    ensure!(
        after == mapping,
        "the mapping was {mapping:?} and is {after:?}"
    );
    Ok(message(format_args!(
        "256 ids with {} arguments each by HVC and SMC: {answered:?} were answered, {undefined:?} \
         were undefined",
        ARGUMENTS.len()
    )))
}

test!(the_32_bit_aliases_are_unknown);
/// D6: time calls have no form of the 32-bit convention.
fn the_32_bit_aliases_are_unknown() -> Verdict {
    let Ok((mut caller, _)) = interfaces::pv_time() else {
        return Err(absent(format_args!("no conduit with time calls")));
    };
    for id in 0x8500_0020..=0x8500_0022_u32 {
        for argument in ARGUMENTS {
            let result = caller.call(FunctionId(id), argument);
            ensure!(result.as_32_bit() == -1, "{id:#x} returned {result}");
        }
    }
    Ok(message(format_args!("3 ids, -1 for each")))
}

test!(every_cpu_has_stolen_time_of_its_own);
fn every_cpu_has_stolen_time_of_its_own() -> Verdict {
    let mut addresses = [0; MAX_BARE_CPUS];
    let count = cpus::count();
    for (cpu, address) in addresses.iter_mut().enumerate().take(count) {
        let Some((found, _)) = interfaces::stolen(cpu) else {
            return Err(absent(format_args!("CPU {cpu} has none")));
        };
        ensure!(found.is_aligned(64), "CPU {cpu}: {:#x}", found.0);
        *address = found.0;
    }
    let addresses = &mut addresses[..count];
    addresses.sort_unstable();
    let apart = addresses.windows(2).all(|pair| pair[1] - pair[0] >= 64);
    ensure!(apart, "structures overlap: {addresses:x?}");
    Ok(message(format_args!(
        "{count} structures from {:#x}",
        addresses[0]
    )))
}
