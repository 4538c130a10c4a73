//! What carries a stream, by what the operator gave.

use std::os::fd::OwnedFd;

use super::address::Address;
use super::wire::{ConnectError, Connection, Wire};

/// How a stream is kept from others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Security {
    /// Whether memory may leave this machine in the clear.
    pub insecure: bool,
}

impl Security {
    /// Whether other machines may be at the other end.
    #[must_use]
    pub fn may_leave(&self) -> bool {
        self.insecure
    }

    /// Connects to where a VM goes.
    ///
    /// # Errors
    ///
    /// [`ConnectError`].
    pub fn connect(
        &self,
        address: &Address,
        cancel: Option<OwnedFd>,
    ) -> Result<Box<dyn Wire>, ConnectError> {
        let connection = Connection::open(address, self.may_leave(), cancel)?;
        Ok(Box::new(connection))
    }

    /// Goes on with a connection that was accepted.
    ///
    /// # Errors
    ///
    /// [`ConnectError`].
    pub fn accept(&self, connection: Connection) -> Result<Box<dyn Wire>, ConnectError> {
        Ok(Box::new(connection))
    }
}
