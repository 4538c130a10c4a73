//! The bytes: header, fields at their offsets, checksum.

use super::{Record, SavedError, VERSION};
use core::mem::{offset_of, size_of};
use crc::{CRC_32_ISO_HDLC, Crc, Digest};
use zerocopy::little_endian::{I16, U16, U32, U64, U128};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// "PVTS" in memory.
const MAGIC: u32 = u32::from_le_bytes(*b"PVTS");
const CRC: Crc<u32> = Crc::<u32>::new(&CRC_32_ISO_HDLC);

/// How every record starts.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct Header {
    /// Offset 0: "PVTS".
    magic: U32,
    /// Offset 4: 1 VM, 2 vCPU.
    kind: U16,
    /// Offset 6: 1.
    version: U16,
    /// Offset 8: bytes of the record, this header included.
    size: U32,
    /// Offset 12: CRC-32 of the record without these four bytes.
    checksum: U32,
}

/// A record's bytes.
pub(super) trait Layout:
    FromBytes + IntoBytes + Immutable + KnownLayout + Unaligned
{
    /// Which record it is.
    const RECORD: Record;
    /// How long it is.
    const SIZE_BYTES: u32;

    /// The header.
    fn header(&mut self) -> &mut Header;
}

/// A VM's record, 232 bytes.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct VmLayout {
    pub header: Header,
    /// Offset 16: frequency of the host's counter, Hz.
    pub frequency_hz: U64,
    /// Offset 24: the host's counter at the stop.
    pub host_counter: U64,
    /// Offset 32: the guest's counter at the stop.
    pub guest_counter: U64,
    /// Offset 40: the wall clock at the stop, ns since 1970.
    pub wall_ns: U64,
    /// Offset 48: bound on its error, ns.
    pub wall_error_ns: U64,
    /// Offset 56: `CLOCK_BOOTTIME` at the stop, ns.
    pub boottime_ns: U64,
    /// Offset 64: `CLOCK_MONOTONIC` at the stop, ns.
    pub monotonic_ns: U64,
    /// Offset 72: `CLOCK_MONOTONIC_RAW` at the stop, ns.
    pub monotonic_raw_ns: U64,
    /// Offset 80: the time in which all of these were read, ns.
    pub span_ns: U64,
    /// Offset 88: 0 REALTIME, 1 TAI.
    pub wall_standard: U32,
    /// Offset 92: why the VM was stopped, 1 to 4 as in paused time.
    pub cause: U32,
    /// Offset 96: the `FLAG_` constants.
    pub flags: U32,
    /// Offset 100: frequency of the PV counter, Hz.
    pub pv_frequency_hz: U32,
    /// Offset 104: the guest's counter when the VM came to this host.
    pub live_base_count: U64,
    /// Offset 112: the ideal live time then, whole PV ticks.
    pub live_base_ticks: U64,
    /// Offset 120: the rest, in units of 2^-64 PV ticks.
    pub live_base_fraction: U64,
    /// Offset 128: the highest PV count read.
    pub live_seen: U64,
    /// Offset 136: sequence number of the last publication of live physical time.
    pub live_sequence: U64,
    /// Offset 144: time paused, ns: by operator, snapshot, migration, host suspend.
    pub paused_ns: [U64; 4],
    /// Offset 176: paused time as the guest was told, ns.
    pub told_paused_ns: U64,
    /// Offset 184: pauses that it was told.
    pub told_events: U64,
    /// Offset 192: length of the last of them, ns.
    pub told_last_ns: U64,
    /// Offset 200: the guest's counter when it ended.
    pub told_last_counter: U64,
    /// Offset 208: bound on the error of its length, ns.
    pub told_last_error_ns: U64,
    /// Offset 216: its cause, 0 to 4.
    pub told_last_cause: U32,
    /// Offset 220: 1 if the guest's counters stood still over it, else 0.
    pub told_last_frozen: U32,
    /// Offset 224: sequence count of the last publication of paused time.
    pub told_sequence: U32,
    /// Offset 228: 0.
    pub reserved: U32,
}

