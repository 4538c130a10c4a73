//! What the two hosts tell each other about the VM before and after it moves.

use pvtime::abi::live_physical_time::LivePhysicalTime;
use pvtime::host::timeline::TimelineError;
use pvtime::scale::Frequency;
use pvtime_kvm::Support;
use pvtime_kvm::record::Record;
use serde::{Deserialize, Serialize};

use super::frame::in_short;
use crate::cli::{TimeArgs, vm_name};
use crate::layout::{END, MAX_VCPUS, RAM};
use crate::snapshot::{MemoryRange, total_bytes};
use crate::state::profile::CpuProfile;

/// What a VM needs of the host that it goes to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Offer {
    /// Who asks, for people.
    pub who: String,
    /// The VM's name.
    pub id: String,
    /// Whether to answer and no more.
    pub dry_run: bool,
    /// The source's architecture, as Rust calls it.
    pub architecture: String,
    /// The rate of the source's counter, in Hz.
    pub counter_frequency_hz: u64,
    /// Bound on the error of the source's wall clock in ns; absent where nothing bounds it.
    pub wall_error_ns: Option<u64>,
    /// Whether one offset is for both of its counters.
    pub counter_offset: bool,
    /// Live physical time, if the VM has it.
    pub live: Option<LiveOffer>,
    /// How its time is kept, and its policies.
    pub time: TimeArgs,
    /// Where its memory is.
    pub memory: Vec<MemoryRange>,
    /// Its vCPUs.
    pub vcpus: u64,
    /// What they are.
    pub cpu: CpuProfile,
    /// `GICD_IIDR`: the revision of its interrupt controller.
    pub gic_implementation: u32,
    /// Whether its guest has PSCI `SYSTEM_SUSPEND`.
    pub system_suspend: bool,
}

/// Live physical time of a VM that is to move.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LiveOffer {
    /// The rate that the guest believes in, in Hz.
    pub pv_frequency_hz: u64,
    /// Whether the guest asked for it.
    pub found: bool,
}

/// The destination's answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Answer {
    /// Who answers, for people.
    pub who: String,
    /// The rate of its counter, in Hz.
    pub counter_frequency_hz: u64,
    /// Bound on the error of its wall clock in ns; absent where nothing bounds it.
    pub wall_error_ns: Option<u64>,
    /// Every reason why it does not take the VM; none where it does.
    pub refusals: Vec<String>,
}

/// That the VM goes on at the destination.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Started {
    /// What was done to its time; absent where it stays paused.
    pub record: Option<Record>,
}

/// What a host has, as far as an offer is judged by it on any machine.
#[derive(Clone, Debug)]
pub struct Host {
    /// Its architecture, as Rust calls it.
    pub architecture: &'static str,
    /// The rate of its counter.
    pub counter_frequency: Frequency,
    /// The most vCPUs of a VM.
    pub max_vcpus: u64,
    /// The most memory of a VM that its KVM can address, in bytes.
    pub max_memory_bytes: u64,
    /// Memory that is available, in bytes; absent where nobody says.
    pub available_bytes: Option<u64>,
    /// One offset for both counters.
    pub counter_offset: Support,
    /// Hypercalls handed to the VMM.
    pub smccc_filter: Support,
}

impl Host {
    /// Who speaks for `what` on this host, for people.
    #[must_use]
    pub fn who(what: &str) -> String {
        let host = rustix::system::uname();
        format!(
            "{what} on {}, pvtime {}",
            host.nodename().to_string_lossy(),
            env!("CARGO_PKG_VERSION")
        )
    }
}

impl Answer {
    /// The same, of which nothing acts on a terminal or a log.
    #[must_use]
    pub fn printable(mut self) -> Self {
        /// A host has some kinds of reasons, and a CPU some registers.
        const MOST_REFUSALS: usize = 1000;
        self.refusals.truncate(MOST_REFUSALS);
        for text in self.refusals.iter_mut().chain([&mut self.who]) {
            *text = in_short(text);
        }
        self
    }
}

impl Started {
    /// The same, of which nothing acts on a terminal or a log.
    #[must_use]
    pub fn printable(mut self) -> Self {
        if let Some(record) = &mut self.record {
            let Record {
                event,
                cause,
                policy,
                gap,
                live,
                ..
            } = record;
            let known = [Some(event), cause.as_mut(), policy.as_mut()];
            let source = gap.as_mut().map(|it| &mut it.source);
            let distance = live.as_mut().map(|it| &mut it.distance);
            for text in known.into_iter().chain([source, distance]).flatten() {
                *text = in_short(text);
            }
        }
        self
    }
}

