//! The loopback interface, which is down where no other init program set it up.

use anyhow::{Context, Result, bail};
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketType, recv, sendto, socket};

/// From linux/rtnetlink.h, linux/netlink.h and linux/if.h.
const RTM_NEWLINK: u16 = 16;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLMSG_ERROR: u16 = 2;
const IFF_UP: u32 = 1;

/// The kernel makes it first.
const LOOPBACK: i32 = 1;

const HEADER_BYTES: usize = 16;
const REQUEST_BYTES: u32 = 32;

/// Turns it on; the kernel gives it its addresses.
///
/// # Errors
/// Where the kernel refuses.
pub fn turn_on() -> Result<()> {
    // The protocol is that of routes and interfaces, number 0.
    let route = None;
    let socket = socket(AddressFamily::NETLINK, SocketType::RAW, route)
        .context("cannot ask the kernel for an interface")?;
    let kernel = SocketAddrNetlink::new(0, 0);
    sendto(&socket, &request(), SendFlags::empty(), &kernel).context("cannot turn lo on")?;
    let mut answer = [0; 256];
    let (bytes, _) =
        recv(&socket, &mut answer, RecvFlags::empty()).context("the kernel does not answer")?;
    refusal(&answer[..bytes])
}

/// A message's header (length, kind, flags, number, sender) and an interface's (family, padding,
/// type, index, flags, which of them).
fn request() -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(REQUEST_BYTES.to_ne_bytes());
    bytes.extend(RTM_NEWLINK.to_ne_bytes());
    bytes.extend((NLM_F_REQUEST | NLM_F_ACK).to_ne_bytes());
    bytes.extend([0; 12]);
    bytes.extend(LOOPBACK.to_ne_bytes());
    bytes.extend([IFF_UP.to_ne_bytes(), IFF_UP.to_ne_bytes()].concat());
    bytes
}

/// What an acknowledgement says: an error's number follows its header, 0 for none.
fn refusal(answer: &[u8]) -> Result<()> {
    let word = |at: usize| answer.get(at..at + 4).and_then(|it| it.try_into().ok());
    let kind = answer.get(4..6).map(|it| [it[0], it[1]]);
    match (kind.map(u16::from_ne_bytes), word(HEADER_BYTES)) {
        (Some(NLMSG_ERROR), Some(code)) => match i32::from_ne_bytes(code) {
            0 => Ok(()),
            code => bail!("the kernel does not turn lo on: error {}", -code),
        },
        _ => bail!("the kernel answers {answer:x?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_has_the_length_that_it_says() {
        assert_eq!(request().len(), 32);
    }

    #[test]
    fn an_acknowledgement_is_told_from_a_refusal() {
        let answer = |kind: u16, code: i32| {
            let mut bytes = 36u32.to_ne_bytes().to_vec();
            bytes.extend(kind.to_ne_bytes());
            bytes.extend([0; 10]);
            bytes.extend(code.to_ne_bytes());
            bytes
        };
        assert!(refusal(&answer(2, 0)).is_ok());
        let error = refusal(&answer(2, -1)).unwrap_err().to_string();
        assert!(error.ends_with("error 1"), "{error}");
        assert!(refusal(&answer(3, 0)).is_err());
        assert!(refusal(&[]).is_err());
    }
}
