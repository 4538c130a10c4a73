//! A VM of two vCPUs that shows what its guest does.

use std::arch::global_asm;

use kvm_bindings::{
    KVM_ARM_IRQ_TYPE_SHIFT, KVM_ARM_IRQ_TYPE_SPI, KVM_ARM_VCPU_POWER_OFF, KVM_ARM_VCPU_PSCI_0_2,
    KVM_DEV_ARM_VGIC_CTRL_INIT, KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_DEV_ARM_VGIC_GRP_CTRL,
    KVM_DEV_ARM_VGIC_GRP_LEVEL_INFO, KVM_DEV_ARM_VGIC_GRP_NR_IRQS, KVM_VGIC_V3_ADDR_TYPE_DIST,
    KVM_VGIC_V3_ADDR_TYPE_REDIST, KVMIO, kvm_arm_counter_offset, kvm_create_device,
    kvm_device_attr, kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3, kvm_userspace_memory_region,
    kvm_vcpu_init,
};
use kvm_ioctls::{DeviceFd, Kvm, VcpuExit, VcpuFd, VmFd};
use pvtime_vmm::state::gic::{FreshGic, GicState};
use pvtime_vmm::state::profile::CpuProfile;
use pvtime_vmm::state::vcpu::{FreshRegisters, VcpuState};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use vmm_sys_util::ioctl::ioctl_with_ref;
use vmm_sys_util::ioctl_iow_nr;

global_asm!(include_str!("guest.s"));

pub const RAM: GuestAddress = GuestAddress(0x4000_0000);
pub const RAM_BYTES: usize = 0x1_0000;
/// No memory is there: a store leaves the guest with its value, a load asks for one.
const NOWHERE: u64 = 0x0100_0000;
const DEVICE: u64 = NOWHERE + 8;
const DEVICE_SAYS: u64 = 0x5a5a_0123_4567_89ab;
/// The affinities of the vCPUs.
pub const AFFINITIES: [u64; 2] = [0, 1];
pub const INTERRUPTS: u32 = 64;

/// What the guest stores when the SPIs are to become pending, and in the end.
const RAISE: u64 = 0x11;
const END: u64 = 0xe0d;
/// SPIs: an edge and a level.
const EDGE: u32 = 32;
const LEVEL: u32 = 33;

/// Why a vCPU left the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// It stored a value.
    Wrote(u64),
    /// It read from the device, which has answered.
    Read,
}

/// A machine between two runs.
#[derive(Clone, Debug)]
pub struct Saved {
    pub vcpus: Vec<VcpuState>,
    pub gic: GicState,
    pub memory: Vec<u8>,
}

/// A VM. The memory is dropped last.
pub struct Machine {
    pub vm: VmFd,
    pub init: kvm_vcpu_init,
    pub vcpus: Vec<VcpuFd>,
    /// What each vCPU was taken for when it had not run, in order.
    profiles: Vec<CpuProfile>,
    pub gic: DeviceFd,
    pub memory: GuestMemoryMmap,
}

impl Machine {
    /// A machine that never ran, with nothing in its memory.
    pub fn new() -> Self {
        Self::with_interrupts(INTERRUPTS)
    }

    pub fn with_interrupts(interrupts: u32) -> Self {
        let kvm = Kvm::new().expect("these tests need /dev/kvm");
        let vm = kvm.create_vm().unwrap();
        let memory = GuestMemoryMmap::from_ranges(&[(RAM, RAM_BYTES)]).unwrap();
        let slot = kvm_userspace_memory_region {
            slot: 0,
            flags: 0,
            guest_phys_addr: RAM.0,
            memory_size: RAM_BYTES as u64,
            userspace_addr: memory.get_host_address(RAM).unwrap() as u64,
        };
        // SAFETY: the mapping is as long as the slot and outlives the VM's vCPUs.
        unsafe { vm.set_user_memory_region(slot) }.unwrap();
        let mut init = kvm_vcpu_init::default();
        vm.get_preferred_target(&mut init).unwrap();
        init.features[0] |= 1 << KVM_ARM_VCPU_PSCI_0_2;
        let vcpus: Vec<_> = AFFINITIES.map(|index| vcpu(&vm, init, index)).into();
        let gic = gic(&vm, interrupts);
        Self {
            profiles: profiles(&vcpus, &init),
            vm,
            init,
            vcpus,
            gic,
            memory,
        }
    }

