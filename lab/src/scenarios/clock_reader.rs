//! A guest of forty instructions that reads its clock on live physical time all the time, and shows what
//! it reads.

/// Bytes that it shows for each reading.
pub const ROUND_BYTES: usize = 48;

/// `PV_TIME_LPT`; its result is the structure's address.
pub const ASK: u32 = 0xd400_0002; // hvc #0
/// The same address without asking.
pub const KNOW: u32 = 0xd2a1_4020; // mov x0, #0xa010000

/// An arm64 Image that shows, as 64-bit words on the second serial port and again and again: the
/// structure's sequence number, frequencies, multiplier and fraction bits, the virtual counter, and the
/// sequence number.
pub fn image(find: u32) -> Vec<u8> {
    const HEADER: [u32; 16] = [
        0x1400_0010, // b . + 64
        0,
        0,
        0,
        4096, // image_size
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0x644d_5241, // "ARM\x64"
        0,
    ];
    const START: [u32; 3] = [
        0xd2a1_2033, // mov x19, #0x9010000
        0x5280_0440, // mov w0, #0x22
        0x72b8_a000, // movk w0, #0xc500, lsl #16
    ];
    const AGAIN: [u32; 28] = [
        0xaa00_03f4, // mov x20, x0
        0xf940_0681, // again: ldr x1, [x20, #8]
        0xf940_0a82, // ldr x2, [x20, #16]
        0xf940_0e83, // ldr x3, [x20, #24]
        0xf940_1684, // ldr x4, [x20, #40]
        0xd503_3fdf, // isb
        0xd53b_e045, // mrs x5, cntvct_el0
        0xd503_3fdf, // isb
        0xf940_0686, // ldr x6, [x20, #8]
        0xaa01_03e0, // mov x0, x1
        0x9400_000c, // bl show
        0xaa02_03e0, // mov x0, x2
        0x9400_000a, // bl show
        0xaa03_03e0, // mov x0, x3
        0x9400_0008, // bl show
        0xaa04_03e0, // mov x0, x4
        0x9400_0006, // bl show
        0xaa05_03e0, // mov x0, x5
        0x9400_0004, // bl show
        0xaa06_03e0, // mov x0, x6
        0x9400_0002, // bl show
        0x17ff_ffec, // b again
        0x5280_0109, // show: mov w9, #8
        0x3900_0260, // next: strb w0, [x19]
        0xd348_fc00, // lsr x0, x0, #8
        0x7100_0529, // subs w9, w9, #1
        0x54ff_ffa1, // b.ne next
        0xd65f_03c0, // ret
    ];
    let program = HEADER.iter().chain(&START).chain([&find]).chain(&AGAIN);
    program.flat_map(|word| word.to_le_bytes()).collect()
}

/// One reading of the guest's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reading {
    pub native_hz: u64,
    pub pv_hz: u64,
    pub mapping: Mapping,
    pub pv: u64,
}

/// How PV counts follow from native ones, as the structure has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mapping {
    multiplier: u64,
    fraction_bits: u64,
}

impl Mapping {
    /// The PV count; `None` where it does not fit.
    pub fn apply(self, count: u64) -> Option<u64> {
        let product = u128::from(count) * u128::from(self.multiplier);
        u64::try_from(product >> (self.fraction_bits & 0x3f)).ok()
    }
}

impl Reading {
    /// From the six words that were shown; `None` where the structure changed between the first and
    /// the last.
    fn new(words: [u64; 6]) -> Option<Self> {
        let [before, frequencies, multiplier, bits, count, after] = words;
        let mapping = Mapping {
            multiplier,
            // The upper half is of the way back.
            fraction_bits: bits & 0xffff_ffff,
        };
        (before == after).then_some(Self {
            native_hz: frequencies & 0xffff_ffff,
            pv_hz: frequencies >> 32,
            mapping,
            pv: mapping.apply(count)?,
        })
    }
}

/// What the guest showed on all its hosts: each went on where the one before stopped.
pub fn readings(shown: &[u8]) -> Vec<Option<Reading>> {
    let (words, _) = shown.as_chunks::<8>();
    let words: Vec<u64> = words.iter().map(|word| u64::from_le_bytes(*word)).collect();
    let (rounds, _) = words.as_chunks::<6>();
    rounds.iter().map(|words| Reading::new(*words)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PV_HZ: u32 = 1_000_000_000;

    #[test]
    fn a_reading_is_what_the_guest_computes() {
        let frequencies = (u64::from(PV_HZ) << 32) + 25_000_000;
        let at_25_mhz = [2, frequencies, 5 << 61, 58, 25, 2];
        let reading = Reading {
            native_hz: 25_000_000,
            pv_hz: PV_HZ.into(),
            mapping: Mapping {
                multiplier: 5 << 61,
                fraction_bits: 58,
            },
            pv: 1000,
        };
        assert_eq!(Reading::new(at_25_mhz), Some(reading));
        let torn = [2, frequencies, 5 << 61, 58, 25, 4];
        assert_eq!(Reading::new(torn), None);
        let mut shown: Vec<u8> = [at_25_mhz, torn]
            .iter()
            .flatten()
            .flat_map(|word| word.to_le_bytes())
            .collect();
        assert_eq!(readings(&shown), [Some(reading), None]);
        // One that was cut is not looked at.
        shown.pop();
        assert_eq!(readings(&shown), [Some(reading)]);
    }

    #[test]
    fn the_image_begins_as_one_and_fits_a_page() {
        for find in [ASK, KNOW] {
            let image = image(find);
            assert_eq!(image[56..60], *b"ARM\x64");
            assert!(image.len() <= 4096);
        }
    }
}
