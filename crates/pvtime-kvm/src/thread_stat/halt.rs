//! What KVM counts of a vCPU's halts.
#![expect(
    unsafe_code,
    reason = "KVM's statistics have no safe wrapper in kvm-ioctls"
)]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::os::unix::fs::FileExt;

use vmm_sys_util::ioctl::ioctl;

use super::Error;

mod number {
    vmm_sys_util::ioctl_io_nr!(KVM_GET_STATS_FD, kvm_bindings::KVMIO, 0xce);
}

/// KVM's own count of how long a vCPU waited for something to do.
#[derive(Debug)]
pub struct HaltTime {
    statistics: File,
    /// Where the time is.
    time_at: u64,
    /// Where it says whether the vCPU waits now; none in a kernel before 5.17.
    under_way_at: Option<u64>,
}

impl HaltTime {
    const TIME: &'static str = "halt_wait_ns";
    const UNDER_WAY: &'static str = "blocking";
    /// What is read at once: in Linux 6.12 there are 96 numbers between the two, three histograms.
    const NEAR: usize = 1024;

    /// For a vCPU.
    ///
    /// # Errors
    ///
    /// [`Error::KvmStatistics`] and [`Error::NoStatistic`].
    pub fn of(vcpu: &impl AsRawFd) -> Result<Self, Error> {
        // SAFETY: the ioctl takes no argument and returns a new file descriptor.
        let statistics: RawFd = unsafe { ioctl(vcpu, number::KVM_GET_STATS_FD()) };
        if statistics < 0 {
            return Err(Error::KvmStatistics {
                source: io::Error::last_os_error(),
            });
        }
        // SAFETY: the descriptor is new and nobody else's.
        let statistics = unsafe { File::from_raw_fd(statistics) };
        let find = |name| find(&statistics, name).map_err(|source| Error::KvmStatistics { source });
        let time_at = find(Self::TIME)?.ok_or(Error::NoStatistic { name: Self::TIME })?;
        let under_way_at = find(Self::UNDER_WAY)?;
        Ok(Self {
            statistics,
            time_at,
            under_way_at,
        })
    }

    /// In ns since the vCPU was made; a wait counts when it has ended.
    ///
    /// # Errors
    ///
    /// [`Error::KvmStatistics`].
    pub fn read_ns(&self) -> Result<u64, Error> {
        self.read(self.time_at)
    }

    /// The same, and whether it waits now; `false` where KVM does not say. Both are of one call where
    /// they lie near each other, as they do.
    ///
    /// # Errors
    ///
    /// [`Error::KvmStatistics`].
    pub fn read_with_under_way(&self) -> Result<(u64, bool), Error> {
        let Some(under_way_at) = self.under_way_at else {
            return Ok((self.read_ns()?, false));
        };
        let apart = usize::try_from(self.time_at.abs_diff(under_way_at));
        let mut bytes = [0; Self::NEAR];
        let part = apart.ok().and_then(|apart| bytes.get_mut(..apart + 8));
        if let Some(part) = part {
            self.read_into(part, self.time_at.min(under_way_at))?;
            if let (Some(low), Some(high)) = (part.first_chunk(), part.last_chunk()) {
                let [low, high] = [low, high].map(|it| u64::from_ne_bytes(*it));
                let (time_ns, under_way) = if self.time_at < under_way_at {
                    (low, high)
                } else {
                    (high, low)
                };
                return Ok((time_ns, under_way != 0));
            }
        }
        Ok((self.read_ns()?, self.read(under_way_at)? != 0))
    }

    fn read(&self, at: u64) -> Result<u64, Error> {
        let mut bytes = [0; 8];
        self.read_into(&mut bytes, at)?;
        Ok(u64::from_ne_bytes(bytes))
    }

    fn read_into(&self, bytes: &mut [u8], at: u64) -> Result<(), Error> {
        let read = self.statistics.read_exact_at(bytes, at);
        read.map_err(|source| Error::KvmStatistics { source })
    }
}

/// Finds a statistic by its name (Documentation/virt/kvm/api.rst, `KVM_GET_STATS_FD`): a header of
/// six 32-bit fields, then descriptors of 16 bytes and a name, then the numbers.
fn find(statistics: &impl FileExt, wanted: &str) -> io::Result<Option<u64>> {
    const DESCRIPTOR_BYTES: usize = 16;
    let mut header = [0; 24];
    statistics.read_exact_at(&mut header, 0)?;
    let [_flags, name_bytes, count, _id, descriptors, data] =
        std::array::from_fn(|field| u32_at(&header, 4 * field));
    let stride = DESCRIPTOR_BYTES + name_bytes as usize;
    let mut descriptor = vec![0; stride];
    for index in 0..u64::from(count) {
        statistics.read_exact_at(
            &mut descriptor,
            u64::from(descriptors) + index * stride as u64,
        )?;
        let name = descriptor[DESCRIPTOR_BYTES..]
            .split(|byte| *byte == 0)
            .next();
        if name == Some(wanted.as_bytes()) {
            return Ok(Some(u64::from(data) + u64::from(u32_at(&descriptor, 8))));
        }
    }
    Ok(None)
}

fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    u32::from_ne_bytes(*bytes[offset..].first_chunk().expect("inside the structure"))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_statistic_is_found_by_its_name() {
        let mut file = tempfile::tempfile().unwrap();
        let names: [&[u8; 16]; 2] = [b"blocking\0\0\0\0\0\0\0\0", b"halt_wait_ns\0\0\0\0"];
        let mut bytes: Vec<u8> = [0u32, 16, 2, 24, 24, 88].map(u32::to_ne_bytes).concat();
        for (name, offset) in names.into_iter().zip([0u32, 8]) {
            bytes.extend([0u32, 0, offset, 0].map(u32::to_ne_bytes).concat());
            bytes.extend(name);
        }
        assert_eq!(bytes.len(), 88);
        bytes.extend([7u64, 1_000_000_007].map(u64::to_ne_bytes).concat());
        file.write_all(&bytes).unwrap();

        let at = |name| find(&file, name).unwrap();
        let (time_at, under_way_at) = (at(HaltTime::TIME).unwrap(), at(HaltTime::UNDER_WAY));
        assert_eq!(find(&file, "halt").unwrap(), None);
        let halt = HaltTime {
            statistics: file,
            time_at,
            under_way_at,
        };
        assert_eq!(halt.read_ns().unwrap(), 1_000_000_007);
        assert_eq!(halt.read_with_under_way().unwrap(), (1_000_000_007, true));
        let silent = HaltTime {
            under_way_at: None,
            ..halt
        };
        assert_eq!(
            silent.read_with_under_way().unwrap(),
            (1_000_000_007, false)
        );
    }

    #[test]
    fn numbers_are_read_wherever_they_are() {
        let mut file = tempfile::tempfile().unwrap();
        let numbers: Vec<u8> = (0..1_000u64).flat_map(u64::to_ne_bytes).collect();
        file.write_all(&numbers).unwrap();
        let mut halt = HaltTime {
            statistics: file,
            time_at: 8 * 100,
            under_way_at: None,
        };
        for under_way in [0, 99, 101, 227, 228, 999] {
            halt.under_way_at = Some(8 * under_way);
            let read = halt.read_with_under_way().unwrap();
            assert_eq!(read, (100, under_way > 0), "{under_way}");
        }
        halt.under_way_at = Some(8 * 1_000);
        assert!(halt.read_with_under_way().is_err());
    }
}
