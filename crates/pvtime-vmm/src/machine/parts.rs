//! What a machine is made of, each part as KVM gives it.
#![expect(
    unsafe_code,
    reason = "KVM is given the addresses of the guest's memory"
)]

use std::io::Write;
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result, anyhow};
use kvm_bindings::{
    KVM_ARM_IRQ_TYPE_SHIFT, KVM_ARM_IRQ_TYPE_SPI, KVM_ARM_VCPU_POWER_OFF, KVM_ARM_VCPU_PSCI_0_2,
    KVM_CAP_ARM_NISV_TO_USER, KVM_DEV_ARM_VGIC_CTRL_INIT, KVM_DEV_ARM_VGIC_GRP_ADDR,
    KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_VGIC_GRP_NR_IRQS, KVM_VGIC_V3_ADDR_TYPE_DIST,
    KVM_VGIC_V3_ADDR_TYPE_REDIST, kvm_create_device, kvm_device_attr,
    kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3, kvm_enable_cap, kvm_userspace_memory_region,
    kvm_vcpu_init,
};
use kvm_ioctls::{DeviceFd, VcpuFd, VmFd};
use pvtime_kvm::{VcpuTime, VmTime};
use vm_memory::{Address, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};
use vm_superio::SerialState;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::suspending;
use crate::bus::Bus;
use crate::button::Keys;
use crate::devices::{InputDrained, Interrupt, SerialPort};
use crate::event::Event;
use crate::layout::{
    Device, GENERATION, GENERATION_BYTES, GIC_DISTRIBUTOR, GIC_REDISTRIBUTORS, KEYS, RAM,
};
use crate::pl061::{Pl061, Pl061State};

/// A serial port and the event that its input has been read.
pub struct Port {
    /// The port.
    pub port: Arc<Mutex<SerialPort>>,
    /// Written when the guest has read all input.
    pub drained: Event,
}

/// Interrupt id of the first shared interrupt.
const FIRST_SPI: u32 = 32;
/// Interrupt ids that the interrupt controller has: the private ones and 96 shared.
const INTERRUPTS: u32 = 128;

/// Has accesses to what is no memory handed over where KVM cannot decode the instruction (Linux 5.5);
/// else they end the VM.
pub(super) fn take_undecodable_accesses(vm: &VmFd) -> Result<()> {
    let capability = kvm_enable_cap {
        cap: KVM_CAP_ARM_NISV_TO_USER,
        ..kvm_enable_cap::default()
    };
    vm.enable_cap(&capability)
        .context("this host's KVM has no KVM_CAP_ARM_NISV_TO_USER; a newer kernel is needed")
}

/// Memory that is all zero.
pub(super) fn guest_memory(memory_mib: u64) -> Result<GuestMemoryMmap> {
    let bytes = usize::try_from(memory_mib << 20)?;
    GuestMemoryMmap::from_ranges(&[(GuestAddress(RAM), bytes)])
        .with_context(|| format!("cannot get {memory_mib} MiB of memory for the guest"))
}

/// A page for a generation's identifier.
pub(super) fn generation_page() -> Result<GuestMemoryMmap> {
    let (base, bytes) = (
        GuestAddress(GENERATION.base),
        usize::try_from(GENERATION_BYTES)?,
    );
    GuestMemoryMmap::from_ranges(&[(base, bytes)])
        .context("cannot get the page with the VM's generation")
}

/// Gives the guest memory of one range.
pub(super) fn set_memory_slot(
    vm: &VmFd,
    slot: u32,
    memory: &GuestMemoryMmap,
    flags: u32,
) -> Result<()> {
    let region = memory.iter().next().expect("one range was given");
    let slot = kvm_userspace_memory_region {
        slot,
        flags,
        guest_phys_addr: region.start_addr().raw_value(),
        memory_size: region.len(),
        userspace_addr: region.as_ptr() as u64,
    };
    // SAFETY: the mapping is `memory_size` bytes long and lives in the machine, which drops it
    // after its vCPUs, without which no guest reaches it. Rust code uses volatile accesses alone.
    unsafe { vm.set_user_memory_region(slot) }.context("cannot give the guest its memory")
}

/// What every vCPU is made with; all but the first are turned off besides.
pub(super) fn vcpu_init(vm: &VmFd) -> Result<kvm_vcpu_init> {
    let mut init = kvm_vcpu_init::default();
    vm.get_preferred_target(&mut init)
        .context("cannot ask KVM for the host's kind of CPU")?;
    init.features[0] |= 1 << KVM_ARM_VCPU_PSCI_0_2;
    Ok(init)
}

/// All vCPUs but the first wait for the guest to turn them on (PSCI `CPU_ON`).
pub(super) fn create_vcpus(
    vm: &VmFd,
    cpus: u64,
    init: kvm_vcpu_init,
    time: &Arc<VmTime>,
) -> Result<Vec<(VcpuFd, VcpuTime)>> {
    (0..cpus)
        .map(|index| {
            let vcpu = vm
                .create_vcpu(index)
                .with_context(|| format!("cannot create vCPU {index}"))?;
            let mut init = init;
            if index > 0 {
                init.features[0] |= 1 << KVM_ARM_VCPU_POWER_OFF;
            }
            vcpu.vcpu_init(&init)
                .with_context(|| format!("cannot initialize vCPU {index}"))?;
            let vcpu_time = time.attach(&vcpu, usize::try_from(index)?)?;
            Ok((vcpu, vcpu_time))
        })
        .collect()
}

