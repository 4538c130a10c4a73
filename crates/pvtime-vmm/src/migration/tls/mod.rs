//! A connection that nobody else reads or changes, with somebody whom the operator named.
//!
//! TLS 1.3 with a certificate on both sides. Each has to be signed by an authority that the other
//! was given; the destination's has to have the name that the source goes by, the source's that
//! which the destination was given, if any. A side that refuses the other says so with an alert
//! before it has heard a message: the source's check comes before its hello, and the destination's
//! before its own.

mod files;
mod refusal;

use std::io::{self, Read, Write};
use std::ops::DerefMut;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::client::danger::HandshakeSignatureValid;
use rustls::client::{Resumption, verify_server_name};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, ParsedCertificate, WebPkiClientVerifier};
use rustls::version::TLS13;
use rustls::{
    ClientConfig, ClientConnection, ConnectionCommon, DigitallySignedStruct, DistinguishedName,
    InconsistentKeys, RootCertStore, ServerConfig, ServerConnection, SideData, SignatureScheme,
    StreamOwned,
};

pub use files::{Files, SetupError};
pub use refusal::Refusal;

use super::address::Address;
use super::frame::StreamError;
use super::wire::Wire;
use super::{HELLO_PATIENCE, PATIENCE};

/// How long the other side has to hear why it is refused, and how much it may say meanwhile.
const PARTING: (Duration, u64) = (Duration::from_secs(1), 64 << 10);

/// A connection over another one.
#[derive(Debug)]
pub struct Secured<C, W: Wire>(StreamOwned<C, W>);

/// The source's half, before it connects.
#[derive(Clone, Debug)]
pub struct Client {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
}

/// The destination's half.
#[derive(Clone, Debug)]
pub struct Server(Arc<ServerConfig>);

impl Client {
    /// Reads the files for a way to an address.
    ///
    /// # Errors
    ///
    /// [`SetupError`].
    pub fn new(files: &Files, address: &Address) -> Result<Self, SetupError> {
        let name = match (&files.name, address) {
            (Some(name), _) => name.clone(),
            (None, Address::Tcp { host, .. }) => host.clone(),
            (None, Address::Unix(_)) => address.to_string(),
        };
        let (name, provider) = (parse_name(&name)?, provider()?);
        let identity = files.load()?;
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])
            .map_err(|error| unusable(files, &error))?
            .with_root_certificates(identity.roots)
            .with_client_auth_cert(identity.chain, identity.key)
            .map_err(|error| unusable(files, &error))?;
        config.resumption = Resumption::disabled();
        let config = Arc::new(config);
        Ok(Self { config, name })
    }

    /// Makes sure of the destination.
    ///
    /// # Errors
    ///
    /// [`StreamError::Refused`], and what a connection fails with.
    pub fn connect<W: Wire>(&self, wire: W) -> Result<Secured<ClientConnection, W>, StreamError> {
        let tls = ClientConnection::new(Arc::clone(&self.config), self.name.clone());
        Secured::new(tls, wire, PATIENCE)
    }
}

impl Server {
    /// Reads the files.
    ///
    /// # Errors
    ///
    /// [`SetupError`].
    pub fn new(files: &Files) -> Result<Self, SetupError> {
        let provider = provider()?;
        let name = files.name.as_deref().map(parse_name).transpose()?;
        let identity = files.load()?;
        let verifier = SourceVerifier::new(identity.roots, name, &provider);
        let verifier = verifier.map_err(|reason| SetupError::Unusable {
            path: files.ca.clone(),
            what: "certificate",
            reason,
        })?;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])
            .map_err(|error| unusable(files, &error))?
            .with_client_cert_verifier(Arc::new(verifier))
            .with_single_cert(identity.chain, identity.key)
            .map_err(|error| unusable(files, &error))?;
        // Nobody comes back.
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        Ok(Self(Arc::new(config)))
    }

    /// Makes sure of the source.
    ///
    /// # Errors
    ///
    /// [`StreamError::Refused`], and what a connection fails with.
    pub fn accept<W: Wire>(&self, wire: W) -> Result<Secured<ServerConnection, W>, StreamError> {
        let tls = ServerConnection::new(Arc::clone(&self.0));
        Secured::new(tls, wire, HELLO_PATIENCE)
    }
}

