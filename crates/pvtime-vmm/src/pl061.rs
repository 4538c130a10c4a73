//! A PL061, Arm's general-purpose I/O (DDI 0190B): eight lines and one interrupt for all of them.
//!
//! It knows no bus and no address. What drives a line calls [`Pl061::drive`]; the interrupt is a
//! level, given to whoever was named when it was made. No crate of rust-vmm has this device.

use serde::{Deserialize, Serialize};

use crate::bus::Registers;

/// `GPIODATA`: bits 9 to 2 of the offset choose the lines.
const DATA_END: u64 = 0x400;
const DIRECTION: u64 = 0x400;
const SENSE: u64 = 0x404;
const BOTH_EDGES: u64 = 0x408;
const EVENT: u64 = 0x40c;
const MASK: u64 = 0x410;
const RAW_STATUS: u64 = 0x414;
const MASKED_STATUS: u64 = 0x418;
const CLEAR: u64 = 0x41c;
const ALTERNATE: u64 = 0x420;
/// `GPIOPeriphID0` to 3 and `GPIOPCellID0` to 3.
const IDENTIFICATION: u64 = 0xfe0;
const IDENTIFIERS: [u8; 8] = [0x61, 0x10, 0x04, 0x00, 0x0d, 0xf0, 0x05, 0xb1];

/// Its registers and lines; a bit for each of the eight.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pl061State {
    /// What the guest drives those with that are outputs.
    pub outputs: u8,
    /// What drives the others.
    pub inputs: u8,
    /// `GPIODIR`: 1 is an output.
    pub direction: u8,
    /// `GPIOIS`: 1 is by level.
    pub sense: u8,
    /// `GPIOIBE`: 1 is both edges.
    pub both_edges: u8,
    /// `GPIOIEV`: 1 is the rising edge or the high level.
    pub event: u8,
    /// `GPIOIE`: 1 lets it interrupt.
    pub mask: u8,
    /// Edges that came and were not cleared.
    pub edges: u8,
    /// `GPIOAFSEL`, which nothing here follows.
    pub alternate: u8,
}

/// A line to an interrupt controller: called with its level whenever that may have changed.
pub type InterruptLine = Box<dyn Fn(bool) + Send>;

/// The device.
pub struct Pl061 {
    state: Pl061State,
    line: InterruptLine,
    /// Lines that the guest has read while something drove them high.
    seen_high: u8,
}

impl Pl061 {
    /// A device in this state; its interrupt is driven at once.
    #[must_use]
    pub fn from_state(state: Pl061State, line: InterruptLine) -> Self {
        let device = Self {
            state,
            line,
            seen_high: 0,
        };
        device.interrupt();
        device
    }

    /// Registers and lines.
    #[must_use]
    pub const fn state(&self) -> Pl061State {
        self.state
    }

    /// Drives a line from outside, 0 to 7.
    pub fn drive(&mut self, line: u8, high: bool) {
        let (bit, before) = (1 << line, self.state.inputs);
        let after = if high { before | bit } else { before & !bit };
        self.state.inputs = after;
        self.state.edges |= self.state.edges_between(before, after);
        self.seen_high &= after;
        self.interrupt();
    }

    /// Whether the guest has read this line since it was driven high.
    #[must_use]
    pub const fn is_seen_high(&self, line: u8) -> bool {
        self.seen_high & 1 << line != 0
    }

    fn interrupt(&self) {
        (self.line)(self.state.status() & self.state.mask != 0);
    }

    fn get(&mut self, offset: u64) -> u8 {
        let state = &self.state;
        match offset {
            0..DATA_END => {
                let lines = lines_of(offset);
                self.seen_high |= lines & state.inputs & !state.direction;
                state.levels() & lines
            }
            DIRECTION => state.direction,
            SENSE => state.sense,
            BOTH_EDGES => state.both_edges,
            EVENT => state.event,
            MASK => state.mask,
            RAW_STATUS => state.status(),
            MASKED_STATUS => state.status() & state.mask,
            ALTERNATE => state.alternate,
            _ => {
                let identifier = offset.checked_sub(IDENTIFICATION).map(|it| it / 4);
                let index = identifier.and_then(|it| usize::try_from(it).ok());
                index
                    .and_then(|it| IDENTIFIERS.get(it))
                    .copied()
                    .unwrap_or(0)
            }
        }
    }

