//! Frames: what a stream is made of.
//!
//! | Offset | Type | Field |
//! |---|---|---|
//! | 0 | u32 | kind |
//! | 4 | u32 | bytes of contents |
//! | 8 | u64 | number of the frame in its direction, from 0 |
//! | 16 | u64 | XXH3 of the 16 bytes before and the contents; its seed is that of the frame before |
//! | 24 | | contents |
//!
//! All little-endian. The checksums find damage, not malice; against that there is TLS.

mod error;
mod kind;

pub use error::StreamError;
pub use kind::{Kind, Limits, MEMORY_BYTES, WORD_BYTES};

use std::hash::Hasher;
use std::io::{BufReader, Read};
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;
use twox_hash::XxHash3_64;

use super::wire::Wire;
use crate::failure::printable;

/// The version of the stream that this version writes and reads.
pub const VERSION: u32 = 2;

/// What a stream begins with.
const MAGIC: [u8; 8] = *b"PVTIMEMV";

/// What TLS's records begin with that come first; the major version 3 follows.
const TLS_ALERT: u8 = 21;
const TLS_HANDSHAKE: u8 = 22;

const HELLO_BYTES: usize = 16;
const HEADER_BYTES: usize = 24;

/// Frames of memory wait for each other up to as many bytes: what the guest wrote lies in single
/// pages, each of which would cost both sides system calls and a packet.
const BATCH_BYTES: usize = 64 << 10;

/// Where one direction of a stream is.
#[derive(Clone, Copy, Debug, Default)]
struct Position {
    /// Number of the next frame.
    number: u64,
    /// Of all frames before.
    checksum: u64,
}

impl Position {
    fn checksum(&self, header: &[u8], contents: &[u8]) -> u64 {
        let mut hash = XxHash3_64::with_seed(self.checksum);
        hash.write(header);
        hash.write(contents);
        hash.finish()
    }

    fn pass(&mut self, checksum: u64) {
        self.number += 1;
        self.checksum = checksum;
    }
}

/// A stream's two directions.
#[derive(Debug)]
pub struct Channel<W> {
    wire: BufReader<W>,
    sent: Position,
    received: Position,
    sent_bytes: u64,
    sent_at: Instant,
    /// When all messages have to be over, whatever patience each has.
    limit: Option<Instant>,
    /// Frames that are yet to be written.
    outgoing: Vec<u8>,
    /// The contents of the frame that was received last.
    incoming: Vec<u8>,
}

/// A frame that arrived whole.
#[derive(Debug)]
pub struct Frame<'a> {
    /// What it holds.
    pub kind: Kind,
    /// Its contents.
    pub contents: &'a [u8],
}

impl<W: Wire> Channel<W> {
    /// Says hello and hears it.
    ///
    /// # Errors
    ///
    /// [`StreamError::NotPvtime`], [`StreamError::Version`], and what a connection fails with.
    ///
    /// # Panics
    ///
    /// Never: four bytes are four bytes.
    pub fn open(mut wire: W, patience: Duration) -> Result<Self, StreamError> {
        wire.set_deadline(Instant::now() + patience);
        let mut ours = [0; HELLO_BYTES];
        ours[..8].copy_from_slice(&MAGIC);
        ours[8..12].copy_from_slice(&VERSION.to_le_bytes());
        wire.write_all(&ours)?;
        wire.flush()?;
        let mut theirs = [0; HELLO_BYTES];
        // Not to wait for the rest of what is something else, of which an alert of TLS has 7 bytes.
        let (magic, rest) = theirs.split_at_mut(MAGIC.len());
        wire.read_exact(&mut magic[..2])?;
        if matches!(magic[..2], [TLS_ALERT | TLS_HANDSHAKE, 3]) {
            return Err(StreamError::Encrypted);
        }
        wire.read_exact(&mut magic[2..])?;
        if *magic != MAGIC {
            return Err(StreamError::NotPvtime);
        }
        wire.read_exact(rest)?;
        let version = u32::from_le_bytes(rest[..4].try_into().expect("four bytes"));
        if version != VERSION {
            return Err(StreamError::Version { theirs: version });
        }
        Ok(Self {
            wire: BufReader::with_capacity(BATCH_BYTES, wire),
            sent: Position::default(),
            received: Position::default(),
            sent_bytes: 0,
            sent_at: Instant::now(),
            limit: None,
            outgoing: Vec::new(),
            incoming: Vec::new(),
        })
    }

