//! A clock of constant rate on a counter whose rate may change.

use super::{Counter, GuestError};
use crate::abi::ParseError;
use crate::abi::live_physical_time::{
    LivePhysicalTime, LivePhysicalTimeLayout, Multiplier, SHAPE, SIZE_BYTES, TO_PV,
};
use crate::scale::{CompareValue, Frequency};
use crate::seqlock::{ReadWords, SequenceReader, Word};
use core::mem::offset_of;
use core::num::NonZeroU32;

const WORDS: usize = SIZE_BYTES / u64::BYTES;
const FACTOR_WORD: usize = offset_of!(LivePhysicalTimeLayout, scale_mult) / u64::BYTES;
/// Its lower half is `fracbits`, its upper half `rfracbits`.
const BITS_WORD: usize = offset_of!(LivePhysicalTimeLayout, fracbits) / u64::BYTES;

/// The PV counter: live physical time, in ticks of a frequency that no migration changes.
///
/// A reading costs one counter read, five loads and a multiplication. `M` is the mapped structure
/// and `C` the counter that the structure maps, on Arm the virtual one. One value serves all CPUs.
#[derive(Clone, Copy, Debug)]
pub struct LiveClock<M, C> {
    reader: SequenceReader<u64, M>,
    counter: C,
    pv_frequency_hz: NonZeroU32,
}

impl<M: ReadWords<u64>, C: Counter> LiveClock<M, C> {
    /// Checks the structure at the address that
    /// [`PvTime::live_physical_time`](super::PvTime::live_physical_time) returned.
    ///
    /// # Errors
    ///
    /// [`GuestError::Read`] if the memory is shorter than the structure or never still,
    /// [`GuestError::Parse`] if a field has no meaning.
    pub fn attach(memory: M, counter: C) -> Result<Self, GuestError> {
        let reader = SequenceReader::attach(memory, SHAPE)?;
        let pv_frequency_hz = copy(&reader)?.pv_frequency_hz;
        Ok(Self {
            reader,
            counter,
            pv_frequency_hz,
        })
    }

    /// The rate of [`now`](Self::now).
    #[must_use]
    pub fn frequency(&self) -> Frequency {
        self.pv_frequency_hz.into()
    }

    /// The PV counter, read in order: after everything that the program did before.
    ///
    /// # Errors
    ///
    /// [`GuestError::Read`] if the structure was never still, [`GuestError::Parse`] if its
    /// multiplier became meaningless.
    #[inline]
    pub fn now(&self) -> Result<u64, GuestError> {
        self.read(C::read_ordered)
    }

    /// The PV counter, read whenever the processor likes; cheaper than [`now`](Self::now).
    ///
    /// It needs a host that changes the mapping only while all of the VM's CPUs are stopped, as
    /// this crate's host does: no instruction straddles a stop, so the counter and the fields are
    /// read on the same side of a change although nothing else orders them.
    ///
    /// # Errors
    ///
    /// As [`now`](Self::now).
    #[inline]
    pub fn now_unordered(&self) -> Result<u64, GuestError> {
        self.read(C::read_unordered)
    }

    #[inline]
    fn read(&self, read: impl Fn(&C) -> u64) -> Result<u64, GuestError> {
        // The counter first: its latency hides the loads.
        let (count, fields) = self
            .reader
            .read(|memory| (read(&self.counter), Fields::load(memory)))?;
        Ok(fields.multiplier()?.apply_wrapping(count))
    }

    /// Arms a timer for the first moment at which the PV counter is not below `pv_count`.
    ///
    /// `write` puts the compare value into the timer, and runs again if the mapping changed
    /// meanwhile: the host moves a compare value that it finds in the timer, and cannot move one
    /// that is only on its way there. The timer is never early by the PV counter, and late by less
    /// than a native tick. A deadline that the native counter cannot reach is
    /// [`CompareValue::NEVER`].
    ///
    /// # Errors
    ///
    /// As [`now`](Self::now); the timer's compare value is then to be written again.
    pub fn set_timer(
        &self,
        pv_count: u64,
        mut write: impl FnMut(CompareValue),
    ) -> Result<(), GuestError> {
        let multiplier = self.reader.read(|memory| {
            let multiplier = Fields::load(memory).multiplier();
            if let Ok(multiplier) = multiplier {
                write(first_reaching(multiplier, pv_count));
            }
            multiplier
        })?;
        multiplier?;
        Ok(())
    }