    /// What its vCPUs are now, and what they were taken for when they had not run.
    pub fn profiles(&self) -> [Vec<CpuProfile>; 2] {
        [profiles(&self.vcpus, &self.init), self.profiles.clone()]
    }

    /// A machine before its guest's first instruction.
    pub fn boot() -> Self {
        const PC: u64 = 0x6030_0000_0010_0040;
        let machine = Self::new();
        machine.memory.write_slice(guest(), RAM).unwrap();
        machine.vcpus[0]
            .set_one_reg(PC, &RAM.0.to_le_bytes())
            .unwrap();
        machine
    }

    pub fn register(&self, vcpu: usize, id: u64) -> u64 {
        let mut value = [0; 8];
        self.vcpus[vcpu].get_one_reg(id, &mut value).unwrap();
        u64::from_le_bytes(value)
    }

    pub fn set_register(&self, vcpu: usize, id: u64, value: u64) {
        let bytes = value.to_le_bytes();
        self.vcpus[vcpu].set_one_reg(id, &bytes).unwrap();
    }

    pub fn set_counter_offset(&self, counter_offset: u64) {
        ioctl_iow_nr!(
            KVM_ARM_SET_COUNTER_OFFSET,
            KVMIO,
            0xb5,
            kvm_arm_counter_offset
        );
        let offset = kvm_arm_counter_offset {
            counter_offset,
            reserved: 0,
        };
        // SAFETY: the kernel reads the structure and nothing else.
        let result = unsafe { ioctl_with_ref(&self.vm, KVM_ARM_SET_COUNTER_OFFSET(), &offset) };
        assert_eq!(result, 0);
    }

    /// The levels of the lines of a vCPU's private interrupts.
    pub fn private_lines(&self, vcpu: usize) -> u32 {
        let mut lines = 0xa5a5_a5a5u32;
        let mut attribute = kvm_device_attr {
            flags: 0,
            group: KVM_DEV_ARM_VGIC_GRP_LEVEL_INFO,
            attr: AFFINITIES[vcpu] << 32,
            addr: &raw mut lines as u64,
        };
        // SAFETY: the attribute is 32 bits wide.
        unsafe { self.gic.get_device_attr(&mut attribute) }.unwrap();
        lines
    }

    /// Lets KVM prepare a vCPU's entry to the guest, and no more.
    pub fn enter_and_leave(&mut self, vcpu: usize) {
        let vcpu = &mut self.vcpus[vcpu];
        vcpu.set_kvm_immediate_exit(1);
        vcpu.run().unwrap_err();
        vcpu.set_kvm_immediate_exit(0);
    }

    /// Runs a vCPU up to its next exit.
    pub fn step(&mut self, vcpu: usize) -> Exit {
        loop {
            match self.vcpus[vcpu].run().unwrap() {
                VcpuExit::MmioWrite(NOWHERE, data) => {
                    let value = u64::from_le_bytes(data.try_into().unwrap());
                    self.drive_lines(value);
                    return Exit::Wrote(value);
                }
                VcpuExit::MmioRead(DEVICE, data) => {
                    data.copy_from_slice(&DEVICE_SAYS.to_le_bytes());
                    return Exit::Read;
                }
                VcpuExit::Intr => {}
                other => panic!("vCPU {vcpu} left with {other:?}"),
            }
        }
    }

    /// Raises the SPIs where the guest expects them, and lowers the level once it is handled.
    fn drive_lines(&self, value: u64) {
        if value == RAISE {
            self.drive(EDGE, true);
            self.drive(EDGE, false);
            self.drive(LEVEL, true);
        } else if value == u64::from(LEVEL) {
            self.drive(LEVEL, false);
        }
    }

    fn drive(&self, interrupt: u32, level: bool) {
        let line = KVM_ARM_IRQ_TYPE_SPI << KVM_ARM_IRQ_TYPE_SHIFT | interrupt;
        self.vm.set_irq_line(line, level).unwrap();
    }

    /// Runs each vCPU after the one before has come to its end, and adds to `trace` what they do;
    /// up to `exits`, which may be in the middle.
    pub fn run(&mut self, trace: &mut Vec<Exit>, exits: usize) {
        while trace.len() < exits {
            let ended = trace
                .iter()
                .filter(|exit| **exit == Exit::Wrote(END))
                .count();
            if ended == self.vcpus.len() {
                return;
            }
            trace.push(self.step(ended));
        }
    }

