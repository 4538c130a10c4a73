//! The device tree: what machine this is.
#![expect(
    unsafe_code,
    reason = "the tree lies at an address that a register gave"
)]

use core::ptr;

use fdt::Fdt;
use fdt::node::FdtNode;
use guest_protocol::heapless::{String, Vec};
use guest_protocol::report::MAX_BARE_CPUS;
use spin::Once;

/// What of the machine this program uses.
#[derive(Debug)]
pub struct Machine {
    /// What stands in `/chosen`.
    pub command_line: String<2048>,
    /// How PSCI and the time interfaces are called.
    pub conduit: Conduit,
    /// The affinity of each CPU.
    pub cpus: Vec<u64, MAX_BARE_CPUS>,
    /// End of the RAM that nothing else is in.
    pub memory_end: usize,
    /// GICv3 distributor.
    pub distributor: usize,
    /// GICv3 redistributors.
    pub redistributors: usize,
    /// Private interrupt of the virtual timer, 0 to 15.
    pub virtual_timer: u32,
    /// Private interrupt of the physical timer.
    pub physical_timer: u32,
    /// The port to talk on.
    pub port: PortPlace,
    /// Paused time.
    pub paused_time: Option<PausedPlace>,
}

/// A conduit of the calling convention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conduit {
    /// `HVC`.
    Hvc,
    /// `SMC`.
    Smc,
}

/// A serial port.
#[derive(Clone, Copy, Debug)]
pub struct PortPlace {
    /// First address.
    pub base: usize,
    /// Which one it is.
    pub kind: PortKind,
    /// Its interrupt.
    pub interrupt: SharedInterrupt,
}

/// The ports that there are drivers for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortKind {
    /// A 16550 with registers of a byte.
    Ns16550,
    /// An Arm PL011.
    Pl011,
}

/// A shared peripheral interrupt.
#[derive(Clone, Copy, Debug)]
pub struct SharedInterrupt {
    /// Its number among those.
    pub number: u32,
    /// Whether it is a level, not an edge.
    pub level: bool,
}

/// Where paused time is.
#[derive(Clone, Copy, Debug)]
pub struct PausedPlace {
    /// Address of the structure.
    pub address: u64,
    /// The interrupt that announces a change.
    pub interrupt: Option<SharedInterrupt>,
}

/// What the device tree lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MachineError {
    /// There is none.
    #[error("there is no device tree at {address:#x}: boot with the address of one in x0")]
    NoTree {
        /// What x0 held.
        address: u64,
    },
    /// Something is missing or not understood.
    #[error("the device tree has no {what} that this guest understands")]
    Lacks {
        /// What.
        what: &'static str,
    },
    /// There are too many CPUs.
    #[error("this guest has room for {MAX_BARE_CPUS} CPUs; start it with so many or fewer")]
    TooManyCpus,
}

/// The node of paused time.
const PAUSED_TIME: &str = "pvtime,paused-time";

static MACHINE: Once<Machine> = Once::new();

/// Keeps the machine for all CPUs.
pub fn keep(machine: Machine) -> &'static Machine {
    MACHINE.call_once(|| machine)
}

/// The machine.
pub fn machine() -> Option<&'static Machine> {
    MACHINE.get()
}

/// The tree at an address.
///
/// # Errors
/// [`MachineError::NoTree`].
pub fn tree(address: u64) -> Result<Fdt<'static>, MachineError> {
    let no_tree = MachineError::NoTree { address };
    let place = usize::try_from(address).map_err(|_| no_tree)?;
    if !(1 << 30..2 << 30).contains(&place) || !place.is_multiple_of(8) {
        return Err(no_tree);
    }
    // SAFETY: the boot protocol has the address of a device tree in x0; it lies in RAM, which is
    // mapped, and nothing writes there.
    let tree = unsafe { Fdt::from_ptr(ptr::with_exposed_provenance(place)) };
    tree.map_err(|_| no_tree)
}

