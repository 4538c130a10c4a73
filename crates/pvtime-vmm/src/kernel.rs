//! The guest's kernel: an arm64 `Image` (Documentation/arch/arm64/booting.rst).

use std::fs::File;
use std::io::{self, Read, Seek};
use std::path::{Path, PathBuf};

use object::LittleEndian as LE;
use object::pe::{ImageDosHeader, ImageNtHeaders64};
use object::read::pe::ImageNtHeaders;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// An `Image` that was checked and can be loaded.
#[derive(Debug)]
pub struct Kernel {
    path: PathBuf,
    file: File,
    file_bytes: usize,
    text_offset: u64,
    image_bytes: u64,
}

/// A file that cannot be booted.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be read.
    #[error("cannot read the kernel {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// It has no arm64 `Image` header.
    #[error("{path} is no arm64 Image{hint}; give --kernel an uncompressed arch/arm64/boot/Image")]
    NotAnImage {
        /// The file.
        path: PathBuf,
        /// What it seems to be instead.
        hint: &'static str,
    },
    /// It ends before its header says.
    #[error("the kernel {path} is truncated: it has {actual} bytes of {needed}; copy it again")]
    Truncated {
        /// The file.
        path: PathBuf,
        /// Its bytes.
        actual: u64,
        /// What its header asks for.
        needed: u64,
    },
    /// It is for big-endian CPUs.
    #[error("the kernel {path} is big-endian, and only little-endian guests are supported")]
    BigEndian {
        /// The file.
        path: PathBuf,
    },
    /// Guest memory took less than was read.
    #[error("cannot copy the kernel {path} into guest memory: {source}")]
    Copy {
        /// The file.
        path: PathBuf,
        /// Why.
        source: vm_memory::GuestMemoryError,
    },
}

const HEADER_BYTES: usize = 64;
const MAGIC: &[u8] = b"ARM\x64";
const FLAG_BIG_ENDIAN: u64 = 1;
/// Alignment of the place that `text_offset` counts from.
pub const PLACEMENT_BYTES: u64 = 0x20_0000;

impl Kernel {
    /// Opens and checks a file.
    ///
    /// # Errors
    ///
    /// [`Error`], except [`Error::Copy`].
    pub fn open(path: &Path) -> Result<Self, Error> {
        let read_error = |source| Error::Read {
            path: path.into(),
            source,
        };
        let mut file = File::open(path).map_err(read_error)?;
        let file_bytes = file.metadata().map_err(read_error)?.len();
        // The section table of the EFI stub, where there is one, lies in the first page.
        let mut head = Vec::new();
        file.by_ref()
            .take(4096)
            .read_to_end(&mut head)
            .map_err(read_error)?;

        let not_an_image = || Error::NotAnImage {
            path: path.into(),
            hint: hint(&head),
        };
        let header: &[u8; HEADER_BYTES] = head.first_chunk().ok_or_else(not_an_image)?;
        if &header[56..60] != MAGIC {
            return Err(not_an_image());
        }
        let field = |offset: usize| u64_at(header, offset);
        if field(24) & FLAG_BIG_ENDIAN != 0 {
            return Err(Error::BigEndian { path: path.into() });
        }
        let needed = stored_bytes(&head).unwrap_or(0);
        if file_bytes < needed {
            return Err(Error::Truncated {
                path: path.into(),
                actual: file_bytes,
                needed,
            });
        }
        Ok(Self {
            path: path.into(),
            file,
            file_bytes: usize::try_from(file_bytes)
                .map_err(|_| read_error(io::ErrorKind::FileTooLarge.into()))?,
            text_offset: field(8),
            image_bytes: field(16).max(file_bytes),
        })
    }

    /// Bytes of memory that the kernel occupies from the place it is loaded at, zeroed data
    /// included.
    pub fn memory_bytes(&self) -> u64 {
        self.text_offset.saturating_add(self.image_bytes)
    }

    /// Copies the kernel to `place`, a multiple of [`PLACEMENT_BYTES`], and returns its entry.
    ///
    /// # Errors
    ///
    /// [`Error::Read`] and [`Error::Copy`].
    pub fn load(&mut self, memory: &GuestMemoryMmap, place: u64) -> Result<u64, Error> {
        let path = &self.path;
        let entry = place + self.text_offset;
        self.file.rewind().map_err(|source| Error::Read {
            path: path.into(),
            source,
        })?;
        memory
            .read_exact_volatile_from(GuestAddress(entry), &mut self.file, self.file_bytes)
            .map_err(|source| Error::Copy {
                path: path.into(),
                source,
            })?;
        Ok(entry)
    }
}

fn u64_at(bytes: &[u8; HEADER_BYTES], offset: usize) -> u64 {
    u64::from_le_bytes(*bytes[offset..].first_chunk().expect("inside the header"))
}

