//! Why a stream cannot go on.

use std::error::Error;
use std::io::{self, ErrorKind};

use super::{Kind, VERSION};
use crate::migration::tls::Refusal;
use crate::migration::wire::Cancelled;

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
    /// Memory takes longer than over any connection that is of use.
    #[error(
        "what came of the memory took over {limit_s} s; use a connection with more than {} KiB/s",
        crate::migration::SLOWEST_BYTES_PER_S >> 10
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
