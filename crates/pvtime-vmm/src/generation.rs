//! Which generation of a VM this is: one that comes out of a snapshot is another than the one that
//! went in, and so are two that come out of the same snapshot.
//!
//! The guest finds the identifier at the start of a page of its own, which it cannot write, by a
//! device tree node `microsoft,vmgenid`; the interrupt of that node says that it has changed. Linux
//! (6.10 for device trees) reseeds its random numbers then. The page holds the identifier before
//! the interrupt is raised and before a vCPU runs, and it never changes under a running VM: a guest
//! that maps it as a device reads memory past the host's caches, and KVM writes those back when the
//! guest touches the page first.

use std::fmt;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::entropy;

/// One generation of a VM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Generation {
    /// 1 for a VM that was started, one more for each snapshot that lies between that and this.
    pub count: u64,
    /// Random, and no other generation's of any VM.
    pub id: GenerationId,
}

/// 128 random bits, in the order in which they lie in the guest's memory; in JSON, 32 hexadecimal
/// digits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct GenerationId(#[serde(with = "hex::serde")] pub [u8; Self::BYTES]);

impl GenerationId {
    /// Bytes of an identifier.
    pub const BYTES: usize = 16;
}

impl fmt::Display for GenerationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl Generation {
    /// That of a VM which is started.
    ///
    /// # Errors
    ///
    /// Where the host gives no random numbers.
    pub fn first() -> Result<Self> {
        Self::default().next()
    }

    /// That of a VM which comes out of a snapshot that this one went into.
    ///
    /// # Errors
    ///
    /// Where the host gives no random numbers, and where the count is at its end, which no VM's is.
    pub fn next(self) -> Result<Self> {
        let count = self.count.checked_add(1).with_context(|| {
            format!(
                "the snapshot claims to be generation {} of its VM, after which none can come; \
                 restore another",
                self.count
            )
        })?;
        Ok(Self {
            count,
            id: GenerationId(entropy::bytes()?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r7_every_generation_has_an_id_of_its_own() {
        let first = Generation::first().unwrap();
        let (second, twin) = (first.next().unwrap(), first.next().unwrap());
        assert_eq!((first.count, second.count, twin.count), (1, 2, 2));
        let ids = [GenerationId::default(), first.id, second.id, twin.id];
        for (index, id) in ids.iter().enumerate() {
            assert!(!ids[..index].contains(id), "{ids:?}");
        }
    }

    #[test]
    fn a_count_that_cannot_grow_is_refused() {
        let last = Generation {
            count: u64::MAX,
            ..Generation::default()
        };
        let error = last.next().unwrap_err().to_string();
        assert!(error.contains("18446744073709551615"), "{error}");
    }

    #[test]
    fn json_is_exact() {
        let generation = Generation {
            count: 3,
            id: GenerationId([0xab; 16]),
        };
        let json = format!(r#"{{"count":3,"id":"{}"}}"#, "ab".repeat(16));
        assert_eq!(serde_json::to_string(&generation).unwrap(), json);
        assert_eq!(generation.id.to_string(), "ab".repeat(16));
        assert_eq!(
            serde_json::from_str::<Generation>(&json).unwrap(),
            generation
        );
        let foreign = [
            json.replace("abab", "ab"),
            json.replace("abab", "ababab"),
            json.replace("abab", "xyxy"),
            json.replace("count", "counter"),
            json.replace(":3", ":-3"),
            json.replace(",\"id", ",\"more\":1,\"id"),
            json.replace(r#""count":3,"#, ""),
        ];
        for json in foreign {
            assert!(serde_json::from_str::<Generation>(&json).is_err(), "{json}");
        }
    }
}
