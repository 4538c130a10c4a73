//! An arm64 virtual machine that is ready to run: its memory, vCPUs, interrupt controller and
//! devices.
#![expect(
    unsafe_code,
    reason = "KVM is given the addresses of the guest's memory"
)]

pub mod arriving;
mod leaving;
mod saved;
pub mod suspending;

use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use kvm_bindings::{
    KVM_ARM_IRQ_TYPE_SHIFT, KVM_ARM_IRQ_TYPE_SPI, KVM_ARM_VCPU_POWER_OFF, KVM_ARM_VCPU_PSCI_0_2,
    KVM_CAP_ARM_NISV_TO_USER, KVM_DEV_ARM_VGIC_CTRL_INIT, KVM_DEV_ARM_VGIC_GRP_ADDR,
    KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_VGIC_GRP_NR_IRQS, KVM_MEM_READONLY,
    KVM_VGIC_V3_ADDR_TYPE_DIST, KVM_VGIC_V3_ADDR_TYPE_REDIST, kvm_create_device, kvm_device_attr,
    kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3, kvm_enable_cap, kvm_userspace_memory_region,
    kvm_vcpu_init,
};
use kvm_ioctls::{DeviceFd, Kvm, VcpuFd, VmFd};
use pvtime::host::timeline::{NegativeElapsed, Policies, TimelineError};
use pvtime::scale::Frequency;
use pvtime_kvm::{CounterChoice, HostTime, VcpuTime, VmTime, VmTimeConfig};
use vm_memory::{
    Address, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion,
};
use vm_superio::rtc_pl031::NoEvents;
use vm_superio::{Rtc, SerialState};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use vmm_sys_util::signal::SIGRTMIN;

use crate::boot::Boot;
use crate::bus::Bus;
use crate::button::Keys;
use crate::cli::{SwitchArg, TimeArgs};
use crate::devices::{InputDrained, Interrupt, SerialPort};
use crate::event::Event;
use crate::generation::Generation;
use crate::layout::{
    CONSOLE, Device, GENERATION, GENERATION_BYTES, GIC_DISTRIBUTOR, GIC_REDISTRIBUTORS, KEYS,
    MAX_VCPUS, PAUSED_TIME_SPI, RAM, RTC, SERIAL, TIME_REGION,
};
use crate::pl061::{Pl061, Pl061State};
use crate::state::MachineState;
use crate::state::devices::DeviceStates;
use crate::state::gic::FreshGic;
use crate::state::profile::CpuProfile;
use crate::state::vcpu::FreshRegisters;
use crate::suspension::Suspension;
use crate::{entropy, fdt, kvm};

/// What to build.
pub struct MachineConfig {
    /// MiB of RAM.
    pub memory_mib: u64,
    /// vCPUs.
    pub cpus: u64,
    /// How its time is kept.
    pub time: TimeArgs,
    /// The PV frequency, if it has live physical time.
    pub live_physical_time: Option<Frequency>,
    /// Whether its guest is told of its pauses.
    pub paused_time: bool,
    /// Where the console's output goes.
    pub console: Box<dyn Write + Send>,
    /// Where the second port's output goes.
    pub serial: Box<dyn Write + Send>,
}

/// A machine before its first instruction.
pub struct Machine {
    vcpus: Vec<(VcpuFd, VcpuTime)>,
    /// The devices.
    pub bus: Arc<Bus>,
    /// The console and its sign that the guest has read all input.
    pub console: Port,
    /// The second port.
    pub serial: Port,
    rtc: Arc<Mutex<Rtc<NoEvents>>>,
    /// What asks the guest to suspend itself, if it can be asked.
    keys: Option<Keys>,
    /// How far it is with that.
    pub suspension: Arc<Suspension>,
    /// The machine's time.
    pub time: Arc<VmTime>,
    /// What its vCPUs were made with.
    vcpu_init: kvm_vcpu_init,
    /// Of each vCPU, in order.
    affinities: Vec<u64>,
    /// What its first vCPU is, which is what each of them is.
    profile: CpuProfile,
    /// How its time is kept, as it was asked for.
    time_args: TimeArgs,
    gic: DeviceFd,
    vm: Arc<VmFd>,
    /// Which generation of its VM the machine is.
    pub generation: Generation,
    /// Dropped after everything that lets the guest reach it, as is the next.
    memory: GuestMemoryMmap,
    _generation_page: GuestMemoryMmap,
}