    fn set(&mut self, offset: u64, value: u8) {
        let state = &mut self.state;
        match offset {
            0..DATA_END => {
                let lines = lines_of(offset);
                state.outputs = state.outputs & !lines | value & lines;
            }
            DIRECTION => state.direction = value,
            SENSE => state.sense = value,
            BOTH_EDGES => state.both_edges = value,
            EVENT => state.event = value,
            MASK => state.mask = value,
            CLEAR => state.edges &= !value,
            ALTERNATE => state.alternate = value,
            _ => {}
        }
        self.interrupt();
    }
}

/// The lines that an offset into the data register chooses.
fn lines_of(offset: u64) -> u8 {
    u8::try_from(offset / 4).expect("offsets are below 0x400")
}

impl Pl061State {
    /// What the data register reads as.
    const fn levels(&self) -> u8 {
        self.outputs & self.direction | self.inputs & !self.direction
    }

    /// `GPIORIS`: of inputs alone.
    const fn status(&self) -> u8 {
        let at_level = !(self.inputs ^ self.event);
        (self.sense & at_level | !self.sense & self.edges) & !self.direction
    }

    /// Which lines interrupt when their inputs go from one to the other.
    const fn edges_between(&self, before: u8, after: u8) -> u8 {
        let changed = before ^ after;
        let wanted = self.both_edges | !(after ^ self.event);
        changed & wanted & !self.sense & !self.direction
    }
}

