//! One line: `{"type":…,"id":…,"answers":…,"body":{…}}`.
//!
//! It is read twice, first for its type, then for the body of that type: without an allocator,
//! nothing could hold a body of unknown type meanwhile.

use heapless::String;
use serde::{Deserialize, Serialize};
use serde_json_core::{de, ser};

use crate::MAX_LINE;

/// Deepest nesting of a line that is looked at. Messages need 3; what a newer sender adds may need
/// more, and is skipped by recursion, which a guest's small stack must bear.
const MAX_DEPTH: u32 = 16;

/// Why a line is no message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// It does not begin with `{`: an empty line, or text of somebody else.
    #[error("not a message: the line does not begin with a brace")]
    NotAMessage,
    /// It is longer than [`MAX_LINE`].
    #[error("line of {length_bytes} bytes; at most {MAX_LINE} are read")]
    TooLong {
        /// Its length.
        length_bytes: usize,
    },
    /// Its objects and arrays are nested too deep.
    #[error("line nested deeper than {MAX_DEPTH} levels")]
    TooDeep,
    /// It is no JSON object with a `type`.
    #[error("line is no JSON object with a type: {reason}")]
    Malformed {
        /// What the JSON parser says.
        reason: de::Error,
    },
    /// It is a message of a type that this version does not know.
    #[error("unknown message type `{name}`")]
    UnknownType {
        /// The type, clipped.
        name: String<32>,
        /// The request's number.
        id: Option<u32>,
    },
    /// Its body lacks a field, or has one that is out of range.
    #[error("body of `{name}` message is wrong: {reason}")]
    Body {
        /// The type.
        name: &'static str,
        /// The request's number.
        id: Option<u32>,
        /// What the JSON parser says.
        reason: de::Error,
    },
}

impl ParseError {
    /// The number of the request that could not be read, where it was legible.
    #[must_use]
    pub const fn id(&self) -> Option<u32> {
        match self {
            Self::UnknownType { id, .. } | Self::Body { id, .. } => *id,
            Self::NotAMessage | Self::TooLong { .. } | Self::TooDeep | Self::Malformed { .. } => {
                None
            }
        }
    }
}

/// The buffer is too short for the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("message does not fit into {buffer_bytes} bytes; give it {MAX_LINE}")]
pub struct EmitError {
    /// Length of the buffer.
    pub buffer_bytes: usize,
}

/// The beginning of `text`, as much of it as fits, cut between characters.
#[must_use]
pub fn clip<const N: usize>(text: &str) -> String<N> {
    let mut clipped = String::new();
    // The first character that does not fit ends it.
    let _ = text.chars().try_for_each(|c| clipped.push(c));
    clipped
}

/// Which of its two numbers a message carries.
#[derive(Clone, Copy)]
pub enum Id {
    Request(Option<u32>),
    Answer(Option<u32>),
}

#[derive(Serialize)]
struct Line<'a, B> {
    #[serde(rename = "type")]
    name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    answers: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    body: Option<&'a B>,
}

/// Writes a message and its newline; returns the length in bytes.
pub fn emit<B: Serialize>(
    name: &str,
    id: Id,
    body: Option<&B>,
    buffer: &mut [u8],
) -> Result<usize, EmitError> {
    let (id, answers) = match id {
        Id::Request(id) => (id, None),
        Id::Answer(answers) => (None, answers),
    };
    let too_short = EmitError {
        buffer_bytes: buffer.len(),
    };
    let line = Line {
        name,
        id,
        answers,
        body,
    };
    let length = ser::to_slice(&line, buffer).map_err(|_| too_short)?;
    *buffer.get_mut(length).ok_or(too_short)? = b'\n';
    Ok(length + 1)
}

#[derive(Deserialize)]
struct HeadFields<'a> {
    #[serde(rename = "type")]
    name: &'a str,
    id: Option<u32>,
    answers: Option<u32>,
}

#[derive(Deserialize)]
struct BodyField<B> {
    body: B,
}

/// A line whose type is known and whose body is not yet read.
pub struct Head<'a> {
    pub name: &'a str,
    pub id: Option<u32>,
    pub answers: Option<u32>,
    line: &'a [u8],
}

impl<'a> Head<'a> {
    pub fn parse(line: &'a [u8]) -> Result<Self, ParseError> {
        let line = line.trim_ascii();
        if line.first() != Some(&b'{') {
            return Err(ParseError::NotAMessage);
        }
        if line.len() > MAX_LINE {
            return Err(ParseError::TooLong {
                length_bytes: line.len(),
            });
        }
        if nested_too_deep(line) {
            return Err(ParseError::TooDeep);
        }
        let (HeadFields { name, id, answers }, _) =
            serde_json_core::from_slice(line).map_err(|reason| ParseError::Malformed { reason })?;
        Ok(Self {
            name,
            id,
            answers,
            line,
        })
    }

    pub fn parse_body<B: Deserialize<'a>>(&self, name: &'static str) -> Result<B, ParseError> {
        let mut unescaped = [0; MAX_LINE];
        let (BodyField { body }, _) =
            serde_json_core::from_slice_escaped(self.line, &mut unescaped).map_err(|reason| {
                ParseError::Body {
                    name,
                    id: self.id,
                    reason,
                }
            })?;
        Ok(body)
    }

    pub fn unknown_type(&self) -> ParseError {
        ParseError::UnknownType {
            name: clip(self.name),
            id: self.id,
        }
    }
}

/// Whether brackets outside strings are ever open more than [`MAX_DEPTH`] deep.
fn nested_too_deep(line: &[u8]) -> bool {
    let (mut depth, mut in_string, mut escaped) = (0_u32, false, false);
    for &byte in line {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'{' | b'[' if !in_string => depth += 1,
            b'}' | b']' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > MAX_DEPTH {
            return true;
        }
    }
    false
}
