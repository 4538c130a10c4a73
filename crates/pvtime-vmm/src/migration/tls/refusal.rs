//! Why two sides do not come together.

use std::error::Error;
use std::io;
use std::time::{Duration, SystemTime};

use rustls::pki_types::UnixTime;
use rustls::{AlertDescription, CertificateError};

/// What keys can be.
pub const KEYS: &str = "certificates and keys have to be ECDSA P-256 or P-384, Ed25519 or RSA";

/// One side does not talk to the other.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The other side is in the clear, or something else.
    #[error(
        "the other side does not speak TLS; give it --tls-cert, --tls-key and --tls-ca as well, \
         or check the address"
    )]
    NotTls,
    /// The other side proves nothing.
    #[error(
        "the other side shows no certificate; give it one of an authority that is in --tls-ca here"
    )]
    NoCertificate,
    /// The other side's proof is none.
    #[error("the other side's certificate is refused: {reason}; {way_out}")]
    Theirs {
        /// What is wrong with it.
        reason: String,
        /// What to do.
        way_out: String,
    },
    /// The other side refuses this side's proof.
    #[error(
        "the other side refuses this side's certificate ({}); {}, and see what it says there",
        name(*.0), way_out(*.0)
    )]
    Ours(AlertDescription),
    /// Something else.
    #[error("TLS fails: {0}; use the same pvtime on both hosts")]
    Other(String),
}

impl Refusal {
    /// What rustls means.
    #[must_use]
    pub fn new(error: &rustls::Error) -> Self {
        match error {
            rustls::Error::InvalidMessage(_) => Self::NotTls,
            rustls::Error::NoCertificatesPresented => Self::NoCertificate,
            rustls::Error::InvalidCertificate(error) => Self::of_certificate(error),
            rustls::Error::AlertReceived(alert) if is_about_a_certificate(*alert) => {
                Self::Ours(*alert)
            }
            other => Self::Other(other.to_string()),
        }
    }

    fn of_certificate(error: &CertificateError) -> Self {
        let (reason, way_out) = match error {
            CertificateError::ExpiredContext { time, not_after } => (
                format!("it expired at {}, and it is {} here", date(*not_after), date(*time)),
                "renew it, or set this host's clock".into(),
            ),
            CertificateError::NotValidYetContext { time, not_before } => (
                format!("it is valid from {} on, and it is {} here", date(*not_before), date(*time)),
                "wait, or set this host's clock".into(),
            ),
            // That of an authority of the same name with another key.
            CertificateError::UnknownIssuer | CertificateError::BadSignature => (
                "it was signed by nobody in --tls-ca".into(),
                "give it one of an authority that is, or add its authority there".into(),
            ),
            CertificateError::NotValidForNameContext { expected, presented } => (
                format!("it is for {}, and not for {}", list(presented), expected.to_str()),
                "give the name that it has with --tls-name, if that is whom you mean".into(),
            ),
            CertificateError::InvalidPurposeContext { .. } => (
                error.to_string(),
                "the source's has to allow clientAuth and the destination's serverAuth, or neither \
                 say what it is for"
                    .into(),
            ),
            other => (other.to_string(), KEYS.into()),
        };
        Self::Theirs { reason, way_out }
    }

    /// In an error of a read or a write.
    #[must_use]
    pub fn of_io(error: &io::Error) -> Option<&Self> {
        error.get_ref()?.downcast_ref()
    }
}

/// An error of a read or a write that says what rustls means.
pub fn explained(error: io::Error) -> io::Error {
    let inner = error.get_ref().map(|it| it as &(dyn Error + 'static));
    match inner.and_then(<dyn Error>::downcast_ref::<rustls::Error>) {
        Some(tls) => io::Error::other(Refusal::new(tls)),
        None => error,
    }
}

fn is_about_a_certificate(alert: AlertDescription) -> bool {
    !way_out(alert).is_empty()
}

fn way_out(alert: AlertDescription) -> &'static str {
    match alert {
        AlertDescription::CertificateRequired
        | AlertDescription::UnknownCA
        | AlertDescription::DecryptError => "give one of an authority that is in --tls-ca there",
        AlertDescription::CertificateExpired => "renew it, or set the other host's clock",
        AlertDescription::BadCertificate => "it has to have the name that is asked for there",
        AlertDescription::UnsupportedCertificate => {
            "the source's has to allow clientAuth and the destination's serverAuth"
        }
        AlertDescription::CertificateRevoked
        | AlertDescription::CertificateUnknown
        | AlertDescription::AccessDenied => "give another",
        _ => "",
    }
}

fn name(alert: AlertDescription) -> &'static str {
    alert.as_str().unwrap_or("an unknown alert")
}

fn list(names: &[String]) -> String {
    match names {
        [] => "nobody by name".into(),
        names => names.join(", "),
    }
}

fn date(time: UnixTime) -> String {
    let since = Duration::from_secs(time.as_secs());
    SystemTime::UNIX_EPOCH.checked_add(since).map_or_else(
        || "a time far away".into(),
        |it| humantime::format_rfc3339_seconds(it).to_string(),
    )
}
