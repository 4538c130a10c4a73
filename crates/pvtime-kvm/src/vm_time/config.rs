//! What a VM's time is made of, and what can be wrong with it.

use std::io;
use std::time::Duration;

use pvtime::abi::live_physical_time::LivePhysicalTime;
use pvtime::host::saved::SavedError;
use pvtime::host::timeline::{NegativeElapsed, Policies, TimelineError};
use pvtime::scale::Frequency;
use vm_memory::{Address, GuestAddress};

use super::account::AccountError;
use crate::gate::CloseError;
use crate::offset::SetOffsetError;
use crate::region::BLOCK_BYTES;
use crate::stolen_time::{CAPACITY, PublishError};
use crate::{
    CounterChoice, HostTime, PV_FREQUENCY_HZ, StolenTimeChoice, StolenTimeUnavailable, Support,
    thread_stat,
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
    /// A signal that nothing else handles: it takes vCPU threads out of `KVM_RUN`.
    pub kick_signal: i32,
    /// How the guest's counters are set.
    pub counters: CounterChoice,
    /// Whether the guest gets stolen time.
    pub stolen_time: StolenTimeChoice,
    /// How often stolen time is brought up to date where user space keeps it; not 0.
    pub stolen_time_period: Duration,
    /// The PV frequency, if the guest gets live physical time: one of [`PV_FREQUENCY_HZ`].
    pub live_physical_time: Option<Frequency>,
    /// Whether the guest is told of its pauses.
    pub paused_time: bool,
    /// What the counters do over each event.
    pub policies: Policies,
    /// What to do when a VM arrives, by the wall clocks, before it left.
    pub negative_elapsed: NegativeElapsed,
    /// Whether a thread watches for sleeps of the host that nobody announces, and stops of the VMM,
    /// and vCPUs run on a [lease](crate::sleep).
    pub watches_host_sleep: bool,
}

impl VmTimeConfig {
    /// Structures of 64 bytes that fit into a block of 64 KiB.
    pub const MAX_VCPUS: usize = CAPACITY;
    /// Bytes of guest physical address space to leave free: a block of 64 KiB each for stolen time,
    /// live physical time and paused time, in this order, whichever are on.
    pub const REGION_BYTES: u64 = Self::SLOTS as u64 * BLOCK_BYTES as u64;
    /// Memory slots to leave free.
    pub const SLOTS: u32 = 3;

    /// Time for `vcpus` vCPUs, with everything else as it is by default: stolen time where the host
    /// can, neither live physical time nor paused time, counters with one offset where the host
    /// can, every event freezing, the host's sleep not watched.
    #[must_use]
    pub fn new(vcpus: usize, region: GuestAddress, first_slot: u32, kick_signal: i32) -> Self {
        Self {
            vcpus,
            region,
            first_slot,
            kick_signal,
            counters: CounterChoice::default(),
            stolen_time: StolenTimeChoice::default(),
            stolen_time_period: Duration::from_millis(100),
            live_physical_time: None,
            paused_time: false,
            policies: Policies::default(),
            negative_elapsed: NegativeElapsed::default(),
            watches_host_sleep: false,
        }
    }

    pub(super) fn check(&self, host: &HostTime, native: Frequency) -> Result<(), Error> {
        let &Self { vcpus, region, .. } = self;
        if vcpus == 0 || vcpus > Self::MAX_VCPUS {
            return Err(Error::Vcpus { vcpus });
        }
        if self.stolen_time_period.is_zero() {
            return Err(Error::NoPeriod);
        }
        let address = region.raw_value();
        let fits = address.checked_add(Self::REGION_BYTES).is_some();
        if !address.is_multiple_of(BLOCK_BYTES as u64) || !fits {
            return Err(Error::Unaligned { address });
        }
        self.check_interfaces(host, native)
    }

