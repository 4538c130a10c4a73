//! The one owner of a VM's time.

use std::io;
use std::sync::{Arc, OnceLock};

use kvm_bindings::{
    KVM_ARM_VCPU_PVTIME_CTRL, KVM_ARM_VCPU_PVTIME_IPA, KVM_REG_ARM_STD_HYP_BIT_PV_TIME,
    kvm_device_attr,
};
use kvm_ioctls::{VcpuFd, VmFd};
use pvtime::abi::stolen_time::{STOLEN_WORD, STRIDE_BYTES, StolenTime};
use rustix::thread::{Pid, gettid};
use serde::Serialize;
use vm_memory::{Address, GuestAddress};

use crate::clock::HostClocks;
use crate::region::{BLOCK_BYTES, Block};
use crate::schedstat::{self, SchedStat};
use crate::{
    HostTime, ReservedMemory, StolenTimeChoice, StolenTimeProvider, StolenTimeUnavailable,
};

/// What a VM's time is made of.
#[derive(Clone, Copy, Debug)]
pub struct VmTimeConfig {
    /// vCPUs that will be attached, at most [`VmTimeConfig::MAX_VCPUS`].
    pub vcpus: usize,
    /// Where the time memory starts in guest physical addresses: a multiple of 64 KiB, outside
    /// RAM and devices, with [`VmTimeConfig::REGION_BYTES`] free.
    pub region: GuestAddress,
    /// The first of [`VmTimeConfig::SLOTS`] memory slots that nothing else uses.
    pub first_slot: u32,
    /// Whether the guest gets stolen time.
    pub stolen_time: StolenTimeChoice,
}

impl VmTimeConfig {
    /// Structures of 64 bytes that fit into a block of 64 KiB.
    pub const MAX_VCPUS: usize = BLOCK_BYTES / STRIDE_BYTES;
    /// Bytes of guest physical address space to leave free.
    pub const REGION_BYTES: u64 = BLOCK_BYTES as u64;
    /// Memory slots to leave free.
    pub const SLOTS: u32 = 1;
}

/// A VM's time could not be set up or read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The VM has no vCPU, or more than the block has room for.
    #[error("a VM has 1 to {max} vCPUs, not {vcpus}", max = VmTimeConfig::MAX_VCPUS)]
    Vcpus {
        /// What was asked for.
        vcpus: usize,
    },
    /// The region's address is not a multiple of 64 KiB.
    #[error("the time region must start at a multiple of 64 KiB, not at {address:#x}")]
    Unaligned {
        /// The address.
        address: u64,
    },
    /// `StolenTimeChoice::On` where the host has none.
    #[error(transparent)]
    StolenTime(#[from] StolenTimeUnavailable),
    /// The block could not be mapped into the guest.
    #[error(
        "cannot put the time region at {address:#x} with memory slot {slot}: {source}; choose an \
         address and a slot that nothing else uses"
    )]
    Region {
        /// Guest physical address.
        address: u64,
        /// Memory slot.
        slot: u32,
        /// What the kernel said.
        source: io::Error,
    },
    /// There is no vCPU of that index.
    #[error("this VM's time was made for {vcpus} vCPUs; there is no vCPU {index}")]
    NoSuchVcpu {
        /// The index.
        index: usize,
        /// What the VM has.
        vcpus: usize,
    },
    /// A vCPU was attached twice.
    #[error("vCPU {index} is attached already; attach each vCPU once")]
    AttachedTwice {
        /// Its index.
        index: usize,
    },
    /// KVM refused the address of a vCPU's structure.
    #[error(
        "KVM refuses {address:#x} for the stolen time of vCPU {index}: {source}; attach each vCPU \
         once, after KVM_ARM_VCPU_INIT"
    )]
    Attach {
        /// The vCPU's index.
        index: usize,
        /// Guest physical address of its structure.
        address: u64,
        /// What the kernel said.
        source: io::Error,
    },
    /// Discovery of stolen time could not be turned off.
    #[error(
        "cannot hide stolen time from vCPU {index}: {source}; attach before the first KVM_RUN, on \
         Linux 5.19 or newer"
    )]
    Hide {
        /// The vCPU's index.
        index: usize,
        /// What the kernel said.
        source: io::Error,
    },
    /// The accounts of a vCPU's thread could not be read.
    #[error("no accounts of vCPU {index}: {source}")]
    Accounts {
        /// The vCPU's index.
        index: usize,
        /// Why.
        source: schedstat::Error,
    },
}

