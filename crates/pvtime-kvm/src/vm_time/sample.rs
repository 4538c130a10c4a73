//! What the host counted for a VM, at one moment.

use rustix::thread::Pid;
use serde::Serialize;

use super::{Error, VmTime};
use crate::clock;
use crate::stolen_time::StolenTimeSample;
use crate::thread_stat::{self, run_delay_ns, run_ns};

/// A VM's accounts at one moment.
#[derive(Clone, Debug, Serialize)]
pub struct TimeSample {
    /// Physical time since the VM's time was made, in ns; it runs through pauses and host sleep.
    pub elapsed_ns: u64,
    /// As much of it as the VM was stopped for in this process, up to now, in ns.
    pub paused_ns: u64,
    /// Why the thread that keeps stolen time could not bring it up to date when it tried last; absent
    /// where it could.
    pub stolen_time_failure: Option<String>,
    /// One for each vCPU, in order.
    pub vcpus: Vec<VcpuSample>,
}

/// What the host counted for one vCPU's thread.
#[derive(Clone, Debug, Serialize)]
pub struct VcpuSample {
    /// The vCPU's index.
    pub index: usize,
    /// Its thread, as `gettid` numbers it; absent before the thread bound itself.
    pub thread_id: Option<i32>,
    /// Time of the thread on a CPU, in ns.
    pub run_ns: u64,
    /// Time of the thread runnable without a CPU, in ns.
    pub run_delay_ns: u64,
    /// The structure in guest memory; absent where stolen time is off.
    pub stolen_time: Option<StolenTimeSample>,
}

impl VmTime {
    /// What the host counted for each vCPU's thread, and what stands in guest memory, one right
    /// after the other. The guest is left alone, so what is under way is in no account yet.
    ///
    /// # Errors
    ///
    /// [`Error::Accounts`] where a vCPU's thread has ended.
    pub fn sample(&self) -> Result<TimeSample, Error> {
        let state = self.lock();
        let vcpus = state.vcpus.iter().enumerate().map(|(index, vcpu)| {
            let sample = match vcpu.thread() {
                Some(thread) => self.sample_thread(index, thread),
                None => Ok(self.sample_structure(index)),
            };
            sample.map_err(|source| Error::Accounts { index, source })
        });
        let vcpus = vcpus.collect::<Result<_, _>>()?;
        let now_ns = clock::boottime_ns();
        Ok(TimeSample {
            elapsed_ns: now_ns - self.created_ns,
            paused_ns: state.stops.up_to(now_ns),
            stolen_time_failure: self.stolen.failure(),
            vcpus,
        })
    }

    /// What has been stolen from each vCPU of a VM that is stopped, in ns, by its structure: what is saved
    /// of it, and goes on where it is restored. `None` where its guest has not asked for it.
    ///
    /// KVM adds a wait when the vCPU enters the guest after it: the last one before the stop may be
    /// missing, and a vCPU that goes on in another process never gets it.
    #[must_use]
    pub fn stolen_ns(&self) -> Vec<Option<u64>> {
        let vcpus = self.lock().vcpus.len();
        let values = (0..vcpus).map(|index| self.stolen.value(index));
        values.map(|value| Some(value?.stolen_ns)).collect()
    }

    /// Why the thread that keeps stolen time could not bring it up to date when it tried last; `None`
    /// where it could, and where the kernel keeps it. [`sample`](Self::sample) has it too, unless it
    /// fails itself.
    #[must_use]
    pub fn stolen_time_failure(&self) -> Option<String> {
        self.stolen.failure()
    }

    fn sample_thread(&self, index: usize, thread: Pid) -> Result<VcpuSample, thread_stat::Error> {
        const TRIES: usize = 10;
        let mut run_delay_before_ns = run_delay_ns(thread)?;
        let mut tries = 0;
        loop {
            let sample = VcpuSample {
                thread_id: Some(thread.as_raw_nonzero().get()),
                run_delay_ns: run_delay_before_ns,
                ..self.sample_structure(index)
            };
            let run_delay_after_ns = run_delay_ns(thread)?;
            tries += 1;
            // A wait that ended in between may be in one of the two figures and not in the other.
            if run_delay_before_ns == run_delay_after_ns || tries == TRIES {
                return Ok(VcpuSample {
                    run_ns: run_ns(thread)?,
                    ..sample
                });
            }
            run_delay_before_ns = run_delay_after_ns;
        }
    }

    fn sample_structure(&self, index: usize) -> VcpuSample {
        VcpuSample {
            index,
            thread_id: None,
            run_ns: 0,
            run_delay_ns: 0,
            stolen_time: self
                .stolen
                .structures()
                .map(|structures| structures.load(index)),
        }
    }
}
