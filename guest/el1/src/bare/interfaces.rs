//! The time interfaces: where each is, and a reader of it.

use core::fmt::Display;
use core::sync::atomic::{AtomicU64, Ordering};

use guest_protocol::clip;
use guest_protocol::heapless::{String, Vec};
use guest_protocol::report::{self, Clocks, Interfaces, LiveTime, MAX_BARE_CPUS};
use pvtime::abi::smccc::{Dialect, Version};
use pvtime::abi::{Ipa, ParseError};
use pvtime::guest::arm64::{PhysicalCounter, VirtualCounter, counter_frequency};
use pvtime::guest::{
    Counter, DiscoveryError, GuestError, LiveClock, PvTime, StolenTimeReader, smccc_version,
};
use pvtime::seqlock::MappedWords;
use spin::Once;

use super::conduit::Caller;
use super::machine::{self, Conduit, Machine};
use super::window::{self, WindowFull};
use super::{cpus, events, paused, registers};

/// Live physical time on the virtual counter.
pub type Live = LiveClock<MappedWords<u64>, VirtualCounter>;

/// A CPU's stolen time.
pub type Stolen = StolenTimeReader<MappedWords<u64>>;

/// Why an interface is not used.
#[derive(Debug, thiserror::Error)]
pub enum Missing {
    #[error("PSCI does not say that SMCCC 1.1 is there")]
    NoConduit,
    #[error(transparent)]
    Discovery(#[from] DiscoveryError),
    #[error(transparent)]
    Window(#[from] WindowFull),
    #[error(transparent)]
    Guest(#[from] GuestError),
    #[error(transparent)]
    Parse(#[from] ParseError),
}

/// What was found, and where.
type Found<T> = Result<(Ipa, T), Missing>;

static LIVE: Once<Found<Live>> = Once::new();
static STOLEN: [Once<Found<Stolen>>; MAX_BARE_CPUS] = [const { Once::new() }; MAX_BARE_CPUS];

/// Bytes of a structure that are mapped, of either interface.
const STRUCTURE_BYTES: usize = 64;

/// Finds what the VM has one of.
pub fn find(machine: &Machine) {
    LIVE.call_once(|| find_live(machine.conduit));
    if let Some(mapping) = live().and_then(|live| live.mapping().ok()) {
        let first = Era::default().next(mapping.native_frequency_hz.get());
        ERA.store(first.0, Ordering::Relaxed);
    }
}

/// Finds what each CPU has one of; on that CPU.
pub fn find_own(cpu: usize) {
    STOLEN[cpu].call_once(find_stolen);
}

/// The conduit and the time calls behind it.
pub fn pv_time() -> Result<(Caller, PvTime), Missing> {
    let machine = machine::machine().ok_or(Missing::NoConduit)?;
    discover(machine.conduit)
}

fn discover(conduit: Conduit) -> Result<(Caller, PvTime), Missing> {
    let mut caller = Caller::find(conduit).ok_or(Missing::NoConduit)?;
    let is_recent = smccc_version(&mut caller).is_some_and(|version| version >= Version::V1_1);
    if !is_recent {
        return Err(Missing::NoConduit);
    }
    let pv_time = PvTime::discover(&mut caller, Dialect::FinalWithLpt)?;
    Ok((caller, pv_time))
}

fn find_live(conduit: Conduit) -> Found<Live> {
    let (mut caller, pv_time) = discover(conduit)?;
    let address = pv_time.live_physical_time(&mut caller)?;
    let words = window::map(address.0, STRUCTURE_BYTES)?;
    Ok((address, LiveClock::attach(words, VirtualCounter)?))
}

fn find_stolen() -> Found<Stolen> {
    let (mut caller, pv_time) = pv_time()?;
    let address = pv_time.stolen_time(&mut caller)?;
    let words = window::map(address.0, STRUCTURE_BYTES)?;
    Ok((address, StolenTimeReader::attach(words)?))
}

/// Live physical time, if there is any.
pub fn live() -> Option<&'static Live> {
    let (_, live) = LIVE.get()?.as_ref().ok()?;
    Some(live)
}

/// Where live physical time is.
pub fn live_address() -> Option<Ipa> {
    let (address, _) = LIVE.get()?.as_ref().ok()?;
    Some(*address)
}

/// A CPU's stolen time, if it has any, and where it is.
pub fn stolen(cpu: usize) -> Option<&'static (Ipa, Stolen)> {
    STOLEN.get(cpu)?.get()?.as_ref().ok()
}

/// Nanoseconds stolen from a CPU, 0 where it does not say.
#[inline]
pub fn stolen_ns(cpu: usize) -> u64 {
    stolen(cpu).map_or(0, |(_, reader)| reader.stolen_ns())
}

/// A stretch with one frequency of the counter: the frequency in the lower half, and in the upper
/// one how many such stretches there were, this one included. One word, so that all CPUs agree.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Era(u64);

impl Era {
    fn is_at(self, native_hz: u32) -> bool {
        self.0 & u64::from(u32::MAX) == u64::from(native_hz)
    }

    fn next(self, native_hz: u32) -> Self {
        Self(((self.0 >> 32) + 1) << 32 | u64::from(native_hz))
    }
}

/// The last that any CPU has seen.
static ERA: AtomicU64 = AtomicU64::new(0);

/// The frequency of the counter on this host: by live physical time where there is one.
pub fn native_hz() -> u64 {
    let mapping = live().and_then(|live| live.mapping().ok());
    let by_register = || counter_frequency().map_or(1, pvtime::scale::Frequency::hz);
    mapping.map_or_else(by_register, |mapping| {
        mapping.native_frequency_hz.get().into()
    })
}

/// The era that it is now: notes a change of the counter's frequency.
pub fn era() -> Era {
    loop {
        // Before the mapping: this CPU may be stopped in between and go on at another host, where others
        // have noted the change already. What it read on the host before is no change then.
        let known = Era(ERA.load(Ordering::Acquire));
        let Some(mapping) = live().and_then(|live| live.mapping().ok()) else {
            return Era::default();
        };
        let now_hz = mapping.native_frequency_hz.get();
        if known.is_at(now_hz) {
            return known;
        }
        let next = known.next(now_hz);
        let (set, missed) = (Ordering::AcqRel, Ordering::Relaxed);
        if ERA.compare_exchange(known.0, next.0, set, missed).is_ok() {
            return next;
        }
    }
}

/// Every interface, for a report.
pub fn describe(machine: &Machine) -> Interfaces {
    let caller = Caller::find(machine.conduit);
    let version = caller.and_then(|mut caller| smccc_version(&mut caller));
    let all = STOLEN.iter().take(cpus::count());
    let stolen_time: Vec<_, MAX_BARE_CPUS> = (0..cpus::count())
        .map(|cpu| {
            stolen(cpu).map(|(address, reader)| report::StolenTime {
                address: address.0,
                stolen_ns: reader.stolen_ns(),
            })
        })
        .collect();
    let missing = all
        .filter_map(Once::get)
        .find_map(|found| found.as_ref().err());
    Interfaces {
        conduit: match machine.conduit {
            Conduit::Hvc => report::Conduit::Hvc,
            Conduit::Smc => report::Conduit::Smc,
        },
        smccc_version: version.map(|it| u32::from(it.major) << 16 | u32::from(it.minor)),
        stolen_time,
        stolen_time_missing: missing.map(reason),
        live_time: describe_live(),
        live_time_missing: LIVE
            .get()
            .and_then(|found| found.as_ref().err())
            .map(reason),
        paused_time: paused::describe(),
        event_stream: events::describe(),
    }
}

fn describe_live() -> Option<LiveTime> {
    let mapping = live()?.mapping().ok()?;
    Some(LiveTime {
        address: live_address()?.0,
        native_frequency_hz: mapping.native_frequency_hz.get(),
        pv_frequency_hz: mapping.pv_frequency_hz.get(),
        changes: u32::try_from(era().0 >> 32)
            .unwrap_or(u32::MAX)
            .saturating_sub(1),
    })
}

fn reason(error: &impl Display) -> String<160> {
    let mut text = String::<512>::new();
    // What does not fit is cut off.
    let _ = core::fmt::write(&mut text, format_args!("{error}"));
    clip(&text)
}

/// Every counter now.
pub fn clocks() -> Clocks {
    let cpu = registers::cpu();
    let virtual_before = VirtualCounter.read_ordered();
    let physical = PhysicalCounter.read_ordered();
    let live = live().and_then(|live| live.now().ok());
    let virtual_after = VirtualCounter.read_ordered();
    Clocks {
        cpu: number(cpu),
        virtual_before,
        physical,
        live,
        virtual_after,
        stolen_ns: stolen(cpu).map(|(_, reader)| reader.stolen_ns()),
    }
}

/// The number of a CPU as messages have it.
pub fn number(cpu: usize) -> u32 {
    u32::try_from(cpu).unwrap_or(u32::MAX)
}
