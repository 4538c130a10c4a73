//! Lines to a program on a host and lines from it, with the moments between which they went.

use crate::host::Host;
use crate::interrupt;
use crate::lost::Moment;
use crate::sightings::Sighting;
use anyhow::{Context, Result, bail};
use guest_protocol::{Action, Body, MAX_LINE, Report, Request};
use lab_agent::message::Spawned;
use std::mem;
use std::time::{Duration, Instant};

/// Longest time for a line.
const LIMIT: Duration = Duration::from_secs(120);

/// An answer's moment is not known better than this.
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// The first request has the next number: others of the same guest's have lower ones.
const IDS_ABOVE: u32 = 1 << 20;

/// The standard input of a program that was started, and the file with its standard output.
pub struct Dialogue {
    program: Spawned,
    output: String,
    read: u64,
    /// What of it has not been looked at, and a moment at which the first of that was there.
    rest: Vec<u8>,
    began: Instant,
    last_id: u32,
}

impl Dialogue {
    /// A dialogue from the start of the program's output.
    #[must_use]
    pub fn attach(program: Spawned, output: String) -> Self {
        Self {
            program,
            output,
            read: 0,
            rest: Vec::new(),
            began: Instant::now(),
            last_id: IDS_ABOVE,
        }
    }

    /// The program.
    #[must_use]
    pub fn program(&self) -> Spawned {
        self.program
    }

    /// Writes to the program.
    ///
    /// # Errors
    /// When it has ended.
    pub fn write(&self, host: &mut Host, bytes: &[u8]) -> Result<()> {
        host.write_stdin(self.program.child, bytes)
    }

    /// Waits for a line of which something can be made, and says when its first byte was there at the
    /// latest: a port that is slow takes long for the others. Lines before it are passed over.
    ///
    /// # Errors
    /// When none comes.
    pub fn await_line<T>(
        &mut self,
        host: &mut Host,
        make: impl Fn(&[u8]) -> Option<T>,
    ) -> Result<(T, Instant)> {
        let start = Instant::now();
        let mut looked = start;
        loop {
            while let Some(end) = self.rest.iter().position(|&byte| byte == b'\n') {
                let line: Vec<_> = self.rest.drain(..=end).collect();
                let began = mem::replace(&mut self.began, looked);
                if let Some(made) = make(&line) {
                    return Ok((made, began));
                }
            }
            let bytes = host.read_from(&self.output, self.read)?;
            looked = Instant::now();
            if self.rest.is_empty() {
                self.began = looked;
            }
            self.read += bytes.len() as u64;
            if bytes.is_empty() {
                if let Some(exit) = host.poll_end(self.program.child)? {
                    bail!("what writes {} ended with {exit:?}", self.output);
                }
                interrupt::sleep(LOOK_EVERY)?;
            }
            self.rest.extend(bytes);
            if start.elapsed() > LIMIT {
                bail!("{} says no more what it should", self.output);
            }
        }
    }

    /// Waits for the introduction of the guest program behind the program.
    ///
    /// # Errors
    /// When it does not come.
    pub fn await_hello(&mut self, host: &mut Host) -> Result<()> {
        let hello = self.await_line(host, |line| {
            let report = Report::parse(line).ok()?;
            matches!(report.body, Body::Hello(_)).then_some(())
        });
        hello.map(|((), _)| ())
    }

    /// Asks the guest program, and waits for the first report that answers.
    ///
    /// # Errors
    /// When it refuses or does not answer.
    pub fn ask(&mut self, host: &mut Host, action: Action) -> Result<Body> {
        self.ask_when(host, action).map(|(body, _)| body)
    }

    /// The same, with when the answer had begun.
    fn ask_when(&mut self, host: &mut Host, action: Action) -> Result<(Body, Instant)> {
        self.last_id += 1;
        let id = self.last_id;
        let mut line = [0; MAX_LINE];
        let length = Request::new(action).with_id(id).emit(&mut line)?;
        self.write(host, &line[..length])?;
        let body = self.await_line(host, |line| {
            let report = Report::parse(line).ok()?;
            (report.answers == Some(id)).then_some(report.body)
        });
        match body.with_context(|| format!("no answer to {action:?}"))? {
            (Body::Error(error), _) => bail!("the guest at {}: {}", self.output, error.message),
            answer => Ok(answer),
        }
    }

    /// Its clocks, read between two moments of this machine.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub fn sight(&mut self, host: &mut Host) -> Result<Sighting> {
        let asked = Instant::now();
        match self.ask_when(host, Action::Sample)? {
            (Body::Sample(sample), answered) => Ok(Sighting {
                asked,
                answered,
                sample,
            }),
            (other, _) => bail!("the guest sent {other:?} for a sample"),
        }
    }

    /// The virtual counter of a bare-metal guest, as ns, read so often.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub fn counters(&mut self, host: &mut Host, count: usize) -> Result<Vec<Moment>> {
        let hz = host.facts().counter_frequency_hz.context("no frequency")?;
        let mut read = || {
            let asked = Instant::now();
            match self.ask_when(host, Action::Clocks)? {
                (Body::Clocks(clocks), answered) => {
                    let ns = u128::from(clocks.virtual_after) * 1_000_000_000 / u128::from(hz);
                    Ok(Moment {
                        asked,
                        answered,
                        clock_ns: u64::try_from(ns)?,
                    })
                }
                (other, _) => bail!("the guest sent {other:?} for its clocks"),
            }
        };
        (0..count).map(|_| read()).collect()
    }

    /// The same as [`Self::sight`] as often: a guest that has nothing else to do answers at once.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub fn sights(&mut self, host: &mut Host, count: usize) -> Result<Vec<Sighting>> {
        (0..count).map(|_| self.sight(host)).collect()
    }
}
