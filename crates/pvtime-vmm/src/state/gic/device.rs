//! Access to the registers of KVM's interrupt controller, one by one.
#![expect(unsafe_code, reason = "KVM is told where to write a register's value")]

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;

use kvm_bindings::{
    KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS, KVM_DEV_ARM_VGIC_GRP_LEVEL_INFO,
    KVM_DEV_ARM_VGIC_LINE_LEVEL_INFO_SHIFT, VGIC_LEVEL_INFO_LINE_LEVEL, kvm_device_attr,
};
use kvm_ioctls::DeviceFd;

use super::Error;
use super::registers::{Array, Bank, Name, SystemRegister, of_cpu};

/// KVM's interrupt controller.
pub(super) struct Gic<'a> {
    device: &'a DeviceFd,
    /// What it is known to hold, by group and attribute: a write of that is left out.
    known: &'a Attributes,
    /// What was read.
    read: RefCell<Attributes>,
}

/// Values by group and attribute.
pub(super) type Attributes = HashMap<(u32, u64), u64>;

impl<'a> Gic<'a> {
    pub fn new(device: &'a DeviceFd, known: &'a Attributes) -> Self {
        Self {
            device,
            known,
            read: RefCell::default(),
        }
    }

    /// All that was read of it.
    pub fn into_read(self) -> Attributes {
        self.read.into_inner()
    }
}

impl Gic<'_> {
    pub fn read(&self, bank: &Bank, array: Array, word: usize) -> Result<u32, Error> {
        let attr = bank.base + array.offset + 4 * word as u64;
        self.get_u32(bank.group, attr)
            .map_err(cannot_read(array.name(word)))
    }

    pub fn write(&self, bank: &Bank, array: Array, word: usize, value: u32) -> Result<(), Error> {
        let attr = bank.base + array.offset + 4 * word as u64;
        self.set(bank.group, attr, value)
            .map_err(cannot_write(array.name(word), value.into()))
    }

    /// The input lines of the interrupts from 32 times `word` on.
    pub fn read_lines(&self, bank: &Bank, word: usize) -> Result<u32, Error> {
        self.get_u32(KVM_DEV_ARM_VGIC_GRP_LEVEL_INFO, lines_at(bank, word))
            .map_err(cannot_read(lines(word)))
    }

    pub fn write_lines(&self, bank: &Bank, word: usize, value: u32) -> Result<(), Error> {
        let attr = lines_at(bank, word);
        self.set(KVM_DEV_ARM_VGIC_GRP_LEVEL_INFO, attr, value)
            .map_err(cannot_write(lines(word), value.into()))
    }

    pub fn read_interface(&self, affinity: u64, register: SystemRegister) -> Result<u64, Error> {
        let attr = of_cpu(affinity) | register.encoding;
        self.get_u64(KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS, attr)
            .map_err(cannot_read(register.name))
    }

    pub fn write_interface(
        &self,
        affinity: u64,
        register: SystemRegister,
        value: u64,
    ) -> Result<(), Error> {
        let attr = of_cpu(affinity) | register.encoding;
        self.set(KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS, attr, value)
            .map_err(cannot_write(register.name, value))
    }

    fn get_u32(&self, group: u32, attr: u64) -> io::Result<u32> {
        assert!(
            group != KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS,
            "these have 64 bits"
        );
        let mut value: u32 = 0;
        // SAFETY: what the distributor, the redistributors and the lines have is 32 bits wide
        // (arm-vgic-v3.rst), as is what the pointer points to.
        unsafe { self.get(group, attr, &raw mut value as u64) }?;
        self.read.borrow_mut().insert((group, attr), value.into());
        Ok(value)
    }

    fn get_u64(&self, group: u32, attr: u64) -> io::Result<u64> {
        let mut value: u64 = 0;
        // SAFETY: no attribute of a GICv3 is wider than 64 bits (arm-vgic-v3.rst).
        unsafe { self.get(group, attr, &raw mut value as u64) }?;
        self.read.borrow_mut().insert((group, attr), value);
        Ok(value)
    }

    /// # Safety
    ///
    /// The kernel may write an attribute of this group to `addr`.
    unsafe fn get(&self, group: u32, attr: u64, addr: u64) -> io::Result<()> {
        let mut attribute = attribute(group, attr, addr);
        // SAFETY: as the caller says.
        unsafe { self.device.get_device_attr(&mut attribute) }.map_err(Into::into)
    }

    /// Sets an attribute, which is as wide as `T`, unless it is so already.
    fn set<T: Copy + Into<u64>>(&self, group: u32, attr: u64, value: T) -> io::Result<()> {
        if self.known.get(&(group, attr)) == Some(&value.into()) {
            return Ok(());
        }
        let attribute = attribute(group, attr, &raw const value as u64);
        self.device.set_device_attr(&attribute).map_err(Into::into)
    }
}

fn attribute(group: u32, attr: u64, addr: u64) -> kvm_device_attr {
    kvm_device_attr {
        flags: 0,
        group,
        attr,
        addr,
    }
}

fn lines_at(bank: &Bank, word: usize) -> u64 {
    let kind = u64::from(VGIC_LEVEL_INFO_LINE_LEVEL) << KVM_DEV_ARM_VGIC_LINE_LEVEL_INFO_SHIFT;
    let cpu = bank.base & !0xffff_ffff;
    cpu | kind | (32 * word as u64)
}

fn lines(word: usize) -> Name {
    Name {
        name: "line levels",
        index: Some(word),
    }
}

fn cannot_read(register: Name) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Read { register, source }
}

fn cannot_write(register: Name, value: u64) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Write {
        register,
        value,
        source,
    }
}
