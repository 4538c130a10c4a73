//! What saved time says before a VM is made for it.

use pvtime::host::saved::{SavedError, SavedVm};
use pvtime::host::timeline::TimelineError;
use pvtime::scale::Frequency;

/// What a VM's saved time asks of the host and of the VM that goes on with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SavedTime(SavedVm);

impl SavedTime {
    /// The start of what `VmTime::save` returned; the vCPUs' part is looked at when it is restored.
    ///
    /// # Errors
    ///
    /// [`SavedError`] where it is damaged or of another version.
    pub fn parse(bytes: &[u8]) -> Result<Self, SavedError> {
        let vm = bytes.get(..SavedVm::SIZE_BYTES).unwrap_or(bytes);
        Ok(Self(SavedVm::parse(vm)?))
    }

    /// Rate of the counter that it was saved on.
    #[must_use]
    pub fn frequency(&self) -> Frequency {
        self.0.sample.frequency
    }

    /// The PV frequency, if the VM has live physical time; it keeps it for life.
    #[must_use]
    pub fn live_physical_time(&self) -> Option<Frequency> {
        self.0.live.map(|live| live.pv)
    }

    /// Whether the VM is told of its pauses.
    #[must_use]
    pub fn has_paused_time(&self) -> bool {
        self.0.paused_time.is_some()
    }

    /// Whether its guest has suspended itself, so that it goes on only when it is resumed.
    #[must_use]
    pub fn is_guest_suspended(&self) -> bool {
        self.0.guest_suspended
    }

    /// Whether the VM can go on at a host whose counter runs at `host`: at the same frequency, or
    /// with live physical time that its guest asked for.
    ///
    /// # Errors
    ///
    /// [`TimelineError::FrequencyDiffers`], with both and the way out.
    pub fn admits(&self, host: Frequency) -> Result<(), TimelineError> {
        self.0.admits(host)
    }
}
