//! A vCPU's timers and its event stream, taken to a host of another frequency.
//!
//! Only a guest with live physical time goes to such a host, and what it means by a compare value
//! is the PV count there. On a host of the same frequency, and over a pause, timers stay as they
//! are: the counter goes on, or jumps, and they fire accordingly.

use crate::abi::live_physical_time::LivePhysicalTime;
use crate::scale::{CompareValue, EventStream, TranslatedDeadline};

/// The control register of a timer, `CNTV_CTL_EL0` or `CNTP_CTL_EL0`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct TimerControl(pub u32);

impl TimerControl {
    /// The timer is on.
    pub const ENABLE: u32 = 1 << 0;
    /// Its interrupt is masked.
    pub const IMASK: u32 = 1 << 1;
    /// Its condition holds; read-only, follows from the counter.
    pub const ISTATUS: u32 = 1 << 2;
}

/// One timer of one vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timer {
    /// The control register.
    pub control: TimerControl,
    /// The compare value, in native ticks.
    pub compare_value: CompareValue,
}

impl Timer {
    /// Whether the timer asserts its interrupt at `count`: on, not masked, condition met.
    #[must_use]
    pub const fn is_firing(self, count: u64) -> bool {
        let switches = self.control.0 & (TimerControl::ENABLE | TimerControl::IMASK);
        switches == TimerControl::ENABLE && self.compare_value.is_met(count)
    }
}

/// What of a vCPU's state is in native ticks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VcpuTimers {
    /// The virtual timer.
    pub virtual_timer: Timer,
    /// The physical timer.
    pub physical_timer: Timer,
    /// `CNTKCTL_EL1`, with the event stream.
    pub event_control: u64,
    /// The event stream that the guest chose, if it was translated before.
    pub chosen_stream: Option<ChosenStream>,
}

/// An event stream as the guest chose it, which the hardware may not have on every host.
///
/// Without it a stream that was clamped on one host would stay so on the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChosenStream {
    /// Bit of the PV counter, there or not.
    pub pv_bit: i16,
    /// What was programmed for it; another value in the register is a new choice.
    pub programmed: EventStream,
}

/// `CNTKCTL_EL1.EVNTEN`: the event stream is on.
const EVNTEN: u64 = 1 << 2;

/// A change of frequency, the same for every vCPU of the VM and both its timers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// What was published on the host before.
    pub from: LivePhysicalTime,
    /// What is published now.
    pub to: LivePhysicalTime,
    /// Whether the CPUs have `FEAT_ECV`.
    pub has_ecv: bool,
}

/// A vCPU's timers after a change of frequency, and what became of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TranslatedTimers {
    /// What to write to the vCPU.
    pub timers: VcpuTimers,
    /// The virtual timer's deadline.
    pub virtual_deadline: TranslatedDeadline,
    /// The physical timer's deadline.
    pub physical_deadline: TranslatedDeadline,
    /// How many bits the event stream is from the nearest one, because the hardware has no such
    /// bit: [`TranslatedStream::lost_bits`](crate::scale::TranslatedStream::lost_bits).
    pub lost_stream_bits: i16,
}

impl Translation {
    /// Takes one vCPU's timers to the other frequency.
    ///
    /// Deadlines as [`LivePhysicalTime::translate`]: in PV ticks never early, late by less than
    /// one native tick. A timer that stays pending over several hosts is late by less than the sum
    /// of their ticks, because only its compare value says what the guest wants.
    #[must_use]
    pub fn apply(&self, timers: &VcpuTimers) -> TranslatedTimers {
        let virtual_deadline = self.deadline(timers.virtual_timer);
        let physical_deadline = self.deadline(timers.physical_timer);
        let (event_control, chosen_stream, lost_stream_bits) = self.stream(timers);
        TranslatedTimers {
            timers: VcpuTimers {
                virtual_timer: moved(timers.virtual_timer, virtual_deadline),
                physical_timer: moved(timers.physical_timer, physical_deadline),
                event_control,
                chosen_stream,
            },
            virtual_deadline,
            physical_deadline,
            lost_stream_bits,
        }
    }

    fn deadline(&self, timer: Timer) -> TranslatedDeadline {
        self.from.translate(timer.compare_value, &self.to)
    }

    fn stream(&self, timers: &VcpuTimers) -> (u64, Option<ChosenStream>, i16) {
        if timers.event_control & EVNTEN == 0 {
            return (timers.event_control, None, 0);
        }
        let pv = self.to.pv_frequency_hz.into();
        let in_register = EventStream::from_cntkctl(timers.event_control);
        let pv_bit = match timers.chosen_stream {
            Some(chosen) if chosen.programmed == in_register => chosen.pv_bit,
            _ => {
                let native = self.from.native_frequency_hz.into();
                EventStream::translate_bit(in_register.bit().into(), native, pv)
            }
        };
        let native = self.to.native_frequency_hz.into();
        let native_bit = EventStream::translate_bit(pv_bit, pv, native);
        let translated = EventStream::nearest(native_bit, self.has_ecv);
        let programmed = translated.stream;
        let event_control = programmed.to_cntkctl(timers.event_control);
        (
            event_control,
            Some(ChosenStream { pv_bit, programmed }),
            translated.lost_bits,
        )
    }
}

const fn moved(timer: Timer, deadline: TranslatedDeadline) -> Timer {
    Timer {
        control: timer.control,
        compare_value: deadline.compare_value(),
    }
}
