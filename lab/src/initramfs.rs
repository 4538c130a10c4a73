//! Initramfs archives: the whole file system of a lab host, or of a test guest.

use anyhow::{Context, Result};
use cpio::newc::{Builder, trailer};
use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::Path;

/// An archive in the `newc` format of cpio, as the kernel unpacks it.
#[derive(Default)]
pub struct Initramfs {
    bytes: Vec<u8>,
    folders: BTreeSet<String>,
    entries: u32,
}

impl Initramfs {
    /// Adds a program or a file under a path without a leading slash.
    ///
    /// # Errors
    /// When the archive cannot hold it: a file of 4 GiB or more.
    pub fn add(&mut self, path: &str, mode: u32, contents: &[u8]) -> Result<()> {
        self.add_parents(path)?;
        self.write(path, 0o100_000 | mode, contents)
    }

    /// Adds a folder, unless it is there.
    ///
    /// # Errors
    /// As [`Self::add`].
    pub fn add_folder(&mut self, path: &str, mode: u32) -> Result<()> {
        self.add_parents(path)?;
        if self.folders.insert(path.to_owned()) {
            self.write(path, 0o040_000 | mode, &[])?;
        }
        Ok(())
    }

    /// Adds a symbolic link.
    ///
    /// # Errors
    /// As [`Self::add`].
    pub fn add_link(&mut self, path: &str, target: &str) -> Result<()> {
        self.add_parents(path)?;
        self.write(path, 0o120_777, target.as_bytes())
    }

    /// Adds a file of this machine.
    ///
    /// # Errors
    /// When it cannot be read, and as [`Self::add`].
    pub fn add_file(&mut self, path: &str, mode: u32, from: &Path) -> Result<()> {
        let contents = fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
        self.add(path, mode, &contents)
    }

    /// The finished archive.
    ///
    /// # Errors
    /// Only if memory could not be written.
    pub fn finish(self) -> Result<Vec<u8>> {
        Ok(trailer(self.bytes)?)
    }

    fn add_parents(&mut self, path: &str) -> Result<()> {
        for (at, _) in path.match_indices('/') {
            if self.folders.insert(path[..at].to_owned()) {
                self.write(&path[..at], 0o040_755, &[])?;
            }
        }
        Ok(())
    }

    fn write(&mut self, path: &str, mode: u32, contents: &[u8]) -> Result<()> {
        let size = u32::try_from(contents.len())
            .with_context(|| format!("{path} is too big for an initramfs"))?;
        // Equal numbers would make two files links of one another.
        self.entries += 1;
        let entry = Builder::new(path).mode(mode).ino(self.entries).nlink(1);
        let mut writer = entry.write(&mut self.bytes, size);
        writer.write_all(contents)?;
        writer.finish()?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cpio::newc::Reader;
    use std::io::Read;

    #[test]
    fn folders_come_once_and_before_what_is_in_them() {
        let mut archive = Initramfs::default();
        archive.add("init", 0o755, b"program").unwrap();
        archive.add("a/b/one", 0o644, b"1").unwrap();
        archive.add("a/b/two", 0o600, b"22").unwrap();
        archive.add_folder("a/b", 0o700).unwrap();
        archive.add_folder("tmp", 0o1777).unwrap();
        archive.add_link("c/link", "../a").unwrap();
        let bytes = archive.finish().unwrap();
        let mut rest = &bytes[..];
        let mut seen = Vec::new();
        loop {
            let mut reader = Reader::new(rest).unwrap();
            if reader.entry().is_trailer() {
                break;
            }
            let mut contents = String::new();
            reader.read_to_string(&mut contents).unwrap();
            seen.push((
                reader.entry().name().to_owned(),
                reader.entry().mode(),
                contents,
            ));
            rest = reader.finish().unwrap();
        }
        let want = [
            ("init", 0o100_755, "program"),
            ("a", 0o040_755, ""),
            ("a/b", 0o040_755, ""),
            ("a/b/one", 0o100_644, "1"),
            ("a/b/two", 0o100_600, "22"),
            ("tmp", 0o041_777, ""),
            ("c", 0o040_755, ""),
            ("c/link", 0o120_777, "../a"),
        ];
        assert_eq!(
            seen,
            want.map(|(name, mode, text)| (name.to_owned(), mode, text.to_owned()))
        );
    }
}
