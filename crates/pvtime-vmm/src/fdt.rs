//! The device tree: what the guest is told that it has.

use pvtime::abi::paused_time::SIZE_BYTES;
use pvtime_kvm::ReservedMemory;
use vm_fdt::{Error, FdtWriter, FdtWriterNode};

use crate::button::{SLEEP_LINE, WAKE_UP_LINE};
use crate::layout::{
    CONSOLE, Device, GENERATION, GENERATION_BYTES, GIC_DISTRIBUTOR, GIC_REDISTRIBUTOR_BYTES,
    GIC_REDISTRIBUTORS, KEYS, PAUSED_TIME_SPI, RAM, RTC, SERIAL,
};

/// What the tree depends on.
#[derive(Debug)]
pub struct Contents<'a> {
    /// Kernel command line.
    pub cmdline: &'a str,
    /// The initramfs, as first address and the one past its end.
    pub initramfs: Option<(u64, u64)>,
    /// MiB of RAM.
    pub memory_mib: u64,
    /// The affinity fields of each vCPU's `MPIDR_EL1`.
    pub affinities: &'a [u64],
    /// Memory of the time interfaces.
    pub reserved: &'a [ReservedMemory],
    /// Where paused time is, if the guest has it.
    pub paused_time: Option<u64>,
    /// Whether the guest has the keys that ask it to suspend itself.
    pub keys: bool,
    /// Randomness for the guest's first keys.
    pub seed: [u8; 64],
}

const PHANDLE_GIC: u32 = 1;
const PHANDLE_CLOCK: u32 = 2;
const PHANDLE_KEYS: u32 = 3;
/// What the 16550 divides and the PL031 does not use, in Hz.
const DEVICE_CLOCK_HZ: u32 = 1_843_200;

const INTERRUPT_SPI: u32 = 0;
const INTERRUPT_PPI: u32 = 1;
const EDGE_RISING: u32 = 1;
const LEVEL_HIGH: u32 = 4;

/// Writes the tree.
///
/// # Errors
///
/// What vm-fdt refuses: a zero byte in the command line.
pub fn write(contents: &Contents<'_>) -> Result<Vec<u8>, Error> {
    let mut fdt = FdtWriter::new()?;
    let root = fdt.begin_node("")?;
    fdt.property_string("compatible", "linux,dummy-virt")?;
    fdt.property_u32("#address-cells", 2)?;
    fdt.property_u32("#size-cells", 2)?;
    fdt.property_u32("interrupt-parent", PHANDLE_GIC)?;
    chosen(&mut fdt, contents)?;
    cpus(&mut fdt, contents.affinities)?;
    memory(&mut fdt, contents)?;
    interrupt_controller(&mut fdt, contents.affinities.len())?;
    timer(&mut fdt)?;
    let psci = fdt.begin_node("psci")?;
    fdt.property_string_list(
        "compatible",
        vec!["arm,psci-1.0".into(), "arm,psci-0.2".into()],
    )?;
    fdt.property_string("method", "hvc")?;
    fdt.end_node(psci)?;
    devices(&mut fdt)?;
    generation(&mut fdt)?;
    paused_time(&mut fdt, contents.paused_time)?;
    if contents.keys {
        keys(&mut fdt)?;
    }
    fdt.end_node(root)?;
    fdt.finish()
}

fn begin(fdt: &mut FdtWriter, name: &str, base: u64, bytes: u64) -> Result<FdtWriterNode, Error> {
    let node = fdt.begin_node(&format!("{name}@{base:x}"))?;
    fdt.property_array_u64("reg", &[base, bytes])?;
    Ok(node)
}

fn chosen(fdt: &mut FdtWriter, contents: &Contents<'_>) -> Result<(), Error> {
    let node = fdt.begin_node("chosen")?;
    fdt.property_string("bootargs", contents.cmdline)?;
    fdt.property_string("stdout-path", &format!("/serial@{:x}", CONSOLE.base))?;
    fdt.property("rng-seed", &contents.seed)?;
    if let Some((start, end)) = contents.initramfs {
        fdt.property_u64("linux,initrd-start", start)?;
        fdt.property_u64("linux,initrd-end", end)?;
    }
    fdt.end_node(node)
}

fn cpus(fdt: &mut FdtWriter, affinities: &[u64]) -> Result<(), Error> {
    let cpus = fdt.begin_node("cpus")?;
    fdt.property_u32("#address-cells", 2)?;
    fdt.property_u32("#size-cells", 0)?;
    for affinity in affinities {
        let node = fdt.begin_node(&format!("cpu@{affinity:x}"))?;
        fdt.property_string("device_type", "cpu")?;
        fdt.property_string("compatible", "arm,armv8")?;
        fdt.property_string("enable-method", "psci")?;
        fdt.property_u64("reg", *affinity)?;
        fdt.end_node(node)?;
    }
    fdt.end_node(cpus)
}

