//! Cutting a byte stream into lines of bounded length.

use heapless::Vec;

use crate::MAX_LINE;

/// Collects bytes until a line is whole.
///
/// A line longer than `N` bytes is dropped up to its end and reported once, so a stream of noise
/// costs no memory and does no harm to the lines that follow.
#[derive(Debug, Default)]
pub struct LineBuffer<const N: usize = MAX_LINE> {
    bytes: Vec<u8, N>,
    /// The line so far was too long, by this many bytes.
    excess_bytes: usize,
    /// The line in `bytes` was handed out.
    handed_out: bool,
}

/// A line that was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a line of {length_bytes} bytes was dropped; at most {limit_bytes} are kept")]
pub struct LineTooLong {
    /// Its length without the newline.
    pub length_bytes: usize,
    /// Longest line that is kept, without the newline.
    pub limit_bytes: usize,
}

impl<const N: usize> LineBuffer<N> {
    /// An empty buffer.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            bytes: Vec::new(),
            excess_bytes: 0,
            handed_out: false,
        }
    }

    /// Takes one byte. If it ends a line, returns that line without its newline (a carriage return
    /// before it stays).
    ///
    /// # Errors
    /// [`LineTooLong`], once, at the end of a line that did not fit.
    pub fn push(&mut self, byte: u8) -> Result<Option<&[u8]>, LineTooLong> {
        if self.handed_out {
            self.bytes.clear();
            self.handed_out = false;
        }
        if byte != b'\n' {
            if self.bytes.push(byte).is_err() {
                self.excess_bytes = self.excess_bytes.saturating_add(1);
            }
            return Ok(None);
        }
        self.handed_out = true;
        match core::mem::take(&mut self.excess_bytes) {
            0 => Ok(Some(&self.bytes)),
            excess => Err(LineTooLong {
                length_bytes: N.saturating_add(excess),
                limit_bytes: N,
            }),
        }
    }
}