/// The time of one VM.
#[derive(Debug)]
pub struct VmTime {
    created: HostClocks,
    stolen_time: Option<Block>,
    vcpus: Vec<Arc<Vcpu>>,
}

/// What is known of a vCPU; each field is set once.
#[derive(Debug, Default)]
struct Vcpu {
    attached: OnceLock<()>,
    thread: OnceLock<Pid>,
}

/// One vCPU's part of its VM's time, for the thread that runs it.
#[derive(Debug)]
#[must_use = "the thread that calls KVM_RUN binds itself through this"]
pub struct VcpuTime {
    vcpu: Arc<Vcpu>,
}

impl VmTime {
    /// Decides which interfaces the guest gets and makes their memory.
    ///
    /// The VM keeps a memory slot for each block until this is dropped.
    ///
    /// # Errors
    ///
    /// [`Error::Vcpus`], [`Error::Unaligned`], [`Error::StolenTime`], [`Error::Region`].
    pub fn new(vm: &Arc<VmFd>, host: &HostTime, config: VmTimeConfig) -> Result<Self, Error> {
        let VmTimeConfig {
            vcpus,
            region,
            first_slot,
            stolen_time,
        } = config;
        if vcpus == 0 || vcpus > VmTimeConfig::MAX_VCPUS {
            return Err(Error::Vcpus { vcpus });
        }
        if region.raw_value() % BLOCK_BYTES as u64 != 0 {
            return Err(Error::Unaligned {
                address: region.raw_value(),
            });
        }
        let stolen_time = match stolen_time.provider(host)? {
            StolenTimeProvider::Off => None,
            StolenTimeProvider::Kernel => Some(unclaimed_block(vm, first_slot, region)?),
        };
        Ok(Self {
            created: HostClocks::read(),
            stolen_time,
            vcpus: (0..vcpus).map(|_| Arc::default()).collect(),
        })
    }

    /// Gives a vCPU its time interfaces: after `KVM_ARM_VCPU_INIT` and before the first `KVM_RUN`
    /// of any vCPU. vCPUs may be attached in any order, others already being attached.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchVcpu`], [`Error::AttachedTwice`], [`Error::Attach`], [`Error::Hide`].
    pub fn attach(&self, vcpu: &VcpuFd, index: usize) -> Result<VcpuTime, Error> {
        let known = self.vcpus.get(index).ok_or(Error::NoSuchVcpu {
            index,
            vcpus: self.vcpus.len(),
        })?;
        known
            .attached
            .set(())
            .map_err(|()| Error::AttachedTwice { index })?;
        match &self.stolen_time {
            Some(block) => register(vcpu, index, block.address(index * STRIDE_BYTES))?,
            None => hide(vcpu, index)?,
        }
        Ok(VcpuTime {
            vcpu: Arc::clone(known),
        })
    }

    /// Who keeps this VM's stolen time.
    #[must_use]
    pub fn stolen_time_provider(&self) -> StolenTimeProvider {
        match self.stolen_time {
            Some(_) => StolenTimeProvider::Kernel,
            None => StolenTimeProvider::Off,
        }
    }

    /// What to reserve in the device tree.
    #[must_use]
    pub fn reserved_memory(&self) -> Vec<ReservedMemory> {
        self.stolen_time
            .iter()
            .map(|block| block.reserved("stolen-time"))
            .collect()
    }

    /// Reads the host's clocks, and for each vCPU the scheduler's accounts of its thread and the
    /// structure in guest memory, one right after the other.
    ///
    /// # Errors
    ///
    /// [`Error::Accounts`] where a vCPU's thread has ended.
    pub fn sample(&self) -> Result<TimeSample, Error> {
        let clocks = HostClocks::read();
        let vcpus = (0..self.vcpus.len()).map(|index| self.sample_vcpu(index));
        Ok(TimeSample {
            elapsed_ns: clocks.boottime_ns - self.created.boottime_ns,
            clocks,
            vcpus: vcpus.collect::<Result<_, _>>()?,
        })
    }

    fn sample_vcpu(&self, index: usize) -> Result<VcpuSample, Error> {
        let thread = self.vcpus[index].thread.get().copied();
        let accounts = thread
            .map(SchedStat::of_thread)
            .transpose()
            .map_err(|source| Error::Accounts { index, source })?;
        let stolen_time = self
            .stolen_time
            .as_ref()
            .map(|block| sample_structure(block, index));
        Ok(VcpuSample {
            index,
            thread_id: thread.map(|thread| thread.as_raw_nonzero().get()),
            accounts: accounts.unwrap_or_default(),
            stolen_time,
        })
    }
}

