//! Where things are in guest physical addresses.
//!
//! Everything that is not RAM lies below 1 GiB, RAM starts there and is one piece:
//!
//! ```text
//! 0x0800_0000  GIC distributor
//! 0x0900_0000  devices, a page each: two serial ports, the RTC, the keys
//! 0x0a00_0000  time interfaces, 64 KiB for each kind
//! 0x0b00_0000  the VM's generation, 64 KiB
//! 0x0c00_0000  GIC redistributors, 128 KiB for each vCPU
//! 0x4000_0000  RAM: the kernel first, the initramfs and the device tree last
//! ```

use std::ops::Range;

/// GICv3 distributor.
pub const GIC_DISTRIBUTOR: Range<u64> = 0x0800_0000..0x0801_0000;
/// Start of the GICv3 redistributors.
pub const GIC_REDISTRIBUTORS: u64 = 0x0c00_0000;
/// Bytes of redistributor for each vCPU.
pub const GIC_REDISTRIBUTOR_BYTES: u64 = 0x2_0000;
/// A 16550 for the console.
pub const CONSOLE: Device = Device {
    base: 0x0900_0000,
    spi: 0,
};
/// A second 16550, for programs.
pub const SERIAL: Device = Device {
    base: 0x0901_0000,
    spi: 1,
};
/// A PL031 real-time clock; it raises no interrupt.
pub const RTC: Device = Device {
    base: 0x0902_0000,
    spi: 2,
};
/// A PL061 with the sleep and wake-up keys, for a guest that is asked to suspend itself.
pub const KEYS: Device = Device {
    base: 0x0903_0000,
    spi: 5,
};
/// The time interfaces.
pub const TIME_REGION: u64 = 0x0a00_0000;
/// What says which generation of the VM this is; its interrupt, that it has changed. No bus has it:
/// it is memory, of [`GENERATION_BYTES`].
pub const GENERATION: Device = Device {
    base: 0x0b00_0000,
    spi: 4,
};
/// What a host or a guest with 64 KiB pages can map without touching anything else.
pub const GENERATION_BYTES: u64 = 0x1_0000;
/// Says that paused time has changed.
pub const PAUSED_TIME_SPI: u32 = 3;
/// Start of RAM.
pub const RAM: u64 = 0x4000_0000;
/// End of the address space that every KVM host gives a VM (40 bits).
pub const END: u64 = 1 << 40;
/// The most vCPUs: what KVM's GICv3 can have, and what fits below RAM.
pub const MAX_VCPUS: u64 = 512;

const _: () = assert!(
    GIC_REDISTRIBUTORS + MAX_VCPUS * GIC_REDISTRIBUTOR_BYTES <= RAM,
    "below RAM"
);

/// A device on the memory-mapped bus.
#[derive(Clone, Copy, Debug)]
pub struct Device {
    /// First address.
    pub base: u64,
    /// Its shared peripheral interrupt: 0 is interrupt id 32.
    pub spi: u32,
}

impl Device {
    /// Bytes of address space for each device.
    pub const BYTES: u64 = 0x1000;
}
