//! What a guest finds in its RAM when it starts, and where.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::kernel::{self, Kernel, PLACEMENT_BYTES};
use crate::layout::RAM;

/// `COMMAND_LINE_SIZE` of arm64 Linux, less the terminating zero.
pub const MAX_CMDLINE_BYTES: usize = 2047;
/// The most that Linux maps of a device tree; it must not cross a boundary of as much.
const FDT_BYTES: u64 = 0x20_0000;
const PAGE_BYTES: u64 = 0x1_0000;

/// What cannot be booted.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel.
    #[error(transparent)]
    Kernel(#[from] kernel::Error),
    /// The initramfs cannot be read.
    #[error("cannot read the initramfs {path}: {source}")]
    Initramfs {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// It is too long for a guest of this architecture.
    #[error("the command line has {actual} bytes, and arm64 Linux takes {MAX_CMDLINE_BYTES}")]
    Cmdline {
        /// Its bytes.
        actual: usize,
    },
    /// A guest reads the command line up to the first zero byte.
    #[error("the command line has a zero byte at {offset}; take it out")]
    CmdlineZero {
        /// Where.
        offset: usize,
    },
    /// Kernel, initramfs and device tree are more than the memory.
    #[error(
        "kernel ({kernel} KiB), initramfs ({initramfs} KiB) and device tree do not fit into \
         {memory} MiB; start with --memory {enough} or more"
    )]
    DoesNotFit {
        /// KiB of the kernel, zeroed data included.
        kernel: u64,
        /// KiB of the initramfs.
        initramfs: u64,
        /// MiB that the guest has.
        memory: u64,
        /// MiB that would do.
        enough: u64,
    },
    /// Guest memory took less than was read.
    #[error("cannot copy {what} into guest memory: {source}")]
    Copy {
        /// What was copied.
        what: &'static str,
        /// Why.
        source: vm_memory::GuestMemoryError,
    },
}

/// Files and addresses, checked against each other before anything is created.
#[derive(Debug)]
pub struct Boot {
    kernel: Kernel,
    initramfs: Option<Initramfs>,
    /// The kernel's command line.
    pub cmdline: String,
    /// Where the device tree goes.
    pub fdt: u64,
}

#[derive(Debug)]
struct Initramfs {
    file: File,
    base: u64,
    bytes: usize,
}

impl Boot {
    /// Opens the files and finds a place for each in `memory_mib` MiB of RAM.
    ///
    /// # Errors
    ///
    /// [`Error`], except [`Error::Copy`].
    pub fn new(
        kernel: &Path,
        initramfs: Option<&Path>,
        cmdline: &str,
        memory_mib: u64,
    ) -> Result<Self, Error> {
        check_cmdline(cmdline)?;
        let kernel = Kernel::open(kernel)?;
        let initramfs = initramfs.map(open_sized).transpose()?;
        let initramfs_bytes = initramfs.as_ref().map_or(0, |(_, bytes)| *bytes as u64);

        let kernel_bytes = kernel.memory_bytes();
        let enough = kernel_bytes
            .saturating_add(initramfs_bytes)
            .saturating_add(2 * PAGE_BYTES + 2 * FDT_BYTES);
        let memory = memory_mib << 20;
        if enough > memory {
            return Err(Error::DoesNotFit {
                kernel: kernel_bytes.div_ceil(1 << 10),
                initramfs: initramfs_bytes.div_ceil(1 << 10),
                memory: memory_mib,
                enough: enough.div_ceil(1 << 20),
            });
        }
        let fdt = (RAM + memory - FDT_BYTES) / FDT_BYTES * FDT_BYTES;
        let initramfs = initramfs.map(|(file, bytes)| {
            let base = (fdt - initramfs_bytes) / PAGE_BYTES * PAGE_BYTES;
            Initramfs { file, base, bytes }
        });
        Ok(Self {
            kernel,
            initramfs,
            cmdline: cmdline.into(),
            fdt,
        })
    }

    /// The initramfs, as first address and the one past its end.
    pub fn initramfs(&self) -> Option<(u64, u64)> {
        self.initramfs
            .as_ref()
            .map(|initramfs| (initramfs.base, initramfs.base + initramfs.bytes as u64))
    }

    /// Copies everything into RAM and returns the kernel's entry.
    ///
    /// # Errors
    ///
    /// [`Error::Kernel`] and [`Error::Copy`].
    ///
    /// # Panics
    ///
    /// If the device tree is larger than any that this VMM writes.
    pub fn load(&mut self, memory: &GuestMemoryMmap, fdt: &[u8]) -> Result<u64, Error> {
        const { assert!(RAM.is_multiple_of(PLACEMENT_BYTES)) };
        assert!(
            fdt.len() as u64 <= FDT_BYTES,
            "a device tree of {} bytes",
            fdt.len()
        );
        let entry = self.kernel.load(memory, RAM)?;
        let copy = |what| move |source| Error::Copy { what, source };
        if let Some(Initramfs { file, base, bytes }) = &mut self.initramfs {
            memory
                .read_exact_volatile_from(GuestAddress(*base), file, *bytes)
                .map_err(copy("the initramfs"))?;
        }
        memory
            .write_slice(fdt, GuestAddress(self.fdt))
            .map_err(copy("the device tree"))?;
        Ok(entry)
    }
}

