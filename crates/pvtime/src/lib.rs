//! Paravirtualized time for virtual machines: both ends of every interface.
//!
//! A virtual machine has no time of its own: its host lets its CPUs wait, stops all of it, moves
//! it to a machine whose counter has another frequency. What the guest's clocks then show is a
//! decision of whoever runs it, and what the guest can know of it goes through a few small
//! structures in memory. This crate has those structures byte by byte, the exact arithmetic that
//! goes with them, and what each side does with them. It is `no_std`, does not allocate, reads no
//! clock that it was not given and issues no system call: a VMM, a hypervisor, a unikernel and a
//! program in user space link the same code.
//!
//! # The words
//!
//! *Physical time* runs always. *Live physical time* is physical time less what the VM was
//! *paused*: stopped as a whole, by its operator, for a snapshot, for a migration or by a sleep of
//! the host. *Virtual time* belongs to one virtual CPU: live physical time less what was *stolen*
//! from it, while it could run and the host ran something else.
//!
//! # The interfaces
//!
//! | Interface | Tells the guest | Per | The guest finds it by | Known to Linux |
//! |---|---|---|---|---|
//! | [stolen time](#stolen-time) | how long the CPU waited | CPU | the calls of Arm DEN0057 | yes, as host and guest |
//! | [live physical time](#live-physical-time) | the counter in ticks that no migration changes | VM | a call of the KVM series of 2020 | no |
//! | [paused time](#paused-time) | that the VM was stopped, how long and why | VM | a device-tree node | no |
//! | [VMClock](#vmclock) | real time and its error, and disruptions | VM | a device-tree node or ACPI | as guest, since 6.13 |
//!
//! # The modules
//!
//! | Module | Holds |
//! |---|---|
//! | [`abi`] | calls and structures: a layout of bytes and a checked value for each |
//! | [`scale`] | ticks, nanoseconds, frequencies and deadlines, with every rounding stated |
//! | [`seqlock`] | how one side writes a structure while the other reads it |
//! | [`host`] | what a hypervisor does: answers calls, accounts, keeps the VM's time as one value |
//! | [`guest`] | what a guest does: discovers, reads, keeps clocks and arms timers |
//!
//! # Stolen time
//!
//! A scheduler that charges a task for time in which the host ran something else is unfair to it,
//! and a watchdog that counts such time fires for nothing. Each CPU's structure has one number,
//! the nanoseconds that it waited, and the guest takes them out of what it charges.
//!
//! ```
//! use pvtime::abi::Ipa;
//! use pvtime::abi::smccc::{CallResult, Dialect, FunctionId};
//! use pvtime::abi::stolen_time::{STOLEN_WORD, StolenTimeLayout};
//! use pvtime::guest::{Conduit, Elapsed, PvTime, StolenTimeReader, VirtualTime};
//! use pvtime::host::hypercalls::{Effect, ExecutionState, Request, Services};
//! use pvtime::host::stolen::StolenAccount;
//! use pvtime::seqlock::WriteWords;
//! use std::sync::atomic::AtomicU64;
//!
//! // The host: one vCPU, its structure in the guest's memory, its account.
//! struct Hypervisor<'a> {
//!     services: Services,
//!     account: StolenAccount,
//!     memory: &'a [AtomicU64],
//! }
//!
//! impl Hypervisor<'_> {
//!     /// Before the vCPU runs: its thread has waited for a CPU for this long in all.
//!     fn enter(&mut self, run_delay_ns: u64) {
//!         self.account.count(run_delay_ns).unwrap();
//!         let store = |value: pvtime::abi::stolen_time::StolenTime| {
//!             self.memory.store(STOLEN_WORD, value.stolen_ns);
//!             Ok::<_, ()>(())
//!         };
//!         self.account.publish(store).unwrap();
//!     }
//! }
//!
//! // The guest's calls go where its HVC instruction would take them.
//! impl Conduit for Hypervisor<'_> {
//!     fn call(&mut self, id: FunctionId, argument: u64) -> CallResult {
//!         let state = ExecutionState::AArch64;
//!         let request = Request::from_registers(state, id.0.into(), argument);
//!         let answer = self.services.answer(request);
//!         if answer.effect == Some(Effect::RestartStolenTime) {
//!             // The thread has waited for 5 us so far: none of it was stolen from this guest.
//!             self.account.restart(5_000).unwrap();
//!             let words: [u64; 8] = zerocopy::transmute!(StolenTimeLayout::ZERO);
//!             for (index, word) in words.into_iter().enumerate() {
//!                 self.memory.store(index, word);
//!             }
//!         }
//!         answer.results[0]
//!     }
//! }
//!
//! let memory = [const { AtomicU64::new(0) }; 8];
//! let address = Some(Ipa(0x4000_0040));
//! let mut hypervisor = Hypervisor {
//!     services: Services { stolen_time: address, ..Services::default() },
//!     account: StolenAccount::attach(0),
//!     memory: &memory,
//! };
//!
//! // The guest: finds the structure of this CPU, maps it, and reads it.
//! let pv_time = PvTime::discover(&mut hypervisor, Dialect::Final)?;
//! assert_eq!(pv_time.stolen_time(&mut hypervisor)?, Ipa(0x4000_0040));
//! let reader = StolenTimeReader::attach(&memory[..])?;
//! let mut time = VirtualTime::start(reader.stolen_ns());
//!
//! hypervisor.enter(5_700);
//! let elapsed = time.step(10_000, reader.stolen_ns());
//! assert_eq!(elapsed, Elapsed { virtual_ns: 9_300, stolen_ns: 700 });
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Live physical time
//!
//! A guest measures time by counting ticks of a frequency that it read once. On Arm that frequency
//! is the host's, so a VM that moves to a host of another one runs too fast or too slow from then
//! on. With this structure the guest counts in a frequency of its own: it multiplies what it reads,
//! and the host changes the factor when it changes.
//!
//! ```
//! use core::cell::Cell;
//! use pvtime::abi::live_physical_time::SHAPE;
//! use pvtime::guest::{Counter, LiveClock};
//! use pvtime::host::GuestCount;
//! use pvtime::host::live::LiveState;
//! use pvtime::scale::{CompareValue, Frequency};
//! use pvtime::seqlock::SequenceWriter;
//! use std::sync::atomic::AtomicU64;
//!
//! /// The virtual counter, which the example sets.
//! struct VirtualCounter<'a>(&'a Cell<u64>);
//!
//! impl Counter for VirtualCounter<'_> {
//!     fn read_ordered(&self) -> u64 {
//!         self.0.get()
//!     }
//!     fn read_unordered(&self) -> u64 {
//!         self.0.get()
//!     }
//! }
//!
//! // The host: a counter of 25 MHz, a guest that counts nanoseconds.
//! let memory = [const { AtomicU64::new(0) }; 6];
//! let mut writer = SequenceWriter::start(SHAPE);
//! let live = LiveState::start(Frequency::from_hz(25_000_000)?, Frequency::from_hz(1_000_000_000)?)?;
//! writer.publish(&memory[..], &live.mapping().emit())?;
//!
//! // The guest, after a second, arms a timer for 100 ns later.
//! let count = Cell::new(25_000_000);
//! let clock = LiveClock::attach(&memory[..], VirtualCounter(&count))?;
//! assert_eq!(clock.now()?, 1_000_000_000);
//! let timer = Cell::new(CompareValue::NEVER);
//! clock.set_timer(1_000_000_100, |value| timer.set(value))?;
//! assert_eq!(timer.get(), CompareValue(25_000_003)); // 120 ns later: never early
//!
//! // The VM moves to a host of 100 MHz, which sets the counter so that live time goes on.
//! let (live, goes_on_at) = live.rebase(GuestCount(25_000_000), Frequency::from_hz(100_000_000)?)?;
//! writer.publish(&memory[..], &live.mapping().emit())?;
//! count.set(goes_on_at.0);
//! assert_eq!((count.get(), clock.now()?), (100_000_000, 1_000_000_000));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Paused time
//!
//! When a VM was stopped and its counters with it, the guest's watchdogs are content and its wall
//! clock is late, by an amount that only the host knows. This structure has the sum of all pauses
//! and the last of them; an interrupt follows each change, and none of them has to arrive.
//!
//! ```
//! use pvtime::abi::paused_time::{Cause, Pause, PausedTime, SHAPE};
//! use pvtime::guest::{PauseTracker, PausedTimeReader};
//! use pvtime::seqlock::SequenceWriter;
//! use std::sync::atomic::AtomicU32;
//!
//! // The host. `host::timeline` computes the values; here they are written out.
//! let memory = [const { AtomicU32::new(0) }; 16];
//! let mut writer = SequenceWriter::start(SHAPE);
//! let mut paused = PausedTime::default();
//! writer.publish(&memory[..], &paused.emit())?;
//!
//! // The guest, when it starts.
//! let reader = PausedTimeReader::attach(&memory[..])?;
//! let mut tracker = PauseTracker::start(&reader.read()?);
//!
//! // The host's lid was closed twice before the guest came to look.
//! for physical_ns in [3_000_000_000, 4_000_000_000] {
//!     paused.events += 1;
//!     paused.paused_ns += physical_ns;
//!     paused.last = Pause {
//!         frozen: true,
//!         physical_ns,
//!         error_ns: 250,
//!         counter: 123_456,
//!         cause: Cause::HOST_SUSPEND,
//!     };
//!     writer.publish(&memory[..], &paused.emit())?;
//! }
//!
//! // The guest, on the interrupt: seven seconds to put into its wall clock.
//! let unseen = tracker.step(&reader.read()?).unwrap();
//! assert_eq!((unseen.events, unseen.paused_ns), (2, 7_000_000_000));
//! assert_eq!(tracker.step(&reader.read()?), None);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # VMClock
//!
//! A host that is synchronized can tell all of its guests the time: a moment on the counter, the
//! same moment on the clock, the length of a tick, and how wrong each may be. Two further numbers
//! tell a guest that its counter was disrupted, and that it may exist twice.
//!
//! ```
//! use pvtime::abi::vmclock::{ClockStatus, CounterId, Reference, SHAPE, TimeType, VmClock};
//! use pvtime::guest::{Counter, VmClockReader};
//! use pvtime::scale::{Frequency, Period, Rounding};
//! use pvtime::seqlock::SequenceWriter;
//! use std::sync::atomic::AtomicU32;
//!
//! // The host: its clock is right to 40 ns, its counter of 100 MHz to 1 ppm.
//! let period = Period::of(Frequency::from_hz(100_000_000)?, Rounding::Nearest)?;
//! let clock = VmClock {
//!     status: ClockStatus::SYNCHRONIZED,
//!     time_type: TimeType::Tai,
//!     tai_offset_sec: Some(-37),
//!     reference: Some(Reference {
//!         counter_id: CounterId::ARM_VCNT,
//!         counter_value: 1_000,
//!         period,
//!         period_esterror_frac_sec: None,
//!         period_maxerror_frac_sec: Some(period.frac_sec().get() / 1_000_000),
//!         time_sec: 1_790_000_037,
//!         time_frac_sec: 0,
//!         time_esterror_ns: None,
//!         time_maxerror_ns: Some(40),
//!     }),
//!     ..VmClock::without_time(4096)
//! };
//! let memory = [const { AtomicU32::new(0) }; 1024];
//! SequenceWriter::start(SHAPE).publish(&memory[..], &clock.emit())?;
//!
//! // The guest, a second after the reference.
//! struct VirtualCounter;
//!
//! impl Counter for VirtualCounter {
//!     fn read_ordered(&self) -> u64 {
//!         100_001_000
//!     }
//!     fn read_unordered(&self) -> u64 {
//!         100_001_000
//!     }
//!     fn id(&self) -> CounterId {
//!         CounterId::ARM_VCNT
//!     }
//! }
//!
//! let now = VmClockReader::attach(&memory[..], VirtualCounter)?.now()?;
//! assert_eq!(now.time.to_ns(Rounding::Nearest)?, 1_790_000_038_000_000_000);
//! assert_eq!(now.maxerror_ns, Some(1_040));
//! assert_eq!(now.utc()?.sec, 1_790_000_001);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Memory that is shared
//!
//! The examples share arrays of atomics. A guest that mapped an address wraps it in
//! [`MappedWords`](seqlock::MappedWords); a VMM does the same, or implements
//! [`WriteWords`](seqlock::WriteWords) for what it has. Unsafe code is in that type and in the
//! modules that read counters and issue calls, `guest::arm64` and `guest::x86_64`, and nowhere else.
//!
//! # What it does not do
//!
//! It knows no kvmclock and no steal time of x86 yet, and it schedules no smearing of leap seconds.
//! Everything that needs KVM is in the crate `pvtime-kvm`.
#![no_std]

#[cfg(test)]
extern crate std;

pub mod abi;
pub mod guest;
pub mod host;
pub mod scale;
pub mod seqlock;