/// A machine without a state.
pub struct Blank {
    vm: Arc<VmFd>,
    vcpus: Vec<(VcpuFd, VcpuTime)>,
    time: Arc<VmTime>,
    vcpu_init: kvm_vcpu_init,
    affinities: Vec<u64>,
    gic: DeviceFd,
    fresh: Fresh,
    config: MachineConfig,
    /// Dropped after everything that lets a guest reach it, as is the next.
    memory: GuestMemoryMmap,
    generation_page: GuestMemoryMmap,
}

/// What a machine that was just made holds, as far as it was read.
#[derive(Default)]
struct Fresh {
    /// In order; of fewer vCPUs than there are, or none, where nobody waits for the machine.
    vcpus: Vec<FreshRegisters>,
    gic: FreshGic,
}

/// A serial port and the event that its input has been read.
pub struct Port {
    /// The port.
    pub port: Arc<Mutex<SerialPort>>,
    /// Written when the guest has read all input.
    pub drained: Event,
}

/// Memory slot of RAM; those of the time interfaces follow.
const RAM_SLOT: u32 = 0;
const FIRST_TIME_SLOT: u32 = RAM_SLOT + 1;
const GENERATION_SLOT: u32 = FIRST_TIME_SLOT + VmTimeConfig::SLOTS;
/// Interrupt id of the first shared interrupt.
const FIRST_SPI: u32 = 32;
/// Interrupt ids that the interrupt controller has: the private ones and 96 shared.
const INTERRUPTS: u32 = 128;

impl Machine {
    /// Builds a machine and puts what `boot` holds into its memory.
    ///
    /// # Errors
    ///
    /// Whatever the host refuses, with what was tried.
    pub fn new(config: MachineConfig, boot: &mut Boot) -> Result<Self> {
        let host = Host::open(&config)?;
        let memory_mib = config.memory_mib;
        let memory = guest_memory(memory_mib)?;
        let machine =
            Blank::new(&host, config, memory)?.finish(Generation::first()?, None, None)?;
        machine.load(memory_mib, boot)?;
        Ok(machine)
    }

    /// MiB of its memory.
    pub fn memory_mib(&self) -> u64 {
        self.memory.iter().map(GuestMemoryRegion::len).sum::<u64>() >> 20
    }

    /// Raises the interrupt by which the guest learns that it is another generation: before its
    /// vCPUs run, and after its interrupt controller is as it was, so that it is not lost.
    fn announce_generation(&self) -> Result<()> {
        let line = interrupt_line(GENERATION.spi);
        for level in [true, false] {
            let set = self.vm.set_irq_line(line, level);
            set.context("cannot tell the guest that it comes out of a snapshot")?;
        }
        Ok(())
    }

    /// Puts what `boot` holds into memory and the first vCPU at its entry.
    fn load(&self, memory_mib: u64, boot: &mut Boot) -> Result<()> {
        let tree = fdt::write(&fdt::Contents {
            cmdline: &boot.cmdline,
            initramfs: boot.initramfs(),
            memory_mib,
            affinities: &self.affinities,
            reserved: &self.time.reserved_memory(),
            paused_time: self.time.paused_time().map(|it| it.address),
            keys: self.keys.is_some(),
            seed: entropy::bytes()?,
        })?;
        let entry = boot.load(&self.memory, &tree)?;
        set_entry(&self.vcpus[0].0, entry, boot.fdt)
    }

    /// Hands over the vCPUs, in order, to be run and dropped before the machine is.
    pub fn take_vcpus(&mut self) -> Vec<(VcpuFd, VcpuTime)> {
        std::mem::take(&mut self.vcpus)
    }
}

impl Blank {
    /// Builds a machine around its memory, all but its devices.
    fn new(host: &Host, config: MachineConfig, memory: GuestMemoryMmap) -> Result<Self> {
        let vm = host.kvm.create_vm();
        let vm = Arc::new(vm.context("cannot create a virtual machine")?);
        take_undecodable_accesses(&vm)?;
        set_memory_slot(&vm, RAM_SLOT, &memory, 0)?;
        let generation_page = generation_page()?;
        set_memory_slot(&vm, GENERATION_SLOT, &generation_page, KVM_MEM_READONLY)?;
        let time = VmTime::new(&vm, &host.time, time_config(&config)?)?;
        let vcpu_init = vcpu_init(&vm)?;
        let vcpus = create_vcpus(&vm, config.cpus, vcpu_init, &time)?;
        let affinities: Vec<u64> = vcpus
            .iter()
            .map(|(vcpu, _)| affinity(vcpu))
            .collect::<Result<_>>()?;
        let gic = create_gic(&vm)?;
        if let Some(interrupt) = time.paused_time_interrupt() {
            vm.register_irqfd(interrupt, PAUSED_TIME_SPI)
                .context("cannot connect the interrupt of paused time")?;
        }
        Ok(Self {
            vm,
            vcpus,
            time,
            vcpu_init,
            affinities,
            gic,
            fresh: Fresh::default(),
            config,
            memory,
            generation_page,
        })
    }