impl Registers for Pl061 {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        // A register is the low byte of a word.
        if let (0, [value, rest @ ..]) = (offset % 4, data)
            && rest.len() < 4
        {
            *value = self.get(offset);
            rest.fill(0);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let (0, [value, rest @ ..]) = (offset % 4, data)
            && rest.len() < 4
        {
            self.set(offset, *value);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    const LINE: u8 = 3;
    const BIT: u8 = 1 << LINE;

    struct Bench {
        device: Pl061,
        level: Arc<AtomicBool>,
    }

    impl Bench {
        fn new(state: Pl061State) -> Self {
            let level = Arc::new(AtomicBool::new(false));
            let its = Arc::clone(&level);
            let line = Box::new(move |high| its.store(high, Ordering::SeqCst));
            Self {
                device: Pl061::from_state(state, line),
                level,
            }
        }

        fn read(&mut self, offset: u64) -> u8 {
            let mut data = [0xa5; 4];
            self.device.read(offset, &mut data);
            assert_eq!(data[1..], [0; 3]);
            data[0]
        }

        fn write(&mut self, offset: u64, value: u8) {
            self.device.write(offset, &[value]);
        }

        fn interrupts(&self) -> bool {
            self.level.load(Ordering::SeqCst)
        }
    }

    #[test]
    fn it_identifies_itself_as_linux_looks_for_it() {
        let mut bench = Bench::new(Pl061State::default());
        let word = |bench: &mut Bench, base| {
            (0..4).fold(0, |word, index: u64| {
                word | u64::from(bench.read(base + 4 * index)) << (8 * index)
            })
        };
        assert_eq!(word(&mut bench, 0xfe0) & 0xf_ffff, 0x4_1061);
        assert_eq!(word(&mut bench, 0xff0), 0xb105_f00d);
    }

    #[test]
    fn the_offset_chooses_the_lines_of_data() {
        let mut bench = Bench::new(Pl061State::default());
        bench.write(DIRECTION, 0x0f);
        bench.write(0x3fc, 0xff);
        bench.write(4 * 0x02, 0);
        assert_eq!(
            bench.read(0x3fc),
            0x0d,
            "inputs are low, one output was cleared"
        );
        bench.device.drive(7, true);
        assert_eq!(bench.read(4 * 0x80), 0x80);
        assert_eq!(bench.read(4), 1);
        assert_eq!(bench.read(0x3fc), 0x8d);
    }

    #[test]
    fn edges_stay_until_they_are_cleared() {
        for (both, event, on_rise, on_fall) in [
            (0, BIT, true, false),
            (0, 0, false, true),
            (BIT, 0, true, true),
        ] {
            let mut bench = Bench::new(Pl061State {
                both_edges: both,
                event,
                mask: BIT,
                ..Pl061State::default()
            });
            bench.device.drive(LINE, true);
            assert_eq!(bench.interrupts(), on_rise, "{both} {event}");
            bench.write(CLEAR, BIT);
            assert!(!bench.interrupts());
            bench.device.drive(LINE, true);
            assert!(!bench.interrupts(), "nothing changed");
            bench.device.drive(LINE, false);
            assert_eq!(bench.interrupts(), on_fall, "{both} {event}");
            assert_eq!(bench.read(MASKED_STATUS) == BIT, on_fall);
            bench.write(MASK, 0);
            assert!(!bench.interrupts());
            assert_eq!(bench.read(RAW_STATUS) == BIT, on_fall);
        }
    }

    #[test]
    fn a_level_lasts_as_long_as_the_line() {
        for event in [0, BIT] {
            let mut bench = Bench::new(Pl061State {
                sense: BIT,
                event,
                mask: BIT,
                ..Pl061State::default()
            });
            for high in [false, true, false] {
                bench.device.drive(LINE, high);
                assert_eq!(bench.interrupts(), high == (event != 0));
                bench.write(CLEAR, BIT);
                assert_eq!(bench.interrupts(), high == (event != 0), "no edge to clear");
            }
        }
    }

    #[test]
    fn an_output_does_not_interrupt() {
        let mut bench = Bench::new(Pl061State {
            direction: BIT,
            event: BIT,
            mask: 0xff,
            ..Pl061State::default()
        });
        bench.device.drive(LINE, true);
        bench.write(0x3fc, BIT);
        bench.write(SENSE, BIT);
        assert!(!bench.interrupts());
    }

    #[test]
    fn it_is_known_whether_the_guest_has_looked() {
        let mut bench = Bench::new(Pl061State::default());
        bench.read(0x3fc);
        bench.device.drive(LINE, true);
        assert!(!bench.device.is_seen_high(LINE));
        bench.read(4 * u64::from(!BIT));
        assert!(!bench.device.is_seen_high(LINE), "another line was read");
        bench.read(4 * u64::from(BIT));
        assert!(bench.device.is_seen_high(LINE));
        bench.device.drive(LINE, false);
        bench.device.drive(LINE, true);
        assert!(!bench.device.is_seen_high(LINE));
    }

    #[test]
    fn the_interrupt_is_there_again_after_a_restoration() {
        let mut bench = Bench::new(Pl061State {
            event: BIT,
            mask: BIT,
            ..Pl061State::default()
        });
        bench.device.drive(LINE, true);
        let state = bench.device.state();
        let mut restored = Bench::new(state);
        assert!(restored.interrupts());
        assert_eq!(restored.read(MASKED_STATUS), BIT);
        assert_eq!(restored.device.state(), state);
    }

    #[test]
    fn other_accesses_change_nothing() {
        let mut bench = Bench::new(Pl061State::default());
        for offset in [RAW_STATUS, MASKED_STATUS, 0x424, 0xfe0, 0xffc] {
            bench.write(offset, 0xff);
        }
        bench.device.write(MASK + 1, &[0xff]);
        bench.device.write(MASK, &[0xff; 8]);
        assert_eq!(bench.device.state(), Pl061State::default());
        let mut data = [0xa5; 8];
        bench.device.read(IDENTIFICATION, &mut data);
        assert_eq!(data, [0xa5; 8]);
    }
}
