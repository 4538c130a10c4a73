//! What both ends of a migration need for TLS.

use crate::host::Host;
use anyhow::Result;
use lab_authority::{Authority, Request};

/// By what name the source's certificate has it.
const SOURCE: &str = "source.example";

/// The options of both ends, of which each proves to the other who it is.
pub struct Secured {
    source: Vec<String>,
    destination: Vec<String>,
}

impl Secured {
    /// Makes an authority, and puts what it signs onto the source's host and onto that of a destination
    /// of this name.
    pub fn new(name: &str, from: &mut Host, to: &mut Host) -> Result<Self> {
        let authority = Authority::new("lab");
        Ok(Self {
            source: Self::source(from, &authority, name)?,
            destination: Self::destination(to, &authority, name)?,
        })
    }

    /// The same for two VMMs of one host.
    pub fn on(host: &mut Host, name: &str) -> Result<Self> {
        let authority = Authority::new("lab");
        Ok(Self {
            source: Self::source(host, &authority, name)?,
            destination: Self::destination(host, &authority, name)?,
        })
    }

    /// Of `pvtime migrate`.
    pub fn at_source(&self) -> Vec<&str> {
        self.source.iter().map(String::as_str).collect()
    }

    /// Of `pvtime receive`.
    pub fn at_destination(&self) -> Vec<&str> {
        self.destination.iter().map(String::as_str).collect()
    }

    fn source(host: &mut Host, authority: &Authority, name: &str) -> Result<Vec<String>> {
        let mut options = give(host, authority, SOURCE)?;
        options.extend(["--tls-name".into(), name.into()]);
        Ok(options)
    }

    fn destination(host: &mut Host, authority: &Authority, name: &str) -> Result<Vec<String>> {
        let mut options = give(host, authority, name)?;
        options.extend(["--tls-name".into(), SOURCE.into()]);
        Ok(options)
    }
}

/// Puts what a side of this name needs onto its host. Returns the options that name it.
fn give(host: &mut Host, authority: &Authority, name: &str) -> Result<Vec<String>> {
    let signed = authority.sign(&Request::new(&[name]));
    let files = [
        ("ca", &authority.certificate),
        ("cert", &signed.certificate),
        ("key", &signed.key),
    ];
    let mut options = Vec::new();
    for (what, text) in files {
        let file = host.file(&format!("{name}-{what}.pem"));
        host.put_file(&file, 0o600, text.as_bytes())?;
        options.extend([format!("--tls-{what}"), file]);
    }
    Ok(options)
}