/// Bytes that the file must have by the section table of its EFI stub. An `Image` without one
/// does not say: its `image_size` counts zeroed data that the file leaves out.
fn stored_bytes(head: &[u8]) -> Option<u64> {
    let dos = ImageDosHeader::parse(head).ok()?;
    let mut offset = dos.nt_headers_offset().into();
    let (nt, _) = ImageNtHeaders64::parse(head, &mut offset).ok()?;
    let sections = nt.sections(head, offset).ok()?;
    sections
        .iter()
        .map(|section| {
            let start = u64::from(section.pointer_to_raw_data.get(LE));
            start + u64::from(section.size_of_raw_data.get(LE))
        })
        .max()
}

fn hint(head: &[u8]) -> &'static str {
    match head {
        [] => ": it is empty",
        [0x1f, 0x8b, ..] => ": it is compressed with gzip",
        [0x28, 0xb5, 0x2f, 0xfd, ..] => ": it is compressed with zstd",
        [0xfd, b'7', b'z', b'X', b'Z', ..] => ": it is compressed with xz",
        [0x7f, b'E', b'L', b'F', ..] => ": it is an ELF file",
        [_, _, _, _, b'z', b'i', b'm', b'g', ..] => ": it is a compressed EFI image",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    /// An `Image` with an EFI stub whose one section ends at `stored_bytes`.
    fn image(stored_bytes: u32) -> Vec<u8> {
        let mut bytes = vec![0; 0x200];
        bytes[..2].copy_from_slice(b"MZ");
        bytes[8..16].copy_from_slice(&0x8_0000u64.to_le_bytes());
        bytes[16..24].copy_from_slice(&0x30_0000u64.to_le_bytes());
        bytes[56..60].copy_from_slice(MAGIC);
        bytes[0x3c..0x40].copy_from_slice(&0x40u32.to_le_bytes());
        bytes[0x40..0x44].copy_from_slice(b"PE\0\0");
        bytes[0x44..0x46].copy_from_slice(&0xaa64u16.to_le_bytes());
        bytes[0x46..0x48].copy_from_slice(&1u16.to_le_bytes());
        bytes[0x54..0x56].copy_from_slice(&112u16.to_le_bytes());
        bytes[0x58..0x5a].copy_from_slice(&0x20bu16.to_le_bytes());
        let section = 0x58 + 112;
        bytes[section + 16..section + 20].copy_from_slice(&(stored_bytes - 0x200).to_le_bytes());
        bytes[section + 20..section + 24].copy_from_slice(&0x200u32.to_le_bytes());
        bytes.resize(stored_bytes as usize, 0xa5);
        bytes
    }

    fn open(bytes: &[u8]) -> Result<Kernel, Error> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        Kernel::open(file.path())
    }

    #[test]
    fn a_whole_image_is_loaded_at_its_text_offset() {
        let bytes = image(0x1234);
        let mut kernel = open(&bytes).unwrap();
        assert_eq!(kernel.memory_bytes(), 0x38_0000);
        let memory =
            GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0x4000_0000), 0x40_0000)]).unwrap();
        let entry = kernel.load(&memory, 0x4000_0000).unwrap();
        assert_eq!(entry, 0x4008_0000);
        let mut loaded = vec![0; bytes.len()];
        memory.read_slice(&mut loaded, GuestAddress(entry)).unwrap();
        assert_eq!(loaded, bytes);
    }

    #[test]
    fn a_truncated_image_says_how_much_is_missing() {
        let bytes = image(0x1234);
        let error = open(&bytes[..0x1233]).unwrap_err().to_string();
        assert!(
            error.contains("truncated: it has 4659 bytes of 4660"),
            "{error}"
        );
    }

    #[test]
    fn what_is_no_image_is_named() {
        let message = |bytes: &[u8]| open(bytes).unwrap_err().to_string();
        assert!(message(b"").contains("no arm64 Image: it is empty"));
        assert!(message(&image(0x1234)[..63]).contains("no arm64 Image;"));
        assert!(message(b"\x1f\x8b\x08\0").contains("compressed with gzip"));
        assert!(message(&[b'x'; 4096]).contains("no arm64 Image;"));
        let missing = Kernel::open(Path::new("/nonexistent/Image"))
            .unwrap_err()
            .to_string();
        assert!(
            missing.starts_with("cannot read the kernel /nonexistent/Image: "),
            "{missing}"
        );
    }

    #[test]
    fn a_big_endian_kernel_is_refused() {
        let mut bytes = image(0x1234);
        bytes[24] |= 1;
        assert!(matches!(open(&bytes), Err(Error::BigEndian { .. })));
    }
}
