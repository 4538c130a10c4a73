//! Stolen time: which provider a VM gets, and the providers.

#[cfg(target_arch = "aarch64")]
mod kernel;
#[cfg(any(target_arch = "aarch64", test))]
mod lowered;
#[cfg(target_arch = "aarch64")]
mod publisher;
#[cfg(target_arch = "aarch64")]
mod stolen;
#[cfg(target_arch = "aarch64")]
mod structures;

#[cfg(target_arch = "aarch64")]
pub(crate) use kernel::hide;
#[cfg(target_arch = "aarch64")]
pub use publisher::PublishError;
#[cfg(target_arch = "aarch64")]
pub(crate) use stolen::Stolen;
#[cfg(target_arch = "aarch64")]
pub(crate) use structures::CAPACITY;
#[cfg(target_arch = "aarch64")]
pub use structures::StolenTimeSample;

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
    /// On, or an error: kept by the kernel where KVM does, else in user space.
    On,
    /// On and kept in user space, or an error.
    User,
    /// Off: the guest's discovery says no in both of its calls.
    Off,
}

/// Who keeps the structures in guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum StolenTimeProvider {
    /// KVM, before each time that a vCPU thread enters the guest after it was scheduled in.
    Kernel,
    /// A thread of the VMM, from the scheduler's accounts, once in a period.
    User,
    /// Nobody.
    Off,
}

impl fmt::Display for StolenTimeProvider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kernel => "kernel",
            Self::User => "user",
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
    /// [`StolenTimeUnavailable`] for `On` and `User` where the host has none.
    pub fn provider(self, host: &HostTime) -> Result<StolenTimeProvider, StolenTimeUnavailable> {
        let in_user_space = || match host.user_stolen_time() {
            Support::Yes => Ok(StolenTimeProvider::User),
            Support::No { reason } => Err(StolenTimeUnavailable { reason }),
        };
        match (self, &host.stolen_time) {
            (Self::Off, _) => Ok(StolenTimeProvider::Off),
            (Self::User, _) => in_user_space(),
            (Self::Auto | Self::On, Support::Yes) => Ok(StolenTimeProvider::Kernel),
            (Self::On, Support::No { reason: kernel }) => {
                in_user_space().map_err(|StolenTimeUnavailable { reason: user }| {
                    StolenTimeUnavailable {
                        reason: format!("{kernel}, and for a thread of the VMM {user}"),
                    }
                })
            }
            (Self::Auto, Support::No { .. }) => {
                Ok(in_user_space().unwrap_or(StolenTimeProvider::Off))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::tests::host;

    #[test]
    fn every_choice_on_every_host() {
        use StolenTimeChoice::{Auto, Off, On, User};
        use StolenTimeProvider as Provider;
        let no = || Support::no("it is not there");
        let both = host(Support::Yes, Support::Yes);
        let kernel = host(Support::Yes, no());
        let user = host(no(), Support::Yes);
        let neither = host(no(), no());
        for (choice, of_both, of_kernel, of_user, of_neither) in [
            (
                Auto,
                Some(Provider::Kernel),
                Some(Provider::Kernel),
                Some(Provider::User),
                Some(Provider::Off),
            ),
            (
                On,
                Some(Provider::Kernel),
                Some(Provider::Kernel),
                Some(Provider::User),
                None,
            ),
            (User, Some(Provider::User), None, Some(Provider::User), None),
            (
                Off,
                Some(Provider::Off),
                Some(Provider::Off),
                Some(Provider::Off),
                Some(Provider::Off),
            ),
        ] {
            let provider = |host: &HostTime| choice.provider(host).ok();
            assert_eq!(provider(&both), of_both, "{choice:?}");
            assert_eq!(provider(&kernel), of_kernel, "{choice:?}");
            assert_eq!(provider(&user), of_user, "{choice:?}");
            assert_eq!(provider(&neither), of_neither, "{choice:?}");
        }
    }

    #[test]
    fn on_where_there_is_none_says_what_is_missing() {
        let host = host(
            Support::no("KVM_CAP_STEAL_TIME is 0"),
            Support::no("KVM has no filter"),
        );
        let error = StolenTimeChoice::On
            .provider(&host)
            .unwrap_err()
            .to_string();
        assert_eq!(
            error,
            "stolen time cannot be turned on: KVM_CAP_STEAL_TIME is 0, and for a thread of the \
             VMM KVM has no filter; run on a host that has it, or let the VM start without it with \
             --stolen-time auto"
        );
    }
}
