//! A pattern in memory: every page has contents that follow from a seed, its number and how often it
//! was changed, so that a page which was lost, exchanged or left behind shows.

use core::ops::DerefMut;

/// Words of a page, which has 4 KiB.
pub const PAGE_WORDS: usize = 512;

/// A page of memory.
pub type Page = [u64; PAGE_WORDS];

/// Memory that was filled: pages, and a number for each.
#[derive(Debug)]
pub struct Pattern<P, V> {
    pages: P,
    /// How often each page was changed.
    versions: V,
    seed: u64,
    changes: u64,
}

/// What a comparison found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Damage {
    /// Pages that are not as they were written.
    pub pages: u64,
    /// The first of them.
    pub first: Option<usize>,
}

impl<P, V> Pattern<P, V>
where
    P: DerefMut<Target = [Page]>,
    V: DerefMut<Target = [u32]>,
{
    /// Fills the pages. `versions` has a number for each, whatever they are.
    ///
    /// # Panics
    /// If the two are not of one length, or there is no page.
    pub fn fill(mut pages: P, mut versions: V, seed: u64) -> Self {
        assert!(pages.len() == versions.len() && !pages.is_empty());
        versions.fill(0);
        for (index, page) in pages.iter_mut().enumerate() {
            write(page, key(seed, index, 0));
        }
        Self {
            pages,
            versions,
            seed,
            changes: 0,
        }
    }

    /// Changes one page, chosen by the seed and how many were changed before.
    pub fn change(&mut self) {
        self.changes += 1;
        let pages = self.pages.len() as u64;
        let index = usize::try_from(mix(self.seed ^ self.changes) % pages).unwrap_or(0);
        let version = &mut self.versions[index];
        *version = version.wrapping_add(1);
        write(&mut self.pages[index], key(self.seed, index, *version));
    }

    /// Compares every page with what was last written to it.
    #[must_use]
    pub fn verify(&self) -> Damage {
        let mut damage = Damage {
            pages: 0,
            first: None,
        };
        for (index, (page, version)) in self.pages.iter().zip(self.versions.iter()).enumerate() {
            if !is_intact(page, key(self.seed, index, *version)) {
                damage.pages += 1;
                damage.first.get_or_insert(index);
            }
        }
        damage
    }

    /// Pages that were filled.
    #[must_use]
    pub fn pages(&self) -> usize {
        self.pages.len()
    }

    /// Changes since.
    #[must_use]
    pub fn changes(&self) -> u64 {
        self.changes
    }

    /// The pages, for who wants to damage one.
    pub fn pages_mut(&mut self) -> &mut [Page] {
        &mut self.pages
    }
}

/// What a page begins with.
fn key(seed: u64, index: usize, version: u32) -> u64 {
    mix(seed ^ mix(index as u64) ^ u64::from(version).rotate_right(24))
}

/// Odd, so that the words of a page are all different.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

fn write(page: &mut Page, key: u64) {
    let mut word = key;
    for place in page {
        *place = word;
        word = word.wrapping_add(STEP);
    }
}

fn is_intact(page: &Page, key: u64) -> bool {
    let mut word = key;
    page.iter().all(|found| {
        let expected = word;
        word = word.wrapping_add(STEP);
        *found == expected
    })
}

/// Splitmix64's finalizer: every bit of the result depends on every bit of the value.
const fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec;

    const PAGES: usize = 40;

    fn with_pattern(check: impl FnOnce(Pattern<&mut [Page], &mut [u32]>)) {
        let mut pages = vec![[0xa5; PAGE_WORDS]; PAGES];
        let mut versions = [7; PAGES];
        check(Pattern::fill(&mut pages[..], &mut versions[..], 42));
    }

    const NONE: Damage = Damage {
        pages: 0,
        first: None,
    };

    #[test]
    fn what_was_written_is_intact() {
        with_pattern(|mut pattern| {
            assert_eq!((pattern.verify(), pattern.pages()), (NONE, PAGES));
            for _ in 0..1000 {
                pattern.change();
            }
            assert_eq!((pattern.verify(), pattern.changes()), (NONE, 1000));
            assert!(pattern.versions.iter().all(|version| *version > 0));
        });
    }

    #[test]
    fn one_bit_an_old_page_and_an_exchanged_one_show() {
        with_pattern(|mut pattern| {
            pattern.pages_mut()[13][511] ^= 1 << 63;
            let one = Damage {
                pages: 1,
                first: Some(13),
            };
            assert_eq!(pattern.verify(), one);
            pattern.pages_mut()[13][511] ^= 1 << 63;

            let before = pattern.pages_mut().to_vec();
            pattern.change();
            let changed = (0..PAGES).find(|index| pattern.pages[*index] != before[*index]);
            let changed = changed.unwrap();
            pattern.pages_mut()[changed] = before[changed];
            let first = Some(changed);
            assert_eq!(pattern.verify(), Damage { pages: 1, first });

            pattern.change();
            pattern.pages_mut().swap(20, 21);
            assert!(pattern.verify().pages >= 2);
        });
    }
}
