//! Two sides that accept each other, and every way in which they do not.

use std::fs::{self, Permissions};
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, LazyLock, Mutex};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use lab_authority::{Authority, Identity, Request};
use tempfile::TempDir;

use super::*;
use crate::migration::frame::Channel;
use crate::migration::wire::{ConnectError, Connection};

/// The destination.
pub const HOST: &str = "there.example";
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Of a source and a destination that accept each other.
pub fn pair() -> &'static (Client, Server) {
    static PAIR: LazyLock<(Client, Server)> = LazyLock::new(|| {
        let hosts = Hosts::default();
        let (source, destination) = hosts.files();
        (client(&source).unwrap(), Server::new(&destination).unwrap())
    });
    &PAIR
}

/// What two hosts have. Each trusts the authority that it names.
pub struct Hosts {
    folder: TempDir,
    source: Identity,
    destination: Identity,
    source_trusts: String,
    destination_trusts: String,
    source_expects: Option<&'static str>,
    destination_expects: Option<&'static str>,
}

static AUTHORITY: LazyLock<Authority> = LazyLock::new(|| Authority::new("ours"));

fn identity(change: impl FnOnce(&mut Request)) -> Identity {
    let mut request = Request::new(&[HOST, "192.0.2.1"]);
    change(&mut request);
    AUTHORITY.sign(&request)
}

impl Default for Hosts {
    fn default() -> Self {
        Self {
            folder: TempDir::new().unwrap(),
            source: identity(|it| it.names = vec!["here.example".into()]),
            destination: identity(|_| {}),
            source_trusts: AUTHORITY.certificate.clone(),
            destination_trusts: AUTHORITY.certificate.clone(),
            source_expects: None,
            destination_expects: None,
        }
    }
}

impl Hosts {
    fn write(&self, name: &str, text: &str) -> std::path::PathBuf {
        let path = self.folder.path().join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        path
    }

    fn side(&self, side: &str, identity: &Identity, ca: &str, name: Option<&str>) -> Files {
        Files {
            cert: self.write(&format!("{side}.pem"), &identity.certificate),
            key: self.write(&format!("{side}.key"), &identity.key),
            ca: self.write(&format!("{side}.ca"), ca),
            name: name.map(str::to_owned),
        }
    }

    /// Of the source and of the destination.
    pub fn files(&self) -> (Files, Files) {
        let (trusts, name) = (&self.source_trusts, self.source_expects);
        let source = self.side("source", &self.source, trusts, name);
        let (trusts, name) = (&self.destination_trusts, self.destination_expects);
        let destination = self.side("destination", &self.destination, trusts, name);
        (source, destination)
    }

    /// What both sides say when they meet: nothing where they accept each other.
    fn meet(&self) -> (String, String) {
        let (source, destination) = self.files();
        let (source, destination) = (client(&source).unwrap(), Server::new(&destination).unwrap());
        meet(
            |wire| Ok(Box::new(source.connect(wire)?)),
            |wire| Ok(Box::new(destination.accept(wire)?)),
        )
    }

    /// Each side's message has what is expected of it, and neither got past its hello.
    #[track_caller]
    fn refuse(&self, source: &str, destination: &str) {
        let said = self.meet();
        assert!(said.0.contains(source), "the source: {}", said.0);
        assert!(said.1.contains(destination), "the destination: {}", said.1);
        assert!(!said.0.is_empty() && !said.1.is_empty());
    }
}

fn client(files: &Files) -> Result<Client, SetupError> {
    let address = format!("tcp:{HOST}:1").parse().unwrap();
    Client::new(files, &address)
}

type Carried = Result<Box<dyn Wire>, StreamError>;

/// Lets two ends come as far as to each other's hello.
fn meet(
    source: impl FnOnce(Connection) -> Carried + Send,
    destination: impl FnOnce(Connection) -> Carried + Send,
) -> (String, String) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let open = |wire: Carried| match wire.and_then(|wire| Channel::open(wire, PATIENCE)) {
        Ok(_) => String::new(),
        Err(error) => error.to_string(),
    };
    thread::scope(|scope| {
        let destination = scope.spawn(move || open(destination(theirs.into())));
        let source = scope.spawn(move || open(source(ours.into())));
        (source.join().unwrap(), destination.join().unwrap())
    })
}

#[expect(clippy::unnecessary_wraps, reason = "as a connection over TLS is made")]
fn clear(connection: Connection) -> Carried {
    Ok(Box::new(connection))
}