fn check_cmdline(cmdline: &str) -> Result<(), Error> {
    if let Some(offset) = cmdline.bytes().position(|byte| byte == 0) {
        return Err(Error::CmdlineZero { offset });
    }
    match cmdline.len() {
        0..=MAX_CMDLINE_BYTES => Ok(()),
        actual => Err(Error::Cmdline { actual }),
    }
}

fn open_sized(path: &Path) -> Result<(File, usize), Error> {
    let error = |source| Error::Initramfs {
        path: path.into(),
        source,
    };
    let file = File::open(path).map_err(error)?;
    let metadata = file.metadata().map_err(error)?;
    if !metadata.is_file() {
        return Err(error(io::Error::other("it is no regular file")));
    }
    let bytes =
        usize::try_from(metadata.len()).map_err(|_| error(io::ErrorKind::FileTooLarge.into()))?;
    Ok((file, bytes))
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    struct Files(TempDir);

    impl Files {
        fn new() -> Self {
            Self(TempDir::new().unwrap())
        }

        fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
            let path = self.0.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            path
        }

        /// An `Image` without an EFI stub that claims `image_bytes` of memory.
        fn kernel(&self, image_bytes: u64) -> PathBuf {
            let mut bytes = [0; 64];
            bytes[16..24].copy_from_slice(&image_bytes.to_le_bytes());
            bytes[56..60].copy_from_slice(b"ARM\x64");
            self.write("Image", &bytes)
        }
    }

    #[test]
    fn nothing_overlaps_and_everything_arrives() {
        let files = Files::new();
        let content: Vec<u8> = (0..=u8::MAX).cycle().take(0x2_3456).collect();
        let initramfs = files.write("initramfs", &content);
        let mut boot = Boot::new(&files.kernel(0x10_0000), Some(&initramfs), "quiet", 16).unwrap();
        let (start, end) = boot.initramfs().unwrap();
        assert!(
            start >= RAM + 0x10_0000 && end <= boot.fdt,
            "{start:#x} {end:#x}"
        );
        assert_eq!(end - start, content.len() as u64);
        assert!(boot.fdt + FDT_BYTES <= RAM + (16 << 20));
        assert_eq!(boot.fdt % FDT_BYTES, 0);

        let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(RAM), 16 << 20)]).unwrap();
        assert_eq!(boot.load(&memory, b"tree").unwrap(), RAM);
        let mut loaded = vec![0xa5; content.len()];
        memory.read_slice(&mut loaded, GuestAddress(start)).unwrap();
        assert_eq!(loaded, content);
        let mut tree = [0xa5; 4];
        memory
            .read_slice(&mut tree, GuestAddress(boot.fdt))
            .unwrap();
        assert_eq!(&tree, b"tree");
    }

    #[test]
    fn too_little_memory_says_how_much_would_do() {
        let files = Files::new();
        let kernel = files.kernel(20 << 20);
        let initramfs = files.write("initramfs", &vec![0; 3 << 20]);
        let error = Boot::new(&kernel, Some(&initramfs), "", 16).unwrap_err();
        let Error::DoesNotFit { enough, .. } = error else {
            panic!("{error}")
        };
        assert!(Boot::new(&kernel, Some(&initramfs), "", enough - 1).is_err());
        Boot::new(&kernel, Some(&initramfs), "", enough).unwrap();
        // A header may claim anything.
        assert!(matches!(
            Boot::new(&files.kernel(u64::MAX), None, "", 64),
            Err(Error::DoesNotFit { .. })
        ));
    }

    #[test]
    fn a_command_line_fits_or_is_refused() {
        let files = Files::new();
        let kernel = files.kernel(0);
        Boot::new(&kernel, None, &"x".repeat(MAX_CMDLINE_BYTES), 64).unwrap();
        let error = Boot::new(&kernel, None, &"x".repeat(MAX_CMDLINE_BYTES + 1), 64).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the command line has 2048 bytes, and arm64 Linux takes 2047"
        );
        let error = Boot::new(&kernel, None, "a\0b", 64).unwrap_err();
        assert!(matches!(error, Error::CmdlineZero { offset: 1 }));
    }

    #[test]
    fn a_missing_initramfs_is_named() {
        let files = Files::new();
        let path = files.0.path().join("none");
        let error = Boot::new(&files.kernel(0), Some(&path), "", 64)
            .unwrap_err()
            .to_string();
        assert!(error.starts_with("cannot read the initramfs "), "{error}");
        let error = Boot::new(&files.kernel(0), Some(files.0.path()), "", 64).unwrap_err();
        assert!(error.to_string().contains("no regular file"), "{error}");
    }
}