impl Offer {
    /// Bytes of its memory.
    pub fn memory_bytes(&self) -> u64 {
        total_bytes(&self.memory).unwrap_or(u64::MAX)
    }

    /// Whether it describes a VM that there can be at all.
    ///
    /// # Errors
    ///
    /// What is wrong with it.
    pub fn check(&self) -> Result<(), String> {
        vm_name(&self.id)?;
        self.time.check()?;
        self.check_words()?;
        if self.vcpus == 0 || self.vcpus > MAX_VCPUS {
            return Err(format!(
                "a VM has 1 to {MAX_VCPUS} vCPUs, not {}",
                self.vcpus
            ));
        }
        match self.memory[..] {
            [range]
                if range.start == RAM
                    && range.bytes != 0
                    && range.bytes <= END - RAM
                    && range.bytes.is_multiple_of(1 << 20) =>
            {
                Ok(())
            }
            _ => Err(format!(
                "a VM has whole MiB of memory from {RAM:#x} to at most {END:#x}, not {:x?}",
                self.memory
            )),
        }
    }

    /// What is shown to people is short, and what is compared is a word.
    fn check_words(&self) -> Result<(), String> {
        const LONGEST_WHO: usize = 1000;
        const LONGEST_WORD: usize = 32;
        if self.who.len() > LONGEST_WHO {
            return Err(format!("whoever asks has at most {LONGEST_WHO} bytes"));
        }
        let is_word = |it: &str| {
            it.bytes()
                .all(|it| it.is_ascii_alphanumeric() || it == b'_')
        };
        if self.architecture.len() > LONGEST_WORD || !is_word(&self.architecture) {
            return Err(format!(
                "an architecture is a word of at most {LONGEST_WORD} letters, digits and underscores"
            ));
        }
        Ok(())
    }

    /// Every reason why the VM cannot go on at a host, as far as that can be told without KVM.
    pub fn refusals(&self, host: &Host) -> Vec<String> {
        [
            self.refuse_architecture(host),
            self.refuse_vcpus(host),
            self.refuse_memory(host),
            self.refuse_frequency(host),
            self.refuse_counters(host),
            self.refuse_filter(host),
        ]
        .into_iter()
        .flatten()
        .collect()
    }

    fn refuse_architecture(&self, host: &Host) -> Option<String> {
        let (theirs, here) = (&self.architecture, host.architecture);
        (theirs != here).then(|| format!("the VM is of an {theirs} host, and this is {here}"))
    }

    fn refuse_vcpus(&self, host: &Host) -> Option<String> {
        let (vcpus, most) = (self.vcpus, host.max_vcpus);
        (vcpus > most).then(|| {
            format!("the VM has {vcpus} vCPUs, and this host's KVM gives a VM at most {most}")
        })
    }

    fn refuse_memory(&self, host: &Host) -> Option<String> {
        let bytes = self.memory_bytes();
        let mib = bytes >> 20;
        if bytes > host.max_memory_bytes {
            let most = host.max_memory_bytes >> 20;
            return Some(format!(
                "the VM has {mib} MiB of memory, and this host's KVM addresses at most {most} MiB"
            ));
        }
        let available = host
            .available_bytes
            .filter(|available| bytes > *available)?;
        Some(format!(
            "the VM has {mib} MiB of memory, and this host has {} MiB available",
            available >> 20
        ))
    }

    fn refuse_frequency(&self, host: &Host) -> Option<String> {
        let here = host.counter_frequency;
        let vm = match Frequency::from_hz(self.counter_frequency_hz) {
            Ok(vm) if vm == here => return None,
            Ok(vm) => vm,
            Err(error) => return Some(error.to_string()),
        };
        let differs = |has_live| {
            let error = TimelineError::FrequencyDiffers {
                vm,
                host: here,
                has_live,
            };
            Some(error.to_string())
        };
        match self.live {
            None => differs(false),
            Some(LiveOffer { found: false, .. }) => differs(true),
            Some(LiveOffer {
                pv_frequency_hz, ..
            }) => match Frequency::from_hz(pv_frequency_hz) {
                Ok(pv) => LivePhysicalTime::between(here, pv)
                    .err()
                    .map(|error| error.to_string()),
                Err(error) => Some(error.to_string()),
            },
        }
    }

    fn refuse_counters(&self, host: &Host) -> Option<String> {
        match (&host.counter_offset, self.counter_offset) {
            (Support::No { reason }, true) => Some(format!(
                "the VM's counters have one offset, and here they cannot: {reason}"
            )),
            (Support::Yes, false) => Some(
                "the VM's physical counter is its host's, and here it would be the VM's own: it \
                 would jump"
                    .into(),
            ),
            (Support::Yes, true) | (Support::No { .. }, false) => None,
        }
    }

