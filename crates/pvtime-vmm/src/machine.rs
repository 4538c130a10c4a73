//! An arm64 virtual machine that is ready to run: its memory, vCPUs, interrupt controller and
//! devices.

pub mod arriving;
mod leaving;
mod parts;
mod saved;
pub mod suspending;
mod trial;

pub use parts::Port;

use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use kvm_bindings::{KVM_MEM_READONLY, kvm_vcpu_init};
use kvm_ioctls::{DeviceFd, Kvm, VcpuFd, VmFd};
use parts::{
    PC, X0, affinity, create_gic, create_vcpus, generation_page, guest_memory, insert_keys,
    insert_port, interrupt_line, set_entry, set_memory_slot, take_undecodable_accesses, vcpu_init,
    x,
};
use pvtime::host::timeline::{NegativeElapsed, Policies, TimelineError};
use pvtime::scale::Frequency;
use pvtime_kvm::{CounterChoice, HostTime, VcpuTime, VmTime, VmTimeConfig};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};
use vm_superio::Rtc;
use vm_superio::rtc_pl031::NoEvents;
use vmm_sys_util::signal::SIGRTMIN;

use crate::boot::Boot;
use crate::bus::Bus;
use crate::button::Keys;
use crate::cli::{SwitchArg, TimeArgs};
use crate::generation::Generation;
use crate::layout::{
    CONSOLE, GENERATION, MAX_VCPUS, PAUSED_TIME_SPI, RAM, RTC, SERIAL, TIME_REGION,
};
use crate::migration::ownership::Ownership;
use crate::pl061::Pl061State;
use crate::state::MachineState;
use crate::state::devices::DeviceStates;
use crate::state::gic::{self, FreshGic};
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
    /// What each vCPU is, in order.
    profiles: Arc<[CpuProfile]>,
    /// How its time is kept, as it was asked for.
    time_args: TimeArgs,
    gic: DeviceFd,
    /// `GICD_IIDR`, which KVM tells only while no vCPU runs.
    gic_implementation: u32,
    vm: Arc<VmFd>,
    /// Which generation of its VM the machine is.
    pub generation: Generation,
    /// Whether it may run.
    pub ownership: Ownership,
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

/// What a machine that was just made holds: it need not be written once more where somebody waits.
struct Fresh {
    /// In order.
    vcpus: Vec<FreshRegisters>,
    /// Read where a state is to come while its VM stands still.
    gic: FreshGic,
}

/// Memory slot of RAM; those of the time interfaces follow.
const RAM_SLOT: u32 = 0;
const FIRST_TIME_SLOT: u32 = RAM_SLOT + 1;
const GENERATION_SLOT: u32 = FIRST_TIME_SLOT + VmTimeConfig::SLOTS;
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
        let machine = Blank::new(&host, config, memory)?.finish(Generation::first()?, None)?;
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
        // What a vCPU is depends on the interrupt controller.
        let registers = vcpus
            .iter()
            .map(|(vcpu, _)| FreshRegisters::read(vcpu, &vcpu_init));
        let fresh = Fresh {
            vcpus: registers.collect::<Result<_, _>>()?,
            gic: FreshGic::default(),
        };
        Ok(Self {
            vm,
            vcpus,
            time,
            vcpu_init,
            affinities,
            gic,
            fresh,
            config,
            memory,
            generation_page,
        })
    }

    /// Its memory.
    pub fn memory(&self) -> &GuestMemoryMmap {
        &self.memory
    }

    /// Its time.
    pub fn time(&self) -> &Arc<VmTime> {
        &self.time
    }

    /// Makes it that generation of its VM and puts a state into it if there is one; else it is as
    /// when it is turned on.
    ///
    /// # Errors
    ///
    /// What this host cannot go on with.
    ///
    /// # Panics
    ///
    /// If the state has other vCPUs than the machine.
    pub fn finish(self, generation: Generation, state: Option<&MachineState>) -> Result<Machine> {
        self.generation_page
            .write_slice(&generation.id.0, GuestAddress(GENERATION.base))
            .expect("the page is longer than that");
        let (profiles, devices) = if let Some(state) = state {
            let profiles = self.restore_vcpus(&state.vcpus)?;
            state
                .gic
                .restore(&self.gic, &self.affinities, &self.fresh.gic)?;
            (profiles, &state.devices)
        } else {
            let fresh = self.fresh.vcpus.iter();
            let profiles = fresh.map(|it| it.profile().clone()).collect();
            (profiles, &DeviceStates::default())
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
        let gic_implementation = gic::implementation(&self.gic)?;
        Ok(Machine {
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
            profiles: profiles.into(),
            time_args: config.time,
            gic: self.gic,
            gic_implementation,
            generation,
            ownership: Ownership::default(),
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
