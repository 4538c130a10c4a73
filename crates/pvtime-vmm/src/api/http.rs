//! As much of HTTP/1.1 as the control socket needs: one request and one response a connection.

use std::io::{self, Read, Write};

use serde_json::{Value, json};

/// A request without a body.
#[derive(Debug, PartialEq, Eq)]
pub struct Request {
    /// In capitals.
    pub method: String,
    /// From the first slash on.
    pub path: String,
}

/// A response with a JSON body.
#[derive(Debug)]
pub struct Response {
    /// 200 or what went wrong.
    pub status: u16,
    /// JSON.
    pub body: Vec<u8>,
}

/// A peer that is not understood.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Reading or writing failed, or took too long.
    #[error("the connection broke: {0}")]
    Io(#[from] io::Error),
    /// This is no HTTP.
    #[error("this is no HTTP/1.1: {0}")]
    Syntax(#[from] httparse::Error),
    /// The connection ended too early.
    #[error("the connection ended in the middle of a message")]
    Incomplete,
    /// A head of more than 8 KiB, or a body of more than 1 MiB.
    #[error("the message is longer than {0} bytes")]
    TooLong(usize),
}

const MAX_HEAD_BYTES: usize = 8 << 10;
const MAX_RESPONSE_BYTES: usize = 1 << 20;
const MAX_HEADERS: usize = 32;

impl Request {
    /// Reads a request's head.
    ///
    /// # Errors
    ///
    /// [`Error`].
    pub fn read(stream: &mut impl Read) -> Result<Self, Error> {
        let mut head = Vec::new();
        let mut chunk = [0; 512];
        loop {
            let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
            let mut request = httparse::Request::new(&mut headers);
            if request.parse(&head)?.is_complete() {
                let text = |part: Option<&str>| part.unwrap_or_default().to_owned();
                return Ok(Self {
                    method: text(request.method),
                    path: text(request.path),
                });
            }
            if head.len() >= MAX_HEAD_BYTES {
                return Err(Error::TooLong(MAX_HEAD_BYTES));
            }
            match stream.read(&mut chunk)? {
                0 => return Err(Error::Incomplete),
                count => head.extend_from_slice(&chunk[..count]),
            }
        }
    }

    /// Writes the request.
    ///
    /// # Errors
    ///
    /// What the stream gives.
    pub fn write(&self, stream: &mut impl Write) -> io::Result<()> {
        let Self { method, path } = self;
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        )
    }
}

impl Response {
    /// A response with this body.
    pub fn new(status: u16, body: &Value) -> Self {
        Self {
            status,
            body: body.to_string().into_bytes(),
        }
    }

    /// What went wrong, in Firecracker's form.
    pub fn fault(status: u16, message: &str) -> Self {
        Self::new(status, &json!({ "fault_message": message }))
    }

    /// Writes the response.
    ///
    /// # Errors
    ///
    /// What the stream gives.
    pub fn write(&self, stream: &mut impl Write) -> io::Result<()> {
        let reason = match self.status {
            200 => "OK",
            400 => "Bad Request",
            404 => "Not Found",
            405 => "Method Not Allowed",
            _ => "Internal Server Error",
        };
        write!(
            stream,
            "HTTP/1.1 {} {reason}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
             Connection: close\r\n\r\n",
            self.status,
            self.body.len()
        )?;
        stream.write_all(&self.body)
    }

    /// Reads a response to its end.
    ///
    /// # Errors
    ///
    /// [`Error`].
    pub fn read(stream: &mut impl Read) -> Result<Self, Error> {
        let mut bytes = Vec::new();
        stream
            .take(MAX_RESPONSE_BYTES as u64 + 1)
            .read_to_end(&mut bytes)?;
        if bytes.len() > MAX_RESPONSE_BYTES {
            return Err(Error::TooLong(MAX_RESPONSE_BYTES));
        }
        let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let mut response = httparse::Response::new(&mut headers);
        let httparse::Status::Complete(head_bytes) = response.parse(&bytes)? else {
            return Err(Error::Incomplete);
        };
        let status = response.code.unwrap_or_default();
        let expected_bytes = response
            .headers
            .iter()
            .find(|header| header.name.eq_ignore_ascii_case("content-length"))
            .and_then(|header| {
                std::str::from_utf8(header.value)
                    .ok()?
                    .parse::<usize>()
                    .ok()
            });
        let body = bytes.split_off(head_bytes);
        match expected_bytes {
            Some(expected_bytes) if body.len() < expected_bytes => Err(Error::Incomplete),
            _ => Ok(Self { status, body }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(bytes: &[u8]) -> Result<Request, Error> {
        Request::read(&mut &bytes[..])
    }

    #[test]
    fn what_one_end_writes_the_other_reads() {
        let sent = Request {
            method: "GET".into(),
            path: "/time".into(),
        };
        let mut bytes = Vec::new();
        sent.write(&mut bytes).unwrap();
        assert_eq!(request(&bytes).unwrap(), sent);

        let mut bytes = Vec::new();
        Response::fault(404, "no \"such\" thing")
            .write(&mut bytes)
            .unwrap();
        let read = Response::read(&mut &bytes[..]).unwrap();
        assert_eq!(read.status, 404);
        assert_eq!(read.body, br#"{"fault_message":"no \"such\" thing"}"#);
    }

    #[test]
    fn peers_that_talk_nonsense_are_refused() {
        assert!(matches!(request(b"GET /"), Err(Error::Incomplete)));
        assert!(matches!(
            request(b"\xff\xfe\r\n\r\n"),
            Err(Error::Syntax(_))
        ));
        let endless = [b"GET /".as_slice(), &[b'x'; MAX_HEAD_BYTES]].concat();
        assert!(matches!(request(&endless), Err(Error::TooLong(_))));
        let cut = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n{}";
        assert!(matches!(
            Response::read(&mut &cut[..]),
            Err(Error::Incomplete)
        ));
    }
}
