//! The lab's end of the channel to an agent.

use crate::interrupt;
use anyhow::{Context, Result, bail};
use lab_agent::frame;
use lab_agent::message::{Answer, Request};
use serde::de::DeserializeOwned;
use std::io::{ErrorKind, Read};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// Calls the agent. After a failure other than the agent's own "failed" it answers no more calls,
/// since the answer to a call that was given up may still arrive.
pub struct Channel {
    stream: UnixStream,
    buffer: Vec<u8>,
    broken: bool,
}

impl Channel {
    /// Takes over the socket whose other end the agent has.
    ///
    /// # Errors
    /// When the socket has no timeouts.
    pub fn attach(stream: UnixStream) -> Result<Self> {
        stream.set_read_timeout(Some(interrupt::LOOK_EVERY))?;
        Ok(Self {
            stream,
            buffer: Vec::new(),
            broken: false,
        })
    }

    /// Whether a call can be answered.
    #[must_use]
    pub fn is_usable(&self) -> bool {
        !self.broken && !interrupt::signalled()
    }

    /// Makes one request and takes its answer: the value and the payload.
    ///
    /// # Errors
    /// The agent's own line, or what broke the channel: its end, an unknown answer, `limit`, a signal.
    pub fn call<T: DeserializeOwned>(
        &mut self,
        request: &Request,
        payload: &[u8],
        limit: Duration,
    ) -> Result<(T, Vec<u8>)> {
        if self.broken {
            bail!("the host answers no more calls after an earlier failure");
        }
        self.broken = true;
        let (answer, bytes) = self.exchange(request, payload, limit)?;
        self.broken = false;
        match answer {
            Answer::Done(value) => Ok((value, bytes)),
            Answer::Failed(why) => bail!("{why}"),
        }
    }

    fn exchange<T: DeserializeOwned>(
        &mut self,
        request: &Request,
        payload: &[u8],
        limit: Duration,
    ) -> Result<(Answer<T>, Vec<u8>)> {
        self.stream
            .set_write_timeout(Some(limit.max(Duration::from_millis(1))))?;
        frame::write(&mut self.stream, request, payload).context("cannot reach the host")?;
        let start = Instant::now();
        let mut chunk = vec![0; 64 << 10];
        loop {
            if let Some(frame) = frame::parse(&mut self.buffer)? {
                return Ok(frame);
            }
            interrupt::check()?;
            if start.elapsed() > limit {
                bail!(
                    "the host did not answer within {:.1} s",
                    limit.as_secs_f64()
                );
            }
            match self.stream.read(&mut chunk) {
                Ok(0) => bail!("the host closed the channel"),
                Ok(n) => self.buffer.extend_from_slice(&chunk[..n]),
                Err(e) if is_retry(e.kind()) => {}
                Err(e) => return Err(e).context("the channel to the host failed"),
            }
        }
    }
}

fn is_retry(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
    )
}
