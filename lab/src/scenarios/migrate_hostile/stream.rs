//! A migration's stream, taken apart and put together anew by what docs and frames say of it, not by
//! the code that is tested.

use anyhow::{Context, Result, bail, ensure};
use std::hash::Hasher;
use twox_hash::XxHash3_64;

pub const OFFER: u32 = 1;
pub const ROUND: u32 = 3;
pub const MEMORY: u32 = 4;
pub const ZERO: u32 = 5;
pub const MACHINE: u32 = 6;
pub const TIME: u32 = 7;
pub const COMMIT: u32 = 9;

/// Magic, version and zeros, before the first frame.
pub const HELLO_BYTES: usize = 16;
const HEADER_BYTES: usize = 24;

/// What a source sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stream {
    pub hello: Vec<u8>,
    /// Kinds and contents.
    pub frames: Vec<(u32, Vec<u8>)>,
}

impl Stream {
    /// Takes apart what was recorded.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let (hello, mut rest) = bytes.split_at_checked(HELLO_BYTES).context("no hello")?;
        let mut frames = Vec::new();
        let mut again = Forged::new(hello);
        while let Some((header, more)) = rest.split_at_checked(HEADER_BYTES) {
            let word = |at: usize| {
                Ok::<_, anyhow::Error>(u32::from_le_bytes(header[at..at + 4].try_into()?))
            };
            let length = usize::try_from(word(4)?)?;
            let (contents, more) = more.split_at_checked(length).context("half a frame")?;
            again = again.frame(word(0)?, contents);
            frames.push((word(0)?, contents.to_vec()));
            rest = more;
        }
        ensure!(rest.is_empty(), "{} bytes of a header", rest.len());
        ensure!(
            again.bytes == bytes,
            "the frames' checksums are computed otherwise"
        );
        Ok(Self {
            hello: hello.to_vec(),
            frames,
        })
    }

    /// The index of the first frame of a kind.
    pub fn first(&self, kind: u32) -> Result<usize> {
        let found = self.frames.iter().position(|frame| frame.0 == kind);
        found.with_context(|| format!("nothing of kind {kind} was sent"))
    }

    /// The stream up to its first frame of a kind, and with that.
    pub fn through(&self, kind: u32) -> Result<Forged> {
        let end = self.first(kind)?;
        let frames = self.frames[..=end].iter();
        Ok(
            frames.fold(Forged::new(&self.hello), |forged, (kind, contents)| {
                forged.frame(*kind, contents)
            }),
        )
    }

    /// What the VM needs.
    pub fn offer(&self) -> Result<serde_json::Value> {
        Ok(serde_json::from_slice(&self.frames[self.first(OFFER)?].1)?)
    }

    /// From where to where the VM that was offered has memory.
    pub fn memory(&self) -> Result<(u64, u64)> {
        let offer = self.offer()?;
        let range = &offer["memory"][0];
        let numbers = range["start"].as_u64().zip(range["bytes"].as_u64());
        let Some((start, bytes)) = numbers else {
            bail!("the offer has no memory: {offer}");
        };
        Ok((start, start + bytes))
    }
}

/// A stream that is right in all but what it says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forged {
    pub bytes: Vec<u8>,
    number: u64,
    checksum: u64,
}

impl Forged {
    pub fn new(hello: &[u8]) -> Self {
        Self {
            bytes: hello.to_vec(),
            number: 0,
            checksum: 0,
        }
    }

    /// A frame that is as long as it says.
    pub fn frame(self, kind: u32, contents: &[u8]) -> Self {
        let length = u32::try_from(contents.len()).unwrap_or(u32::MAX);
        self.lie(kind, length, contents)
    }

    /// A frame that says that it has so many bytes.
    pub fn lie(mut self, kind: u32, length: u32, contents: &[u8]) -> Self {
        let mut header = Vec::with_capacity(HEADER_BYTES);
        header.extend(kind.to_le_bytes());
        header.extend(length.to_le_bytes());
        header.extend(self.number.to_le_bytes());
        let mut hash = XxHash3_64::with_seed(self.checksum);
        hash.write(&header);
        hash.write(contents);
        self.checksum = hash.finish();
        self.number += 1;
        self.bytes.extend(header);
        self.bytes.extend(self.checksum.to_le_bytes());
        self.bytes.extend(contents);
        self
    }

    /// An address and something else, as frames of memory have it.
    pub fn at(self, kind: u32, address: u64, rest: &[u8]) -> Self {
        self.frame(kind, &[&address.to_le_bytes(), rest].concat())
    }

    /// Bytes that are no frame.
    pub fn raw(mut self, bytes: &[u8]) -> Self {
        self.bytes.extend(bytes);
        self
    }

    /// The same with the last bit of all turned over.
    pub fn damaged(mut self) -> Self {
        if let Some(last) = self.bytes.last_mut() {
            *last ^= 1;
        }
        self
    }

    /// The same without its last bytes.
    pub fn cut(mut self, bytes: usize) -> Self {
        self.bytes.truncate(self.bytes.len().saturating_sub(bytes));
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_is_taken_apart_only_if_its_checksums_are_right() {
        let hello = b"PVTIMEMV\x02\0\0\0\0\0\0\0";
        let offer = br#"{"memory":[{"start":4096,"bytes":8192}]}"#;
        let forged = Forged::new(hello).frame(OFFER, offer).frame(ROUND, &[0; 4]);
        let stream = Stream::parse(&forged.bytes).unwrap();
        assert_eq!(
            stream.frames,
            [(OFFER, offer.to_vec()), (ROUND, vec![0; 4])]
        );
        assert_eq!(stream.memory().unwrap(), (4096, 12288));
        assert_eq!(stream.through(ROUND).unwrap(), forged);
        assert!(stream.through(TIME).is_err());
        for wrong in [
            forged.clone().damaged(),
            forged.clone().cut(1),
            forged.raw(&[1]),
        ] {
            assert!(Stream::parse(&wrong.bytes).is_err());
        }
        // Of zeros, as twox-hash 2 has it.
        let empty = Forged::new(b"").frame(0, b"");
        assert_eq!(
            empty.bytes[16..],
            XxHash3_64::oneshot(&[0; 16]).to_le_bytes()
        );
    }
}
