//! A certificate authority that lives as long as a test: no certificate expires in a repository, and
//! no test needs another program.

use std::time::{Duration, SystemTime};

use graviola::hashing::Sha256;
use graviola::signing::ecdsa::{P256, SigningKey};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyUsagePurpose, PublicKeyData, SerialNumber, SignatureAlgorithm,
};
use time::OffsetDateTime;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Room for a key or a signature in DER.
const DER_BYTES: usize = 256;

/// The point that a P-256 key is, at the end of its DER: a tag and two coordinates.
const POINT_BYTES: usize = 65;

/// Signs certificates.
pub struct Authority {
    issuer: Issuer<'static, Key>,
    /// Its own certificate, PEM.
    pub certificate: String,
}

/// What a certificate says.
#[derive(Clone, Debug)]
pub struct Request {
    /// Names and IP addresses of a host.
    pub names: Vec<String>,
    /// From when on it is valid.
    pub not_before: SystemTime,
    /// Until when it is valid.
    pub not_after: SystemTime,
    /// Whether the host may be connected to.
    pub server: bool,
    /// Whether the host may connect.
    pub client: bool,
}

/// A certificate and its key.
#[derive(Clone, Debug)]
pub struct Identity {
    /// PEM.
    pub certificate: String,
    /// PEM, PKCS #8.
    pub key: String,
}

impl Request {
    /// For a host of these names, for today, either way.
    #[must_use]
    pub fn new(names: &[&str]) -> Self {
        let now = SystemTime::now();
        Self {
            names: names.iter().copied().map(str::to_owned).collect(),
            not_before: now - DAY,
            not_after: now + DAY,
            server: true,
            client: true,
        }
    }
}

impl Authority {
    /// A new one, with a key of its own.
    ///
    /// # Panics
    /// Where the system gives no random numbers.
    #[must_use]
    pub fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name = called(name);
        params.serial_number = Some(SerialNumber::from(1));
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = Key::generate();
        let certificate = params.self_signed(&key).expect("a certificate is signed");
        Self {
            issuer: Issuer::new(params, key),
            certificate: certificate.pem(),
        }
    }

    /// A certificate that it signed, with a new key.
    ///
    /// # Panics
    /// On a name that no certificate can have.
    #[must_use]
    pub fn sign(&self, request: &Request) -> Identity {
        let names = request.names.clone();
        let mut params = CertificateParams::new(names).expect("names of a host");
        params.distinguished_name = called(request.names.first().map_or("host", String::as_str));
        params.serial_number = Some(SerialNumber::from(2));
        params.not_before = OffsetDateTime::from(request.not_before);
        params.not_after = OffsetDateTime::from(request.not_after);
        for (purpose, wanted) in [
            (ExtendedKeyUsagePurpose::ServerAuth, request.server),
            (ExtendedKeyUsagePurpose::ClientAuth, request.client),
        ] {
            params.extended_key_usages.extend(wanted.then_some(purpose));
        }
        let key = Key::generate();
        let certificate = params.signed_by(&key, &self.issuer);
        Identity {
            certificate: certificate.expect("a certificate is signed").pem(),
            key: key.pem(),
        }
    }
}

fn called(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

/// An ECDSA key.
struct Key {
    private: SigningKey<P256>,
    point: Vec<u8>,
}

impl Key {
    fn generate() -> Self {
        let private = SigningKey::generate().expect("the system has random numbers");
        let mut der = [0; DER_BYTES];
        let der = private.to_spki_der(&mut der).expect("there is room");
        let point = der[der.len() - POINT_BYTES..].to_vec();
        Self { private, point }
    }

    fn pem(&self) -> String {
        let mut der = [0; DER_BYTES];
        let der = self.private.to_pkcs8_der(&mut der).expect("there is room");
        pem::encode(&pem::Pem::new("PRIVATE KEY", der))
    }
}

impl PublicKeyData for Key {
    fn der_bytes(&self) -> &[u8] {
        &self.point
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &rcgen::PKCS_ECDSA_P256_SHA256
    }
}

impl rcgen::SigningKey for Key {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        let mut signature = [0; DER_BYTES];
        let signed = self
            .private
            .sign_asn1::<Sha256>(&[message], &mut signature)
            .map_err(|_| rcgen::Error::RemoteKeyError)?;
        Ok(signed.to_vec())
    }
}
