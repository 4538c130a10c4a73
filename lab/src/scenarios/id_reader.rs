//! A guest of 31 instructions that reads its VM's generation without a driver, and says when it has
//! changed.

use crate::guest::Guest;
use crate::host::Host;
use crate::interrupt::sleep;
use crate::report::{Check, Limit};
use anyhow::{Result, bail};
use std::fmt::Write as _;
use std::time::{Duration, Instant};

/// Longest time from the start to the first identifier.
const LIMIT: Duration = Duration::from_secs(30);

/// Time in which it would have said another one.
const SETTLE: Duration = Duration::from_millis(300);

/// VMs that come out of the snapshot of the first.
const RESTORED: [&str; 2] = ["reader-2", "reader-3"];

const ID_BYTES: usize = 16;

/// Looks whether the interrupt is pending, reads the identifier, and looks again. Shows the identifier
/// and what it saw last if either is news: so one that was not written before the interrupt shows.
const PROGRAM: [u32; 31] = [
    0xd2a1_600a, // mov x10, #0x0b000000: the identifier
    0xd2a1_202b, // mov x11, #0x09010000: the second serial port
    0xd2a1_000c, // mov x12, #0x08000000: the distributor
    0x5280_400d, // mov w13, #0x200
    0xb90c_098d, // str w13, [x12, #0xc08]: interrupt 36 is an edge
    0x5280_020d, // mov w13, #0x10: its bit below
    0xd280_0014, // mov x20, #0
    0xd280_0015, // mov x21, #0
    0xb942_0582, // ldr w2, [x12, #0x204]: pending before
    0x0a0d_0042, // and w2, w2, w13
    0xa940_0540, // ldp x0, x1, [x10]
    0xb942_0584, // ldr w4, [x12, #0x204]: pending after
    0xeb14_001f, // cmp x0, x20
    0xfa55_0020, // ccmp x1, x21, #0, eq
    0x7a40_0840, // ccmp w2, #0, #0, eq
    0x54ff_ff20, // b.eq . - 28
    0xaa00_03f4, // mov x20, x0
    0xaa01_03f5, // mov x21, x1
    0xd280_0103, // mov x3, #8
    0x3900_0160, // strb w0, [x11]
    0xd348_fc00, // lsr x0, x0, #8
    0xf100_0463, // subs x3, x3, #1
    0x54ff_ffa1, // b.ne . - 12
    0xd280_0103, // mov x3, #8
    0x3900_0161, // strb w1, [x11]
    0xd348_fc21, // lsr x1, x1, #8
    0xf100_0463, // subs x3, x3, #1
    0x54ff_ffa1, // b.ne . - 12
    0x3900_0164, // strb w4, [x11]
    0xb902_858d, // str w13, [x12, #0x284]: no longer pending
    0x17ff_ffea, // b . - 88
];

/// The interrupt among those from 32 to 39.
const PENDING: u8 = 1 << 4;

/// What the guest said once: an identifier in hexadecimal digits, and whether it was told to look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    pub id: String,
    pub was_told: bool,
}

/// What one of these guests said, and what its VMM says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reader {
    name: &'static str,
    said: Vec<Said>,
    id: String,
}

impl Reader {
    /// Starts one, saves it, lets it go on, and lets two others go on from there.
    pub fn see_all(host: &mut Host) -> Result<Vec<Self>> {
        let (kernel, snapshot) = (host.file("id-reader"), host.file("reader-snapshot"));
        host.put_file(&kernel, 0o644, &image())?;
        let arguments = ["run", "--kernel", &kernel, "--memory", "16"];
        let first = Guest::spawn("reader", true, &arguments, host)?;
        await_id(&first, host)?;
        first.ctl(host, &["snapshot", &snapshot])?;
        let mut seen = vec![Self::see(first, host)?];
        for name in RESTORED {
            let guest = Guest::restore(name, false, &snapshot, host)?;
            await_id(&guest, host)?;
            seen.push(Self::see(guest, host)?);
        }
        Ok(seen)
    }

