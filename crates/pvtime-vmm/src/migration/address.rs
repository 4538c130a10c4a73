//! Where a VM goes to or is awaited.

use std::fmt;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// `tcp:HOST:PORT` or `unix:PATH`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Address {
    /// A host, by name or number, and a port.
    Tcp {
        /// Without the brackets of an IPv6 address.
        host: String,
        /// Its port.
        port: u16,
    },
    /// A socket of this machine.
    Unix(PathBuf),
}

/// Neither of the two.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no address; write tcp:HOST:PORT or unix:PATH")]
pub struct ParseError {
    text: String,
}

/// A host cannot be reached by its name.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// The name is not known.
    #[error("cannot find the address of {host}: {source}; give its number")]
    Unknown {
        /// The name.
        host: String,
        /// What the resolver said.
        source: std::io::Error,
    },
    /// The stream would leave this machine in the clear.
    #[error(
        "{host} is {address}, which is not this machine, and the guest's memory would go there \
         for everybody to read; give --tls-cert, --tls-key and --tls-ca on both sides, go by a tunnel \
         and its unix: or loopback address, or give --insecure on a network that you trust"
    )]
    InTheClear {
        /// The name.
        host: String,
        /// Its address.
        address: SocketAddr,
    },
}

impl FromStr for Address {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let wrong = || ParseError { text: text.into() };
        match text.split_once(':') {
            Some(("unix", path)) if !path.is_empty() => Ok(Self::Unix(path.into())),
            Some(("tcp", rest)) => {
                let (host, port) = rest.rsplit_once(':').ok_or_else(wrong)?;
                let host = host
                    .strip_prefix('[')
                    .and_then(|it| it.strip_suffix(']'))
                    .unwrap_or(host);
                let port = port.parse().map_err(|_| wrong())?;
                if host.is_empty() {
                    return Err(wrong());
                }
                Ok(Self::Tcp {
                    host: host.into(),
                    port,
                })
            }
            _ => Err(wrong()),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "tcp:[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "tcp:{host}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl TryFrom<String> for Address {
    type Error = ParseError;

    fn try_from(text: String) -> Result<Self, ParseError> {
        text.parse()
    }
}

impl From<Address> for String {
    fn from(address: Address) -> Self {
        address.to_string()
    }
}

/// The addresses of a host; only those of this machine, unless others `may_leave` it.
///
/// # Errors
///
/// [`ResolveError`].
pub fn resolve(host: &str, port: u16, may_leave: bool) -> Result<Vec<SocketAddr>, ResolveError> {
    let unknown = |source| ResolveError::Unknown {
        host: host.into(),
        source,
    };
    let addresses: Vec<_> = (host, port).to_socket_addrs().map_err(unknown)?.collect();
    match addresses.iter().find(|it| !it.ip().is_loopback()) {
        Some(&address) if !may_leave => Err(ResolveError::InTheClear {
            host: host.into(),
            address,
        }),
        _ if addresses.is_empty() => Err(unknown(std::io::ErrorKind::NotFound.into())),
        _ => Ok(addresses),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_written_the_same() {
        for (text, address) in [
            (
                "tcp:host.example:7001",
                Address::Tcp {
                    host: "host.example".into(),
                    port: 7001,
                },
            ),
            (
                "tcp:[::1]:1",
                Address::Tcp {
                    host: "::1".into(),
                    port: 1,
                },
            ),
            ("unix:/run/a:b", Address::Unix("/run/a:b".into())),
        ] {
            assert_eq!(text.parse(), Ok(address.clone()));
            assert_eq!(address.to_string(), text);
        }
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for text in [
            "",
            "host:1",
            "tcp:host",
            "tcp::1",
            "tcp:host:",
            "tcp:host:65536",
            "tcp:host:-1",
            "unix:",
            "udp:host:1",
        ] {
            let error = text.parse::<Address>().unwrap_err().to_string();
            assert_eq!(
                error,
                format!("{text:?} is no address; write tcp:HOST:PORT or unix:PATH")
            );
        }
    }

    #[test]
    fn nothing_leaves_this_machine_in_the_clear() {
        assert!(resolve("127.0.0.1", 1, false).is_ok());
        assert!(resolve("::1", 1, false).is_ok());
        let error = resolve("192.0.2.1", 1, false).unwrap_err();
        assert!(matches!(error, ResolveError::InTheClear { .. }), "{error}");
        // Every interface of this machine is more than this machine.
        assert!(resolve("0.0.0.0", 1, false).is_err());
        assert!(resolve("192.0.2.1", 1, true).is_ok());
        let error = resolve("no such name", 1, true).unwrap_err();
        assert!(matches!(error, ResolveError::Unknown { .. }), "{error}");
    }
}
