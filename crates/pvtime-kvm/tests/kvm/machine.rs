//! A VM with a page of RAM, for tests against real KVM.
#![expect(unsafe_code, reason = "memory slots are given to KVM by address")]

use std::sync::Arc;
use std::time::Duration;

use kvm_bindings::{
    KVM_ARM_VCPU_PSCI_0_2, KVM_DEV_ARM_VGIC_CTRL_INIT, KVM_DEV_ARM_VGIC_GRP_ADDR,
    KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_VGIC_GRP_DIST_REGS, KVM_DEV_ARM_VGIC_GRP_LEVEL_INFO,
    KVM_DEV_ARM_VGIC_GRP_NR_IRQS, KVM_DEV_ARM_VGIC_LINE_LEVEL_INFO_SHIFT,
    KVM_VGIC_V3_ADDR_TYPE_DIST, KVM_VGIC_V3_ADDR_TYPE_REDIST, VGIC_LEVEL_INFO_LINE_LEVEL,
    kvm_create_device, kvm_device_attr, kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3,
    kvm_userspace_memory_region, kvm_vcpu_init,
};
use kvm_ioctls::{DeviceFd, Kvm, VcpuFd, VmFd};
use pvtime::host::timeline::{NegativeElapsed, Policies};
use pvtime_kvm::{CounterChoice, HostTime, StolenTimeChoice, VmTime, VmTimeConfig};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use vmm_sys_util::signal::SIGRTMIN;

pub const RAM: u64 = 0x4000_0000;
pub const REGION: u64 = 0x0a00_0000;
/// No memory and no device: a store there leaves the guest with the value.
pub const NOWHERE: u64 = 0x0100_0000;
/// How often user space publishes stolen time.
pub const PERIOD: Duration = Duration::from_millis(20);

/// A VM. Its memory is dropped last.
pub struct Machine {
    pub kvm: Kvm,
    pub vm: Arc<VmFd>,
    _ram: GuestMemoryMmap,
}

impl Machine {
    /// With a program at the start of RAM.
    pub fn new(program: &[u32]) -> Self {
        let kvm = Kvm::new().expect("these tests need /dev/kvm");
        let vm = Arc::new(kvm.create_vm().unwrap());
        let ram = GuestMemoryMmap::from_ranges(&[(GuestAddress(RAM), 0x1_0000)]).unwrap();
        for (index, instruction) in (0..).zip(program) {
            ram.write_obj(*instruction, GuestAddress(RAM + 4 * index))
                .unwrap();
        }
        let slot = kvm_userspace_memory_region {
            slot: 0,
            flags: 0,
            guest_phys_addr: RAM,
            memory_size: 0x1_0000,
            userspace_addr: ram.get_host_address(GuestAddress(RAM)).unwrap() as u64,
        };
        // SAFETY: the mapping is as long as the slot and outlives the VM's vCPUs.
        unsafe { vm.set_user_memory_region(slot) }.unwrap();
        Self { kvm, vm, _ram: ram }
    }

    /// An interrupt controller for the vCPUs that were made; before one of them runs.
    pub fn gic(&self) -> DeviceFd {
        let type_ = kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3;
        let gic = self
            .vm
            .create_device(&mut kvm_create_device {
                type_,
                fd: 0,
                flags: 0,
            })
            .unwrap();
        for (group, attr, value) in [
            (
                KVM_DEV_ARM_VGIC_GRP_ADDR,
                KVM_VGIC_V3_ADDR_TYPE_DIST,
                0x0800_0000,
            ),
            (
                KVM_DEV_ARM_VGIC_GRP_ADDR,
                KVM_VGIC_V3_ADDR_TYPE_REDIST,
                0x080a_0000,
            ),
            (KVM_DEV_ARM_VGIC_GRP_NR_IRQS, 0, 64u64),
            (KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_VGIC_CTRL_INIT, 0),
        ] {
            let addr = (&raw const value) as u64;
            let attribute = kvm_device_attr {
                flags: 0,
                group,
                attr: attr.into(),
                addr,
            };
            gic.set_device_attr(&attribute).unwrap();
        }
        gic
    }