    /// Bytes that were sent in frames.
    pub fn sent_bytes(&self) -> u64 {
        self.sent_bytes
    }

    /// From now on every message fails at this moment at the latest; or each has its own patience
    /// alone.
    pub fn set_limit(&mut self, limit: Option<Instant>) {
        self.limit = limit;
    }

    fn begin(&mut self, patience: Duration) -> Result<(), StreamError> {
        let now = Instant::now();
        if self.limit.is_some_and(|limit| now >= limit) {
            return Err(StreamError::TimedOut);
        }
        let until = now + patience;
        let until = self.limit.map_or(until, |limit| limit.min(until));
        self.wire.get_mut().set_deadline(until);
        Ok(())
    }

    /// For how long nothing was sent.
    pub fn silent_for(&self) -> Duration {
        self.sent_at.elapsed()
    }

    /// From now on nothing but a deadline ends a message.
    pub fn ignore_cancel(&mut self) {
        self.wire.get_mut().ignore_cancel();
    }

    /// Sends a frame.
    ///
    /// # Errors
    ///
    /// What a connection fails with.
    pub fn send(
        &mut self,
        kind: Kind,
        contents: &[u8],
        patience: Duration,
    ) -> Result<(), StreamError> {
        let fill = |buffer: &mut [u8]| buffer.copy_from_slice(contents);
        self.send_with(kind, contents.len(), fill, patience)
    }

    /// Sends something as JSON.
    ///
    /// # Errors
    ///
    /// What a connection fails with.
    ///
    /// # Panics
    ///
    /// On what has no JSON form.
    pub fn send_json(
        &mut self,
        kind: Kind,
        value: &impl Serialize,
        patience: Duration,
    ) -> Result<(), StreamError> {
        let json = serde_json::to_vec(value).expect("numbers and strings");
        self.send(kind, &json, patience)
    }

    /// Sends something as `MessagePack`.
    ///
    /// # Errors
    ///
    /// What a connection fails with.
    ///
    /// # Panics
    ///
    /// On what has no such form.
    pub fn send_packed(
        &mut self,
        kind: Kind,
        value: &impl Serialize,
        patience: Duration,
    ) -> Result<(), StreamError> {
        let bytes = rmp_serde::to_vec_named(value).expect("numbers and strings");
        self.send(kind, &bytes, patience)
    }

    /// Sends a frame whose contents are filled in. One of memory may wait for those that follow, or
    /// for [`flush`](Self::flush).
    ///
    /// # Errors
    ///
    /// What a connection fails with.
    ///
    /// # Panics
    ///
    /// On 4 GiB and more.
    pub fn send_with(
        &mut self,
        kind: Kind,
        length: usize,
        fill: impl FnOnce(&mut [u8]),
        patience: Duration,
    ) -> Result<(), StreamError> {
        let bytes = u32::try_from(length).expect("no frame is so long");
        let start = self.outgoing.len();
        self.outgoing.resize(start + HEADER_BYTES + length, 0);
        let (header, contents) = self.outgoing[start..].split_at_mut(HEADER_BYTES);
        fill(contents);
        header[..4].copy_from_slice(&(kind as u32).to_le_bytes());
        header[4..8].copy_from_slice(&bytes.to_le_bytes());
        header[8..16].copy_from_slice(&self.sent.number.to_le_bytes());
        let checksum = self.sent.checksum(&header[..16], contents);
        header[16..].copy_from_slice(&checksum.to_le_bytes());
        self.sent.pass(checksum);
        self.sent_bytes += (HEADER_BYTES + length) as u64;
        if kind.can_wait() && self.outgoing.len() < BATCH_BYTES {
            return Ok(());
        }
        self.flush(patience)
    }

