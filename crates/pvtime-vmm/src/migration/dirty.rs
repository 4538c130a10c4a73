//! Which pages a guest wrote to, as KVM's dirty log has them.

use std::ops::Range;

/// A bit for each page from an address on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirtyPages {
    start: u64,
    page_bytes: u64,
    bits: Vec<u64>,
}

impl DirtyPages {
    /// From KVM's bitmap of the memory slot that starts at `start`.
    #[must_use]
    pub const fn new(start: u64, page_bytes: u64, bits: Vec<u64>) -> Self {
        Self {
            start,
            page_bytes,
            bits,
        }
    }

    /// Bytes of all its pages.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let pages: u64 = self.bits.iter().map(|it| u64::from(it.count_ones())).sum();
        pages * self.page_bytes
    }

    /// Adds those of another log of the same memory.
    ///
    /// # Panics
    ///
    /// On a log of another memory.
    pub fn add(&mut self, other: &Self) {
        assert_eq!(self.bits.len(), other.bits.len(), "the same memory");
        for (ours, theirs) in self.bits.iter_mut().zip(&other.bits) {
            *ours |= theirs;
        }
    }

    /// The addresses of pages that follow each other, the longest runs of them.
    pub fn runs(&self) -> impl Iterator<Item = Range<u64>> {
        let pages = self.bits.len() as u64 * 64;
        let mut next = 0;
        std::iter::from_fn(move || {
            let first = (next..pages).find(|page| self.has(*page))?;
            let end = (first..pages)
                .find(|page| !self.has(*page))
                .unwrap_or(pages);
            next = end;
            Some(self.address(first)..self.address(end))
        })
    }

    fn has(&self, page: u64) -> bool {
        let word = usize::try_from(page / 64).expect("a page of the bitmap");
        self.bits[word] >> (page % 64) & 1 != 0
    }

    fn address(&self, page: u64) -> u64 {
        self.start + page * self.page_bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn runs_go_over_words() {
        let pages = DirtyPages::new(0x4000_0000, 4096, vec![1 << 63 | 0b110, 1, 1 << 63]);
        let runs: Vec<_> = pages
            .runs()
            .map(|it| ((it.start - 0x4000_0000) / 4096, (it.end - it.start) / 4096))
            .collect();
        assert_eq!(runs, [(1, 2), (63, 2), (191, 1)]);
        assert_eq!(pages.bytes(), 5 * 4096);
    }

    proptest! {
        #[test]
        fn runs_are_the_pages(bits: [u64; 3], more: [u64; 3]) {
            let mut pages = DirtyPages::new(0, 1, bits.to_vec());
            pages.add(&DirtyPages::new(0, 1, more.to_vec()));
            let mut from_runs = [0u64; 3];
            let mut last_end = None;
            for run in pages.runs() {
                prop_assert!(last_end.is_none_or(|end| run.start > end), "runs are the longest");
                last_end = Some(run.end);
                for page in run {
                    from_runs[usize::try_from(page / 64).unwrap()] |= 1 << (page % 64);
                }
            }
            for word in 0..3 {
                prop_assert_eq!(from_runs[word], bits[word] | more[word]);
            }
            prop_assert_eq!(pages.bytes(), from_runs.iter().map(|it| u64::from(it.count_ones())).sum::<u64>());
        }
    }
}
