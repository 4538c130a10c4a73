//! Which provider of stolen time a VM gets.

use std::fmt;

use serde::Serialize;

use crate::probe::{HostTime, Support};

/// What the operator asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum StolenTimeChoice {
    /// On where the host can, off with a notice where it cannot.
    #[default]
    Auto,
    /// On, or an error.
    On,
    /// Off: the guest's discovery says no in both of its calls.
    Off,
}

/// Who keeps the structures in guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum StolenTimeProvider {
    /// KVM, before each time that a vCPU thread enters the guest after it was scheduled in.
    Kernel,
    /// Nobody.
    Off,
}

impl fmt::Display for StolenTimeProvider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kernel => "kernel",
            Self::Off => "off",
        })
    }
}

/// Stolen time was asked for where there is none.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "stolen time cannot be turned on: {reason}; run on a host that has it, or let the VM start \
     without it with --stolen-time auto"
)]
pub struct StolenTimeUnavailable {
    /// What is missing, from the probe.
    pub reason: String,
}

impl StolenTimeChoice {
    /// The provider for this choice on this host.
    ///
    /// # Errors
    ///
    /// [`StolenTimeUnavailable`] for `On` where the host has none.
    pub fn provider(self, host: &HostTime) -> Result<StolenTimeProvider, StolenTimeUnavailable> {
        match (self, &host.stolen_time) {
            (Self::Off, _) | (Self::Auto, Support::No { .. }) => Ok(StolenTimeProvider::Off),
            (Self::Auto | Self::On, Support::Yes) => Ok(StolenTimeProvider::Kernel),
            (Self::On, Support::No { reason }) => Err(StolenTimeUnavailable {
                reason: reason.clone(),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::tests::host;

    #[test]
    fn auto_falls_back_and_on_does_not() {
        let able = host(Support::Yes);
        let unable = host(Support::no("KVM_CAP_STEAL_TIME is missing"));

        assert_eq!(
            StolenTimeChoice::Auto.provider(&able),
            Ok(StolenTimeProvider::Kernel)
        );
        assert_eq!(
            StolenTimeChoice::On.provider(&able),
            Ok(StolenTimeProvider::Kernel)
        );
        assert_eq!(
            StolenTimeChoice::Off.provider(&able),
            Ok(StolenTimeProvider::Off)
        );
        assert_eq!(
            StolenTimeChoice::Auto.provider(&unable),
            Ok(StolenTimeProvider::Off)
        );
        assert_eq!(
            StolenTimeChoice::Off.provider(&unable),
            Ok(StolenTimeProvider::Off)
        );

        let error = StolenTimeChoice::On
            .provider(&unable)
            .unwrap_err()
            .to_string();
        assert_eq!(
            error,
            "stolen time cannot be turned on: KVM_CAP_STEAL_TIME is missing; run on a host that \
             has it, or let the VM start without it with --stolen-time auto"
        );
    }
}