/// The offset is for the virtual counter alone.
pub(super) const FLAG_VIRTUAL_ONLY: u32 = 1 << 0;
/// The VM has live physical time.
pub(super) const FLAG_LIVE: u32 = 1 << 1;
/// Its guest asked for it.
pub(super) const FLAG_LIVE_FOUND: u32 = 1 << 2;
/// A vCPU may have run since the VM came to this host; with live physical time.
pub(super) const FLAG_LIVE_RAN: u32 = 1 << 3;
/// The guest is told of its pauses.
pub(super) const FLAG_TOLD: u32 = 1 << 4;
/// The guest suspended itself; with the cause host suspend, and without live physical time.
pub(super) const FLAG_GUEST_SUSPENDED: u32 = 1 << 5;
/// The flags that there are.
pub(super) const FLAGS: u32 = FLAG_VIRTUAL_ONLY
    | FLAG_LIVE
    | FLAG_LIVE_FOUND
    | FLAG_LIVE_RAN
    | FLAG_TOLD
    | FLAG_GUEST_SUSPENDED;

/// A vCPU's record, 160 bytes.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct VcpuLayout {
    pub header: Header,
    /// Offset 16: `CNTV_CTL_EL0`.
    pub virtual_control: U32,
    /// Offset 20: `CNTP_CTL_EL0`.
    pub physical_control: U32,
    /// Offset 24: `CNTV_CVAL_EL0`.
    pub virtual_compare: U64,
    /// Offset 32: `CNTP_CVAL_EL0`.
    pub physical_compare: U64,
    /// Offset 40: `CNTKCTL_EL1`.
    pub event_control: U64,
    /// Offset 48: the event stream that the guest asked for, a bit of the PV counter.
    pub stream_pv_bit: I16,
    /// Offset 50: the counter bit that was programmed for it.
    pub stream_programmed: u8,
    /// Offset 51: bit 0 if the two above say something, bit 1 if the deadlines below do.
    pub asked: u8,
    /// Offset 52: 1 if the guest asked for its stolen time, else 0.
    pub stolen_asked_for: U32,
    /// Offset 56: stolen time as the guest reads it, ns.
    pub stolen_ns: U64,
    /// Offset 64: the ledger's physical time, ns.
    pub ledger_physical_ns: U64,
    /// Offset 72: its run time, ns.
    pub ledger_run_ns: U64,
    /// Offset 80: its idle time, ns.
    pub ledger_idle_ns: U64,
    /// Offset 88: its stolen time, ns.
    pub ledger_stolen_ns: U64,
    /// Offset 96: its paused time, ns, by operator, snapshot, migration, host suspend.
    pub ledger_paused_ns: [U64; 4],
    /// Offset 128: the PV count that the guest set the virtual timer to, all ones for never.
    pub virtual_deadline: U128,
    /// Offset 144: that of the physical timer.
    pub physical_deadline: U128,
}

/// The event stream was translated.
pub(super) const ASKED_STREAM: u8 = 1 << 0;
/// The timers were translated.
pub(super) const ASKED_DEADLINES: u8 = 1 << 1;

const _: () = {
    assert!(size_of::<Header>() == 16);
    assert!(offset_of!(Header, magic) == 0);
    assert!(offset_of!(Header, kind) == 4);
    assert!(offset_of!(Header, version) == 6);
    assert!(offset_of!(Header, size) == 8);
    assert!(offset_of!(Header, checksum) == 12);
    assert!(size_of::<VmLayout>() == VmLayout::SIZE_BYTES as usize);
    assert!(offset_of!(VmLayout, frequency_hz) == 16);
    assert!(offset_of!(VmLayout, host_counter) == 24);
    assert!(offset_of!(VmLayout, guest_counter) == 32);
    assert!(offset_of!(VmLayout, wall_ns) == 40);
    assert!(offset_of!(VmLayout, wall_error_ns) == 48);
    assert!(offset_of!(VmLayout, boottime_ns) == 56);
    assert!(offset_of!(VmLayout, monotonic_ns) == 64);
    assert!(offset_of!(VmLayout, monotonic_raw_ns) == 72);
    assert!(offset_of!(VmLayout, span_ns) == 80);
    assert!(offset_of!(VmLayout, wall_standard) == 88);
    assert!(offset_of!(VmLayout, cause) == 92);
    assert!(offset_of!(VmLayout, flags) == 96);
    assert!(offset_of!(VmLayout, pv_frequency_hz) == 100);
    assert!(offset_of!(VmLayout, live_base_count) == 104);
    assert!(offset_of!(VmLayout, live_base_ticks) == 112);
    assert!(offset_of!(VmLayout, live_base_fraction) == 120);
    assert!(offset_of!(VmLayout, live_seen) == 128);
    assert!(offset_of!(VmLayout, live_sequence) == 136);
    assert!(offset_of!(VmLayout, paused_ns) == 144);
    assert!(offset_of!(VmLayout, told_paused_ns) == 176);
    assert!(offset_of!(VmLayout, told_events) == 184);
    assert!(offset_of!(VmLayout, told_last_ns) == 192);
    assert!(offset_of!(VmLayout, told_last_counter) == 200);
    assert!(offset_of!(VmLayout, told_last_error_ns) == 208);
    assert!(offset_of!(VmLayout, told_last_cause) == 216);
    assert!(offset_of!(VmLayout, told_last_frozen) == 220);
    assert!(offset_of!(VmLayout, told_sequence) == 224);
    assert!(offset_of!(VmLayout, reserved) == 228);
    assert!(size_of::<VcpuLayout>() == VcpuLayout::SIZE_BYTES as usize);
    assert!(offset_of!(VcpuLayout, virtual_control) == 16);
    assert!(offset_of!(VcpuLayout, physical_control) == 20);
    assert!(offset_of!(VcpuLayout, virtual_compare) == 24);
    assert!(offset_of!(VcpuLayout, physical_compare) == 32);
    assert!(offset_of!(VcpuLayout, event_control) == 40);
    assert!(offset_of!(VcpuLayout, stream_pv_bit) == 48);
    assert!(offset_of!(VcpuLayout, stream_programmed) == 50);
    assert!(offset_of!(VcpuLayout, asked) == 51);
    assert!(offset_of!(VcpuLayout, stolen_asked_for) == 52);
    assert!(offset_of!(VcpuLayout, stolen_ns) == 56);
    assert!(offset_of!(VcpuLayout, ledger_physical_ns) == 64);
    assert!(offset_of!(VcpuLayout, ledger_run_ns) == 72);
    assert!(offset_of!(VcpuLayout, ledger_idle_ns) == 80);
    assert!(offset_of!(VcpuLayout, ledger_stolen_ns) == 88);
    assert!(offset_of!(VcpuLayout, ledger_paused_ns) == 96);
    assert!(offset_of!(VcpuLayout, virtual_deadline) == 128);
    assert!(offset_of!(VcpuLayout, physical_deadline) == 144);
};

