//! `pvtime probe`: what this machine can do with time, as a host and as a guest.

use std::process::ExitCode;

use anyhow::Result;
use pvtime::scale::Frequency;
use pvtime_kvm::probe::Capability;
use pvtime_kvm::{HostTime, LIVE_PHYSICAL_TIME_LIMITS, Support, counter};
use serde::Serialize;

use crate::{kvm, table};

mod guest;

use guest::Guest;

/// Everything that is known.
#[derive(Debug, Serialize)]
struct Report {
    kernel: String,
    architecture: &'static str,
    /// Of the architected counter; absent on other architectures than arm64.
    counter_frequency_hz: Option<u64>,
    ecv: Option<Support>,
    host: Host,
    guest: Guest,
}

/// What KVM offers here.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Host {
    Kvm {
        kvm_api_version: i32,
        max_vcpus: usize,
        capabilities: Vec<Capability>,
        live_physical_time_limits: &'static str,
    },
    NoKvm {
        reason: String,
    },
}

/// Prints the report.
///
/// # Errors
///
/// Where KVM is there and cannot be asked.
pub fn probe(json: bool) -> Result<ExitCode> {
    let report = Report::new()?;
    if json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print!("{}", report.for_people());
    }
    Ok(ExitCode::SUCCESS)
}

impl Report {
    fn new() -> Result<Self> {
        let system = rustix::system::uname();
        Ok(Self {
            kernel: system.release().to_string_lossy().into_owned(),
            architecture: std::env::consts::ARCH,
            counter_frequency_hz: counter::frequency().map(Frequency::hz),
            ecv: counter::has_ecv().map(|there| Support::when(there, "the CPU lacks FEAT_ECV")),
            host: Host::new()?,
            guest: Guest::look(),
        })
    }

    fn for_people(&self) -> String {
        let Self {
            kernel,
            architecture,
            counter_frequency_hz,
            ecv,
            host,
            guest,
        } = self;
        let counter =
            counter_frequency_hz.map(|frequency_hz| format!("counter: {frequency_hz} Hz\n"));
        let ecv = ecv
            .as_ref()
            .map(|ecv| format!("FEAT_ECV: {}\n", ecv_for_people(ecv)));
        format!(
            "Linux {kernel}, {architecture}\n{}{}\nAs a host\n{}\nAs a guest\n{}",
            counter.unwrap_or_default(),
            ecv.unwrap_or_default(),
            host.for_people(),
            guest.for_people()
        )
    }
}

fn ecv_for_people(ecv: &Support) -> &'static str {
    match ecv {
        Support::Yes => "yes",
        Support::No { .. } => {
            "no: with an offset, every access of a guest to its physical counter traps"
        }
    }
}

impl Host {
    fn new() -> Result<Self> {
        let kvm = match kvm::open() {
            Ok(kvm) => kvm,
            Err(error) => {
                return Ok(Self::NoKvm {
                    reason: error.to_string(),
                });
            }
        };
        let host = HostTime::probe(&kvm)?;
        Ok(Self::Kvm {
            kvm_api_version: host.kvm_api_version,
            max_vcpus: host.max_vcpus,
            capabilities: host.capabilities(),
            live_physical_time_limits: LIVE_PHYSICAL_TIME_LIMITS,
        })
    }

    fn for_people(&self) -> String {
        match self {
            Self::NoKvm { reason } => format!("  {reason}\n"),
            Self::Kvm {
                kvm_api_version,
                max_vcpus,
                capabilities,
                live_physical_time_limits,
            } => {
                let mut lines = table::new(&["capability", "", "why not, and what is lost"]);
                for Capability {
                    name,
                    support,
                    without_it,
                } in capabilities
                {
                    let (there, why) = match support {
                        Support::Yes => ("yes", String::new()),
                        Support::No { reason } => ("no", format!("{reason}: {without_it}")),
                    };
                    lines.add_row(vec![name, there, &why]);
                }
                format!(
                    "  KVM API {kvm_api_version}, up to {max_vcpus} vCPUs\n{lines}\n  \
                     Live physical time: {live_physical_time_limits}\n"
                )
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn l16_people_read_the_reason_the_consequence_and_the_limits() {
        let host = Host::Kvm {
            kvm_api_version: 12,
            max_vcpus: 4,
            live_physical_time_limits: LIVE_PHYSICAL_TIME_LIMITS,
            capabilities: vec![
                Capability {
                    name: "one",
                    support: Support::Yes,
                    without_it: "hidden",
                },
                Capability {
                    name: "two",
                    support: Support::no("too old"),
                    without_it: "all is lost",
                },
            ],
        };
        let text = host.for_people();
        assert!(text.contains("too old: all is lost"), "{text}");
        assert!(!text.contains("hidden"), "{text}");
        assert!(
            text.contains("firmware and a guest without a driver"),
            "{text}"
        );
        let json = serde_json::to_value(&host).unwrap();
        assert_eq!(json["capabilities"][1]["reason"], "too old");
    }

    #[test]
    fn a_machine_without_kvm_is_no_error() {
        let host = Host::NoKvm {
            reason: "there is no /dev/kvm".into(),
        };
        assert_eq!(host.for_people(), "  there is no /dev/kvm\n");
    }
}