    /// On is on, or an error.
    fn check_interfaces(&self, host: &HostTime, native: Frequency) -> Result<(), Error> {
        if let Some(pv) = self.live_physical_time {
            available(
                "live physical time",
                "--live-physical-time",
                host.live_physical_time(),
            )?;
            if !PV_FREQUENCY_HZ.contains(&pv.hz()) {
                return Err(Error::PvFrequency { hz: pv.hz() });
            }
            LivePhysicalTime::between(native, pv).map_err(TimelineError::from)?;
        }
        if self.paused_time {
            available("paused time", "--paused-time", host.paused_time())?;
        }
        Ok(())
    }
}

fn available(interface: &'static str, option: &'static str, support: Support) -> Result<(), Error> {
    match support {
        Support::Yes => Ok(()),
        Support::No { reason } => Err(Error::Unavailable {
            interface,
            option,
            reason,
        }),
    }
}

/// A VM's time could not be set up, changed or read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The VM has no vCPU, or more than the block has room for.
    #[error("a VM has 1 to {max} vCPUs, not {vcpus}", max = VmTimeConfig::MAX_VCPUS)]
    Vcpus {
        /// What was asked for.
        vcpus: usize,
    },
    /// The region's address is not a multiple of 64 KiB, or has no room after it.
    #[error(
        "the time region must start at a multiple of 64 KiB with {} KiB after it, not at \
         {address:#x}",
        VmTimeConfig::REGION_BYTES >> 10
    )]
    Unaligned {
        /// The address.
        address: u64,
    },
    /// Firmware wrote no frequency into `CNTFRQ_EL0`.
    #[error("this host's CNTFRQ_EL0 is 0; its firmware must write the counter's frequency")]
    NoFrequency,
    /// `StolenTimeChoice::On` where the host has none.
    #[error(transparent)]
    StolenTime(#[from] StolenTimeUnavailable),
    /// Live physical time or paused time where the host lacks what it needs.
    #[error(
        "{interface} cannot be turned on: {reason}; run on a host that has it, or leave {option} \
         off"
    )]
    Unavailable {
        /// What was asked for.
        interface: &'static str,
        /// The option's name.
        option: &'static str,
        /// What is missing, from the probe.
        reason: String,
    },
    /// A PV frequency that no guest can work with.
    #[error(
        "a PV counter of {hz} Hz is of no use to a guest; give --live-physical-time {} to {} Hz, \
         such as 1000000000",
        PV_FREQUENCY_HZ.start(), PV_FREQUENCY_HZ.end()
    )]
    PvFrequency {
        /// What was asked for.
        hz: u64,
    },
    /// The event behind paused time's interrupt could not be made.
    #[error("cannot make the interrupt of paused time: {0}")]
    Interrupt(io::Error),
    /// The signal cannot be used.
    #[error("signal {signal} cannot be used to interrupt vCPUs: {source}; choose another")]
    Signal {
        /// Its number.
        signal: i32,
        /// What the kernel said.
        source: io::Error,
    },
    /// A block could not be mapped into the guest.
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
    /// The hypercall filter was refused.
    #[error(
        "cannot have the guest's time calls forwarded: {0}; make the VM's time before a vCPU runs, \
         and leave the calls from 0xc5000020 to it"
    )]
    Filter(io::Error),
    /// The thread that watches for sleeps of the host did not start.
    #[error("cannot start the thread that watches for the host's sleep: {0}")]
    Watch(io::Error),
    /// The kernel has no timer for a vCPU's thread.
    #[error(
        "the kernel has no timer for the thread of vCPU {index}: {source}; raise RLIMIT_SIGPENDING"
    )]
    Timer {
        /// The vCPU's index.
        index: usize,
        /// What the kernel said.
        source: io::Error,
    },
    /// The host slept, or this process was stopped, and the VM's time could not be set right.
    #[error("the host slept, and the VM's time is not right since; the VM waits: {reason}")]
    HeldUp {
        /// What failed.
        reason: String,
    },
    /// Stolen time was to be brought up to date all the time.
    #[error("stolen time cannot be kept with a period of 0; give it 100 ms")]
    NoPeriod,
    /// The publisher's thread did not start.
    #[error("cannot start the thread that keeps stolen time: {0}")]
    Publisher(io::Error),
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
    /// The VM was to start without all of its vCPUs.
    #[error(
        "vCPU {index} has no thread yet; attach every vCPU and start its thread before the VM is \
         started or restored"
    )]
    NoThread {
        /// The first that has none.
        index: usize,
    },
    /// A vCPU's thread has left.
    #[error(
        "{threads} of the VM's {vcpus} vCPUs have a thread, and it cannot go on without one for each; \
         shut it down"
    )]
    ThreadEnded {
        /// vCPUs of the VM.
        vcpus: usize,
        /// Those whose thread is at the gate.
        threads: usize,
    },
    /// [`VmTime::shut_down`](super::VmTime::shut_down) came first.
    #[error("the VM is being shut down; save it before that")]
    ShutDown,
    /// The VM was to start after a restoration that failed part of the way.
    #[error("the VM was restored in part; restore it whole, or make another one")]
    HalfRestored,
    /// A register of a vCPU could not be read or written.
    #[error("cannot reach the timers of vCPU {index}: {source}")]
    Registers {
        /// The vCPU's index.
        index: usize,
        /// What the kernel said.
        source: io::Error,
    },
    /// KVM does not make a vCPU ready to run.
    #[error("KVM cannot run vCPU {index}: {source}")]
    FirstRun {
        /// The vCPU's index.
        index: usize,
        /// What the kernel said.
        source: kvm_ioctls::Error,
    },
    /// The VM is in no state for this, or the host's clocks contradict themselves.
    #[error(transparent)]
    Timeline(#[from] TimelineError),
    /// A vCPU did not stop.
    #[error(transparent)]
    Close(#[from] CloseError),
    /// The offset was not set.
    #[error(transparent)]
    Offset(#[from] SetOffsetError),
    /// The guest asked to be suspended too early.
    #[error(
        "vCPU {index} is on, and a guest suspends itself when all of its vCPUs but the one that \
         asks are off; it was denied"
    )]
    VcpuOn {
        /// The first that is on.
        index: usize,
    },
    /// The accounts of a vCPU's thread could not be read.
    #[error("no accounts of vCPU {index}: {source}")]
    Accounts {
        /// The vCPU's index.
        index: usize,
        /// Why.
        source: thread_stat::Error,
    },
    /// A vCPU's ledger cannot go on.
    #[error("the ledger of vCPU {index} cannot go on: {source}")]
    Account {
        /// The vCPU's index.
        index: usize,
        /// Why.
        source: AccountError,
    },
    /// Stolen time could not be counted.
    #[error("the stolen time of vCPU {index} cannot be counted: {source}")]
    Publish {
        /// The vCPU's index.
        index: usize,
        /// Why.
        source: PublishError,
    },
    /// The saved time is damaged or of another version.
    #[error(transparent)]
    Saved(#[from] SavedError),
    /// The guest uses stolen time and would find it gone.
    #[error(
        "the saved VM's guest uses stolen time, and here it would be off; restore it with \
         --stolen-time on"
    )]
    StolenTimeLost,
    /// The guest knows of paused time and would find it gone.
    #[error(
        "the saved VM's guest is told of its pauses, and here it would not be; restore it with \
         --paused-time on"
    )]
    PausedTimeLost,
    /// The saved time is of a VM of another shape.
    #[error(
        "the saved time has {actual} bytes, and that of a VM with {vcpus} vCPUs has {expected}"
    )]
    SavedLength {
        /// vCPUs of this VM.
        vcpus: usize,
        /// Bytes of its saved time.
        expected: usize,
        /// Bytes given.
        actual: usize,
    },
}
