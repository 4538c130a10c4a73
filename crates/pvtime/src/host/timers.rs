//! A vCPU's timers and its event stream, taken to a host of another frequency.
//!
//! Only a guest with live physical time goes to such a host, and what it means by a compare value
//! is the PV count there. On a host of the same frequency, and over a pause, timers stay as they
//! are: the counter goes on, or jumps, and they fire accordingly.

use crate::abi::live_physical_time::LivePhysicalTime;
use crate::scale::{CompareValue, EventStream, PvDeadline, TranslatedDeadline};

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
    /// What the guest asked for, if the above was translated before: to be kept from one
    /// translation to the next, with the vCPU's saved state.
    pub asked: Option<Asked>,
}

impl VcpuTimers {
    /// What a vCPU's registers say, for one that was never translated.
    #[must_use]
    pub const fn new(virtual_timer: Timer, physical_timer: Timer, event_control: u64) -> Self {
        Self {
            virtual_timer,
            physical_timer,
            event_control,
            asked: None,
        }
    }
}

/// What the guest asked for in PV ticks, which native ticks of a host say only nearly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked {
    /// Of the virtual timer.
    pub virtual_deadline: PvDeadline,
    /// Of the physical timer.
    pub physical_deadline: PvDeadline,
    /// Of the event stream, if that is on.
    pub stream: Option<AskedStream>,
}