    /// Its memory.
    pub fn memory(&self) -> &GuestMemoryMmap {
        &self.memory
    }

    /// Makes it that generation of its VM and puts a state into it if there is one; else it is as
    /// when it is turned on. A profile that this CPU was found to have need not be read from it.
    ///
    /// # Errors
    ///
    /// What this host cannot go on with.
    ///
    /// # Panics
    ///
    /// If the state has other vCPUs than the machine.
    pub fn finish(
        self,
        generation: Generation,
        state: Option<&MachineState>,
        profile: Option<CpuProfile>,
    ) -> Result<Machine> {
        self.generation_page
            .write_slice(&generation.id.0, GuestAddress(GENERATION.base))
            .expect("the page is longer than that");
        let devices = match state {
            Some(state) => {
                self.restore_vcpus(&state.vcpus)?;
                state
                    .gic
                    .restore(&self.gic, &self.affinities, &self.fresh.gic)?;
                &state.devices
            }
            None => &DeviceStates::default(),
        };
        let Self { vm, config, .. } = self;
        let mut bus = Bus::default();
        let console = insert_port(&vm, &mut bus, CONSOLE, config.console, &devices.console)?;
        let serial = insert_port(&vm, &mut bus, SERIAL, config.serial, &devices.serial)?;
        let rtc = Arc::new(Mutex::new(Rtc::from_state(&devices.rtc, NoEvents)));
        bus.insert(RTC, rtc.clone());
        let keys = keys_state(&config.time, state.map(|it| &it.devices))?
            .map(|state| insert_keys(&vm, &mut bus, state))
            .transpose()?;
        let ram = RAM..RAM + (config.memory_mib << 20);
        let suspension = Suspension::new(ram, state.and_then(|it| it.suspend_call));
        Ok(Machine {
            profile: match profile {
                Some(profile) => profile,
                None => CpuProfile::read(&self.vcpus[0].0, &self.vcpu_init)?,
            },
            vm,
            vcpus: self.vcpus,
            bus: Arc::new(bus),
            console,
            serial,
            rtc,
            keys,
            suspension: Arc::new(suspension),
            time: self.time,
            vcpu_init: self.vcpu_init,
            affinities: self.affinities,
            time_args: config.time,
            gic: self.gic,
            generation,
            memory: self.memory,
            _generation_page: self.generation_page,
        })
    }
}

/// KVM, and what it can do with time.
struct Host {
    kvm: Kvm,
    time: HostTime,
}

impl Host {
    /// Opens KVM, if it can have such a machine.
    fn open(config: &MachineConfig) -> Result<Self> {
        let kvm = kvm::open()?;
        let time = HostTime::probe(&kvm)?;
        let most = MAX_VCPUS.min(time.max_vcpus as u64);
        if config.cpus > most {
            bail!(
                "this host's KVM gives a VM at most {most} vCPUs; start with --cpus {most} or fewer"
            );
        }
        let limit = 1u64 << kvm.get_host_ipa_limit();
        let most_mib = (limit - RAM) >> 20;
        if config.memory_mib > most_mib {
            bail!(
                "this host's KVM addresses at most {most_mib} MiB of guest memory; start with \
                 --memory {most_mib} or less"
            );
        }
        Ok(Self { kvm, time })
    }
}

/// Has accesses to what is no memory handed over where KVM cannot decode the instruction (Linux 5.5);
/// else they end the VM.
fn take_undecodable_accesses(vm: &VmFd) -> Result<()> {
    let capability = kvm_enable_cap {
        cap: KVM_CAP_ARM_NISV_TO_USER,
        ..kvm_enable_cap::default()
    };
    vm.enable_cap(&capability)
        .context("this host's KVM has no KVM_CAP_ARM_NISV_TO_USER; a newer kernel is needed")
}

