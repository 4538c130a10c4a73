//! The machine suspended (PSCI, DEN0022, `SYSTEM_SUSPEND`): every CPU but the first off, and the first one
//! woken with nothing but its memory.

use core::convert::Infallible;
use core::sync::atomic::{AtomicBool, Ordering};

use aarch64_rt::{SuspendContext, warm_boot_entry};
use smccc::psci::{self, AffinityState};
use smccc::{Hvc, Smc};

use super::cpus::{self, Silent};
use super::machine::{Conduit, Machine, machine};
use super::registers::{publish_stores, without_interrupts};
use super::{StartError, cpu_begin, failure, gic, service, start, timers, work};

/// Why the machine is not suspended.
#[derive(Debug, thiserror::Error)]
pub enum SuspendError {
    /// PSCI has no such call.
    #[error("PSCI has no SYSTEM_SUSPEND here; start the VM with --suspend-guest on")]
    NotOffered,
    /// A CPU stays on.
    #[error(transparent)]
    Silent(#[from] Silent),
    /// The call returned.
    #[error("PSCI SYSTEM_SUSPEND returned: {0}")]
    Returned(psci::Error),
    /// A CPU stays off.
    #[error(transparent)]
    Start(#[from] StartError),
}

static ASKED: AtomicBool = AtomicBool::new(false);

/// Stands for a request without a number.
const NO_ID: u64 = u64::MAX;

/// Whether every CPU but the first is to turn itself off.
pub fn is_asked() -> bool {
    ASKED.load(Ordering::Acquire)
}

/// Whether the machine can be suspended.
pub fn is_offered(conduit: Conduit) -> bool {
    let id = psci::PSCI_SYSTEM_SUSPEND_64;
    match conduit {
        Conduit::Hvc => psci::psci_features::<Hvc>(id),
        Conduit::Smc => psci::psci_features::<Smc>(id),
    }
    .is_ok()
}

/// Suspends the machine, from the first CPU. What answers the request is sent when it was woken.
///
/// # Errors
/// [`SuspendError`]; all CPUs are on as they were, where they can be.
pub fn suspend(id: Option<u32>) -> Result<Infallible, SuspendError> {
    let machine = machine()
        .filter(|it| is_offered(it.conduit))
        .ok_or(SuspendError::NotOffered)?;
    ASKED.store(true, Ordering::Release);
    gic::wake_others();
    let away = await_others_off(machine).map_err(SuspendError::from);
    let returned = away.map(|()| {
        without_interrupts(|| {
            timers::keep(0);
            cpus::depart();
            let returned = call(machine.conduit, woken, id.map_or(NO_ID, u64::from));
            cpus::arrive();
            returned
        })
    });
    bring_back(machine)?;
    Err(SuspendError::Returned(returned?))
}

/// Makes the call; woken, the first CPU goes on at `entry` with this argument, on an empty stack.
pub fn call(conduit: Conduit, entry: extern "C" fn(u64) -> !, argument: u64) -> psci::Error {
    let context = SuspendContext {
        stack_ptr: start::first_stack(),
        entry,
        arg: argument,
    };
    let context = (&raw const context).expose_provenance() as u64;
    publish_stores();
    call_with(conduit, warm_boot_entry as *const () as u64, context)
}

/// Makes the call with an entry point that may be none, and returns what it says.
pub fn call_with(conduit: Conduit, entry_point: u64, context: u64) -> psci::Error {
    let said = match conduit {
        Conduit::Hvc => psci::system_suspend::<Hvc>(entry_point, context),
        Conduit::Smc => psci::system_suspend::<Smc>(entry_point, context),
    };
    said.err().unwrap_or(psci::Error::Unknown(0))
}

/// The first CPU, woken: what it is to do is in memory, what it was is lost.
extern "C" fn woken(argument: u64) -> ! {
    cpu_begin(0);
    if let Err(error) = machine().map_or(Ok(()), bring_back) {
        failure::stop(format_args!("{error}"));
    }
    service::suspended(u32::try_from(argument).ok());
    work::run(0)
}

/// Turns this CPU off, which is not the first, until the first one turns it on.
pub fn leave(cpu: usize) -> ! {
    without_interrupts(|| {
        timers::keep(cpu);
        cpus::depart();
        let said = match machine().map(|machine| machine.conduit) {
            Some(Conduit::Smc) => psci::cpu_off::<Smc>(),
            _ => psci::cpu_off::<Hvc>(),
        };
        failure::stop(format_args!("PSCI CPU_OFF of CPU {cpu} returned: {said:?}"))
    })
}

fn await_others_off(machine: &Machine) -> Result<(), Silent> {
    for cpu in 1..machine.cpus.len() {
        let is_off = || start::state(machine, cpu) == Ok(AffinityState::Off);
        let off = cpus::await_that(|| is_off().then_some(()));
        off.ok_or(Silent::new(cpu))?;
    }
    Ok(())
}

/// Turns on every CPU that is off.
fn bring_back(machine: &Machine) -> Result<(), StartError> {
    ASKED.store(false, Ordering::Release);
    start::start_others(machine)
}