fn memory(fdt: &mut FdtWriter, contents: &Contents<'_>) -> Result<(), Error> {
    let node = begin(fdt, "memory", RAM, contents.memory_mib << 20)?;
    fdt.property_string("device_type", "memory")?;
    fdt.end_node(node)?;
    if contents.reserved.is_empty() {
        return Ok(());
    }
    let reserved = fdt.begin_node("reserved-memory")?;
    fdt.property_u32("#address-cells", 2)?;
    fdt.property_u32("#size-cells", 2)?;
    fdt.property_null("ranges")?;
    for ReservedMemory { name, base, size } in contents.reserved {
        let node = begin(fdt, name, *base, *size)?;
        fdt.property_null("no-map")?;
        fdt.end_node(node)?;
    }
    fdt.end_node(reserved)
}

fn interrupt_controller(fdt: &mut FdtWriter, vcpus: usize) -> Result<(), Error> {
    let node = fdt.begin_node(&format!("intc@{:x}", GIC_DISTRIBUTOR.start))?;
    fdt.property_string("compatible", "arm,gic-v3")?;
    fdt.property_null("interrupt-controller")?;
    fdt.property_u32("#interrupt-cells", 3)?;
    fdt.property_array_u64(
        "reg",
        &[
            GIC_DISTRIBUTOR.start,
            GIC_DISTRIBUTOR.end - GIC_DISTRIBUTOR.start,
            GIC_REDISTRIBUTORS,
            GIC_REDISTRIBUTOR_BYTES * vcpus as u64,
        ],
    )?;
    fdt.property_phandle(PHANDLE_GIC)?;
    fdt.end_node(node)
}

/// Interrupts that KVM gives the generic timer: secure and non-secure physical, virtual, and hypervisor,
/// as the binding orders them. The first private interrupt of a vCPU is number 16 to KVM and 0 here.
const TIMER_PPIS: [u32; 4] = [13, 14, 11, 10];

/// The generic timer.
fn timer(fdt: &mut FdtWriter) -> Result<(), Error> {
    let node = fdt.begin_node("timer")?;
    fdt.property_string("compatible", "arm,armv8-timer")?;
    let interrupts = TIMER_PPIS.map(|ppi| [INTERRUPT_PPI, ppi, LEVEL_HIGH]);
    fdt.property_array_u32("interrupts", interrupts.as_flattened())?;
    // A vCPU's timers do not stop when it idles.
    fdt.property_null("always-on")?;
    fdt.end_node(node)
}

fn devices(fdt: &mut FdtWriter) -> Result<(), Error> {
    let clock = fdt.begin_node("clock")?;
    fdt.property_string("compatible", "fixed-clock")?;
    fdt.property_u32("#clock-cells", 0)?;
    fdt.property_u32("clock-frequency", DEVICE_CLOCK_HZ)?;
    fdt.property_phandle(PHANDLE_CLOCK)?;
    fdt.end_node(clock)?;

    for port in [CONSOLE, SERIAL] {
        let node = begin(fdt, "serial", port.base, Device::BYTES)?;
        fdt.property_string("compatible", "ns16550a")?;
        fdt.property_u32("clock-frequency", DEVICE_CLOCK_HZ)?;
        fdt.property_array_u32("interrupts", &[INTERRUPT_SPI, port.spi, EDGE_RISING])?;
        fdt.end_node(node)?;
    }

    let node = begin_primecell(fdt, "rtc", "arm,pl031", RTC)?;
    fdt.end_node(node)
}

/// Bindings: `rng/microsoft,vmgenid.yaml`.
fn generation(fdt: &mut FdtWriter) -> Result<(), Error> {
    let node = begin(fdt, "rng", GENERATION.base, GENERATION_BYTES)?;
    fdt.property_string("compatible", "microsoft,vmgenid")?;
    fdt.property_array_u32("interrupts", &[INTERRUPT_SPI, GENERATION.spi, EDGE_RISING])?;
    fdt.end_node(node)
}

/// The structure of `pvtime::abi::paused_time` and the interrupt that follows each change of it.
fn paused_time(fdt: &mut FdtWriter, address: Option<u64>) -> Result<(), Error> {
    let Some(address) = address else {
        return Ok(());
    };
    let node = begin(fdt, "paused-time", address, SIZE_BYTES as u64)?;
    fdt.property_string("compatible", "pvtime,paused-time")?;
    fdt.property_array_u32("interrupts", &[INTERRUPT_SPI, PAUSED_TIME_SPI, EDGE_RISING])?;
    fdt.end_node(node)
}

