//! The same work on many pieces, by as many threads as help.

use std::num::NonZero;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::thread::{available_parallelism, scope};

/// More threads than this wait for memory.
const MAX_THREADS: usize = 8;

/// Does `work` on every piece, each thread with a buffer of its own, and calls `done` with the
/// results on the calling thread, in the order in which they come. Ends with the first error.
pub(super) fn for_each<T: Sync, R: Send, E: Send>(
    pieces: &[T],
    buffer_bytes: usize,
    work: impl Fn(&T, &mut [u8]) -> Result<R, E> + Sync,
    mut done: impl FnMut(&T, R),
) -> Result<(), E> {
    let next = AtomicUsize::new(0);
    let threads = available_parallelism()
        .map_or(1, NonZero::get)
        .min(MAX_THREADS)
        .min(pieces.len());
    let (results, received) = channel();
    scope(|scope| {
        for _ in 0..threads {
            let (results, next, work) = (results.clone(), &next, &work);
            scope.spawn(move || {
                let mut buffer = vec![0; buffer_bytes];
                while let Some(piece) = pieces.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let result = work(piece, &mut buffer);
                    // Nobody listens once there was an error.
                    if results.send((piece, result)).is_err() {
                        break;
                    }
                }
            });
        }
        drop(results);
        for (piece, result) in received {
            done(piece, result?);
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use std::thread::sleep;
    use std::time::Duration;

    use super::*;

    #[test]
    fn every_piece_is_done_once() {
        for count in [0, 1, 2, 1000] {
            let pieces: Vec<usize> = (0..count).collect();
            let mut seen = vec![0; count];
            for_each(
                &pieces,
                1,
                |piece, _| Ok::<_, ()>(2 * piece),
                |piece, result| {
                    assert_eq!(result, 2 * piece);
                    seen[*piece] += 1;
                },
            )
            .unwrap();
            assert!(seen.iter().all(|times| *times == 1));
        }
    }

    #[test]
    fn an_error_ends_the_work() {
        let pieces: Vec<usize> = (0..10_000).collect();
        let begun = AtomicUsize::new(0);
        let work = |piece: &usize, _: &mut [u8]| {
            begun.fetch_add(1, Ordering::Relaxed);
            sleep(Duration::from_millis(1));
            if *piece == 3 { Err("three") } else { Ok(()) }
        };
        let result = for_each(&pieces, 1, work, |_, ()| {});
        assert_eq!(result, Err("three"));
        assert!(begun.into_inner() < pieces.len() / 2);
    }
}