impl Machine {
    /// What the tree says, `port` being the one to talk on.
    ///
    /// # Errors
    /// [`MachineError`] names what is missing.
    pub fn parse(tree: &Fdt<'_>, address: u64, port: PortPlace) -> Result<Self, MachineError> {
        let lacks = |what| MachineError::Lacks { what };
        let gic = tree.find_compatible(&["arm,gic-v3"]);
        let mut gic = gic.and_then(FdtNode::reg).ok_or(lacks("GICv3"))?;
        let mut next = || gic.next().map(|region| region.starting_address as usize);
        let (distributor, redistributors) =
            next().zip(next()).ok_or(lacks("GICv3 redistributor"))?;
        let timer = tree.find_compatible(&["arm,armv8-timer"]);
        let timer = timer.ok_or(lacks("timer"))?;
        let private = |index| interrupt(timer, index).map(|[_, number, _]| number);
        let cmdline = tree.chosen().bootargs().unwrap_or_default();
        Ok(Self {
            command_line: guest_protocol::clip(cmdline),
            conduit: conduit(tree).ok_or(lacks("PSCI conduit"))?,
            cpus: cpus(tree)?,
            memory_end: memory_end(tree, address).ok_or(lacks("memory"))?,
            distributor,
            redistributors,
            // The binding's order: secure physical, physical, virtual, hypervisor.
            physical_timer: private(1).ok_or(lacks("physical timer"))?,
            virtual_timer: private(2).ok_or(lacks("virtual timer"))?,
            port,
            paused_time: paused_time(tree),
        })
    }
}

fn conduit(tree: &Fdt<'_>) -> Option<Conduit> {
    match tree.find_node("/psci")?.property("method")?.as_str()? {
        "hvc" => Some(Conduit::Hvc),
        "smc" => Some(Conduit::Smc),
        _ => None,
    }
}

fn cpus(tree: &Fdt<'_>) -> Result<Vec<u64, MAX_BARE_CPUS>, MachineError> {
    let mut cpus = Vec::new();
    for cpu in tree.cpus() {
        let affinity = cpu.ids().first() as u64;
        cpus.push(affinity).map_err(|_| MachineError::TooManyCpus)?;
    }
    Ok(cpus)
}

/// RAM up to its end, or up to the device tree or the initramfs, and no more than is mapped.
fn memory_end(tree: &Fdt<'_>, tree_address: u64) -> Option<usize> {
    let tree_address = usize::try_from(tree_address).ok()?;
    let region = tree.memory().regions().next()?;
    let start = region.starting_address as usize;
    let end = start.checked_add(region.size?)?.min(2 << 30);
    let initramfs = tree.find_node("/chosen")?.property("linux,initrd-start");
    let initramfs = initramfs.and_then(fdt::node::NodeProperty::as_usize);
    Some(end.min(tree_address).min(initramfs.unwrap_or(end)))
}

/// The port to talk on.
///
/// # Errors
/// [`MachineError::Lacks`].
pub fn port(tree: &Fdt<'_>) -> Result<PortPlace, MachineError> {
    let what = "serial port";
    find_port(tree).ok_or(MachineError::Lacks { what })
}

/// The second port where there are two: the first is a console for people.
fn find_port(tree: &Fdt<'_>) -> Option<PortPlace> {
    let mut ports: Vec<PortPlace, 8> = Vec::new();
    for node in tree.all_nodes() {
        let is = |name| {
            let mut names = node
                .compatible()
                .into_iter()
                .flat_map(fdt::standard_nodes::Compatible::all);
            names.any(|known| known == name)
        };
        let kind = if is("ns16550a") {
            PortKind::Ns16550
        } else if is("arm,pl011") {
            PortKind::Pl011
        } else {
            continue;
        };
        let base = node.reg()?.next()?.starting_address as usize;
        let interrupt = shared_interrupt(node)?;
        // More ports than these are not looked at.
        let _ = ports.push(PortPlace {
            base,
            kind,
            interrupt,
        });
    }
    ports.sort_unstable_by_key(|port| port.base);
    ports.get(1).or(ports.first()).copied()
}

fn paused_time(tree: &Fdt<'_>) -> Option<PausedPlace> {
    let node = tree.find_compatible(&[PAUSED_TIME])?;
    Some(PausedPlace {
        address: node.reg()?.next()?.starting_address as u64,
        interrupt: shared_interrupt(node),
    })
}

fn shared_interrupt(node: FdtNode<'_, '_>) -> Option<SharedInterrupt> {
    const LEVEL_HIGH: u32 = 4;
    let [_, number, flags] = interrupt(node, 0)?;
    Some(SharedInterrupt {
        number,
        level: flags & LEVEL_HIGH != 0,
    })
}

/// The three cells of an interrupt of a GIC: kind, number, flags.
fn interrupt(node: FdtNode<'_, '_>, index: usize) -> Option<[u32; 3]> {
    let cells = node.property("interrupts")?.value;
    let cells = cells.get(index * 12..)?.first_chunk::<12>()?;
    let cell =
        |at: usize| u32::from_be_bytes([cells[at], cells[at + 1], cells[at + 2], cells[at + 3]]);
    Some([cell(0), cell(4), cell(8)])
}