    /// The whole mapping, as it is now.
    ///
    /// # Errors
    ///
    /// As [`attach`](Self::attach), and [`GuestError::FrequencyChanged`] if the PV frequency is
    /// another than it was then.
    pub fn mapping(&self) -> Result<LivePhysicalTime, GuestError> {
        let mapping = copy(&self.reader)?;
        let (attached, found) = (self.pv_frequency_hz, mapping.pv_frequency_hz);
        if found != attached {
            let (attached_hz, found_hz) = (attached.get(), found.get());
            return Err(GuestError::FrequencyChanged {
                attached_hz,
                found_hz,
            });
        }
        Ok(mapping)
    }
}

fn copy(reader: &SequenceReader<u64, impl ReadWords<u64>>) -> Result<LivePhysicalTime, GuestError> {
    let layout: LivePhysicalTimeLayout = zerocopy::transmute!(reader.copy::<WORDS>()?);
    Ok(layout.validate()?)
}

fn first_reaching(multiplier: Multiplier, pv_count: u64) -> CompareValue {
    multiplier
        .first_reaching(pv_count)
        .map_or(CompareValue::NEVER, CompareValue)
}

/// The two words of the structure that a reading needs, as they were found.
#[derive(Clone, Copy)]
struct Fields {
    scale_mult: u64,
    bits: u64,
}

impl Fields {
    #[inline]
    fn load(memory: &impl ReadWords<u64>) -> Self {
        Self {
            scale_mult: memory.load(FACTOR_WORD),
            bits: memory.load(BITS_WORD),
        }
    }

