use super::*;
use core::cell::{Cell, RefCell};
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use proptest::prelude::*;
use std::string::ToString;
use std::thread;
use std::vec;
use std::vec::Vec;

/// Three words of which the middle one counts.
fn shape<W: Word>() -> Shape<W> {
    Shape::new(3 * W::BYTES, W::BYTES)
}

/// An image whose payload words are both `value`, and whose count is nonsense.
fn image<W: Word>(value: W) -> Vec<u8> {
    let bytes = Into::<u64>::into(value).to_le_bytes();
    [bytes, [0xa5; 8], bytes]
        .map(|word| word[..W::BYTES].to_vec())
        .concat()
}

fn pair<W: Word>(memory: &impl ReadWords<W>) -> (W, W) {
    (memory.load(0), memory.load(2))
}

/// Keeps the order of stores and fences of a writer.
struct Recorder<W> {
    stores: RefCell<Vec<Option<(usize, W)>>>,
}

impl<W: Word> ReadWords<W> for Recorder<W> {
    fn len(&self) -> usize {
        3
    }

    fn load(&self, _: usize) -> W {
        panic!("a writer does not read shared memory");
    }

    fn fence(&self, ordering: Ordering) {
        assert_eq!(ordering, Ordering::Release);
        self.stores.borrow_mut().push(None);
    }
}

impl<W: Word> WriteWords<W> for Recorder<W> {
    fn store(&self, index: usize, value: W) {
        self.stores.borrow_mut().push(Some((index, value)));
    }
}

/// Every state that memory goes through while a writer publishes `values`, on a machine that
/// reorders all stores between two fences; `shuffle` picks the orders.
fn history(values: &[u64], mut shuffle: impl FnMut(usize) -> usize) -> Vec<[u64; 3]> {
    let recorder = Recorder {
        stores: RefCell::default(),
    };
    let mut writer = SequenceWriter::start(shape());
    for &value in values {
        writer.publish(&recorder, &image(value)).unwrap();
    }
    let mut states = vec![[0; 3]];
    let stores = recorder.stores.into_inner();
    for group in stores.split(Option::is_none) {
        let mut group: Vec<_> = group.iter().flatten().copied().collect();
        while !group.is_empty() {
            let (index, value) = pick_store(&mut group, &mut shuffle);
            let mut next = *states.last().unwrap();
            next[index] = value;
            states.push(next);
        }
    }
    states
}

/// Takes any store of the group that no earlier one to the same word precedes.
fn pick_store(
    group: &mut Vec<(usize, u64)>,
    shuffle: &mut impl FnMut(usize) -> usize,
) -> (usize, u64) {
    let picked = shuffle(group.len());
    let word = group[picked].0;
    let first = group.iter().position(|store| store.0 == word).unwrap();
    group.remove(first)
}

/// Memory on a machine that reorders all loads between two fences: each load sees the memory of
/// some moment that is not before any moment seen before the last fence.
struct Tearing<'a> {
    states: &'a [[u64; 3]],
    picks: RefCell<&'a [usize]>,
    floor: Cell<usize>,
    latest: Cell<usize>,
}

impl ReadWords<u64> for Tearing<'_> {
    fn len(&self) -> usize {
        3
    }

    fn load(&self, index: usize) -> u64 {
        let mut picks = self.picks.borrow_mut();
        let (&pick, rest) = picks.split_first().unwrap_or((&0, &[]));
        *picks = rest;
        let moments = &self.states[self.floor.get()..];
        let moment = pick % moments.len();
        self.latest
            .set(self.latest.get().max(self.floor.get() + moment));
        moments[moment][index]
    }

    fn fence(&self, ordering: Ordering) {
        assert_eq!(ordering, Ordering::Acquire);
        self.floor.set(self.latest.get());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 50 } else { 20_000 }))]

    #[test]
    fn l12_no_reordering_shows_a_reader_parts_of_two_publications(
        orders in proptest::collection::vec(0..6usize, 16),
        picks in proptest::collection::vec(0..20usize, 24),
    ) {
        let mut orders = orders.into_iter().cycle();
        let states = history(&[7, 8, 9], |stores| orders.next().unwrap() % stores);
        let (floor, latest) = (Cell::new(0), Cell::new(0));
        let memory = Tearing { states: &states, picks: RefCell::new(&picks), floor, latest };
        let reader = SequenceReader::attach(memory, shape()).unwrap();
        if let Ok((first, second)) = reader.read_while(|attempts| attempts < 6, pair) {
            prop_assert_eq!(first, second);
        }
    }
}

#[test]
fn the_tearing_fake_does_tear() {
    let states = history(&[7, 8], |_| 0);
    let last = states.len() - 1;
    let picks = [0, last];
    let (floor, latest) = (Cell::new(0), Cell::new(0));
    let memory = Tearing {
        states: &states,
        picks: RefCell::new(&picks),
        floor,
        latest,
    };
    assert_eq!(pair(&memory), (0, 8));
}

fn publishes_from_2_and_never_0<W: Word, A>(memory: &[A], nearly_used_up: W)
where
    [A]: WriteWords<W>,
    u8: Into<W>,
{
    let mut writer = SequenceWriter::start(shape());
    assert_eq!(writer.sequence(), W::default());
    writer.publish(memory, &image(7.into())).unwrap();
    assert_eq!((writer.sequence(), memory.load(1)), (2.into(), 2.into()));
    assert_eq!(pair(&memory), (7.into(), 7.into()));

    let mut writer = SequenceWriter::resume(shape(), nearly_used_up).unwrap();
    writer.publish(memory, &image(8.into())).unwrap();
    assert_eq!((writer.sequence(), memory.load(1)), (2.into(), 2.into()));
    let odd = nearly_used_up.wrapping_add(1);
    assert_eq!(
        SequenceWriter::resume(shape(), odd),
        Err(WriteError::OddSequence {
            sequence: odd.into()
        })
    );
}