/// An event stream as the guest chose it. Hardware may not have it on every host, and a stream
/// that was clamped on one would else stay so on the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AskedStream {
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
    /// Whether a vCPU may have run on the host before. If none did, what was asked for is what it
    /// was on the host before that.
    pub has_run: bool,
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
    /// one native tick. A timer that stays pending while the guest runs on several hosts is late
    /// by less than the sum of their ticks: what is in its register says no more than that, and
    /// the guest may have written it.
    #[must_use]
    pub fn apply(&self, timers: &VcpuTimers) -> TranslatedTimers {
        let asked = self.asked(timers);
        let virtual_deadline = self.to.compare_value(asked.virtual_deadline);
        let physical_deadline = self.to.compare_value(asked.physical_deadline);
        let (event_control, stream, lost_stream_bits) = self.stream(timers, asked.stream);
        TranslatedTimers {
            timers: VcpuTimers {
                virtual_timer: moved(timers.virtual_timer, virtual_deadline),
                physical_timer: moved(timers.physical_timer, physical_deadline),
                event_control,
                asked: Some(Asked { stream, ..asked }),
            },
            virtual_deadline,
            physical_deadline,
            lost_stream_bits,
        }
    }

    fn asked(&self, timers: &VcpuTimers) -> Asked {
        match timers.asked {
            Some(asked) if !self.has_run => asked,
            asked => Asked {
                virtual_deadline: self.from.pv_deadline(timers.virtual_timer.compare_value),
                physical_deadline: self.from.pv_deadline(timers.physical_timer.compare_value),
                stream: asked.and_then(|asked| asked.stream),
            },
        }
    }

    fn stream(
        &self,
        timers: &VcpuTimers,
        asked: Option<AskedStream>,
    ) -> (u64, Option<AskedStream>, i16) {
        if timers.event_control & EVNTEN == 0 {
            return (timers.event_control, None, 0);
        }
        let pv = self.to.pv_frequency_hz.into();
        let in_register = EventStream::from_cntkctl(timers.event_control);
        let pv_bit = match asked {
            Some(asked) if asked.programmed == in_register => asked.pv_bit,
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
            Some(AskedStream { pv_bit, programmed }),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scale::Frequency;
    use crate::scale::exact::{cntfrq, edgy};
    use proptest::prelude::*;

    const EVENTS_AT_BIT: u64 = 4;

    fn translation(from_hz: u64, to_hz: u64, pv_hz: u64, has_ecv: bool) -> Translation {
        let hz = |hz| Frequency::from_hz(hz).unwrap();
        let mapping = |native| LivePhysicalTime::between(hz(native), hz(pv_hz)).unwrap();
        Translation {
            from: mapping(from_hz),
            to: mapping(to_hz),
            has_run: true,
            has_ecv,
        }
    }

    fn timer(control: u32, value: u64) -> Timer {
        Timer {
            control: TimerControl(control),
            compare_value: CompareValue(value),
        }
    }

    fn timers(virtual_value: u64, physical_value: u64, event_control: u64) -> VcpuTimers {
        VcpuTimers::new(
            timer(TimerControl::ENABLE, virtual_value),
            timer(TimerControl::ENABLE | TimerControl::IMASK, physical_value),
            event_control,
        )
    }

    /// The registers alone.
    fn registers(translated: &TranslatedTimers) -> VcpuTimers {
        VcpuTimers {
            asked: None,
            ..translated.timers
        }
    }

    #[test]
    fn t10_a_timer_fires_when_on_unmasked_and_due() {
        assert!(timer(TimerControl::ENABLE, 5).is_firing(5));
        assert!(timer(TimerControl::ENABLE | TimerControl::ISTATUS, 5).is_firing(5));
        assert!(!timer(TimerControl::ENABLE, 5).is_firing(4));
        assert!(!timer(TimerControl::ENABLE | TimerControl::IMASK, 5).is_firing(6));
        assert!(!timer(0, 5).is_firing(6));
    }

    #[test]
    fn l5_l7_both_timers_are_translated_alike() {
        let faster = translation(100_000_000, 1_000_000_000, 1_000_000_000, false);
        let both = faster.apply(&timers(6_000_000_000, u64::MAX, 0xff0));
        assert_eq!(
            registers(&both),
            timers(60_000_000_000, u64::MAX, 0xff0),
            "no stream is on"
        );
        assert_eq!(
            both.virtual_deadline,
            TranslatedDeadline::At(CompareValue(60_000_000_000))
        );
        assert_eq!(both.physical_deadline, TranslatedDeadline::Never);
        let swapped = faster.apply(&timers(u64::MAX, 6_000_000_000, 0));
        assert_eq!(
            swapped.timers.physical_timer.compare_value.0,
            60_000_000_000
        );
        assert_eq!(
            swapped.timers.virtual_timer.compare_value,
            CompareValue::NEVER
        );
        let far = faster.apply(&timers(1 << 63, 0, 0));
        assert!(matches!(
            far.virtual_deadline,
            TranslatedDeadline::Unreachable
        ));
        assert_eq!(far.timers.virtual_timer.compare_value, CompareValue::NEVER);
    }

    #[test]
    fn l5_a_host_on_which_no_vcpu_ran_leaves_no_trace() {
        let there = translation(10, 3, 100, false);
        let back = translation(3, 10, 100, false);
        let moved = there.apply(&timers(11, 7, 0)).timers;
        assert_eq!(moved.virtual_timer.compare_value.0, 4, "PV 133 for 110");
        let unseen = Translation {
            has_run: false,
            ..back
        };
        assert_eq!(registers(&unseen.apply(&moved)), timers(11, 7, 0));
        let late = registers(&back.apply(&moved));
        assert_eq!(late, timers(14, 10, 0), "what the registers say");
    }

    #[test]
    fn l13_a_stream_that_was_clamped_comes_back() {
        // Bit 14 at 25 MHz is bit 19 at 1 GHz, which only FEAT_ECV has.
        let there = translation(25_000_000, 1_000_000_000, 1_000_000_000, false);
        let back = translation(1_000_000_000, 25_000_000, 1_000_000_000, false);
        let before = timers(0, 0, 14 << EVENTS_AT_BIT | EVNTEN);
        let clamped = there.apply(&before);
        assert_eq!(clamped.lost_stream_bits, 4);
        assert_eq!(clamped.timers.event_control, 15 << EVENTS_AT_BIT | EVNTEN);
        let restored = back.apply(&clamped.timers);
        assert_eq!(
            (restored.lost_stream_bits, restored.timers.event_control),
            (0, before.event_control)
        );

        // A guest that writes the register makes a new choice.
        let mut rewritten = clamped.timers;
        rewritten.event_control = 9 << EVENTS_AT_BIT | EVNTEN;
        let translated = back.apply(&rewritten);
        assert_eq!(translated.timers.event_control, 4 << EVENTS_AT_BIT | EVNTEN);

        let with_ecv = translation(25_000_000, 1_000_000_000, 1_000_000_000, true);
        let exact = with_ecv.apply(&before);
        assert_eq!(exact.lost_stream_bits, 0);
        assert_eq!(
            EventStream::from_cntkctl(exact.timers.event_control).bit(),
            19
        );
    }

    #[test]
    fn l13_many_small_changes_do_not_add_up() {
        // Each step is a factor below the square root of 2, and none of them alone moves the bit.
        let rates = [
            100_000_000,
            130_000_000,
            169_000_000,
            219_700_000,
            285_610_000,
        ];
        let mut now = timers(0, 0, 5 << EVENTS_AT_BIT | EVNTEN);
        for pair in rates.windows(2) {
            now = translation(pair[0], pair[1], 100_000_000, true)
                .apply(&now)
                .timers;
        }
        assert_eq!(
            EventStream::from_cntkctl(now.event_control).bit(),
            7,
            "a factor of 2.86"
        );
    }

    proptest! {
        #[test]
        fn l4_timers_are_those_of_the_mapping(
            virtual_value in edgy(),
            physical_value in edgy(),
            event_control: u64,
            rates in (cntfrq(), cntfrq(), cntfrq()),
            has_ecv: bool,
        ) {
            let (from, to, pv) = rates;
            let from = LivePhysicalTime::between(from.into(), pv.into())?;
            let to = LivePhysicalTime::between(to.into(), pv.into())?;
            let before = timers(virtual_value, physical_value, event_control);
            let after = Translation { from, to, has_run: true, has_ecv }.apply(&before).timers;
            for (before, after) in [
                (before.virtual_timer, after.virtual_timer),
                (before.physical_timer, after.physical_timer),
            ] {
                let value = from.translate(before.compare_value, &to).compare_value();
                prop_assert_eq!(after, Timer { compare_value: value, ..before });
            }
            let fields = 0xf << 4 | 1 << 17;
            prop_assert_eq!(after.event_control & !fields, event_control & !fields);
            prop_assert!(event_control & EVNTEN != 0 || after.event_control == event_control);
        }
    }
}