#[test]
fn two_sides_that_an_authority_signed_accept_each_other() {
    let nothing = (String::new(), String::new());
    assert_eq!(Hosts::default().meet(), nothing);
    // By other names than that of the address, if they are asked for.
    let named = Hosts {
        destination: identity(|it| it.names = vec!["192.0.2.7".into()]),
        source_expects: Some("192.0.2.7"),
        destination_expects: Some("here.example"),
        ..Hosts::default()
    };
    assert_eq!(named.meet(), nothing);
    // Each by its own authority.
    let other = Authority::new("other");
    let crossed = Hosts {
        source: other.sign(&Request::new(&["here.example"])),
        destination_trusts: [&AUTHORITY.certificate[..], &other.certificate].concat(),
        ..Hosts::default()
    };
    assert_eq!(crossed.meet(), nothing);
    // Each for what it is needed for alone.
    let purposes = Hosts {
        source: identity(|it| it.server = false),
        destination: identity(|it| it.client = false),
        ..Hosts::default()
    };
    assert_eq!(purposes.meet(), nothing);
}

#[test]
fn who_was_signed_by_somebody_else_is_refused() {
    // The second has the name of the right one.
    for (name, alert) in [("other", "(UnknownCA)"), ("ours", "(DecryptError)")] {
        let other = Authority::new(name);
        let source = Hosts {
            source: other.sign(&Request::new(&["here.example"])),
            ..Hosts::default()
        };
        source.refuse(
            &format!("{alert}; give one of an authority that is in --tls-ca there"),
            "it was signed by nobody in --tls-ca; give it one of an authority that is",
        );
        let destination = Hosts {
            destination: other.sign(&Request::new(&[HOST])),
            ..Hosts::default()
        };
        destination.refuse("signed by nobody in --tls-ca", alert);
    }
}

#[test]
fn what_is_out_of_its_time_is_refused() {
    let now = SystemTime::now();
    let expired = |it: &mut Request| it.not_after = now - DAY / 2;
    let early = |it: &mut Request| it.not_before = now + DAY / 2;
    let source = Hosts {
        source: identity(expired),
        ..Hosts::default()
    };
    source.refuse(
        "(CertificateExpired); renew it, or set the other host's clock",
        "it expired at 2",
    );
    let destination = Hosts {
        destination: identity(expired),
        ..Hosts::default()
    };
    destination.refuse(
        "; renew it, or set this host's clock",
        "(CertificateExpired)",
    );
    let source = Hosts {
        source: identity(early),
        ..Hosts::default()
    };
    source.refuse("(CertificateExpired)", "it is valid from 2");
}

#[test]
fn who_has_another_name_is_refused() {
    let address = Hosts {
        destination: identity(|it| it.names = vec!["other.example".into(), "192.0.2.9".into()]),
        ..Hosts::default()
    };
    address.refuse(
        "and not for there.example; give the name that it has with --tls-name",
        "(BadCertificate); it has to have the name",
    );
    let given = Hosts {
        source_expects: Some("192.0.2.2"),
        ..Hosts::default()
    };
    given.refuse("and not for 192.0.2.2", "(BadCertificate)");
    let source = Hosts {
        destination_expects: Some("other.example"),
        ..Hosts::default()
    };
    source.refuse("(BadCertificate)", "and not for other.example");
}

#[test]
fn what_is_for_something_else_is_refused() {
    let source = Hosts {
        source: identity(|it| it.client = false),
        ..Hosts::default()
    };
    source.refuse("(UnsupportedCertificate)", "allow clientAuth");
    let destination = Hosts {
        destination: identity(|it| it.server = false),
        ..Hosts::default()
    };
    destination.refuse("allow clientAuth", "(UnsupportedCertificate)");
}

/// A source of another make.
fn stranger(
    hosts: &Hosts,
    version: &'static rustls::SupportedProtocolVersion,
    shows: bool,
) -> (String, String) {
    let (source, destination) = hosts.files();
    let identity = source.load().unwrap();
    let builder = ClientConfig::builder_with_provider(provider().unwrap())
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(identity.roots);
    let config = if shows {
        builder
            .with_client_auth_cert(identity.chain, identity.key)
            .unwrap()
    } else {
        builder.with_no_client_auth()
    };
    let client = Client {
        config: Arc::new(config),
        name: parse_name(HOST).unwrap(),
    };
    let server = Server::new(&destination).unwrap();
    meet(
        |wire| Ok(Box::new(client.connect(wire)?)),
        |wire| Ok(Box::new(server.accept(wire)?)),
    )
}

#[test]
fn who_shows_nothing_is_refused() {
    let (source, destination) = stranger(&Hosts::default(), &TLS13, false);
    assert!(source.contains("(CertificateRequired)"), "{source}");
    assert!(
        destination.contains("shows no certificate; give it one"),
        "{destination}"
    );
}