/// Begins a device of Arm's that says what it is in its own registers too.
fn begin_primecell(
    fdt: &mut FdtWriter,
    name: &str,
    compatible: &str,
    device: Device,
) -> Result<FdtWriterNode, Error> {
    let node = begin(fdt, name, device.base, Device::BYTES)?;
    fdt.property_string_list(
        "compatible",
        vec![compatible.into(), "arm,primecell".into()],
    )?;
    fdt.property_array_u32("interrupts", &[INTERRUPT_SPI, device.spi, LEVEL_HIGH])?;
    fdt.property_u32("clocks", PHANDLE_CLOCK)?;
    fdt.property_string("clock-names", "apb_pclk")?;
    Ok(node)
}

/// Bindings: `gpio/pl061-gpio.yaml`, `input/gpio-keys.yaml`.
fn keys(fdt: &mut FdtWriter) -> Result<(), Error> {
    /// Of Linux's `input-event-codes.h`.
    const KEY_SLEEP: u32 = 142;
    const KEY_WAKEUP: u32 = 143;
    const ACTIVE_HIGH: u32 = 0;
    let node = begin_primecell(fdt, "gpio", "arm,pl061", KEYS)?;
    fdt.property_null("gpio-controller")?;
    fdt.property_u32("#gpio-cells", 2)?;
    fdt.property_null("interrupt-controller")?;
    fdt.property_u32("#interrupt-cells", 2)?;
    fdt.property_phandle(PHANDLE_KEYS)?;
    fdt.end_node(node)?;

    let keys = fdt.begin_node("gpio-keys")?;
    fdt.property_string("compatible", "gpio-keys")?;
    for (name, line, code) in [
        ("sleep", SLEEP_LINE, KEY_SLEEP),
        ("wake-up", WAKE_UP_LINE, KEY_WAKEUP),
    ] {
        let key = fdt.begin_node(&format!("key-{name}"))?;
        fdt.property_string("label", name)?;
        fdt.property_u32("linux,code", code)?;
        fdt.property_array_u32("gpios", &[PHANDLE_KEYS, line.into(), ACTIVE_HIGH])?;
        if code == KEY_WAKEUP {
            fdt.property_null("wakeup-source")?;
        }
        fdt.end_node(key)?;
    }
    fdt.end_node(keys)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use fdt::Fdt;

    use super::*;
    use crate::layout::TIME_REGION;

    fn tree(reserved: &[ReservedMemory]) -> Vec<u8> {
        write(&Contents {
            cmdline: "quiet -- --busy",
            initramfs: Some((0x4100_0000, 0x4100_0040)),
            memory_mib: 64,
            affinities: &[0, 1, 0x100],
            reserved,
            paused_time: None,
            keys: false,
            seed: [7; 64],
        })
        .unwrap()
    }

    fn node<'b, 'a>(tree: &'b Fdt<'a>, path: &str) -> fdt::node::FdtNode<'b, 'a> {
        tree.find_node(path).unwrap_or_else(|| panic!("no {path}"))
    }

    #[test]
    fn m11_time_memory_is_reserved_and_no_ram() {
        let time = ReservedMemory {
            name: "stolen-time",
            base: 0xa00_0000,
            size: 0x1_0000,
        };
        let bytes = tree(&[time]);
        let tree = Fdt::new(&bytes).unwrap();
        let reserved = node(&tree, "/reserved-memory/stolen-time@a000000");
        assert!(reserved.property("no-map").is_some());
        let region = reserved.reg().unwrap().next().unwrap();
        assert_eq!(region.starting_address as u64, time.base);
        assert_eq!(region.size.map(|size| size as u64), Some(time.size));
        for ram in tree.memory().regions() {
            let start = ram.starting_address as u64;
            assert!(
                time.base + time.size <= start || start + ram.size.unwrap() as u64 <= time.base
            );
        }
    }

    #[test]
    fn t16_each_timer_has_a_private_interrupt_of_its_own() {
        let of_kvm = TIMER_PPIS.map(|ppi| ppi + 16);
        assert_eq!(
            of_kvm[1..3],
            [30, 27],
            "as KVM has the physical and the virtual"
        );
        assert!(of_kvm.iter().all(|number| (16..32).contains(number)));
        let distinct: BTreeSet<_> = of_kvm.into();
        assert_eq!(distinct.len(), of_kvm.len());
    }

    #[test]
    fn without_time_memory_nothing_is_reserved() {
        let bytes = tree(&[]);
        assert!(
            Fdt::new(&bytes)
                .unwrap()
                .find_node("/reserved-memory")
                .is_none()
        );
    }

    #[test]
    fn the_generation_is_outside_of_all_else() {
        let bytes = tree(&[]);
        let tree = Fdt::new(&bytes).unwrap();
        let generation = node(&tree, "/rng@b000000");
        let compatible = generation.compatible().unwrap();
        assert_eq!(compatible.first(), "microsoft,vmgenid");
        let region = generation.reg().unwrap().next().unwrap();
        let start = region.starting_address as u64;
        let end = start + region.size.unwrap() as u64;
        assert!(start.is_multiple_of(0x1_0000) && end - start == 0x1_0000);
        let time_end = TIME_REGION + 0x10_0000;
        assert!(time_end <= start && end <= GIC_REDISTRIBUTORS);
        let interrupts = generation.property("interrupts").unwrap().value;
        assert_eq!(interrupts, [0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 1]);
    }

    #[test]
    fn paused_time_has_its_structure_and_an_interrupt_of_its_own() {
        let bytes = write(&Contents {
            cmdline: "",
            initramfs: None,
            memory_mib: 64,
            affinities: &[0],
            reserved: &[],
            paused_time: Some(0xa02_0000),
            keys: false,
            seed: [7; 64],
        })
        .unwrap();
        let tree = Fdt::new(&bytes).unwrap();
        let paused = node(&tree, "/paused-time@a020000");
        let names: Vec<_> = paused.compatible().unwrap().all().collect();
        assert_eq!(names, ["pvtime,paused-time"]);
        let structure = paused.reg().unwrap().next().unwrap();
        assert_eq!(
            (structure.starting_address as u64, structure.size),
            (0xa02_0000, Some(64))
        );
        let interrupt = paused.property("interrupts").unwrap().value;
        assert_eq!(interrupt, [0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 1]);
        let others = [CONSOLE, SERIAL, RTC].map(|device| device.spi);
        assert!(!others.contains(&PAUSED_TIME_SPI));
        assert!(
            Fdt::new(&self::tree(&[]))
                .unwrap()
                .find_compatible(&["pvtime,paused-time"])
                .is_none()
        );
    }

    #[test]
    fn keys_are_lines_of_a_controller_with_an_interrupt_of_its_own() {
        let bytes = write(&Contents {
            cmdline: "",
            initramfs: None,
            memory_mib: 64,
            affinities: &[0],
            reserved: &[],
            paused_time: None,
            keys: true,
            seed: [7; 64],
        })
        .unwrap();
        let tree = Fdt::new(&bytes).unwrap();
        let gpio = node(&tree, "/gpio@9030000");
        let names: Vec<_> = gpio.compatible().unwrap().all().collect();
        assert_eq!(names, ["arm,pl061", "arm,primecell"]);
        let interrupt = gpio.property("interrupts").unwrap().value;
        assert_eq!(interrupt, [0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 4]);
        let others = [CONSOLE, SERIAL, RTC, GENERATION].map(|device| device.spi);
        assert!(!others.contains(&KEYS.spi) && KEYS.spi != PAUSED_TIME_SPI);
        let controller = gpio.property("phandle").unwrap().as_usize().unwrap();
        for (name, line, code, wakes) in [("sleep", 0, 142, false), ("wake-up", 1, 143, true)] {
            let key = node(&tree, &format!("/gpio-keys/key-{name}"));
            let code_there = key.property("linux,code").unwrap().as_usize();
            assert_eq!(code_there, Some(code));
            let cells = [u32::try_from(controller).unwrap(), line, 0].map(u32::to_be_bytes);
            assert_eq!(key.property("gpios").unwrap().value, cells.as_flattened());
            assert_eq!(key.property("wakeup-source").is_some(), wakes);
        }
        assert!(
            Fdt::new(&self::tree(&[]))
                .unwrap()
                .find_compatible(&["arm,pl061"])
                .is_none()
        );
    }

    #[test]
    fn the_guest_is_told_what_there_is() {
        let bytes = tree(&[]);
        let tree = Fdt::new(&bytes).unwrap();
        assert_eq!(tree.chosen().bootargs(), Some("quiet -- --busy"));
        assert_eq!(tree.chosen().stdout().unwrap().name, "serial@9000000");
        let start = node(&tree, "/chosen")
            .property("linux,initrd-start")
            .unwrap();
        let end = node(&tree, "/chosen").property("linux,initrd-end").unwrap();
        assert_eq!(end.as_usize().unwrap() - start.as_usize().unwrap(), 64);

        let affinities: Vec<usize> = tree.cpus().map(|cpu| cpu.ids().first()).collect();
        assert_eq!(affinities, [0, 1, 0x100]);
        let ram = tree.memory().regions().next().unwrap();
        assert_eq!(
            (ram.starting_address as u64, ram.size),
            (RAM, Some(64 << 20))
        );
        let gic = node(&tree, "/intc@8000000").reg().unwrap().nth(1).unwrap();
        assert_eq!(gic.size, Some(3 * 0x2_0000));
    }
}
