//! What crosses the border between a hypervisor and its guest, byte by byte.
//!
//! One module per structure or call set. Each structure has two types: a layout, which is bytes
//! with little-endian fields at asserted offsets, and a value, which was checked. Parsing never
//! panics and names what was wrong; only the value leaves this module for arithmetic.

mod error;
pub mod live_physical_time;
pub mod paused_time;
pub mod smccc;
pub mod stolen_time;
pub mod vmclock;

pub use error::{ParseError, Structure};

use core::fmt;

/// An intermediate physical address: where a guest sees its memory, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ipa(pub u64);

impl Ipa {
    /// Whether the address is a multiple of `alignment` bytes.
    ///
    /// # Panics
    ///
    /// If `alignment` is not a power of two.
    #[must_use]
    pub const fn is_aligned(self, alignment: u64) -> bool {
        assert!(alignment.is_power_of_two(), "alignment is a power of two");
        self.0 & (alignment - 1) == 0
    }
}

impl fmt::Display for Ipa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;

    #[test]
    fn addresses_know_their_alignment() {
        let address = Ipa(0x4_0040);
        assert!(address.is_aligned(64) && !address.is_aligned(128));
        assert_eq!(address.to_string(), "0x40040");
    }

    #[test]
    #[should_panic(expected = "a power of two")]
    fn an_alignment_of_three_is_a_mistake() {
        let _ = Ipa(0).is_aligned(3);
    }
}