impl Layout for VmLayout {
    const RECORD: Record = Record::Vm;
    const SIZE_BYTES: u32 = 232;

    fn header(&mut self) -> &mut Header {
        &mut self.header
    }
}

impl Layout for VcpuLayout {
    const RECORD: Record = Record::Vcpu;
    const SIZE_BYTES: u32 = 160;

    fn header(&mut self) -> &mut Header {
        &mut self.header
    }
}

const fn kind(record: Record) -> u16 {
    match record {
        Record::Vm => 1,
        Record::Vcpu => 2,
    }
}

/// The layout in `bytes`, its header checked.
pub(super) fn open<L: Layout>(bytes: &[u8]) -> Result<L, SavedError> {
    let (record, expected, actual) = (L::RECORD, size_of::<L>(), bytes.len());
    let wrong_length = SavedError::Length {
        record,
        expected,
        actual,
    };
    let (header, _) = Header::read_from_prefix(bytes).map_err(|_| wrong_length)?;
    if header.magic != MAGIC {
        return Err(SavedError::Magic {
            found: header.magic.get(),
        });
    }
    if header.kind != kind(record) {
        return Err(SavedError::Kind {
            record,
            found: header.kind.get(),
        });
    }
    if header.version != VERSION {
        return Err(SavedError::Version {
            record,
            found: header.version.get(),
        });
    }
    let layout = L::read_from_bytes(bytes).map_err(|_| wrong_length)?;
    if header.size != L::SIZE_BYTES {
        return Err(SavedError::Field {
            record,
            field: "the size",
        });
    }
    let (stored, computed) = (header.checksum.get(), checksum(bytes));
    if stored != computed {
        return Err(SavedError::Checksum {
            record,
            stored,
            computed,
        });
    }
    Ok(layout)
}

/// The layout with its header filled in.
pub(super) fn seal<L: Layout>(mut layout: L) -> L {
    *layout.header() = Header {
        magic: MAGIC.into(),
        kind: kind(L::RECORD).into(),
        version: VERSION.into(),
        size: L::SIZE_BYTES.into(),
        checksum: U32::ZERO,
    };
    layout.header().checksum = checksum(layout.as_bytes()).into();
    layout
}

fn checksum(record: &[u8]) -> u32 {
    let place = offset_of!(Header, checksum);
    let mut digest: Digest<'_, u32> = CRC.digest();
    digest.update(&record[..place]);
    digest.update(&record[place + size_of::<U32>()..]);
    digest.finalize()
}

/// Plain integers of the fields that are counted by cause.
pub(super) fn by_cause(fields: [U64; 4]) -> [u64; 4] {
    fields.map(U64::get)
}
