//! Opening KVM, with errors that say what to do.

use std::io;

use kvm_ioctls::Kvm;

/// `/dev/kvm` cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// There is no such device.
    #[error(
        "there is no /dev/kvm: this kernel has no KVM, or the CPU lacks virtualization extensions \
         (or has them turned off); run on a host that has it"
    )]
    Missing,
    /// The user may not use it.
    #[error("no right to use /dev/kvm; add this user to the group that owns it, or run as root")]
    NotPermitted,
    /// Anything else.
    #[error("cannot open /dev/kvm: {0}")]
    Other(io::Error),
}

/// Opens `/dev/kvm`.
///
/// # Errors
///
/// [`OpenError`].
pub fn open() -> Result<Kvm, OpenError> {
    Kvm::new().map_err(|error| OpenError::from(io::Error::from(error)))
}

impl From<io::Error> for OpenError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::NotFound => Self::Missing,
            io::ErrorKind::PermissionDenied => Self::NotPermitted,
            _ => Self::Other(error),
        }
    }
}
