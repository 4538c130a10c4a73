//! The unit of the channel: a JSON header and raw bytes behind it.
//!
//! | Offset | Type | Field |
//! |---|---|---|
//! | 0 | u32, little-endian | length of the header in bytes |
//! | 4 | u32, little-endian | length of the payload in bytes |
//! | 8 | bytes | header, JSON |
//! | 8 + header | bytes | payload |

use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io::{self, Read, Write};
use thiserror::Error;

/// Longest header, in bytes.
pub const HEADER_MAX: u32 = 1 << 20;

/// Longest payload, in bytes. Bigger files travel as several requests.
pub const PAYLOAD_MAX: u32 = 1 << 20;

/// Why a frame could not be sent or understood.
#[derive(Debug, Error)]
pub enum FrameError {
    /// A length is beyond [`HEADER_MAX`] or [`PAYLOAD_MAX`].
    #[error("a frame of {header} + {payload} bytes is too long; split the payload")]
    TooLong {
        /// Length of the header in bytes.
        header: usize,
        /// Length of the payload in bytes.
        payload: usize,
    },
    /// The header is not the JSON that was expected.
    #[error("cannot understand the header {text:?}; build lab and agent together")]
    Header {
        /// The start of the header.
        text: String,
        /// What the JSON parser said.
        source: serde_json::Error,
    },
    /// The channel failed, or ended within a frame.
    #[error("the channel failed")]
    Channel(#[from] io::Error),
}

/// Appends one frame to `out`.
///
/// # Errors
/// [`FrameError::TooLong`] when either part is beyond its limit.
pub fn emit(header: &impl Serialize, payload: &[u8], out: &mut Vec<u8>) -> Result<(), FrameError> {
    let header = serde_json::to_vec(header).map_err(io::Error::from)?;
    let too_long = || FrameError::TooLong {
        header: header.len(),
        payload: payload.len(),
    };
    let header_len = within(header.len(), HEADER_MAX).ok_or_else(too_long)?;
    let payload_len = within(payload.len(), PAYLOAD_MAX).ok_or_else(too_long)?;
    out.extend_from_slice(&header_len.to_le_bytes());
    out.extend_from_slice(&payload_len.to_le_bytes());
    out.extend_from_slice(&header);
    out.extend_from_slice(payload);
    Ok(())
}

/// Takes one frame off the front of `buffer`; `None` when it is not all there yet.
///
/// # Errors
/// [`FrameError::TooLong`] or [`FrameError::Header`]; the channel cannot be used any further.
pub fn parse<T: DeserializeOwned>(
    buffer: &mut Vec<u8>,
) -> Result<Option<(T, Vec<u8>)>, FrameError> {
    let Some((lengths, _)) = buffer.split_first_chunk::<8>() else {
        return Ok(None);
    };
    let [h0, h1, h2, h3, p0, p1, p2, p3] = *lengths;
    let header_len = u32::from_le_bytes([h0, h1, h2, h3]) as usize;
    let payload_len = u32::from_le_bytes([p0, p1, p2, p3]) as usize;
    if within(header_len, HEADER_MAX).is_none() || within(payload_len, PAYLOAD_MAX).is_none() {
        return Err(FrameError::TooLong {
            header: header_len,
            payload: payload_len,
        });
    }
    let end = 8 + header_len + payload_len;
    if buffer.len() < end {
        return Ok(None);
    }
    let rest = buffer.split_off(end);
    let frame = std::mem::replace(buffer, rest);
    let (header, payload) = frame[8..].split_at(header_len);
    let value = serde_json::from_slice(header).map_err(|source| FrameError::Header {
        text: String::from_utf8_lossy(header).chars().take(200).collect(),
        source,
    })?;
    Ok(Some((value, payload.to_vec())))
}

/// Writes one frame.
///
/// # Errors
/// As [`emit`], and [`FrameError::Channel`].
pub fn write(
    channel: &mut impl Write,
    header: &impl Serialize,
    payload: &[u8],
) -> Result<(), FrameError> {
    let mut bytes = Vec::new();
    emit(header, payload, &mut bytes)?;
    channel.write_all(&bytes)?;
    Ok(channel.flush()?)
}

/// Reads until one frame is there; `None` at the end of the channel between two frames.
///
/// # Errors
/// As [`parse`], and [`FrameError::Channel`].
pub fn read<T: DeserializeOwned>(
    channel: &mut impl Read,
    buffer: &mut Vec<u8>,
) -> Result<Option<(T, Vec<u8>)>, FrameError> {
    let mut chunk = vec![0; 64 << 10];
    loop {
        if let Some(frame) = parse(buffer)? {
            return Ok(Some(frame));
        }
        match channel.read(&mut chunk) {
            Ok(0) if buffer.is_empty() => return Ok(None),
            Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            Ok(n) => buffer.extend_from_slice(&chunk[..n]),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e.into()),
        }
    }
}

fn within(len: usize, max: u32) -> Option<u32> {
    u32::try_from(len).ok().filter(|len| *len <= max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_out_as_they_went_in_whatever_the_split() {
        let mut bytes = Vec::new();
        emit(&("first", 1), b"payload", &mut bytes).unwrap();
        emit(&("second", 2), b"", &mut bytes).unwrap();
        for cut in 0..bytes.len() {
            let mut buffer = bytes[..cut].to_vec();
            let mut got = Vec::new();
            for piece in [&[][..], &bytes[cut..]] {
                buffer.extend_from_slice(piece);
                while let Some(frame) = parse::<(String, u32)>(&mut buffer).unwrap() {
                    got.push(frame);
                }
            }
            let want = [
                (("first".into(), 1), b"payload".to_vec()),
                (("second".into(), 2), vec![]),
            ];
            assert_eq!(got, want, "cut at {cut}");
            assert!(buffer.is_empty());
        }
    }

    #[test]
    fn lengths_beyond_the_limits_are_refused_before_they_are_believed() {
        let mut buffer = u32::MAX.to_le_bytes().repeat(2);
        assert!(matches!(
            parse::<u32>(&mut buffer),
            Err(FrameError::TooLong { .. })
        ));
        let payload = vec![0; PAYLOAD_MAX as usize + 1];
        assert!(matches!(
            emit(&1, &payload, &mut Vec::new()),
            Err(FrameError::TooLong { .. })
        ));
    }

    #[test]
    fn a_header_of_another_kind_is_named() {
        let mut bytes = Vec::new();
        emit(&"text", b"", &mut bytes).unwrap();
        let error = parse::<u32>(&mut bytes).unwrap_err().to_string();
        assert!(
            error.contains("text") && error.contains("build lab and agent together"),
            "{error}"
        );
    }

    #[test]
    fn the_end_is_clean_only_between_frames() {
        let mut bytes = Vec::new();
        emit(&7_u32, b"", &mut bytes).unwrap();
        let mut buffer = Vec::new();
        let mut whole = &bytes[..];
        assert_eq!(
            read::<u32>(&mut whole, &mut buffer).unwrap(),
            Some((7, vec![]))
        );
        assert_eq!(read::<u32>(&mut whole, &mut buffer).unwrap(), None);
        let mut cut = &bytes[..bytes.len() - 1];
        assert!(matches!(
            read::<u32>(&mut cut, &mut buffer),
            Err(FrameError::Channel(_))
        ));
    }
}
