//! Structures that one side writes while the other reads.

mod memory;

pub use memory::{ReadWords, Word, WriteWords};
