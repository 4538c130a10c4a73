//! Private networks, each of two hosts.

use crate::host::{CALL_LIMIT, Host};
use anyhow::{Result, bail};
use lab_agent::message::Request;
use std::net::Ipv4Addr;

/// One end of a network of two hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WireEnd {
    number: u8,
    /// It waits for the other end.
    is_first: bool,
}

/// Both ends of a network. The host at the first is started before the one at the second.
#[must_use]
pub fn wire(number: u8) -> [WireEnd; 2] {
    [true, false].map(|is_first| WireEnd { number, is_first })
}

impl WireEnd {
    /// Address of an emulated host at this end, in a network of 24 bits, as such an address implies.
    fn address(self) -> Ipv4Addr {
        Ipv4Addr::new(192, 168, self.number, self.place())
    }

    /// Address of its Ethernet device.
    fn mac(self) -> String {
        format!("52:54:00:00:{:02x}:{:02x}", self.number, self.place())
    }

    fn place(self) -> u8 {
        if self.is_first { 1 } else { 2 }
    }

    /// What QEMU is to be given for it. The ends meet at a socket whose name is in no file system.
    pub(crate) fn qemu_arguments(self) -> [String; 4] {
        let (number, lab) = (self.number, std::process::id());
        let server = if self.is_first { "on" } else { "off" };
        [
            "-netdev".into(),
            format!(
                "stream,id=wire{number},server={server},addr.type=unix,addr.abstract=on,\
                 addr.path=pvtime-lab-{lab}-{number}"
            ),
            "-device".into(),
            // Its ROM would be for booting from it, and is not installed everywhere.
            format!(
                "virtio-net-pci,netdev=wire{number},mac={},romfile=",
                self.mac()
            ),
        ]
    }
}

impl Host {
    /// Gives its device at this end an address.
    pub(crate) fn join(&mut self, end: WireEnd, modules: &[String]) -> Result<()> {
        let request = Request::JoinNetwork {
            mac: end.mac(),
            address: end.address(),
            modules: modules.to_vec(),
        };
        self.call(&request, &[], CALL_LIMIT)
    }

    /// Its address at an end that it was made with. All local hosts are one machine.
    ///
    /// # Errors
    /// When it was made without it.
    pub fn address_at(&self, end: WireEnd) -> Result<Ipv4Addr> {
        if !self.wires().contains(&end) {
            bail!("host {} was made without {end:?}", self.name());
        }
        Ok(if self.is_emulated() {
            end.address()
        } else {
            Ipv4Addr::LOCALHOST
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_differ_and_meet() {
        let [first, second] = wire(7);
        assert_eq!(first.address(), Ipv4Addr::new(192, 168, 7, 1));
        assert_eq!(second.address(), Ipv4Addr::new(192, 168, 7, 2));
        assert_eq!(first.mac(), "52:54:00:00:07:01");
        assert_ne!(first.mac(), second.mac());
        let path = |end: WireEnd| {
            let arguments = end.qemu_arguments();
            arguments[1].rsplit_once(',').unwrap().1.to_owned()
        };
        assert_eq!(path(first), path(second));
        assert_ne!(path(first), path(wire(8)[0]));
    }
}