    fn refuse_filter(&self, host: &Host) -> Option<String> {
        match &host.smccc_filter {
            Support::No { reason } if self.live.is_some() => Some(format!(
                "the VM has live physical time, and no hypercall reaches the VMM here: {reason}"
            )),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::migration::tests::offer;

    fn host() -> Host {
        Host {
            architecture: "aarch64",
            counter_frequency: Frequency::from_hz(25_000_000).unwrap(),
            max_vcpus: 8,
            max_memory_bytes: 1 << 39,
            available_bytes: Some(1 << 30),
            counter_offset: Support::Yes,
            smccc_filter: Support::Yes,
        }
    }

    #[test]
    fn a_vm_goes_to_a_host_that_has_what_it_needs() {
        assert_eq!(offer().check(), Ok(()));
        assert_eq!(offer().refusals(&host()), Vec::<String>::new());
    }

    #[test]
    fn what_is_no_vm_is_no_offer() {
        let range = offer().memory[0];
        for (vcpus, memory) in [
            (0, vec![range]),
            (MAX_VCPUS + 1, vec![range]),
            (1, vec![]),
            (1, vec![range, range]),
            (1, vec![MemoryRange { start: 0, ..range }]),
            (1, vec![MemoryRange { bytes: 0, ..range }]),
            (
                1,
                vec![MemoryRange {
                    bytes: 4096,
                    ..range
                }],
            ),
            (
                1,
                vec![MemoryRange {
                    bytes: u64::MAX,
                    ..range
                }],
            ),
            (
                1,
                vec![MemoryRange {
                    bytes: END - RAM + (1 << 20),
                    ..range
                }],
            ),
        ] {
            let offer = Offer {
                memory,
                vcpus,
                ..offer()
            };
            assert!(offer.check().is_err(), "{offer:?}");
        }
    }

    #[track_caller]
    fn refused(offer: &Offer, host: &Host, expected: &str) {
        let refusals = offer.refusals(host);
        assert!(
            refusals.len() == 1 && refusals[0].contains(expected),
            "{refusals:?}"
        );
    }

    #[test]
    fn each_lack_is_a_reason() {
        let no = || Support::no("this kernel is too old");
        let hz = |hz| Frequency::from_hz(hz).unwrap();
        let live = Some(LiveOffer {
            pv_frequency_hz: 1_000_000_000,
            found: true,
        });
        refused(
            &offer(),
            &Host {
                architecture: "x86_64",
                ..host()
            },
            "an aarch64 host, and this is x86_64",
        );
        refused(
            &Offer {
                vcpus: 9,
                ..offer()
            },
            &host(),
            "9 vCPUs, and this host's KVM gives a VM at most 8",
        );
        refused(
            &offer(),
            &Host {
                available_bytes: Some((3 << 20) - 1),
                ..host()
            },
            "4 MiB of memory, and this host has 2 MiB available",
        );
        refused(
            &offer(),
            &Host {
                max_memory_bytes: 1 << 20,
                ..host()
            },
            "addresses at most 1 MiB",
        );
        refused(
            &offer(),
            &Host {
                counter_offset: no(),
                ..host()
            },
            "this kernel is too old",
        );
        refused(
            &Offer {
                counter_offset: false,
                ..offer()
            },
            &host(),
            "it would jump",
        );
        refused(
            &Offer { live, ..offer() },
            &Host {
                smccc_filter: no(),
                ..host()
            },
            "no hypercall reaches the VMM here: this kernel is too old",
        );
        let other = Host {
            counter_frequency: hz(100_000_000),
            ..host()
        };
        refused(&offer(), &other, "25000000");
        refused(&offer(), &other, "100000000");
        let unasked = live.map(|live| LiveOffer {
            found: false,
            ..live
        });
        refused(
            &Offer {
                live: unasked,
                ..offer()
            },
            &other,
            "100000000",
        );
        assert!(Offer { live, ..offer() }.refusals(&other).is_empty());
        let absurd = Host {
            counter_frequency: hz(1 << 33),
            ..host()
        };
        assert_eq!(Offer { live, ..offer() }.refusals(&absurd).len(), 1);
    }

    #[test]
    fn all_reasons_are_told_at_once() {
        let host = Host {
            max_vcpus: 1,
            available_bytes: Some(0),
            counter_frequency: Frequency::from_hz(24_000_000).unwrap(),
            ..host()
        };
        let offer = Offer {
            vcpus: 2,
            ..offer()
        };
        assert_eq!(offer.refusals(&host).len(), 3);
    }
}