    pub fn save(&mut self) -> Saved {
        let mut memory = vec![0xa5; RAM_BYTES];
        let vcpus = self.vcpus.iter_mut().zip(&self.profiles);
        let vcpus = vcpus.map(|(vcpu, profile)| VcpuState::save(vcpu, profile).unwrap());
        let vcpus = vcpus.collect();
        self.memory.read_slice(&mut memory, RAM).unwrap();
        Saved {
            vcpus,
            gic: GicState::save(&self.gic, &AFFINITIES).unwrap(),
            memory,
        }
    }

    pub fn restore(saved: &Saved) -> Self {
        let mut machine = Self::new();
        machine.memory.write_slice(&saved.memory, RAM).unwrap();
        machine.put(&saved.vcpus, &saved.gic);
        machine
    }

    /// Puts all but memory into a machine that never ran.
    pub fn put(&mut self, vcpus: &[VcpuState], gic: &GicState) {
        let vcpus = self.vcpus.iter().zip(vcpus);
        self.profiles = vcpus
            .map(|(vcpu, state)| state.restore(vcpu, &self.init, None).unwrap())
            .collect();
        gic.restore(&self.gic, &AFFINITIES, &FreshGic::default())
            .unwrap();
    }

    /// The same, of what the machine does not hold already.
    pub fn put_what_differs(&mut self, vcpus: &[VcpuState], gic: &GicState) {
        let vcpus = self.vcpus.iter().zip(vcpus);
        let restore = |(vcpu, state): (&VcpuFd, &VcpuState)| {
            let fresh = FreshRegisters::read(vcpu, &self.init).unwrap();
            state.restore(vcpu, &self.init, Some(&fresh)).unwrap()
        };
        self.profiles = vcpus.map(restore).collect();
        let fresh = FreshGic::read(&self.gic, &AFFINITIES).unwrap();
        gic.restore(&self.gic, &AFFINITIES, &fresh).unwrap();
    }
}

fn profiles(vcpus: &[VcpuFd], init: &kvm_vcpu_init) -> Vec<CpuProfile> {
    let read = |vcpu| CpuProfile::read(vcpu, init).unwrap();
    vcpus.iter().map(read).collect()
}

fn vcpu(vm: &VmFd, mut init: kvm_vcpu_init, index: u64) -> VcpuFd {
    let vcpu = vm.create_vcpu(index).unwrap();
    if index > 0 {
        init.features[0] |= 1 << KVM_ARM_VCPU_POWER_OFF;
    }
    vcpu.vcpu_init(&init).unwrap();
    vcpu
}

fn gic(vm: &VmFd, interrupts: u32) -> DeviceFd {
    const DISTRIBUTOR: u64 = 0x0800_0000;
    const REDISTRIBUTORS: u64 = 0x0c00_0000;
    let mut device = kvm_create_device {
        type_: kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3,
        fd: 0,
        flags: 0,
    };
    let gic = vm.create_device(&mut device).unwrap();
    let set = |group, attr: u32, value: &u64| {
        gic.set_device_attr(&kvm_device_attr {
            flags: 0,
            group,
            attr: attr.into(),
            addr: std::ptr::from_ref(value) as u64,
        })
        .unwrap();
    };
    set(
        KVM_DEV_ARM_VGIC_GRP_ADDR,
        KVM_VGIC_V3_ADDR_TYPE_DIST,
        &DISTRIBUTOR,
    );
    set(
        KVM_DEV_ARM_VGIC_GRP_ADDR,
        KVM_VGIC_V3_ADDR_TYPE_REDIST,
        &REDISTRIBUTORS,
    );
    set(KVM_DEV_ARM_VGIC_GRP_NR_IRQS, 0, &interrupts.into());
    set(KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_VGIC_CTRL_INIT, &0);
    gic
}

/// The guest's program.
fn guest() -> &'static [u8] {
    unsafe extern "C" {
        static guest_start: u8;
        static guest_end: u8;
    }
    // SAFETY: both are labels of one section, in this order, with nothing but constants between.
    unsafe {
        let bytes = (&raw const guest_end).offset_from(&raw const guest_start);
        std::slice::from_raw_parts(&raw const guest_start, usize::try_from(bytes).unwrap())
    }
}
