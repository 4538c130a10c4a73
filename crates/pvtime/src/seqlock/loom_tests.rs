//! The protocol under loom: every interleaving, and every value that weak memory lets a load see.

use super::*;
use core::sync::atomic::Ordering;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicU32, AtomicU64, fence};
use loom::thread;

struct Words<A>([A; 3]);

macro_rules! words_in_loom {
    ($word:ty, $atomic:ty) => {
        impl Words<$atomic> {
            fn zero() -> Arc<Self> {
                Arc::new(Self([
                    <$atomic>::new(0),
                    <$atomic>::new(0),
                    <$atomic>::new(0),
                ]))
            }
        }

        impl ReadWords<$word> for Arc<Words<$atomic>> {
            fn len(&self) -> usize {
                3
            }

            fn load(&self, index: usize) -> $word {
                self.0[index].load(Ordering::Relaxed)
            }

            fn fence(&self, ordering: Ordering) {
                fence(ordering);
            }
        }

        impl WriteWords<$word> for Arc<Words<$atomic>> {
            fn store(&self, index: usize, value: $word) {
                self.0[index].store(value, Ordering::Relaxed);
            }
        }
    };
}

words_in_loom!(u32, AtomicU32);
words_in_loom!(u64, AtomicU64);

/// One thread publishes 7 7 and then 8 8 while this one reads.
macro_rules! whole_publications {
    ($name:ident, $word:ty, $atomic:ty) => {
        #[test]
        fn $name() {
            loom::model(|| {
                let shape = Shape::<$word>::new(3 * size_of::<$word>(), size_of::<$word>());
                let memory = Words::<$atomic>::zero();
                let shared = memory.clone();
                let writing = thread::spawn(move || {
                    let mut writer = SequenceWriter::start(shape);
                    for value in [7 as $word, 8] {
                        let image = [value.to_le_bytes(); 3];
                        writer.publish(&shared, image.as_flattened()).unwrap();
                    }
                });
                let reader = SequenceReader::attach(memory, shape).unwrap();
                let read = || reader.read_while(|_| false, |m| (m.load(0), m.load(2)));
                if let Ok((first, second)) = read() {
                    assert_eq!(first, second);
                }
                writing.join().unwrap();
                assert_eq!(read(), Ok((8, 8)));
            });
        }
    };
}

whole_publications!(
    l12_loom_finds_no_torn_read_with_a_32_bit_count,
    u32,
    AtomicU32
);
whole_publications!(
    l12_loom_finds_no_torn_read_with_a_64_bit_count,
    u64,
    AtomicU64
);
