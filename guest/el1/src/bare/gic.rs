//! Interrupts: which are on, and who is told of each.
#![expect(unsafe_code, reason = "the controller's registers are at an address")]

use core::ptr::{self, NonNull};

use arm_gic::gicv3::registers::{Gicd, GicrSgi};
use arm_gic::gicv3::{GicCpuInterface, GicError, GicV3, SgiTarget, SgiTargetGroup};
use arm_gic::{IntId, InterruptGroup, Trigger, UniqueMmioPointer};
use guest_protocol::report::Timer;
use spin::{Mutex, Once};

use super::machine::{Machine, SharedInterrupt};
use super::{paused, port, registers, timers};

/// Sent to wake a CPU.
const WAKE: IntId = IntId::sgi(0);
const PRIORITY: u8 = 0x80;

static GIC: Mutex<Option<GicV3<'static>>> = Mutex::new(None);
static LINES: Once<Lines> = Once::new();

/// Interrupts by what they are for.
struct Lines {
    timers: [(IntId, Timer); 2],
    port: IntId,
    paused_time: Option<IntId>,
}

/// Sets the controller up for all CPUs, with everything off but the wake-up and the timers.
///
/// # Errors
/// What the driver refuses.
pub fn set_up(machine: &Machine) -> Result<(), GicError> {
    let timers = [
        (IntId::ppi(machine.virtual_timer), Timer::Virtual),
        (IntId::ppi(machine.physical_timer), Timer::Physical),
    ];
    let mut gic = driver(machine)?;
    gic.setup(0);
    gic.enable_all_interrupts(false);
    for cpu in 0..machine.cpus.len() {
        for intid in [WAKE, timers[0].0, timers[1].0] {
            gic.set_interrupt_priority(intid, Some(cpu), PRIORITY)?;
            gic.enable_interrupt(intid, Some(cpu), true)?;
        }
        for (intid, _) in timers {
            gic.set_trigger(intid, Some(cpu), Trigger::Level)?;
        }
    }
    *GIC.lock() = Some(gic);
    let first_cpu = |line| enable_shared(line, machine.cpus[0]);
    let port = first_cpu(machine.port.interrupt)?;
    let paused_time = machine.paused_time.and_then(|place| place.interrupt);
    let paused_time = paused_time.map(first_cpu).transpose()?;
    LINES.call_once(|| Lines {
        timers,
        port,
        paused_time,
    });
    Ok(())
}

fn driver(machine: &Machine) -> Result<GicV3<'static>, GicError> {
    let distributor: *mut Gicd = ptr::with_exposed_provenance_mut(machine.distributor);
    let redistributors: *mut GicrSgi = ptr::with_exposed_provenance_mut(machine.redistributors);
    let distributor = NonNull::new(distributor).expect("the device tree has it above 0");
    let redistributors = NonNull::new(redistributors).expect("the device tree has it above 0");
    // SAFETY: the device tree has the controller at these addresses, which are mapped as device
    // memory; this is called once.
    unsafe {
        let distributor = UniqueMmioPointer::new(distributor);
        GicV3::new(distributor, redistributors, machine.cpus.len())
    }
}

fn enable_shared(line: SharedInterrupt, affinity: u64) -> Result<IntId, GicError> {
    let intid = IntId::spi(line.number);
    let trigger = if line.level {
        Trigger::Level
    } else {
        Trigger::Edge
    };
    let mut gic = GIC.lock();
    let gic = gic.as_mut().expect("it was set up just before");
    gic.set_trigger(intid, None, trigger)?;
    gic.set_interrupt_priority(intid, None, PRIORITY)?;
    gic.distributor().set_routing(intid, Some(affinity))?;
    gic.enable_interrupt(intid, None, true)?;
    Ok(intid)
}

/// Has this CPU take interrupts, when it lets them in.
pub fn set_up_cpu(cpu: usize) {
    if let Some(gic) = GIC.lock().as_mut() {
        gic.init_cpu(cpu);
    }
    GicCpuInterface::set_priority_mask(0xff);
    GicCpuInterface::enable_group1(true);
}

/// Wakes all other CPUs.
pub fn wake_others() {
    let sent = GicCpuInterface::send_sgi(WAKE, SgiTarget::All, SgiTargetGroup::CurrentGroup1);
    sent.expect("it is a software-generated interrupt");
}

/// Handles every interrupt that is pending on this CPU.
pub fn dispatch() {
    let handle = |intid| {
        let Some(lines) = LINES.get() else { return };
        if let Some((_, timer)) = lines.timers.iter().find(|(line, _)| *line == intid) {
            timers::fired(registers::cpu(), *timer);
        } else if intid == lines.port {
            port::receive();
        } else if Some(intid) == lines.paused_time {
            paused::announced();
        }
    };
    while GicCpuInterface::handle_interrupt(InterruptGroup::Group1, handle) {}
}
