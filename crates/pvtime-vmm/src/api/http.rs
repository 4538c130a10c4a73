//! As much of HTTP/1.1 as the control socket needs: one request and one response a connection.

use std::io::{self, Read, Write};

use serde::Serialize;

use super::Fault;
use super::answers::FaultMessage;

/// A request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// In capitals.
    pub method: String,
    /// From the first slash to the question mark.
    pub path: String,
    /// After the question mark.
    pub query: String,
    /// JSON, or nothing.
    pub body: Vec<u8>,
}

/// A response with a JSON body, or with none.
#[derive(Debug)]
pub struct Response {
    /// 200, 204 or what went wrong.
    pub status: u16,
    /// The methods that would have been right, with status 405.
    allow: Option<String>,
    /// JSON; nothing with status 204.
    pub body: Vec<u8>,
}

/// A peer that is not understood.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Reading or writing failed.
    #[error("the connection broke: {0}")]
    Io(#[from] io::Error),
    /// This is no HTTP.
    #[error("this is no HTTP/1.1: {0}")]
    Syntax(#[from] httparse::Error),
    /// The connection ended too early.
    #[error("the connection ended in the middle of a message")]
    Incomplete,
    /// The message took too long.
    #[error("the message was not there in time; send it at once")]
    Late,
    /// A head that is too long.
    #[error("the head is longer than {MAX_HEAD_BYTES} bytes; leave headers out")]
    HeadTooLong,
    /// A body that is too long.
    #[error("the body is longer than {0} bytes")]
    BodyTooLong(usize),
    /// A body whose length is not plain.
    #[error("Content-Length is {0:?} and has to be one decimal number")]
    Length(String),
    /// A body in pieces.
    #[error("a Transfer-Encoding is not understood here; send a Content-Length")]
    TransferEncoding,
}

/// Longest head of a message.
pub const MAX_HEAD_BYTES: usize = 8 << 10;
/// Longest body of a request.
pub const MAX_REQUEST_BYTES: usize = 64 << 10;
/// Longest body of a response.
pub const MAX_RESPONSE_BYTES: usize = 1 << 20;
const MAX_HEADERS: usize = 32;

impl Error {
    /// What to answer; nothing where nobody listens.
    pub fn fault(&self) -> Option<Fault> {
        let status = match self {
            Self::Io(_) => return None,
            Self::Syntax(_) | Self::Incomplete | Self::Length(_) => 400,
            Self::Late => 408,
            Self::TransferEncoding => 411,
            Self::BodyTooLong(_) => 413,
            Self::HeadTooLong => 431,
        };
        Some(Fault {
            status,
            message: self.to_string(),
        })
    }
}

impl Request {
    /// A request.
    pub fn new(method: &str, target: &str, body: Vec<u8>) -> Self {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        Self {
            method: method.into(),
            path: path.into(),
            query: query.into(),
            body,
        }
    }

    /// Reads a request.
    ///
    /// # Errors
    ///
    /// [`Error`].
    pub fn read(stream: &mut impl Read) -> Result<Self, Error> {
        let (mut request, body) = read_head(stream, |head| {
            let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
            let mut request = httparse::Request::new(&mut headers);
            let httparse::Status::Complete(bytes) = request.parse(head)? else {
                return Ok(None);
            };
            let text = |part: Option<&str>| part.unwrap_or_default().to_owned();
            let length = body_bytes(request.headers)?.unwrap_or(0);
            let read = Self::new(&text(request.method), &text(request.path), Vec::new());
            Ok(Some((read, bytes, length)))
        })?;
        request.body = body.read(stream, MAX_REQUEST_BYTES)?;
        Ok(request)
    }

    /// Writes the request.
    ///
    /// # Errors
    ///
    /// What the stream gives.
    pub fn write(&self, stream: &mut impl Write) -> io::Result<()> {
        let Self {
            method,
            path,
            query,
            body,
        } = self;
        let mark = if query.is_empty() { "" } else { "?" };
        let mut message = format!(
            "{method} {path}{mark}{query} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        )
        .into_bytes();
        if !body.is_empty() {
            let length = body.len();
            write!(
                message,
                "Content-Type: application/json\r\nContent-Length: {length}\r\n"
            )?;
        }
        message.extend(b"\r\n");
        message.extend(body);
        stream.write_all(&message)
    }
}

impl Response {
    /// What was asked for.
    ///
    /// # Panics
    ///
    /// Never: bodies are of numbers, texts and lists.
    pub fn ok(body: &impl Serialize) -> Self {
        Self {
            status: 200,
            allow: None,
            body: serde_json::to_vec(body).expect("an answer has a JSON form"),
        }
    }

    /// What was asked for was done.
    pub fn no_content() -> Self {
        Self {
            status: 204,
            allow: None,
            body: Vec::new(),
        }
    }

    /// What went wrong, in Firecracker's form.
    pub fn fault(fault: &Fault) -> Self {
        let message = FaultMessage {
            fault_message: fault.message.clone(),
        };
        Self {
            status: fault.status,
            ..Self::ok(&message)
        }
    }

    /// A resource without this method.
    pub fn not_allowed(path: &str, allowed: &str) -> Self {
        let fault = Fault {
            status: 405,
            message: format!("{path} takes another method: use {allowed}"),
        };
        Self {
            allow: Some(allowed.into()),
            ..Self::fault(&fault)
        }
    }

    /// Writes the response.
    ///
    /// # Errors
    ///
    /// What the stream gives.
    pub fn write(&self, stream: &mut impl Write) -> io::Result<()> {
        let Self {
            status,
            allow,
            body,
        } = self;
        let mut message = format!("HTTP/1.1 {status} {}\r\n", reason(*status)).into_bytes();
        if let Some(allow) = allow {
            write!(message, "Allow: {allow}\r\n")?;
        }
        if *status != 204 {
            let length = body.len();
            write!(
                message,
                "Content-Type: application/json\r\nContent-Length: {length}\r\n"
            )?;
        }
        message.extend(b"Connection: close\r\n\r\n");
        message.extend(body);
        stream.write_all(&message)
    }

    /// Reads a response.
    ///
    /// # Errors
    ///
    /// [`Error`].
    pub fn read(stream: &mut impl Read) -> Result<Self, Error> {
        let (status, body) = read_head(stream, |head| {
            let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
            let mut response = httparse::Response::new(&mut headers);
            let httparse::Status::Complete(bytes) = response.parse(head)? else {
                return Ok(None);
            };
            let length = body_bytes(response.headers)?.unwrap_or(0);
            Ok(Some((response.code.unwrap_or_default(), bytes, length)))
        })?;
        Ok(Self {
            status,
            allow: None,
            body: body.read(stream, MAX_RESPONSE_BYTES)?,
        })
    }
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        204 => "No Content",
        400 => "Bad Request",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        409 => "Conflict",
        410 => "Gone",
        411 => "Length Required",
        413 => "Content Too Large",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        503 => "Service Unavailable",
        _ => "Internal Server Error",
    }
}

/// A body of which some has been read with the head.
struct Body {
    begun: Vec<u8>,
    length: usize,
}

impl Body {
    fn read(self, stream: &mut impl Read, most: usize) -> Result<Vec<u8>, Error> {
        let Self {
            begun: mut body,
            length,
        } = self;
        if length > most {
            return Err(Error::BodyTooLong(most));
        }
        let begun = body.len().min(length);
        body.resize(length, 0);
        match stream.read_exact(&mut body[begun..]) {
            Ok(()) => Ok(body),
            Err(error) => Err(of_read(error)),
        }
    }
}

/// Reads until `parse` finds a whole head, and returns what that gives and the body to follow.
fn read_head<T>(
    stream: &mut impl Read,
    parse: impl Fn(&[u8]) -> Result<Option<(T, usize, usize)>, Error>,
) -> Result<(T, Body), Error> {
    let mut head = Vec::new();
    let mut chunk = [0; 1024];
    loop {
        if let Some((parsed, bytes, length)) = parse(&head)? {
            if bytes > MAX_HEAD_BYTES {
                return Err(Error::HeadTooLong);
            }
            let begun = head.split_off(bytes);
            return Ok((parsed, Body { begun, length }));
        }
        if head.len() >= MAX_HEAD_BYTES {
            return Err(Error::HeadTooLong);
        }
        match stream.read(&mut chunk) {
            Ok(0) => return Err(Error::Incomplete),
            Ok(count) => head.extend_from_slice(&chunk[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(of_read(error)),
        }
    }
}

fn of_read(error: io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => Error::Late,
        io::ErrorKind::UnexpectedEof => Error::Incomplete,
        _ => Error::Io(error),
    }
}

/// The length of the body that follows the head, if there is one.
fn body_bytes(headers: &[httparse::Header<'_>]) -> Result<Option<usize>, Error> {
    let named = |name: &'static str| {
        headers
            .iter()
            .filter(move |header| header.name.eq_ignore_ascii_case(name))
    };
    if named("transfer-encoding").next().is_some() {
        return Err(Error::TransferEncoding);
    }
    let mut lengths = named("content-length");
    let Some(length) = lengths.next() else {
        return Ok(None);
    };
    let text = String::from_utf8_lossy(length.value);
    let is_plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if lengths.next().is_some() || !is_plain {
        return Err(Error::Length(text.into()));
    }
    // A number with more digits than fit is too long in any case.
    Ok(Some(text.parse().unwrap_or(usize::MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(bytes: &[u8]) -> Result<Request, Error> {
        Request::read(&mut &bytes[..])
    }

    fn status(bytes: &[u8]) -> u16 {
        request(bytes).unwrap_err().fault().unwrap().status
    }

    #[test]
    fn what_one_end_writes_the_other_reads() {
        for sent in [
            Request::new("GET", "/time", Vec::new()),
            Request::new("GET", "/time/events?after=3&wait_ms=4", Vec::new()),
            Request::new("PATCH", "/vm", br#"{"state":"Paused"}"#.to_vec()),
            Request::new("PUT", "/x", vec![b' '; MAX_REQUEST_BYTES]),
        ] {
            let mut bytes = Vec::new();
            sent.write(&mut bytes).unwrap();
            assert_eq!(request(&bytes).unwrap(), sent);
        }
        let sent = Response::fault(&Fault::bad_request("no \"such\" thing".into()));
        for sent in [sent, Response::no_content(), Response::ok(&[7])] {
            let mut bytes = Vec::new();
            sent.write(&mut bytes).unwrap();
            let read = Response::read(&mut &bytes[..]).unwrap();
            assert_eq!((read.status, read.body), (sent.status, sent.body));
        }
        let fault = Response::fault(&Fault::bad_request("no \"such\" thing".into()));
        assert_eq!(fault.body, br#"{"fault_message":"no \"such\" thing"}"#);
    }

    #[test]
    fn a_target_is_a_path_and_a_query() {
        let read = request(b"GET /time/events?after=1 HTTP/1.1\r\n\r\n").unwrap();
        assert_eq!(
            (read.path.as_str(), read.query.as_str()),
            ("/time/events", "after=1")
        );
        let read = request(b"GET /?? HTTP/1.1\r\n\r\n").unwrap();
        assert_eq!((read.path.as_str(), read.query.as_str()), ("/", "?"));
    }

    #[test]
    fn a_body_has_the_length_that_is_said() {
        let with = |headers: &str, body: &str| format!("PUT / HTTP/1.1\r\n{headers}\r\n{body}");
        let read = request(with("Content-Length: 2\r\n", "{}rest").as_bytes()).unwrap();
        assert_eq!(read.body, b"{}");
        assert_eq!(request(with("", "ignored").as_bytes()).unwrap().body, b"");
        for (headers, expected) in [
            ("Content-Length: 7\r\n", 400),
            ("Content-Length: -1\r\n", 400),
            ("Content-Length: +2\r\n", 400),
            ("Content-Length: 2, 2\r\n", 400),
            ("Content-Length: \r\n", 400),
            ("Content-Length: 2\r\nContent-Length: 2\r\n", 400),
            ("Content-Length: 65537\r\n", 413),
            ("Content-Length: 99999999999999999999999\r\n", 413),
            ("Transfer-Encoding: chunked\r\n", 411),
        ] {
            assert_eq!(
                status(with(headers, "{}").as_bytes()),
                expected,
                "{headers}"
            );
        }
    }

    /// A stream that a signal interrupts before each byte.
    struct Interrupted<'a>(&'a [u8], bool);

    impl Read for Interrupted<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.1 = !self.1;
            if self.1 {
                return Err(io::ErrorKind::Interrupted.into());
            }
            self.0.read(&mut buffer[..1])
        }
    }

    #[test]
    fn a_signal_is_no_error() {
        let bytes = b"PUT /x HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}";
        let read = Request::read(&mut Interrupted(bytes, false)).unwrap();
        assert_eq!(
            (read.path.as_str(), read.body.as_slice()),
            ("/x", b"{}".as_slice())
        );
    }

    #[test]
    fn peers_that_talk_nonsense_are_refused() {
        assert_eq!(status(b"GET /"), 400);
        assert_eq!(status(b""), 400);
        assert_eq!(status(b"\xff\xfe\r\n\r\n"), 400);
        assert_eq!(status(&[b"GET /".as_slice(), &[b'x'; 9_000]].concat()), 431);
        let long = format!(
            "GET / HTTP/1.1\r\nX: {}\r\n\r\n",
            "x".repeat(MAX_HEAD_BYTES)
        );
        assert_eq!(status(long.as_bytes()), 431);
        let many = format!("GET / HTTP/1.1\r\n{}\r\n", "X: x\r\n".repeat(33));
        assert_eq!(status(many.as_bytes()), 400);
        for cut in [
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n{}",
            "HTTP/1.1 200 OK\r\nContent-Le",
        ] {
            let read = Response::read(&mut cut.as_bytes());
            assert!(matches!(read, Err(Error::Incomplete)), "{read:?}");
        }
    }
}
