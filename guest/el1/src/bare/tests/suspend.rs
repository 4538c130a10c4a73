//! Suspensions of the machine that cannot be.

use smccc::psci;

use super::{Verdict, absent, ensure, message, test};
use crate::bare::machine::{Conduit, machine};
use crate::bare::{cpus, failure, suspend};

/// Where no RAM is, or no instruction can be. RAM begins at 1 GiB.
const NO_ENTRIES: [u64; 7] = [
    0,
    0x3fff_fffc,
    0x4008_0002,
    0x4008_0001,
    1 << 47,
    1 << 63,
    u64::MAX - 3,
];

test!(a_suspension_to_nowhere_is_refused);
fn a_suspension_to_nowhere_is_refused() -> Verdict {
    let (conduit, is_offered) = offered()?;
    let expected = if is_offered {
        psci::Error::InvalidAddress
    } else {
        psci::Error::NotSupported
    };
    for entry in NO_ENTRIES {
        let said = suspend::call_with(conduit, entry, 0);
        ensure!(said == expected, "entry {entry:#x}: {said:?}");
    }
    Ok(message(format_args!(
        "{} entry points: {expected:?}",
        NO_ENTRIES.len()
    )))
}

test!(a_suspension_with_other_cpus_on_is_refused);
fn a_suspension_with_other_cpus_on_is_refused() -> Verdict {
    let (conduit, is_offered) = offered()?;
    if cpus::count() < 2 {
        return Err(absent(format_args!("there is no other CPU")));
    }
    let expected = if is_offered {
        psci::Error::Denied
    } else {
        psci::Error::NotSupported
    };
    let said = suspend::call(conduit, granted, 0);
    ensure!(said == expected, "{said:?}");
    Ok(message(format_args!("{} CPUs: {said:?}", cpus::count())))
}

fn offered() -> Result<(Conduit, bool), super::NotPassed> {
    let conduit = machine().map(|machine| machine.conduit);
    let conduit = conduit.ok_or_else(|| absent(format_args!("no conduit")))?;
    Ok((conduit, suspend::is_offered(conduit)))
}

/// Where it goes on if it was suspended all the same.
extern "C" fn granted(_: u64) -> ! {
    failure::stop(format_args!("it was suspended with other CPUs on"))
}
