//! A guest without an operating system that uses every reader once.
//!
//! It is linked and measured and never run: addresses come in registers and results go nowhere,
//! so that the compiler can leave nothing out.
#![expect(
    unsafe_code,
    reason = "memory is mapped by address and the hypervisor is called"
)]

use core::hint::black_box;
use core::panic::PanicInfo;
use core::ptr::NonNull;
use pvtime::abi::Ipa;
use pvtime::abi::smccc::Dialect;
use pvtime::guest::arm64::{Hvc, VirtualCounter, counter_frequency};
use pvtime::guest::{
    DiscoveryError, GuestError, LiveClock, PauseTracker, PausedTimeReader, PvTime,
    StolenTimeReader, VirtualTime, VmClockReader, smccc_version,
};
use pvtime::scale::Rounding;
use pvtime::seqlock::{MappedWords, Word};

/// Memory of the hypervisor, which this guest maps where it is.
fn map<W: Word>(address: u64, size_bytes: usize) -> MappedWords<W> {
    let Ok(Some(base)) = usize::try_from(address).map(|address| NonNull::new(address as *mut u8))
    else {
        stop()
    };
    // SAFETY: the hypervisor gave the address of a structure of this size, which no other code of
    // this program touches.
    unsafe { MappedWords::new(base, size_bytes) }
}

fn stolen_time(address: Ipa) -> Result<(), GuestError> {
    let reader = StolenTimeReader::attach(map(address.0, 64))?;
    let mut time = VirtualTime::start(reader.stolen_ns());
    if let Some(moment) = reader.moment(&VirtualCounter) {
        let elapsed_ns = counter_frequency()?.ticks_to_ns(moment.count, Rounding::Down)?;
        black_box(time.step(elapsed_ns, moment.stolen_ns));
    }
    Ok(())
}

fn live_time(address: Ipa) -> Result<(), GuestError> {
    let clock = LiveClock::attach(map(address.0, 64), VirtualCounter)?;
    let deadline = clock.now()? + black_box(clock.now_unordered()?);
    clock.set_timer(deadline, |value| _ = black_box(value))?;
    black_box(clock.mapping()?);
    Ok(())
}

fn paused_time(address: u64) -> Result<(), GuestError> {
    let reader = PausedTimeReader::attach(map(address, 64))?;
    let mut tracker = PauseTracker::start(&reader.read()?);
    black_box(tracker.step(&reader.read()?));
    Ok(())
}

fn real_time(address: u64) -> Result<(), GuestError> {
    let reader = VmClockReader::attach(map(address, 4096), VirtualCounter)?;
    let now = reader.with_patience_ticks(100_000_000).now()?;
    black_box((now.utc()?, now.time.to_ns(Rounding::Nearest)?));
    Ok(())
}

fn everything(paused: u64, real: u64) -> Result<(), DiscoveryError> {
    // SAFETY: the program is at EL1 of a hypervisor whose conduit is HVC, and makes no other calls
    // than those of discovery.
    let mut conduit = unsafe { Hvc::new() };
    black_box(smccc_version(&mut conduit));
    let pv_time = PvTime::discover(&mut conduit, Dialect::FinalWithLpt)?;
    black_box(stolen_time(pv_time.stolen_time(&mut conduit)?)).ok();
    black_box(live_time(pv_time.live_physical_time(&mut conduit)?)).ok();
    black_box(paused_time(paused)).ok();
    black_box(real_time(real)).ok();
    Ok(())
}

/// Where the program starts, with the addresses that a device tree names.
// SAFETY: no other symbol of the program has this name.
#[unsafe(no_mangle)]
extern "C" fn _start(paused: u64, real: u64) -> ! {
    black_box(everything(paused, real)).ok();
    stop()
}

#[panic_handler]
fn panic(_: &PanicInfo<'_>) -> ! {
    stop()
}

fn stop() -> ! {
    loop {
        core::hint::spin_loop();
    }
}