    pub fn host(&self) -> HostTime {
        HostTime::probe(&self.kvm).unwrap()
    }

    /// Time for this many vCPUs, everything else as it is by default.
    pub fn config(vcpus: usize) -> VmTimeConfig {
        VmTimeConfig {
            vcpus,
            region: GuestAddress(REGION),
            first_slot: 1,
            kick_signal: SIGRTMIN(),
            counters: CounterChoice::Auto,
            stolen_time: StolenTimeChoice::Off,
            stolen_time_period: PERIOD,
            live_physical_time: None,
            paused_time: false,
            policies: Policies::default(),
            negative_elapsed: NegativeElapsed::Refuse,
            watches_host_sleep: false,
        }
    }

    pub fn time(&self, config: VmTimeConfig) -> Result<Arc<VmTime>, pvtime_kvm::Error> {
        VmTime::new(&self.vm, &self.host(), config)
    }

    pub fn vcpu(&self, index: u64) -> VcpuFd {
        let vcpu = self.vm.create_vcpu(index).unwrap();
        let mut init = kvm_vcpu_init::default();
        self.vm.get_preferred_target(&mut init).unwrap();
        init.features[0] |= 1 << KVM_ARM_VCPU_PSCI_0_2;
        vcpu.vcpu_init(&init).unwrap();
        vcpu
    }
}

/// The lines to the interrupt controller of the interrupts 0 to 31 of a stopped VM's vCPU, a bit for
/// each. The vCPU is one of the first sixteen.
pub fn line_levels(gic: &DeviceFd, vcpu: usize) -> u32 {
    let what = VGIC_LEVEL_INFO_LINE_LEVEL << KVM_DEV_ARM_VGIC_LINE_LEVEL_INFO_SHIFT;
    let mut levels = 0xa5a5_a5a5_u32;
    let mut attribute = kvm_device_attr {
        flags: 0,
        group: KVM_DEV_ARM_VGIC_GRP_LEVEL_INFO,
        attr: (vcpu as u64) << 32 | u64::from(what),
        addr: (&raw mut levels) as u64,
    };
    // SAFETY: levels have 32 bits, as has what the address is of.
    unsafe { gic.get_device_attr(&mut attribute) }.unwrap();
    levels
}

/// A register of a stopped VM's distributor.
pub fn distributor(gic: &DeviceFd, offset: u32) -> u32 {
    let mut value = 0xa5a5_a5a5_u32;
    let mut attribute = distributor_register(offset, (&raw mut value) as u64);
    // SAFETY: registers of the distributor have 32 bits, as has what the address is of.
    unsafe { gic.get_device_attr(&mut attribute) }.unwrap();
    value
}

/// Writes a register of a stopped VM's distributor.
pub fn set_distributor(gic: &DeviceFd, offset: u32, value: u32) {
    gic.set_device_attr(&distributor_register(offset, (&raw const value) as u64))
        .unwrap();
}

fn distributor_register(offset: u32, addr: u64) -> kvm_device_attr {
    kvm_device_attr {
        flags: 0,
        group: KVM_DEV_ARM_VGIC_GRP_DIST_REGS,
        attr: offset.into(),
        addr,
    }
}

/// The id of a general-purpose register; 32 is the program counter.
pub const fn x(number: u64) -> u64 {
    0x6030_0000_0010_0000 + 2 * number
}

/// Writes a register.
pub fn set(vcpu: &VcpuFd, register: u64, value: u64) {
    vcpu.set_one_reg(register, &value.to_le_bytes()).unwrap();
}

/// Reads a register.
pub fn get(vcpu: &VcpuFd, register: u64) -> u64 {
    let mut bytes = [0xa5; 8];
    vcpu.get_one_reg(register, &mut bytes).unwrap();
    u64::from_le_bytes(bytes)
}