    fn see(guest: Guest, host: &mut Host) -> Result<Self> {
        sleep(SETTLE)?;
        let seen = Self {
            name: guest.name(),
            said: understand(&guest.written(host)?),
            id: guest.status(host)?.generation.id,
        };
        guest.stop(host)?;
        Ok(seen)
    }

    /// It read its own generation's identifier and no other; where that was new, it had been told.
    fn check(&self) -> Check {
        let right = Said {
            id: self.id.clone(),
            was_told: RESTORED.contains(&self.name),
        };
        let wrong = self.said.iter().filter(|said| **said != right).count();
        let missing = usize::from(self.said.is_empty());
        let measured = u32::try_from(wrong + missing).map_or(f64::INFINITY, f64::from);
        Check::new("wrong_ids_read", measured, Limit::Equals(0.0), "ids")
            .with_detail(format!("{}, {:?}", self.name, self.said))
    }

    pub fn check_all(all: &[Self]) -> Vec<Check> {
        all.iter().map(Self::check).collect()
    }
}

fn await_id(guest: &Guest, host: &mut Host) -> Result<()> {
    let start = Instant::now();
    while understand(&guest.written(host)?).is_empty() {
        if let Some(exit) = host.poll_end(guest.vmm().child)? {
            bail!("the VMM of guest {} ended with {exit:?}", guest.name());
        }
        if start.elapsed() > LIMIT {
            let name = guest.name();
            bail!(
                "guest {name} read no identifier within {} s",
                LIMIT.as_secs()
            );
        }
        sleep(Duration::from_millis(20))?;
    }
    Ok(())
}

/// The guest as an arm64 `Image`: a header that jumps over itself, and the program.
pub fn image() -> Vec<u8> {
    const HEADER: usize = 64;
    const JUMP: u32 = 0x1400_0010;
    let mut image = vec![0; HEADER];
    image[..4].copy_from_slice(&JUMP.to_le_bytes());
    image[16..24].copy_from_slice(&0x1000u64.to_le_bytes());
    image[56..60].copy_from_slice(b"ARM\x64");
    image.extend(PROGRAM.iter().flat_map(|word| word.to_le_bytes()));
    image
}

/// What it said so far; the last may be under way.
pub fn understand(bytes: &[u8]) -> Vec<Said> {
    let said = |bytes: &[u8]| Said {
        id: hexadecimal(&bytes[..ID_BYTES]),
        was_told: bytes[ID_BYTES] & PENDING != 0,
    };
    bytes.chunks_exact(ID_BYTES + 1).map(said).collect()
}

fn hexadecimal(bytes: &[u8]) -> String {
    let mut digits = String::new();
    for byte in bytes {
        let _ = write!(digits, "{byte:02x}");
    }
    digits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_it_says_is_an_id_and_a_flag() {
        let mut bytes = vec![0xab; 16];
        bytes.push(0);
        bytes.extend([0x01; 16]);
        bytes.push(0x10);
        let said = |id: &str, was_told| Said {
            id: id.repeat(16),
            was_told,
        };
        assert_eq!(understand(&bytes), [said("ab", false), said("01", true)]);
        assert_eq!(understand(&bytes[..33]), [said("ab", false)]);
    }

    #[test]
    fn one_that_reads_another_id_or_was_not_told_fails() {
        let passes = |name, said: &[(&str, bool)]| {
            let said = said.iter().map(|&(id, was_told)| Said {
                id: id.to_owned(),
                was_told,
            });
            let reader = Reader {
                name,
                said: said.collect(),
                id: "a".to_owned(),
            };
            reader.check().pass
        };
        assert!(passes("reader", &[("a", false)]));
        assert!(passes("reader-2", &[("a", true)]));
        assert!(!passes("reader", &[("a", true)]));
        assert!(!passes("reader-2", &[("a", false)]));
        assert!(!passes("reader-2", &[("b", true)]));
        assert!(!passes("reader-2", &[("a", true), ("b", true)]));
        assert!(!passes("reader-2", &[]));
    }
}