#[test]
fn older_versions_of_tls_are_refused() {
    let (source, destination) = stranger(&Hosts::default(), &rustls::version::TLS12, true);
    assert!(source.contains("TLS fails"), "{source}");
    assert!(destination.contains("TLS fails"), "{destination}");
}

#[test]
fn who_is_in_the_clear_is_told_so() {
    let (client, server) = pair();
    let (source, destination) = meet(clear, |wire| Ok(Box::new(server.accept(wire)?)));
    assert!(
        source.contains("the other side speaks TLS; give --tls-cert"),
        "{source}"
    );
    assert!(
        destination.contains("does not speak TLS; give it --tls-cert"),
        "{destination}"
    );
    let (source, destination) = meet(|wire| Ok(Box::new(client.connect(wire)?)), clear);
    assert!(source.contains("does not speak TLS"), "{source}");
    assert!(
        destination.contains("speaks TLS; give --tls-cert"),
        "{destination}"
    );
}

/// A connection whose patience is short, and of which a copy is kept.
#[derive(Debug)]
struct Tapped {
    inner: Connection,
    sent: Arc<Mutex<Vec<u8>>>,
}

impl Read for Tapped {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.inner.read(buffer)
    }
}

impl Write for Tapped {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.sent.lock().unwrap().extend(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl Wire for Tapped {
    fn set_deadline(&mut self, until: Instant) {
        let soon = Instant::now() + Duration::from_millis(200);
        self.inner.set_deadline(until.min(soon));
    }

    fn ignore_cancel(&mut self) {
        self.inner.ignore_cancel();
    }
}

fn tapped(connection: Connection) -> (Tapped, Arc<Mutex<Vec<u8>>>) {
    let sent = Arc::default();
    let tapped = Tapped {
        inner: connection,
        sent: Arc::clone(&sent),
    };
    (tapped, sent)
}

#[test]
fn nobody_between_reads_what_is_said() {
    let (client, server) = pair();
    for is_secured in [true, false] {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (ours, sent) = tapped(ours.into());
        thread::scope(|scope| {
            scope.spawn(|| {
                let wire: Box<dyn Wire> = if is_secured {
                    Box::new(client.connect(ours).unwrap())
                } else {
                    Box::new(ours)
                };
                Channel::open(wire, PATIENCE).unwrap();
            });
            let wire = if is_secured {
                Box::new(server.accept(Connection::from(theirs)).unwrap())
            } else {
                clear(theirs.into()).unwrap()
            };
            Channel::open(wire, PATIENCE).unwrap();
        });
        let sent = sent.lock().unwrap();
        let in_the_clear = sent.windows(8).any(|it| it == b"PVTIMEMV");
        assert_eq!(in_the_clear, !is_secured);
    }
}

#[test]
fn a_peer_that_stalls_is_left() {
    let (client, server) = pair();
    // It says nothing, a byte now and then of what might become something, or much of nothing.
    let drip = |mut socket: UnixStream| {
        for byte in [22, 3, 3, 0, 200].into_iter().chain([1; 100]) {
            if socket.write_all(&[byte]).is_err() {
                break;
            }
            thread::sleep(Duration::from_millis(20));
        }
    };
    let silent = |socket: UnixStream| drop((&socket).read_to_end(&mut Vec::new()));
    let stalls: [fn(UnixStream); 2] = [drip, silent];
    for stall in stalls {
        for is_source in [true, false] {
            let (ours, theirs) = UnixStream::pair().unwrap();
            let (ours, _) = tapped(ours.into());
            let peer = thread::spawn(move || stall(theirs));
            let start = Instant::now();
            let error = if is_source {
                client.connect(ours).unwrap_err()
            } else {
                server.accept(ours).unwrap_err()
            };
            assert!(matches!(error, StreamError::TimedOut), "{error}");
            assert!(start.elapsed() < Duration::from_secs(5));
            peer.join().unwrap();
        }
    }
}

#[test]
fn a_peer_that_floods_is_left() {
    let (_, server) = pair();
    for flood in [&[0xff; 4096][..], &[22, 3, 3, 0, 0], &[20, 3, 3, 0, 1, 1]] {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let (ours, _) = tapped(ours.into());
        let peer = thread::spawn(move || while theirs.write_all(flood).is_ok() {});
        let start = Instant::now();
        server.accept(ours).unwrap_err();
        assert!(start.elapsed() < Duration::from_secs(5));
        peer.join().unwrap();
    }
}

#[test]
fn an_end_is_an_end() {
    let (client, server) = pair();
    let (ours, theirs) = UnixStream::pair().unwrap();
    drop(theirs);
    let error = client.connect(Connection::from(ours)).unwrap_err();
    assert!(matches!(error, StreamError::Ended), "{error}");
    let (ours, theirs) = UnixStream::pair().unwrap();
    drop(ours);
    let error = server.accept(Connection::from(theirs)).unwrap_err();
    assert!(matches!(error, StreamError::Ended), "{error}");
}

#[test]
fn keys_that_others_may_read_are_refused() {
    let hosts = Hosts::default();
    let (files, _) = hosts.files();
    for mode in [0o644, 0o604, 0o660, 0o602] {
        fs::set_permissions(&files.key, Permissions::from_mode(mode)).unwrap();
        let error = client(&files).unwrap_err().to_string();
        assert!(
            error.contains(&format!("(mode {mode:04o}, owner ")),
            "{error}"
        );
        assert!(error.contains("`chmod 600` it"), "{error}");
    }
    fs::set_permissions(&files.key, Permissions::from_mode(0o400)).unwrap();
    client(&files).unwrap();
}

#[test]
fn root_may_let_a_group_read_a_key() {
    use super::files::is_secret;
    let (us, other) = (1000, 1001);
    for (mode, owner, secret) in [
        (0o600, us, true),
        (0o640, us, false),
        (0o640, 0, true),
        (0o660, 0, false),
        (0o644, 0, false),
        (0o600, other, false),
    ] {
        assert_eq!(is_secret(mode, owner, us), secret, "{mode:o} of {owner}");
    }
}

#[test]
fn files_that_are_not_what_they_are_for_are_refused_by_name() {
    let hosts = Hosts::default();
    let (good, other) = hosts.files();
    let empty = hosts.write("empty", "");
    let damaged = hosts.write(
        "damaged",
        "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n",
    );
    let nonsense = hosts.write(
        "nonsense",
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    );
    let locked = hosts.write(
        "locked",
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n",
    );
    let odd = hosts.write(
        "odd",
        "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
    );
    let long = hosts.write("long", &"x".repeat((1 << 20) + 1));
    let missing = hosts.folder.path().join("missing");
    let folder = hosts.folder.path().to_path_buf();
    let cert = |cert: &std::path::PathBuf| Files {
        cert: cert.clone(),
        ..good.clone()
    };
    let ca = |ca: &std::path::PathBuf| Files {
        ca: ca.clone(),
        ..good.clone()
    };
    let key = |key: &std::path::PathBuf| Files {
        key: key.clone(),
        ..good.clone()
    };
    for (files, expected) in [
        (
            cert(&empty),
            "empty has no certificate; give one in PEM form",
        ),
        (cert(&damaged), "damaged has no certificate"),
        (cert(&good.key), "source.key has no certificate"),
        (cert(&nonsense), "cannot use the "),
        (cert(&missing), "cannot read "),
        (cert(&folder), "it is no regular file"),
        (cert(&long), "it has more than 1 MiB"),
        (ca(&nonsense), "nonsense"),
        (ca(&empty), "empty has no certificate"),
        (
            key(&good.cert),
            "source.pem has no private key; give one in PEM form, without a password",
        ),
        (key(&locked), "locked has no private key"),
        (key(&odd), "odd: "),
        (
            key(&other.key),
            "destination.key is not that of the certificate ",
        ),
    ] {
        for error in [client(&files).err(), Server::new(&files).err()] {
            let error = error.unwrap().to_string();
            assert!(error.contains(expected), "{expected}: {error}");
            assert_eq!(error.lines().count(), 1);
        }
    }
}

#[test]
fn a_pipe_for_a_file_does_not_hang() {
    let hosts = Hosts::default();
    let (mut files, _) = hosts.files();
    files.cert = hosts.folder.path().join("pipe");
    rustix::fs::mkfifoat(rustix::fs::CWD, &files.cert, rustix::fs::Mode::RUSR).unwrap();
    let error = client(&files).unwrap_err().to_string();
    assert!(error.contains("it is no regular file"), "{error}");
}

#[test]
fn an_address_without_a_name_needs_one() {
    let hosts = Hosts::default();
    let (mut files, _) = hosts.files();
    for address in ["unix:/run/vm.sock", "tcp:[fe80::1%eth0]:1", "tcp:-:1"] {
        let address = address.parse().unwrap();
        let error = Client::new(&files, &address).unwrap_err().to_string();
        assert!(
            error.contains("give the other side's with --tls-name"),
            "{error}"
        );
    }
    files.name = Some(HOST.into());
    Client::new(&files, &"unix:/run/vm.sock".parse().unwrap()).unwrap();
    files.name = Some("no name".into());
    assert!(Server::new(&files).is_err());
}

#[test]
fn errors_are_those_of_a_connection() {
    let error = ConnectError::from(StreamError::Refused(Refusal::NoCertificate)).to_string();
    assert!(
        error.starts_with("no secure connection: the other side shows no"),
        "{error}"
    );
}