    /// Writes what waits.
    ///
    /// # Errors
    ///
    /// What a connection fails with.
    pub fn flush(&mut self, patience: Duration) -> Result<(), StreamError> {
        if self.outgoing.is_empty() {
            return Ok(());
        }
        self.begin(patience)?;
        let wire = self.wire.get_mut();
        wire.write_all(&self.outgoing)?;
        wire.flush()?;
        self.outgoing.clear();
        self.sent_at = Instant::now();
        Ok(())
    }

    /// Receives a frame.
    ///
    /// # Errors
    ///
    /// [`StreamError`].
    ///
    /// # Panics
    ///
    /// Never: the header has its length.
    pub fn receive(
        &mut self,
        limits: Limits,
        patience: Duration,
    ) -> Result<Frame<'_>, StreamError> {
        self.begin(patience)?;
        let mut header = [0; HEADER_BYTES];
        self.wire.read_exact(&mut header)?;
        let word = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().expect("four"));
        let long = |at: usize| u64::from_le_bytes(header[at..at + 8].try_into().expect("eight"));
        let (kind, bytes, number) = (word(0), word(4), long(8));
        let expected = self.received.number;
        if number != expected {
            return Err(StreamError::Number { expected, number });
        }
        let kind = Kind::parse(kind).ok_or(StreamError::UnknownKind { kind, number })?;
        let limit = limits.of(kind);
        if usize::try_from(bytes).map_or(true, |bytes| bytes > limit) {
            return Err(StreamError::TooLong {
                kind,
                number,
                bytes,
                limit,
            });
        }
        self.incoming.clear();
        // Memory is taken as it arrives: a length alone costs nothing.
        let read = (&mut self.wire)
            .take(bytes.into())
            .read_to_end(&mut self.incoming)?;
        if read as u64 != u64::from(bytes) {
            return Err(StreamError::Ended);
        }
        let checksum = self.received.checksum(&header[..16], &self.incoming);
        if checksum != long(16) {
            return Err(StreamError::Checksum { number });
        }
        self.received.pass(checksum);
        Ok(Frame {
            kind,
            contents: &self.incoming,
        })
    }
}

impl Frame<'_> {
    /// Reads the contents as JSON.
    ///
    /// # Errors
    ///
    /// [`StreamError::Content`].
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, StreamError> {
        serde_json::from_slice(self.contents).map_err(|error| self.nonsense(&error.to_string()))
    }

    /// Reads the contents as `MessagePack`.
    ///
    /// # Errors
    ///
    /// [`StreamError::Content`].
    pub fn unpack<T: DeserializeOwned>(&self) -> Result<T, StreamError> {
        rmp_serde::from_slice(self.contents).map_err(|error| self.nonsense(&error.to_string()))
    }

    /// The contents as text that can be printed, whatever they are.
    #[must_use]
    pub fn text(&self) -> String {
        printable(&String::from_utf8_lossy(self.contents))
    }

    /// The contents as a number and what follows it.
    ///
    /// # Errors
    ///
    /// [`StreamError::Content`].
    pub fn word(&self) -> Result<(u64, &[u8]), StreamError> {
        match self.contents.split_first_chunk() {
            Some((word, rest)) => Ok((u64::from_le_bytes(*word), rest)),
            None => Err(self.nonsense(&format!("it has {} bytes", self.contents.len()))),
        }
    }

    /// That the contents are wrong. The reason may have words of the other side in it.
    #[must_use]
    pub fn nonsense(&self, reason: &str) -> StreamError {
        StreamError::Content {
            kind: self.kind,
            reason: in_short(reason),
        }
    }

    /// That this frame does not belong here.
    #[must_use]
    pub fn out_of_order(&self) -> StreamError {
        StreamError::OutOfOrder { kind: self.kind }
    }
}

/// What the other side says, to be printed: not more than a paragraph of it.
#[must_use]
pub fn in_short(text: &str) -> String {
    const MOST: usize = 1000;
    let short: String = text.chars().take(MOST).collect();
    printable(&short)
}

/// Text for a frame, cut where it is too long for one.
#[must_use]
pub fn cut(text: &str) -> &[u8] {
    const MOST: usize = 4096;
    let mut end = text.len().min(MOST);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text.as_bytes()[..end]
}
