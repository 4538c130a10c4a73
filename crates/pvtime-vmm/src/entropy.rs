//! The host's random numbers.

use std::fs::File;
use std::io::Read;

use anyhow::{Context, Result};

/// Random bytes, good for keys.
///
/// # Errors
///
/// Where the host gives none.
pub fn bytes<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut bytes))
        .context("cannot read /dev/urandom")?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_are_alike() {
        let (one, other): ([u8; 32], [u8; 32]) = (bytes().unwrap(), bytes().unwrap());
        assert_ne!(one, other);
        assert_ne!(one, [0; 32]);
    }
}
