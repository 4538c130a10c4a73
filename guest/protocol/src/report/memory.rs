//! What became of a pattern in memory.

use serde::{Deserialize, Serialize};

/// What became of the pattern that memory was filled with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// Pages that were filled and compared.
    pub pages: u64,
    /// Changes since they were filled.
    pub changes: u64,
    /// Pages that are not as they were last written.
    pub damaged: u64,
    /// Where the first of them is: its guest physical address, or in a program on Linux, how far it is
    /// from the first page, in bytes.
    pub first_damaged: Option<u64>,
}