pub(super) fn create_gic(vm: &VmFd) -> Result<DeviceFd> {
    let mut device = kvm_create_device {
        type_: kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3,
        fd: 0,
        flags: 0,
    };
    let gic = vm.create_device(&mut device).context(
        "this host's KVM gives a VM no GICv3 interrupt controller; a host with a GICv3 or newer \
         is needed",
    )?;
    let set = |group: u32, attr: u32, value: Option<&u64>| {
        let addr = value.map_or(0, |value| std::ptr::from_ref(value) as u64);
        gic.set_device_attr(&kvm_device_attr {
            flags: 0,
            group,
            attr: attr.into(),
            addr,
        })
        .context("cannot set up the GICv3")
    };
    let addresses = [
        (KVM_VGIC_V3_ADDR_TYPE_DIST, GIC_DISTRIBUTOR.start),
        (KVM_VGIC_V3_ADDR_TYPE_REDIST, GIC_REDISTRIBUTORS),
    ];
    for (kind, address) in addresses {
        set(KVM_DEV_ARM_VGIC_GRP_ADDR, kind, Some(&address))?;
    }
    // The kernel reads 32 bits, which on a little-endian host are the first of the 64.
    set(KVM_DEV_ARM_VGIC_GRP_NR_IRQS, 0, Some(&INTERRUPTS.into()))?;
    set(KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_VGIC_CTRL_INIT, None)?;
    Ok(gic)
}

pub(super) fn insert_port(
    vm: &VmFd,
    bus: &mut Bus,
    place: Device,
    output: Box<dyn Write + Send>,
    state: &SerialState,
) -> Result<Port> {
    let interrupt = EventFd::new(EFD_NONBLOCK)?;
    vm.register_irqfd(&interrupt, place.spi)
        .context("cannot connect a device's interrupt")?;
    let drained = Event::new()?;
    let events = InputDrained(drained.clone());
    let port = SerialPort::from_state(state, Interrupt(interrupt), events, output)
        .map_err(|error| anyhow!("cannot make the serial port at {:#x}: {error}", place.base))?;
    let port = Arc::new(Mutex::new(port));
    bus.insert(place, port.clone());
    Ok(Port { port, drained })
}

pub(super) fn insert_keys(vm: &Arc<VmFd>, bus: &mut Bus, state: Pl061State) -> Result<Keys> {
    suspending::take_suspends(vm)?;
    let (line, its_vm) = (interrupt_line(KEYS.spi), Arc::clone(vm));
    its_vm
        .set_irq_line(line, false)
        .context("cannot connect the interrupt of the keys")?;
    // It was just shown to work.
    let drive = move |high| its_vm.set_irq_line(line, high).unwrap_or(());
    let gpio = Arc::new(Mutex::new(Pl061::from_state(state, Box::new(drive))));
    bus.insert(KEYS, gpio.clone());
    Ok(Keys::new(gpio))
}

/// A shared interrupt, as `KVM_IRQ_LINE` takes it.
pub(super) const fn interrupt_line(spi: u32) -> u32 {
    KVM_ARM_IRQ_TYPE_SPI << KVM_ARM_IRQ_TYPE_SHIFT | (FIRST_SPI + spi)
}

/// `MPIDR_EL1`: op0 3, op1 0, n 0, m 0, op2 5.
const MPIDR_EL1: u64 = 0x6030_0000_0013_c005;
/// Aff3 and Aff2 to Aff0.
const AFFINITY_MASK: u64 = 0xff_00ff_ffff;

pub(super) fn affinity(vcpu: &VcpuFd) -> Result<u64> {
    let mut bytes = [0; 8];
    vcpu.get_one_reg(MPIDR_EL1, &mut bytes)
        .context("cannot read a vCPU's MPIDR_EL1")?;
    Ok(u64::from_le_bytes(bytes) & AFFINITY_MASK)
}

/// The id of a general-purpose register.
pub(super) const fn x(number: usize) -> u64 {
    0x6030_0000_0010_0000 + 2 * number as u64
}

pub(super) const X0: u64 = x(0);
pub(super) const PC: u64 = x(32);

/// Where the kernel starts, by the boot protocol: the device tree's address in x0, x1 to x3 zero,
/// EL1 with interrupts masked.
pub(super) fn set_entry(vcpu: &VcpuFd, entry: u64, fdt: u64) -> Result<()> {
    const PSTATE: u64 = 0x6030_0000_0010_0042;
    const EL1H_MASKED: u64 = 0x3c5;
    for (register, value) in [(PSTATE, EL1H_MASKED), (PC, entry), (X0, fdt)] {
        vcpu.set_one_reg(register, &value.to_le_bytes())
            .context("cannot set where the first vCPU starts")?;
    }
    Ok(())
}
