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

use std::error::Error;
use std::hash::Hasher;
use std::io::{self, BufReader, ErrorKind, Read};
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;
use twox_hash::XxHash3_64;

use super::tls::Refusal;
use super::wire::{Cancelled, Wire};

/// The version of the stream that this version writes and reads.
pub const VERSION: u32 = 1;

/// What a stream begins with.
const MAGIC: [u8; 8] = *b"PVTIMEMV";

/// What TLS's records begin with that come first; the major version 3 follows.
const TLS_ALERT: u8 = 21;
const TLS_HANDSHAKE: u8 = 22;

const HELLO_BYTES: usize = 16;
const HEADER_BYTES: usize = 24;

/// The most bytes of memory in one frame.
pub const MEMORY_BYTES: usize = 256 << 10;

/// Frames of memory wait for each other up to as many bytes: what the guest wrote lies in single
/// pages, each of which would cost both sides system calls and a packet.
const BATCH_BYTES: usize = 64 << 10;

/// Address or length in front of a frame's memory.
pub const WORD_BYTES: usize = 8;

/// What a frame holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// What the VM needs, as JSON.
    Offer = 1,
    /// Whether it can have it, as JSON.
    Answer = 2,
    /// Memory follows: the number of the round, from 0, as u32.
    Round = 3,
    /// Guest physical address as u64, then bytes.
    Memory = 4,
    /// Guest physical address and length as u64, of what is zero.
    Zero = 5,
    /// The state of vCPUs, interrupt controller and devices, as `MessagePack`: the guest stands still
    /// while it is written and read, which takes JSON many times as long.
    Machine = 6,
    /// The state of the VM's time, as its owner writes it.
    Time = 7,
    /// The destination has a machine in that state. Empty.
    Ready = 8,
    /// The VM is the destination's. Empty.
    Commit = 9,
    /// What the destination did, as JSON.
    Started = 10,
    /// The destination does not run the VM and will not; why, as text.
    Failed = 11,
    /// The source keeps the VM; why, as text.
    Abort = 12,
}

impl Kind {
    const ALL: [Self; 12] = [
        Self::Offer,
        Self::Answer,
        Self::Round,
        Self::Memory,
        Self::Zero,
        Self::Machine,
        Self::Time,
        Self::Ready,
        Self::Commit,
        Self::Started,
        Self::Failed,
        Self::Abort,
    ];

    /// Whether the other side has nothing to do about it before the frames that follow.
    fn can_wait(self) -> bool {
        matches!(self, Self::Round | Self::Memory | Self::Zero)
    }

    fn parse(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u32 == number)
    }
}

/// The most bytes that a frame of each kind may hold.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Of a machine's state and of its time.
    pub state_bytes: usize,
}

impl Limits {
    /// Many times what a vCPU's state takes.
    const VCPU_BYTES: usize = 128 << 10;

    /// For a VM of so many vCPUs.
    #[must_use]
    pub const fn new(vcpus: usize) -> Self {
        Self {
            state_bytes: (vcpus + 2) * Self::VCPU_BYTES,
        }
    }

    fn of(self, kind: Kind) -> usize {
        match kind {
            Kind::Offer | Kind::Answer | Kind::Started => 1 << 20,
            Kind::Round => 4,
            Kind::Memory => WORD_BYTES + MEMORY_BYTES,
            Kind::Zero => 2 * WORD_BYTES,
            Kind::Machine | Kind::Time => self.state_bytes,
            Kind::Ready | Kind::Commit => 0,
            Kind::Failed | Kind::Abort => 4096,
        }
    }
}

