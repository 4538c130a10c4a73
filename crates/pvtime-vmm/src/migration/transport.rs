//! What carries a stream, by what the operator gave.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::address::Address;
use super::tls::{Client, Files, Server};
use super::wire::{ConnectError, Connection, Listener, Wire};

/// How a stream is kept from others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Security {
    /// Whether memory may leave this machine in the clear.
    pub insecure: bool,
    /// What both sides prove themselves with, where it is encrypted.
    pub tls: Option<Files>,
}

impl Security {
    /// Whether other machines may be at the other end.
    fn may_leave(&self) -> bool {
        self.insecure || self.tls.is_some()
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
        let files = self.tls.as_ref();
        let tls = files.map(|it| Client::new(it, address)).transpose()?;
        let connection = Connection::open(address, self.may_leave(), cancel)?;
        Ok(match tls {
            Some(tls) => Box::new(tls.connect(connection)?),
            None => Box::new(connection),
        })
    }

    /// Begins to await VMs.
    ///
    /// # Errors
    ///
    /// [`ConnectError`].
    pub fn listen(&self, address: &Address) -> Result<Door, ConnectError> {
        Ok(Door {
            tls: self.tls.as_ref().map(Server::new).transpose()?,
            listener: Listener::bind(address, self.may_leave())?,
        })
    }
}

/// Where VMs are awaited, and who may come.
#[derive(Debug)]
pub struct Door {
    tls: Option<Server>,
    listener: Listener,
}

impl Door {
    /// Where it is, with the port that it got.
    #[must_use]
    pub fn address(&self) -> Option<Address> {
        self.listener.address()
    }

    /// How streams are kept from others here, for people.
    #[must_use]
    pub fn is_secured(&self) -> bool {
        self.tls.is_some()
    }

    /// The next connection; `None` where whoever was there has gone again.
    ///
    /// # Errors
    ///
    /// [`ConnectError::Refused`].
    pub fn accept(&self, cancel: Option<OwnedFd>) -> Result<Option<Box<dyn Wire>>, ConnectError> {
        let Some(connection) = self.listener.accept(cancel) else {
            return Ok(None);
        };
        Ok(Some(match &self.tls {
            Some(tls) => Box::new(tls.accept(connection)?),
            None => Box::new(connection),
        }))
    }
}

impl AsFd for Door {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::thread;
    use std::time::Duration;

    use super::*;
    use crate::migration::PATIENCE;
    use crate::migration::frame::Channel;
    use crate::migration::tls::tests::{HOST, Hosts};

    fn secured(files: Files) -> Security {
        Security {
            insecure: false,
            tls: Some(files),
        }
    }

    /// What both sides say after a source came to a door at any free port.
    fn meet(source: &Security, door: &Door) -> (String, String) {
        let address = door.address().unwrap();
        let hello = |wire: Box<dyn Wire>| match Channel::open(wire, PATIENCE) {
            Ok(_) => String::new(),
            Err(error) => error.to_string(),
        };
        thread::scope(|scope| {
            let source = scope.spawn(move || match source.connect(&address, None) {
                Ok(wire) => hello(wire),
                Err(error) => error.to_string(),
            });
            let came = loop {
                match door.accept(None) {
                    Ok(Some(wire)) => break hello(wire),
                    Ok(None) => thread::sleep(Duration::from_millis(1)),
                    Err(error) => break error.to_string(),
                }
            };
            (source.join().unwrap(), came)
        })
    }

    #[test]
    fn a_door_opens_for_whom_it_is_for() {
        let here: Address = "tcp:127.0.0.1:0".parse().unwrap();
        let hosts = Hosts::default();
        let (mut source, destination) = hosts.files();
        source.name = Some(HOST.into());
        let (source, clear) = (secured(source), Security::default());
        let door = secured(destination).listen(&here).unwrap();
        assert!(door.is_secured());
        assert_eq!(meet(&source, &door), (String::new(), String::new()));
        let (said, heard) = meet(&clear, &door);
        assert!(said.contains("speaks TLS; give"), "{said}");
        assert!(heard.contains("no secure connection: "), "{heard}");
        // By the address's name, which its certificate does not have.
        let unnamed = secured(hosts.files().0);
        let (said, heard) = meet(&unnamed, &door);
        assert!(said.contains("and not for 127.0.0.1"), "{said}");
        assert!(heard.contains("(BadCertificate)"), "{heard}");

        let door = clear.listen(&here).unwrap();
        assert!(!door.is_secured());
        assert_eq!(meet(&clear, &door), (String::new(), String::new()));
        let (said, heard) = meet(&source, &door);
        assert!(said.contains("no secure connection: "), "{said}");
        assert!(heard.contains("speaks TLS; give"), "{heard}");
    }

    #[test]
    fn what_is_secured_may_leave_this_machine() {
        let everywhere = "tcp:0.0.0.0:0".parse().unwrap();
        let error = Security::default().listen(&everywhere).unwrap_err();
        let way_out = "give --tls-cert, --tls-key and --tls-ca on both sides";
        assert!(error.to_string().contains(way_out), "{error}");
        let (_, files) = Hosts::default().files();
        let gone = secured(files).listen(&everywhere).unwrap_err();
        assert!(gone.to_string().contains("cannot read"), "{gone}");
        let hosts = Hosts::default();
        assert!(secured(hosts.files().1).listen(&everywhere).is_ok());
    }
}