fn time_config(config: &MachineConfig) -> Result<VmTimeConfig> {
    if config.live_physical_time.is_some() && config.time.suspend_guest == Some(SwitchArg::On) {
        bail!(TimelineError::LiveWithGuestSuspend);
    }
    Ok(VmTimeConfig {
        vcpus: usize::try_from(config.cpus)?,
        region: GuestAddress(TIME_REGION),
        first_slot: FIRST_TIME_SLOT,
        kick_signal: SIGRTMIN(),
        counters: CounterChoice::Auto,
        stolen_time: config.time.stolen_time.into(),
        stolen_time_period: Duration::from_millis(config.time.stolen_time_period),
        live_physical_time: config.live_physical_time,
        paused_time: config.paused_time,
        policies: Policies {
            pause: config.time.on_pause.into(),
            restore: config.time.on_restore.into(),
            migrate: config.time.on_migrate.into(),
            suspend: config.time.on_suspend.into(),
            stall: config.time.on_stall.into(),
        },
        negative_elapsed: NegativeElapsed::Refuse,
        watches_host_sleep: config.time.watch_host == SwitchArg::On,
    })
}

/// Memory that is all zero.
fn guest_memory(memory_mib: u64) -> Result<GuestMemoryMmap> {
    let bytes = usize::try_from(memory_mib << 20)?;
    GuestMemoryMmap::from_ranges(&[(GuestAddress(RAM), bytes)])
        .with_context(|| format!("cannot get {memory_mib} MiB of memory for the guest"))
}

/// A page for a generation's identifier.
fn generation_page() -> Result<GuestMemoryMmap> {
    let (base, bytes) = (
        GuestAddress(GENERATION.base),
        usize::try_from(GENERATION_BYTES)?,
    );
    GuestMemoryMmap::from_ranges(&[(base, bytes)])
        .context("cannot get the page with the VM's generation")
}

/// Gives the guest memory of one range.
fn set_memory_slot(vm: &VmFd, slot: u32, memory: &GuestMemoryMmap, flags: u32) -> Result<()> {
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
fn vcpu_init(vm: &VmFd) -> Result<kvm_vcpu_init> {
    let mut init = kvm_vcpu_init::default();
    vm.get_preferred_target(&mut init)
        .context("cannot ask KVM for the host's kind of CPU")?;
    init.features[0] |= 1 << KVM_ARM_VCPU_PSCI_0_2;
    Ok(init)
}

/// All vCPUs but the first wait for the guest to turn them on (PSCI `CPU_ON`).
fn create_vcpus(
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

fn create_gic(vm: &VmFd) -> Result<DeviceFd> {
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

fn insert_port(
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

/// What the keys begin with; none for a guest without.
fn keys_state(args: &TimeArgs, saved: Option<&DeviceStates>) -> Result<Option<Pl061State>> {
    let asked = args.suspend_guest == Some(SwitchArg::On);
    match saved {
        None => Ok(asked.then(Pl061State::default)),
        Some(saved) if asked && saved.keys.is_none() => bail!(
            "the saved VM was started without --suspend-guest, so its guest has no sleep key; leave \
             the option out"
        ),
        Some(saved) => Ok(saved.keys),
    }
}

fn insert_keys(vm: &Arc<VmFd>, bus: &mut Bus, state: Pl061State) -> Result<Keys> {
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
const fn interrupt_line(spi: u32) -> u32 {
    KVM_ARM_IRQ_TYPE_SPI << KVM_ARM_IRQ_TYPE_SHIFT | (FIRST_SPI + spi)
}

/// `MPIDR_EL1`: op0 3, op1 0, n 0, m 0, op2 5.
const MPIDR_EL1: u64 = 0x6030_0000_0013_c005;
/// Aff3 and Aff2 to Aff0.
const AFFINITY_MASK: u64 = 0xff_00ff_ffff;

fn affinity(vcpu: &VcpuFd) -> Result<u64> {
    let mut bytes = [0; 8];
    vcpu.get_one_reg(MPIDR_EL1, &mut bytes)
        .context("cannot read a vCPU's MPIDR_EL1")?;
    Ok(u64::from_le_bytes(bytes) & AFFINITY_MASK)
}

/// The id of a general-purpose register.
const fn x(number: usize) -> u64 {
    0x6030_0000_0010_0000 + 2 * number as u64
}

const X0: u64 = x(0);
const PC: u64 = x(32);

/// Where the kernel starts, by the boot protocol: the device tree's address in x0, x1 to x3 zero,
/// EL1 with interrupts masked.
fn set_entry(vcpu: &VcpuFd, entry: u64, fdt: u64) -> Result<()> {
    const PSTATE: u64 = 0x6030_0000_0010_0042;
    const EL1H_MASKED: u64 = 0x3c5;
    for (register, value) in [(PSTATE, EL1H_MASKED), (PC, entry), (X0, fdt)] {
        vcpu.set_one_reg(register, &value.to_le_bytes())
            .context("cannot set where the first vCPU starts")?;
    }
    Ok(())
}