/// A stream that cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The connection is gone.
    #[error("the connection ended")]
    Ended,
    /// Nothing came, or nothing could be sent.
    #[error("the other side did nothing for too long")]
    TimedOut,
    /// Somebody here ended it.
    #[error("it was called off")]
    Cancelled,
    /// The connection does not work.
    #[error("the connection broke: {0}")]
    Broken(io::Error),
    /// It is somebody else.
    #[error("the other side is no pvtime that moves VMs; check the address")]
    NotPvtime,
    /// It is encrypted, and this side is not.
    #[error("the other side speaks TLS; give --tls-cert, --tls-key and --tls-ca here as well")]
    Encrypted,
    /// One of the two sides does not accept the other.
    #[error(transparent)]
    Refused(Refusal),
    /// It is of another version.
    #[error(
        "the other side speaks version {theirs} of the stream and this one {VERSION}; use the same \
         pvtime on both hosts"
    )]
    Version {
        /// Its version.
        theirs: u32,
    },
    /// A frame of no known kind.
    #[error("frame {number} has the unknown kind {kind}; the stream is damaged")]
    UnknownKind {
        /// The kind.
        kind: u32,
        /// The frame.
        number: u64,
    },
    /// A frame is longer than such a one can be.
    #[error(
        "frame {number} says that it has {bytes} bytes, and a {kind:?} has at most {limit}; the \
         stream is damaged"
    )]
    TooLong {
        /// Its kind.
        kind: Kind,
        /// Its number.
        number: u64,
        /// Bytes that it says it has.
        bytes: u32,
        /// Bytes that it may have.
        limit: usize,
    },
    /// A frame is missing or came twice.
    #[error("frame {expected} was expected and {number} came; the stream is damaged")]
    Number {
        /// The next one.
        expected: u64,
        /// The one that came.
        number: u64,
    },
    /// A frame or one before it is not what was sent.
    #[error("the checksum of frame {number} is wrong; the stream is damaged")]
    Checksum {
        /// The frame.
        number: u64,
    },
    /// A frame that does not belong here.
    #[error("a {kind:?} came out of its order; the other side does not keep to the protocol")]
    OutOfOrder {
        /// What came.
        kind: Kind,
    },
    /// A frame's contents make no sense.
    #[error("the {kind:?} makes no sense: {reason}; use the same pvtime on both hosts")]
    Content {
        /// What came.
        kind: Kind,
        /// What is wrong with it.
        reason: String,
    },
    /// A round takes longer than any connection that is of use.
    #[error(
        "a round of memory took over {limit_s} s; use a connection with more than {} KiB/s",
        super::SLOWEST_BYTES_PER_S >> 10
    )]
    TooSlow {
        /// How long it may take.
        limit_s: u64,
    },
}

impl From<io::Error> for StreamError {
    fn from(error: io::Error) -> Self {
        if let Some(refusal) = Refusal::of_io(&error) {
            return Self::Refused(refusal.clone());
        }
        match error.kind() {
            _ if error
                .get_ref()
                .is_some_and(<dyn Error + Send + Sync>::is::<Cancelled>) =>
            {
                Self::Cancelled
            }
            ErrorKind::TimedOut => Self::TimedOut,
            ErrorKind::UnexpectedEof
            | ErrorKind::BrokenPipe
            | ErrorKind::ConnectionReset
            | ErrorKind::ConnectionAborted
            | ErrorKind::WriteZero => Self::Ended,
            _ => Self::Broken(error),
        }
    }
}

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
            outgoing: Vec::new(),
            incoming: Vec::new(),
        })
    }

    /// Bytes that were sent in frames.
    pub fn sent_bytes(&self) -> u64 {
        self.sent_bytes
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
        let wire = self.wire.get_mut();
        wire.set_deadline(Instant::now() + patience);
        wire.write_all(&self.outgoing)?;
        wire.flush()?;
        self.outgoing.clear();
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
        self.wire.get_mut().set_deadline(Instant::now() + patience);
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
        serde_json::from_slice(self.contents).map_err(|error| self.nonsense(error.to_string()))
    }

    /// Reads the contents as `MessagePack`.
    ///
    /// # Errors
    ///
    /// [`StreamError::Content`].
    pub fn unpack<T: DeserializeOwned>(&self) -> Result<T, StreamError> {
        rmp_serde::from_slice(self.contents).map_err(|error| self.nonsense(error.to_string()))
    }

    /// The contents as text, whatever they are.
    #[must_use]
    pub fn text(&self) -> String {
        let text = String::from_utf8_lossy(self.contents);
        text.chars()
            .map(|it| if it.is_control() { ' ' } else { it })
            .collect()
    }

    /// The contents as a number and what follows it.
    ///
    /// # Errors
    ///
    /// [`StreamError::Content`].
    pub fn word(&self) -> Result<(u64, &[u8]), StreamError> {
        match self.contents.split_first_chunk() {
            Some((word, rest)) => Ok((u64::from_le_bytes(*word), rest)),
            None => Err(self.nonsense(format!("it has {} bytes", self.contents.len()))),
        }
    }

    /// That the contents are wrong.
    #[must_use]
    pub fn nonsense(&self, reason: String) -> StreamError {
        StreamError::Content {
            kind: self.kind,
            reason,
        }
    }

    /// That this frame does not belong here.
    #[must_use]
    pub fn out_of_order(&self) -> StreamError {
        StreamError::OutOfOrder { kind: self.kind }
    }
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