impl VcpuTime {
    /// Tells the VM's time that the calling thread is the one that runs this vCPU.
    ///
    /// # Panics
    ///
    /// If another thread has said so before: a vCPU has one thread, and its accounts are those of
    /// that thread.
    pub fn bind_thread(&self) {
        let thread = *self.vcpu.thread.get_or_init(gettid);
        assert!(thread == gettid(), "a vCPU has one thread for its life");
    }
}

/// The clocks of a VM and its host at one moment.
#[derive(Clone, Debug, Serialize)]
pub struct TimeSample {
    /// Physical time since the VM's time was made, in ns; it runs through pauses and host sleep.
    pub elapsed_ns: u64,
    /// The host's clocks.
    pub clocks: HostClocks,
    /// One for each vCPU, in order.
    pub vcpus: Vec<VcpuSample>,
}

/// One vCPU's accounts.
#[derive(Clone, Debug, Serialize)]
pub struct VcpuSample {
    /// Its index.
    pub index: usize,
    /// Its thread, as `gettid` numbers it; absent before the thread bound itself.
    pub thread_id: Option<i32>,
    /// What the host's scheduler counted for the thread; 0 before it bound itself.
    #[serde(flatten)]
    pub accounts: SchedStat,
    /// The structure in guest memory; absent where stolen time is off.
    pub stolen_time: Option<StolenTimeSample>,
}

/// A vCPU's structure as it lies in guest memory. The guest may have written to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct StolenTimeSample {
    /// Its guest physical address.
    pub address: u64,
    /// Whether the guest asked for it (`PV_TIME_ST`) since the VM was made.
    pub claimed: bool,
    /// Stolen time in ns since the guest last asked for the structure; 0 before.
    pub stolen_ns: u64,
}

/// A block in which every structure says, until KVM starts it for the guest, that it is none: all
/// ones is a revision that no guest accepts.
fn unclaimed_block(vm: &Arc<VmFd>, slot: u32, base: GuestAddress) -> Result<Block, Error> {
    let block = Block::new(Arc::clone(vm), slot, base).map_err(|source| Error::Region {
        address: base.raw_value(),
        slot,
        source,
    })?;
    block.fill(0xff);
    Ok(block)
}

fn sample_structure(block: &Block, index: usize) -> StolenTimeSample {
    let offset = index * STRIDE_BYTES;
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&block.load_u64(offset).to_le_bytes());
    bytes[8..].copy_from_slice(&block.load_u64(offset + 8 * STOLEN_WORD).to_le_bytes());
    let value = StolenTime::parse(&bytes);
    StolenTimeSample {
        address: block.address(offset).raw_value(),
        claimed: value.is_ok(),
        stolen_ns: value.map_or(0, |value| value.stolen_ns),
    }
}

/// Sets `KVM_ARM_VCPU_PVTIME_IPA`.
fn register(vcpu: &VcpuFd, index: usize, address: GuestAddress) -> Result<(), Error> {
    let address = address.raw_value();
    let attribute = kvm_device_attr {
        flags: 0,
        group: KVM_ARM_VCPU_PVTIME_CTRL,
        attr: KVM_ARM_VCPU_PVTIME_IPA.into(),
        addr: (&raw const address) as u64,
    };
    vcpu.set_device_attr(&attribute)
        .map_err(|error| Error::Attach {
            index,
            address,
            source: error.into(),
        })
}

/// `KVM_REG_ARM_STD_HYP_BMAP`: which standard hypervisor calls KVM answers; VM-wide.
const STD_HYP_BMAP: u64 = 0x6030_0000_0016_0001;

/// Takes PV time out of what KVM answers. An address that was never set would silence
/// `PV_TIME_FEATURES` alone; `SMCCC_ARCH_FEATURES` looks at the bitmap only.
fn hide(vcpu: &VcpuFd, index: usize) -> Result<(), Error> {
    let hide = |error: kvm_ioctls::Error| Error::Hide {
        index,
        source: error.into(),
    };
    let mut bytes = [0; 8];
    vcpu.get_one_reg(STD_HYP_BMAP, &mut bytes).map_err(hide)?;
    let shown = u64::from_le_bytes(bytes);
    let hidden = shown & !(1 << KVM_REG_ARM_STD_HYP_BIT_PV_TIME);
    if hidden != shown {
        vcpu.set_one_reg(STD_HYP_BMAP, &hidden.to_le_bytes())
            .map_err(hide)?;
    }
    Ok(())
}
