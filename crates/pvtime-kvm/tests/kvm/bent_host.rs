//! A host that sleeps, restarts its counter and fails when it is told to.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use crate::machine::Machine;
use crate::stopper::{Stop, Stopper};
use kvm_ioctls::VcpuFd;
use pvtime::host::timeline::HostSample;
use pvtime::host::{CounterOffset, HostCount};
use pvtime_kvm::clock::boottime_ns;
use pvtime_kvm::offset::SetOffsetError;
use pvtime_kvm::{Host, KvmHost, VmTime, VmTimeConfig, counter};

/// A VM's host, which is this one but for what was told to it.
#[derive(Debug)]
struct BentHost {
    kvm: KvmHost,
    bend: Arc<Bend>,
}

/// What a host is told.
#[derive(Debug, Default)]
pub struct Bend {
    asleep: Mutex<Option<Asleep>>,
    /// The counter's offset is not set as many times more.
    failures: AtomicU32,
    failed: AtomicU32,
    /// The counter when it did so last.
    failed_at: AtomicU64,
    /// It is because a vCPU is in the way.
    pub is_busy: AtomicBool,
    /// As it was given to KVM last.
    offset: AtomicU64,
    pub is_nested: AtomicBool,
    /// How much longer the clocks take to be read again, when every vCPU is ready.
    delay_ns: AtomicU64,
}

/// A time in which the clocks but `CLOCK_BOOTTIME` stand still, and the counter does not.
#[derive(Clone, Copy, Debug)]
struct Asleep {
    from_ns: u64,
    to_ns: u64,
    /// What the counter is less afterwards, because it started anew.
    restarted_by: u64,
}

/// From when a sleep is asked for until the host sleeps, so that the VMM is stopped before.
const BEFORE: Duration = Duration::from_millis(500);

impl Bend {
    /// The host sleeps for this long, a while from now.
    pub fn sleep(&self, before: Duration, length: Duration, restarts: bool) {
        let ns = |it: Duration| u64::try_from(it.as_nanos()).unwrap();
        let from_ns = boottime_ns() + ns(before);
        *self.asleep.lock().unwrap() = Some(Asleep {
            from_ns,
            to_ns: from_ns + ns(length),
            restarted_by: if restarts { counter::read() } else { 0 },
        });
    }

    /// The same, with this process stopped from before until after.
    pub fn sleep_and_stop(&self, stopper: &mut Stopper, length: Duration, restarts: bool) -> Stop {
        self.sleep(BEFORE, length, restarts);
        stopper.stop_for(BEFORE + length + Duration::from_millis(200))
    }

    pub fn fail(&self, times: u32) {
        self.failures.store(times, Ordering::SeqCst);
    }

    /// How often it did.
    pub fn failed(&self) -> u32 {
        self.failed.load(Ordering::SeqCst)
    }

    /// The counter when it did so last.
    pub fn failed_at(&self) -> u64 {
        self.failed_at.load(Ordering::SeqCst)
    }

    /// From now on the clocks take so much longer to be read again.
    pub fn delay(&self, by: Duration) {
        let ns = u64::try_from(by.as_nanos()).unwrap();
        self.delay_ns.store(ns, Ordering::SeqCst);
    }

    /// What the guest's counters are less than those of the machine.
    pub fn offset(&self) -> u64 {
        self.offset.load(Ordering::SeqCst)
    }

    fn asleep(&self) -> Asleep {
        self.asleep.lock().unwrap().unwrap_or(Asleep {
            from_ns: u64::MAX,
            to_ns: u64::MAX,
            restarted_by: 0,
        })
    }
}

impl Asleep {
    fn slept_ns(&self, at_ns: u64) -> u64 {
        at_ns.clamp(self.from_ns, self.to_ns) - self.from_ns
    }

    fn restarted_by(&self, at_ns: u64) -> u64 {
        if at_ns >= self.to_ns {
            self.restarted_by
        } else {
            0
        }
    }
}

impl Host for BentHost {
    fn sample(&self) -> HostSample {
        let now = self.kvm.sample();
        let asleep = self.bend.asleep();
        let slept_ns = asleep.slept_ns(now.boottime_ns);
        HostSample {
            counter: HostCount(now.counter.0 - asleep.restarted_by(now.boottime_ns)),
            monotonic_ns: now.monotonic_ns - slept_ns,
            monotonic_raw_ns: now.monotonic_raw_ns - slept_ns,
            ..now
        }
    }

    fn sample_again(&self, _before: &HostSample) -> HostSample {
        let delay_ns = self.bend.delay_ns.load(Ordering::SeqCst);
        thread::sleep(Duration::from_nanos(delay_ns));
        self.sample()
    }

    fn set_offset(&self, offset: CounterOffset) -> Result<(), SetOffsetError> {
        let left = &self.bend.failures;
        let fewer = |left: u32| left.checked_sub(1);
        let failing = left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, fewer);
        if failing.is_ok() {
            self.bend.failed.fetch_add(1, Ordering::SeqCst);
            self.bend.failed_at.store(counter::read(), Ordering::SeqCst);
            return Err(if self.bend.is_busy.load(Ordering::SeqCst) {
                SetOffsetError::Busy
            } else {
                SetOffsetError::Kernel(io::Error::from_raw_os_error(libc::EIO))
            });
        }
        let restarted_by = self.bend.asleep().restarted_by(boottime_ns());
        let offset = offset.0.wrapping_add(restarted_by);
        self.bend.offset.store(offset, Ordering::SeqCst);
        self.kvm.set_offset(CounterOffset(offset))
    }

    fn is_nested(&self, vcpu: &VcpuFd) -> bool {
        self.bend.is_nested.load(Ordering::SeqCst) || self.kvm.is_nested(vcpu)
    }
}

/// A VM's time on such a host.
pub fn time(
    machine: &Machine,
    config: VmTimeConfig,
    bend: &Arc<Bend>,
) -> Result<Arc<VmTime>, pvtime_kvm::Error> {
    let host = BentHost {
        kvm: KvmHost::new(&machine.vm)?,
        bend: Arc::clone(bend),
    };
    VmTime::with_host(&machine.vm, &machine.host(), config, Box::new(host))
}