impl<C, S, W> Secured<C, W>
where
    C: DerefMut<Target = ConnectionCommon<S>>,
    S: SideData,
    W: Wire,
{
    fn new(
        tls: Result<C, rustls::Error>,
        wire: W,
        patience: Duration,
    ) -> Result<Self, StreamError> {
        let tls = tls.map_err(|error| StreamError::Refused(Refusal::new(&error)))?;
        let mut stream = StreamOwned::new(tls, wire);
        stream.sock.set_deadline(Instant::now() + patience);
        match stream.conn.complete_io(&mut stream.sock) {
            Ok(_) => Ok(Self(stream)),
            Err(error) => {
                let error = StreamError::from(refusal::explained(error));
                if matches!(error, StreamError::Refused(_)) {
                    part(&mut stream);
                }
                Err(error)
            }
        }
    }
}

/// Lets the other side hear why: a connection that is closed with bytes that nobody read takes those
/// along that were sent.
fn part<C, S, W>(stream: &mut StreamOwned<C, W>)
where
    C: DerefMut<Target = ConnectionCommon<S>>,
    S: SideData,
    W: Wire,
{
    let (patience, bytes) = PARTING;
    let StreamOwned { conn, sock } = stream;
    sock.set_deadline(Instant::now() + patience);
    while conn.wants_write() {
        if !conn.write_tls(sock).is_ok_and(|written| written > 0) {
            return;
        }
    }
    let _ = io::copy(&mut sock.take(bytes), &mut io::sink());
}

impl<C, S, W> Read for Secured<C, W>
where
    C: DerefMut<Target = ConnectionCommon<S>>,
    S: SideData,
    W: Wire,
{
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer).map_err(refusal::explained)
    }
}

impl<C, S, W> Write for Secured<C, W>
where
    C: DerefMut<Target = ConnectionCommon<S>>,
    S: SideData,
    W: Wire,
{
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes).map_err(refusal::explained)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush().map_err(refusal::explained)
    }
}

impl<C, S, W> Wire for Secured<C, W>
where
    C: DerefMut<Target = ConnectionCommon<S>> + Send,
    S: SideData,
    W: Wire,
{
    fn set_deadline(&mut self, until: Instant) {
        self.0.sock.set_deadline(until);
    }

    fn ignore_cancel(&mut self) {
        self.0.sock.ignore_cancel();
    }
}

/// Whoever the authorities signed for, and who has the name that was given, if one was.
#[derive(Debug)]
struct SourceVerifier {
    signed: Arc<dyn ClientCertVerifier>,
    name: Option<ServerName<'static>>,
}

impl SourceVerifier {
    fn new(
        roots: RootCertStore,
        name: Option<ServerName<'static>>,
        provider: &Arc<CryptoProvider>,
    ) -> Result<Self, String> {
        let provider = Arc::clone(provider);
        let signed = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
            .build()
            .map_err(|error| error.to_string())?;
        Ok(Self { signed, name })
    }
}

impl ClientCertVerifier for SourceVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.signed.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self.signed.verify_client_cert(certificate, between, now)?;
        if let Some(name) = &self.name {
            verify_server_name(&ParsedCertificate::try_from(certificate)?, name)?;
        }
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.signed
            .verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.signed
            .verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.signed.supported_verify_schemes()
    }
}

fn parse_name(text: &str) -> Result<ServerName<'static>, SetupError> {
    ServerName::try_from(text)
        .map(|name| name.to_owned())
        .map_err(|_| SetupError::Name { text: text.into() })
}

/// Refuses the files for what rustls says of them.
fn unusable(files: &Files, error: &rustls::Error) -> SetupError {
    if matches!(
        error,
        rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch)
    ) {
        return SetupError::Mismatch {
            key: files.key.clone(),
            cert: files.cert.clone(),
        };
    }
    SetupError::Unusable {
        path: files.key.clone(),
        what: "key",
        reason: error.to_string(),
    }
}

/// The ciphers, on a CPU that they run on: where it lacks something they end the process.
fn provider() -> Result<Arc<CryptoProvider>, SetupError> {
    match missing() {
        Some(missing) => Err(SetupError::Cpu { missing }),
        None => Ok(Arc::new(rustls_graviola::default_provider())),
    }
}

#[cfg(target_arch = "aarch64")]
fn missing() -> Option<&'static str> {
    use std::arch::is_aarch64_feature_detected as has;
    let here = has!("neon") && has!("aes") && has!("pmull") && has!("sha2");
    (!here).then_some("FEAT_AES, FEAT_PMULL and FEAT_SHA256")
}

#[cfg(target_arch = "x86_64")]
fn missing() -> Option<&'static str> {
    use std::arch::is_x86_feature_detected as has;
    let vectors = has!("avx") && has!("avx2") && has!("aes") && has!("pclmulqdq");
    let integers = has!("adx") && has!("bmi1") && has!("bmi2");
    (!(vectors && integers)).then_some("AES-NI, PCLMULQDQ, AVX2, ADX, BMI1 and BMI2")
}

#[cfg(test)]
pub(crate) mod tests;
