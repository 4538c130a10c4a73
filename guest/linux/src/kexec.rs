//! Another kernel in the place of this one, by kexec, without the machine being told of it.
//!
//! The kernel is a file of the initramfs. Its device tree is the one that this kernel was given, and with that
//! its command line and, where this one was told `retain_initrd`, the initramfs, which lies where it lay.
#![expect(
    unsafe_code,
    reason = "kexec_load has no wrapper, and takes the addresses of what is to be copied"
)]

use std::ffi::c_void;
use std::fs;
use std::io;

use anyhow::{Context, Result, ensure};

/// Where the initramfs has the next kernel: an arm64 Image.
const KERNEL: &str = "/next/Image";

/// What this kernel was given.
const FDT: &str = "/sys/firmware/fdt";

/// `KEXEC_ARCH_AARCH64` of `linux/kexec.h`.
const FLAGS: u64 = 183 << 16;

/// A page of any size that arm64 Linux has: segments begin and end with one.
const PAGE_BYTES: usize = 0x1_0000;

/// What an Image is placed by, and what its device tree must not cross
/// (`Documentation/arch/arm64/booting.rst`).
const BLOCK_BYTES: u64 = 0x20_0000;

/// Sets `x0` to the device tree and `x1` to `x3` to 0, and goes to the kernel: the two addresses follow.
const ENTRY: [u32; 6] = [
    0x5800_00c0, // ldr x0, device tree
    0xaa1f_03e1, // mov x1, xzr
    0xaa1f_03e2, // mov x2, xzr
    0xaa1f_03e3, // mov x3, xzr
    0x5800_0084, // ldr x4, kernel
    0xd61f_0080, // br x4
];

/// `struct kexec_segment` of `linux/kexec.h`.
#[repr(C)]
struct Segment {
    from: *const c_void,
    from_bytes: usize,
    to: u64,
    to_bytes: usize,
}

/// Hands the next kernel to this one, which goes to it on `RebootCommand::Kexec`.
pub fn load() -> Result<()> {
    let kernel = fs::read(KERNEL).with_context(|| {
        format!("the initramfs has no {KERNEL}; add the Image that is to be started")
    })?;
    let fdt = fs::read(FDT).with_context(|| format!("cannot read {FDT}"))?;
    let iomem = fs::read_to_string("/proc/iomem").context("cannot read /proc/iomem")?;
    let ram = ram_start(&iomem).context("/proc/iomem names no System RAM")?;
    let places = Places::after(ram, &kernel)?;
    let entry = places.entry_code();
    let segments = [
        (places.kernel, &kernel[..]),
        (places.fdt, &fdt),
        (places.entry, &entry),
    ]
    .map(|(to, from)| Segment {
        from: from.as_ptr().cast(),
        from_bytes: from.len(),
        to,
        to_bytes: from.len().next_multiple_of(PAGE_BYTES),
    });
    // SAFETY: the kernel only reads as many segments as it is told of, and of each `from_bytes` at
    // `from`, which are of slices that live until it returns.
    let loaded = unsafe {
        libc::syscall(
            libc::SYS_kexec_load,
            places.entry,
            segments.len(),
            segments.as_ptr(),
            FLAGS,
        )
    };
    ensure!(
        loaded == 0,
        "the kernel does not take another one ({}); is CONFIG_KEXEC in it, and memory for both?",
        io::Error::last_os_error()
    );
    Ok(())
}

/// Where the next kernel finds itself and its device tree, in physical addresses.
#[derive(Debug, PartialEq, Eq)]
struct Places {
    kernel: u64,
    fdt: u64,
    entry: u64,
}

impl Places {
    /// The kernel first in RAM, as a loader puts it, and all else behind what it takes.
    fn after(ram: u64, kernel: &[u8]) -> Result<Self> {
        let long = |at: usize| -> Option<u64> {
            let bytes = kernel.get(at..at + 8)?;
            Some(u64::from_le_bytes(bytes.try_into().ok()?))
        };
        let is_image = kernel.get(56..60) == Some(b"ARM\x64");
        let (offset, bytes) = long(8)
            .zip(long(16))
            .filter(|_| is_image)
            .with_context(|| format!("{KERNEL} is no arm64 Image"))?;
        ensure!(
            offset < BLOCK_BYTES && bytes >= kernel.len() as u64 && bytes < 1 << 32,
            "the header of {KERNEL} makes no sense"
        );
        let kernel = ram.next_multiple_of(BLOCK_BYTES) + offset;
        let fdt = (kernel + bytes).next_multiple_of(BLOCK_BYTES);
        Ok(Self {
            kernel,
            fdt,
            entry: fdt + BLOCK_BYTES,
        })
    }

    fn entry_code(&self) -> Vec<u8> {
        let addresses = [self.fdt, self.kernel].map(u64::to_le_bytes);
        let code = ENTRY.iter().flat_map(|word| word.to_le_bytes());
        code.chain(addresses.into_iter().flatten()).collect()
    }
}

/// The first address of RAM.
fn ram_start(iomem: &str) -> Option<u64> {
    let line = iomem.lines().find(|line| line.ends_with(": System RAM"))?;
    u64::from_str_radix(line.split_once('-')?.0, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(offset: u64, bytes: u64) -> Vec<u8> {
        let mut image = vec![0xa5; 64];
        image[8..16].copy_from_slice(&offset.to_le_bytes());
        image[16..24].copy_from_slice(&bytes.to_le_bytes());
        image[56..60].copy_from_slice(b"ARM\x64");
        image
    }

    #[test]
    fn ram_is_what_the_kernel_calls_so() {
        let iomem = "09020000-09020fff : pl031@9020000\n40000000-4fffffff : System RAM\n  \
                     40210000-41ffffff : Kernel code\n50000000-5fffffff : System RAM\n";
        assert_eq!(ram_start(iomem), Some(0x4000_0000));
        assert_eq!(ram_start("09020000-09020fff : pl031@9020000\n"), None);
    }

    #[test]
    fn nothing_lies_on_anything_else() {
        let places = Places::after(0x4000_0000, &image(0x8_0000, 0x123_4567)).unwrap();
        let expected = Places {
            kernel: 0x4008_0000,
            fdt: 0x4140_0000,
            entry: 0x4160_0000,
        };
        assert_eq!(places, expected);
        let code = places.entry_code();
        assert_eq!(code.len(), 40);
        assert_eq!(code[24..32], 0x4140_0000_u64.to_le_bytes());
        assert_eq!(code[32..], 0x4008_0000_u64.to_le_bytes());
    }

    #[test]
    fn what_is_no_image_is_refused() {
        for kernel in [
            &b"MZ"[..],
            &[0; 64],
            &image(0, 63),
            &image(BLOCK_BYTES, 64),
            &image(0, u64::MAX),
        ] {
            Places::after(0x4000_0000, kernel).unwrap_err();
        }
        Places::after(0x4000_0000, &image(0, 64)).unwrap();
    }
}