#[test]
fn v13_a_count_starts_at_2_and_skips_0() {
    publishes_from_2_and_never_0(&[const { AtomicU32::new(0xa5a5_a5a5) }; 3], u32::MAX - 1);
    publishes_from_2_and_never_0(&[const { AtomicU64::new(u64::MAX / 3) }; 3], u64::MAX - 1);
}

#[test]
fn l12_the_count_is_odd_from_before_the_first_field_until_after_the_last() {
    let recorder = Recorder {
        stores: RefCell::default(),
    };
    let mut writer = SequenceWriter::resume(shape(), 40u64).unwrap();
    writer.publish(&recorder, &image(7u64)).unwrap();
    assert_eq!(
        recorder.stores.into_inner(),
        [
            Some((1, 41)),
            None,
            Some((0, 7)),
            Some((2, 7)),
            None,
            Some((1, 42))
        ]
    );
}

#[test]
fn short_memory_is_refused_before_anything_is_written() {
    let memory = [const { AtomicU32::new(5) }; 2];
    let mut writer = SequenceWriter::start(shape());
    assert_eq!(
        writer.publish(&memory[..], &image(7u32)),
        Err(WriteError::TooShort {
            needed_bytes: 12,
            actual_bytes: 8
        })
    );
    assert_eq!(writer.sequence(), 0);
    assert_eq!(memory.map(AtomicU32::into_inner), [5, 5]);
    let short = [const { AtomicU32::new(5) }; 2];
    assert_eq!(
        SequenceReader::attach(&short[..], shape::<u32>()).unwrap_err(),
        ReadError::TooShort {
            needed_bytes: 12,
            actual_bytes: 8
        }
    );
}

#[test]
fn each_write_error_says_what_to_do() {
    let short = WriteError::TooShort {
        needed_bytes: 12,
        actual_bytes: 8,
    };
    assert_eq!(
        short.to_string(),
        "the structure needs 12 bytes and the guest has 8 there: give it a larger region"
    );
    assert_eq!(
        WriteError::OddSequence { sequence: 7 }.to_string(),
        "the saved sequence 7 is odd: refuse the saved state, it is damaged"
    );
}

#[test]
fn v3_an_odd_count_that_never_ends_is_an_error_after_bounded_attempts() {
    let memory = [1, 3, 1].map(AtomicU32::new);
    let reader = SequenceReader::attach(&memory[..], shape()).unwrap();
    assert_eq!(
        reader.read(|_| panic!("nothing is read under an odd count")),
        Err::<(), _>(ReadError::StaysOdd {
            sequence: 3,
            attempts: ATTEMPTS
        })
    );
    assert_eq!(
        reader.read_while(|attempts| attempts < 3, |_| ()),
        Err(ReadError::StaysOdd {
            sequence: 3,
            attempts: 3
        })
    );
}

#[test]
fn a_count_that_always_changes_is_an_error_after_bounded_attempts() {
    let memory = [1, 2, 1].map(AtomicU64::new);
    let reader = SequenceReader::attach(&memory[..], shape()).unwrap();
    let mut attempts_seen = 0;
    let result = reader.read(|_| {
        attempts_seen += 1;
        memory[1].fetch_add(2, Ordering::Relaxed);
    });
    let sequence = 2 + 2 * u64::from(ATTEMPTS);
    assert_eq!(
        result,
        Err(ReadError::KeepsChanging {
            sequence,
            attempts: ATTEMPTS
        })
    );
    assert_eq!(attempts_seen, ATTEMPTS);
}

#[test]
fn a_copy_has_the_whole_publication_and_its_count() {
    let memory = [const { AtomicU32::new(0) }; 4];
    SequenceWriter::start(shape())
        .publish(&memory[..], &image(0x0403_0201u32))
        .unwrap();
    let reader = SequenceReader::attach(&memory[..], shape()).unwrap();
    let bytes = reader.copy::<3>().unwrap().map(u32::to_ne_bytes);
    assert_eq!(bytes.as_flattened(), [1, 2, 3, 4, 2, 0, 0, 0, 1, 2, 3, 4]);
}

#[test]
#[should_panic(expected = "the count is in the structure")]
fn a_count_outside_its_structure_is_a_mistake() {
    let _ = Shape::<u32>::new(12, 12);
}

/// Threads on real memory; under Miri, on a machine with weak memory.
#[test]
fn l12_threads_never_see_parts_of_two_publications() {
    let publications = if cfg!(miri) { 20 } else { 100_000 };
    let memory = [const { AtomicU64::new(0) }; 3];
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut writer = SequenceWriter::start(shape());
            for value in 1..=publications {
                writer.publish(&memory[..], &image(value)).unwrap();
            }
        });
        let reader = SequenceReader::attach(&memory[..], shape()).unwrap();
        let (mut last, mut attempts) = (0, 0u64);
        while last < publications {
            attempts += 1;
            assert!(attempts < 1 << 32, "the last publication never arrived");
            let Ok((first, second)) = reader.read_while(|_| false, pair) else {
                continue;
            };
            assert_eq!(first, second);
            assert!(first >= last, "a publication was followed by an older one");
            last = first;
        }
    });
}
