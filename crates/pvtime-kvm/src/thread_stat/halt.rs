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

    /// Whether it waits now; `false` where KVM does not say.
    ///
    /// # Errors
    ///
    /// [`Error::KvmStatistics`].
    pub fn is_under_way(&self) -> Result<bool, Error> {
        let Some(at) = self.under_way_at else {
            return Ok(false);
        };
        Ok(self.read(at)? != 0)
    }

    fn read(&self, at: u64) -> Result<u64, Error> {
        let mut bytes = [0; 8];
        self.statistics
            .read_exact_at(&mut bytes, at)
            .map_err(|source| Error::KvmStatistics { source })?;
        Ok(u64::from_ne_bytes(bytes))
    }
}

/// The halt that a vCPU was found in, if it was.
///
/// A thread that was on no CPU from one look to another was all that time where it is found then. So a
/// halt that is under way has lasted since the first look after which the thread did not run.
#[derive(Debug, Default)]
pub struct UnderWay(Option<Found>);

#[derive(Clone, Copy, Debug)]
struct Found {
    since_ns: u64,
    run_ns: u64,
}

impl UnderWay {
    /// Looks at a vCPU that is halted or not, and whose thread has run for `run_ns`, read between two
    /// moments and after the former. Returns for how long up to the first of them it certainly was in
    /// the same halt, in ns.
    pub fn see(&mut self, is_halted: bool, run_ns: u64, before_ns: u64, after_ns: u64) -> u64 {
        let found = self.0.filter(|found| is_halted && found.run_ns == run_ns);
        self.0 = is_halted.then(|| {
            found.unwrap_or(Found {
                since_ns: after_ns,
                run_ns,
            })
        });
        found.map_or(0, |found| before_ns.saturating_sub(found.since_ns))
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
    fn a_halt_is_as_long_as_its_thread_was_not_seen_to_run() {
        let mut under_way = UnderWay::default();
        assert_eq!(under_way.see(false, 70, 100, 101), 0);
        // It began at some time between two looks.
        assert_eq!(under_way.see(true, 80, 120, 121), 0);
        assert_eq!(under_way.see(true, 80, 140, 142), 19);
        assert_eq!(under_way.see(true, 80, 160, 161), 39);
        // It ran meanwhile, and halted once more.
        assert_eq!(under_way.see(true, 83, 180, 181), 0);
        assert_eq!(under_way.see(true, 83, 200, 201), 19);
        // It sleeps elsewhere.
        assert_eq!(under_way.see(false, 83, 220, 221), 0);
        assert_eq!(under_way.see(true, 83, 240, 241), 0);
    }

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
        let halt = HaltTime {
            statistics: file,
            time_at,
            under_way_at,
        };
        assert_eq!(halt.read_ns().unwrap(), 1_000_000_007);
        assert!(halt.is_under_way().unwrap());
        assert_eq!(find(&halt.statistics, "halt").unwrap(), None);
    }
}
