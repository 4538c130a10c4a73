//! The host's end of a private network: its driver, its device and its address.
#![expect(
    unsafe_code,
    reason = "the addresses of network devices are set by ioctls without safe wrappers"
)]

use anyhow::{Context, Result, bail};
use rustix::io::Errno;
use rustix::ioctl::{Opcode, Setter, ioctl};
use rustix::system::finit_module;
use std::ffi::{OsString, c_char, c_int, c_short};
use std::fs::{self, File};
use std::net::{Ipv4Addr, UdpSocket};
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

const DEVICES: &str = "/sys/class/net";

/// Longest wait for the kernel to find the device.
const DEVICE_LIMIT: Duration = Duration::from_secs(10);

/// `MODULE_INIT_COMPRESSED_FILE` of `linux/module.h`.
const COMPRESSED: c_int = 4;

const SIOCSIFFLAGS: Opcode = 0x8914;
const SIOCSIFADDR: Opcode = 0x8916;

/// Loads what the device needs, in this order, and gives it its address.
pub fn join(mac: &str, address: Ipv4Addr, modules: &[String]) -> Result<()> {
    modules.iter().try_for_each(|module| load(module))?;
    let name = await_device(mac)?;
    let name = name.as_encoded_bytes();
    (|| {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        set_address(&socket, name, address)?;
        start(&socket, name)
    })()
    .with_context(|| format!("cannot give {mac} the address {address}"))
}

/// Loads a module that may be loaded already.
fn load(path: &str) -> Result<()> {
    let file = File::open(path).with_context(|| format!("cannot open {path}"))?;
    let is_compressed = Path::new(path).extension().is_some_and(|it| it != "ko");
    let flags = if is_compressed { COMPRESSED } else { 0 };
    match finit_module(&file, c"", flags) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("cannot load {path}")),
    }
}

fn await_device(mac: &str) -> Result<OsString> {
    let start = Instant::now();
    while start.elapsed() < DEVICE_LIMIT {
        if let Some(name) = find_device(mac) {
            return Ok(name);
        }
        sleep(Duration::from_millis(10));
    }
    bail!(
        "no network device has the address {mac}: the host's kernel needs virtio_net, built in or \
         as a module where its package has it"
    );
}

fn find_device(mac: &str) -> Option<OsString> {
    let devices = fs::read_dir(DEVICES).ok()?.flatten();
    let mut with_mac = devices.filter(|device| {
        let found = fs::read_to_string(device.path().join("address")).unwrap_or_default();
        found.trim() == mac
    });
    Some(with_mac.next()?.file_name())
}

fn set_address(socket: &UdpSocket, name: &[u8], address: Ipv4Addr) -> std::io::Result<()> {
    let mut request = request(name);
    let mut data = [0; 14];
    // Behind the port, which is nothing here.
    for (to, octet) in data[2..].iter_mut().zip(address.octets()) {
        *to = c_char::from_ne_bytes([octet]);
    }
    request.ifr_ifru.ifru_addr = libc::sockaddr {
        sa_family: u16::try_from(libc::AF_INET).expect("a small number"),
        sa_data: data,
    };
    // SAFETY: SIOCSIFADDR reads a request with a name and an address, which this is, and writes
    // nothing.
    unsafe { ioctl(socket, Setter::<SIOCSIFADDR, libc::ifreq>::new(request))? };
    Ok(())
}

fn start(socket: &UdpSocket, name: &[u8]) -> std::io::Result<()> {
    let mut request = request(name);
    request.ifr_ifru.ifru_flags = c_short::try_from(libc::IFF_UP).expect("a small number");
    // SAFETY: SIOCSIFFLAGS reads a request with a name and flags, which this is, and writes nothing.
    unsafe { ioctl(socket, Setter::<SIOCSIFFLAGS, libc::ifreq>::new(request))? };
    Ok(())
}

/// A request about a device, whose name the kernel made, so that it fits with its zero.
fn request(name: &[u8]) -> libc::ifreq {
    // SAFETY: ifreq is integers, pointers and structures of both, for which zero is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, &byte) in request.ifr_name.iter_mut().zip(name) {
        *to = c_char::from_ne_bytes([byte]);
    }
    request
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_found_by_their_addresses() {
        // Every machine has the loopback device, which no wire is.
        let mac = fs::read_to_string(format!("{DEVICES}/lo/address")).unwrap();
        assert_eq!(find_device(mac.trim()).as_deref(), Some("lo".as_ref()));
        assert_eq!(find_device("52:54:00:00:ff:ff"), None);
    }

    #[test]
    fn a_module_that_is_not_there_is_named() {
        let error = load("/absent/virtio_net.ko.xz").unwrap_err();
        assert!(
            error.to_string().contains("/absent/virtio_net.ko.xz"),
            "{error}"
        );
    }
}
