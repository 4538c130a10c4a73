//! What frames hold, and how much of it.

/// The most bytes of memory in one frame.
pub const MEMORY_BYTES: usize = 256 << 10;

/// Address or length in front of a frame's memory.
pub const WORD_BYTES: usize = 8;

/// What a frame holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// What the VM needs, as JSON.
    Offer = 1,
    /// Whether it can have it, as JSON.
    Answer = 2,
    /// Memory follows: the number of the round, from 0, as u32.
    Round = 3,
    /// Guest physical address as u64, then bytes.
    Memory = 4,
    /// Guest physical address and length as u64, of what is zero.
    Zero = 5,
    /// The state of vCPUs, interrupt controller and devices, as `MessagePack`: the guest stands still
    /// while it is written and read, which takes JSON many times as long.
    Machine = 6,
    /// The state of the VM's time, as its owner writes it.
    Time = 7,
    /// The destination has a machine in that state. Empty.
    Ready = 8,
    /// The VM is the destination's. Empty.
    Commit = 9,
    /// What the destination did, as JSON.
    Started = 10,
    /// The destination does not run the VM and will not; why, as text.
    Failed = 11,
    /// The source keeps the VM; why, as text.
    Abort = 12,
}

impl Kind {
    const ALL: [Self; 12] = [
        Self::Offer,
        Self::Answer,
        Self::Round,
        Self::Memory,
        Self::Zero,
        Self::Machine,
        Self::Time,
        Self::Ready,
        Self::Commit,
        Self::Started,
        Self::Failed,
        Self::Abort,
    ];

    /// Whether the other side has nothing to do about it before the frames that follow.
    pub(super) fn can_wait(self) -> bool {
        matches!(self, Self::Memory | Self::Zero)
    }

    pub(super) fn parse(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u32 == number)
    }
}

/// The most bytes that a frame of each kind may hold.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Of a machine's state and of its time.
    pub state_bytes: usize,
}

impl Limits {
    /// Many times what a vCPU's state takes.
    const VCPU_BYTES: usize = 128 << 10;

    /// For a VM of so many vCPUs.
    #[must_use]
    pub const fn new(vcpus: usize) -> Self {
        Self {
            state_bytes: (vcpus + 2) * Self::VCPU_BYTES,
        }
    }

    pub(super) fn of(self, kind: Kind) -> usize {
        match kind {
            Kind::Offer | Kind::Answer | Kind::Started => 1 << 20,
            Kind::Round => 4,
            Kind::Memory => WORD_BYTES + MEMORY_BYTES,
            Kind::Zero => 2 * WORD_BYTES,
            Kind::Machine | Kind::Time => self.state_bytes,
            Kind::Ready | Kind::Commit => 0,
            Kind::Failed | Kind::Abort => 4096,
        }
    }
}
