//! A record's header and checksum put right, so that the fuzzer gets at the fields.

use crc::{CRC_32_ISO_HDLC, Crc};

/// As many of the bytes as a record has, the rest zero, with the header of a record of `kind`.
pub fn sealed<const SIZE: usize>(bytes: &[u8], kind: u16) -> [u8; SIZE] {
    let mut record = [0; SIZE];
    for (to, from) in record.iter_mut().zip(bytes) {
        *to = *from;
    }
    record[..4].copy_from_slice(b"PVTS");
    record[4..6].copy_from_slice(&kind.to_le_bytes());
    record[6..8].copy_from_slice(&1u16.to_le_bytes());
    record[8..12].copy_from_slice(&u32::try_from(SIZE).unwrap().to_le_bytes());
    let crc = Crc::<u32>::new(&CRC_32_ISO_HDLC);
    let mut digest = crc.digest();
    digest.update(&record[..12]);
    digest.update(&record[16..]);
    record[12..16].copy_from_slice(&digest.finalize().to_le_bytes());
    record
}
