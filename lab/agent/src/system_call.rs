//! How long a machine takes for a system call: a measure of how much slower an emulated one is.

use std::time::Instant;

const CALLS: u32 = 1_000;
const TRIES: usize = 20;

/// How long a system call takes that does nothing, in ns: the mean of a batch that nothing
/// interrupted.
#[must_use]
pub fn duration_ns() -> f64 {
    let batch = || {
        let began = Instant::now();
        for _ in 0..CALLS {
            std::hint::black_box(rustix::thread::gettid());
        }
        began.elapsed().as_secs_f64() * 1e9 / f64::from(CALLS)
    };
    (0..TRIES).map(|_| batch()).fold(f64::INFINITY, f64::min)
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_call_takes_more_than_a_function_and_less_than_a_sleep() {
        let ns = super::duration_ns();
        assert!((10.0..100_000.0).contains(&ns), "{ns}");
    }
}