    #[inline]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "fracbits is the lower half of the word"
    )]
    fn multiplier(self) -> Result<Multiplier, ParseError> {
        Multiplier::parse(TO_PV, self.scale_mult, self.bits as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::Structure;
    use crate::seqlock::{ReadError, SequenceWriter, WriteWords};
    use core::cell::Cell;
    use core::sync::atomic::AtomicU64;
    use proptest::prelude::*;
    use std::vec::Vec;

    /// A counter that is set, and that tells the two reads apart by one tick.
    #[derive(Debug)]
    struct Set<'a>(&'a Cell<u64>);

    impl Counter for Set<'_> {
        fn read_ordered(&self) -> u64 {
            self.0.get()
        }

        fn read_unordered(&self) -> u64 {
            self.0.get() + 1
        }
    }

    fn mapping(native_hz: u64, pv_hz: u64) -> LivePhysicalTime {
        let hz = |hz| Frequency::from_hz(hz).unwrap();
        LivePhysicalTime::between(hz(native_hz), hz(pv_hz)).unwrap()
    }

    fn unwritten() -> [AtomicU64; 6] {
        [const { AtomicU64::new(0xa5a5_a5a5_a5a5_a5a4) }; 6]
    }

    #[test]
    fn l2_a_clock_follows_the_mapping_to_another_frequency() {
        let (memory, count) = (unwritten(), Cell::new(100_000_000));
        let mut writer = SequenceWriter::start(SHAPE);
        writer
            .publish(&memory[..], &mapping(100_000_000, 1_000_000_000).emit())
            .unwrap();
        let clock = LiveClock::attach(&memory[..], Set(&count)).unwrap();
        assert_eq!(clock.frequency().hz(), 1_000_000_000);
        assert_eq!(clock.now(), Ok(1_000_000_000));
        assert_eq!(clock.now_unordered(), Ok(1_000_000_010));

        // To a host of 25 MHz, whose counter the VMM set to the same PV count.
        count.set(25_000_000);
        let slower = mapping(25_000_000, 1_000_000_000);
        writer.publish(&memory[..], &slower.emit()).unwrap();
        assert_eq!(clock.now(), Ok(1_000_000_000));
        assert_eq!(clock.mapping(), Ok(slower));
    }

    #[test]
    fn l4_a_timer_is_armed_for_the_first_count_that_reaches() {
        let (memory, count) = (unwritten(), Cell::new(0));
        let slow = mapping(24_000_000, 1_000_000_000);
        SequenceWriter::start(SHAPE)
            .publish(&memory[..], &slow.emit())
            .unwrap();
        let clock = LiveClock::attach(&memory[..], Set(&count)).unwrap();
        let mut written = Vec::new();
        // Tick 2 is at 83 ns, tick 3 at 124.
        for deadline in [0, 83, 84, 124, u64::MAX] {
            clock
                .set_timer(deadline, |value| written.push(value.0))
                .unwrap();
        }
        let last = 442_721_857_769_029_239;
        assert_eq!(written, [0, 2, 3, 3, last]);
    }

    #[test]
    fn l5_a_deadline_out_of_reach_is_never() {
        let (memory, count) = (unwritten(), Cell::new(0));
        let fast = mapping(1_000_000_000, 1_000_000);
        SequenceWriter::start(SHAPE)
            .publish(&memory[..], &fast.emit())
            .unwrap();
        let clock = LiveClock::attach(&memory[..], Set(&count)).unwrap();
        let written = Cell::new(CompareValue(0));
        clock
            .set_timer(u64::MAX / 2, |value| written.set(value))
            .unwrap();
        assert_eq!(written.get(), CompareValue::NEVER);
    }

    #[test]
    fn a_timer_is_written_again_if_the_mapping_changed_meanwhile() {
        let (memory, count) = (unwritten(), Cell::new(0));
        let mut writer = SequenceWriter::start(SHAPE);
        let (slow, fast) = (
            mapping(25_000_000, 1_000_000_000),
            mapping(50_000_000, 1_000_000_000),
        );
        writer.publish(&memory[..], &slow.emit()).unwrap();
        let clock = LiveClock::attach(&memory[..], Set(&count)).unwrap();
        let mut written = Vec::new();
        clock
            .set_timer(400, |value| {
                if written.is_empty() {
                    writer.publish(&memory[..], &fast.emit()).unwrap();
                }
                written.push(value.0);
            })
            .unwrap();
        assert_eq!(written, [10, 20]);
    }

    #[test]
    fn l10_a_mapping_without_meaning_is_an_error_with_its_reason() {
        let (memory, count) = (unwritten(), Cell::new(0));
        let structure = Structure::LivePhysicalTime;
        let mut writer = SequenceWriter::start(SHAPE);
        assert_eq!(
            LiveClock::attach(&memory[..5], Set(&count)).unwrap_err(),
            ReadError::TooShort {
                needed_bytes: 48,
                actual_bytes: 40
            }
            .into()
        );
        let mut image = mapping(1, 1).emit();
        writer.publish(&memory[..], &image).unwrap();
        let clock = LiveClock::attach(&memory[..], Set(&count)).unwrap();

        image[24..32].fill(0);
        writer.publish(&memory[..], &image).unwrap();
        let error = Err(ParseError::Zero {
            structure,
            field: "scale_mult",
        }
        .into());
        assert_eq!(clock.now(), error);
        assert_eq!(
            clock.set_timer(1, |_| panic!("there is nothing to write")),
            error.map(drop)
        );
        image[24] = 1;
        image[40] = 64;
        writer.publish(&memory[..], &image).unwrap();
        let (field, found, most) = ("fracbits", 64, 63);
        let error = ParseError::OutOfRange {
            structure,
            field,
            found,
            most,
        };
        assert_eq!(clock.now_unordered(), Err(error.into()));
    }

    #[test]
    fn l1_another_pv_frequency_is_refused() {
        let (memory, count) = (unwritten(), Cell::new(0));
        let mut writer = SequenceWriter::start(SHAPE);
        writer
            .publish(&memory[..], &mapping(50, 100).emit())
            .unwrap();
        let clock = LiveClock::attach(&memory[..], Set(&count)).unwrap();
        writer
            .publish(&memory[..], &mapping(50, 101).emit())
            .unwrap();
        let error = GuestError::FrequencyChanged {
            attached_hz: 100,
            found_hz: 101,
        };
        assert_eq!(clock.mapping(), Err(error));
    }

    #[test]
    fn l12_an_update_that_never_ends_is_an_error() {
        let (memory, count) = (unwritten(), Cell::new(0));
        let image = mapping(1, 1).emit();
        SequenceWriter::start(SHAPE)
            .publish(&memory[..], &image)
            .unwrap();
        let clock = LiveClock::attach(&memory[..], Set(&count)).unwrap();
        memory[..].store(1, 3);
        assert!(matches!(
            clock.now(),
            Err(GuestError::Read(ReadError::StaysOdd { .. }))
        ));
    }

    proptest! {
        #[test]
        fn l4_what_the_clock_shows_at_a_deadline_is_the_deadline_or_just_after(
            native_hz in 1..u32::MAX,
            pv_hz in 1..u32::MAX,
            deadline in any::<u64>().prop_map(|count| count >> 8),
        ) {
            let (memory, count) = (unwritten(), Cell::new(0));
            let mapping = mapping(native_hz.into(), pv_hz.into());
            SequenceWriter::start(SHAPE).publish(&memory[..], &mapping.emit())?;
            let clock = LiveClock::attach(&memory[..], Set(&count))?;
            clock.set_timer(deadline, |value| count.set(value.0))?;
            let reached = count.get();
            prop_assume!(reached != CompareValue::NEVER.0);
            prop_assert!(mapping.to_pv.apply(reached).is_ok_and(|pv| pv >= deadline));
            prop_assert_eq!(clock.now(), Ok(mapping.to_pv.apply(reached)?));
            if let Some(before) = reached.checked_sub(1) {
                count.set(before);
                prop_assert!(clock.now()? < deadline);
            }
        }
    }
}
