//! A connection between two Unix sockets that breaks at a chosen byte, or where a process is killed
//! at it.

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::{scope, sleep};
use std::time::Duration;

/// The agent's program with this argument, and an [`Order`] as JSON behind it, relays one connection.
pub const RELAY: &str = "relay";

/// What it prints when whoever connects finds it.
pub const LISTENS: &str = "relay: listening\n";

/// What is relayed, and what happens to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// Path of the socket that it makes; whoever connects to it speaks forward.
    pub listen: String,
    /// Path of the socket that it connects to.
    pub to: String,
    /// When something happens, and what; absent for nothing.
    pub fault: Option<Fault>,
    /// Path of a file to keep in what goes forward.
    pub keep: Option<String>,
}

/// Something that happens to a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// After so many bytes have gone back.
    pub backward_bytes: u64,
    /// And so many forward since then; not both are 0.
    pub forward_bytes: u64,
    /// So long after that, in us.
    pub delay_us: u64,
    /// What happens.
    pub act: Act,
}

/// What happens to a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Act {
    /// It ends, in both directions.
    Cut,
    /// The process of this id is killed.
    Kill(u32),
}

/// What it prints at the end, as JSON: what passed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Passed {
    /// Bytes in one direction, then in the other, and so on. Forward comes first.
    pub turns: Vec<u64>,
    /// Whether the fault was reached.
    pub acted: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    Forward,
    Backward,
}

/// One relayed connection.
struct Relay {
    near: UnixStream,
    far: UnixStream,
    fault: Option<Fault>,
    kept: Option<File>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    passed: Passed,
    backward_bytes: u64,
    /// Since so many went back as the fault waits for.
    forward_bytes: u64,
}

/// Relays one connection to its end.
///
/// # Errors
/// When a socket cannot be made or reached.
pub fn run(order: &Order) -> Result<Passed> {
    let listener = UnixListener::bind(&order.listen)
        .with_context(|| format!("cannot wait at {}", order.listen))?;
    let mut stdout = io::stdout();
    stdout.write_all(LISTENS.as_bytes())?;
    stdout.flush()?;
    let (near, _) = listener.accept().context("nobody came")?;
    let far = UnixStream::connect(&order.to);
    let kept = order.keep.as_ref().map(File::create).transpose();
    let relay = Relay {
        near,
        far: far.with_context(|| format!("cannot reach {}", order.to))?,
        fault: order.fault,
        kept: kept.context("cannot keep what passes")?,
        state: Mutex::default(),
    };
    scope(|threads| {
        threads.spawn(|| relay.carry(Direction::Forward));
        relay.carry(Direction::Backward);
    });
    Ok(relay.state().passed.clone())
}

impl Relay {
    /// Carries one direction to its end; the other side learns of it.
    fn carry(&self, direction: Direction) {
        let (mut from, mut to) = match direction {
            Direction::Forward => (&self.near, &self.far),
            Direction::Backward => (&self.far, &self.near),
        };
        let mut buffer = [0; 4096];
        while let Ok(length @ 1..) = from.read(&mut buffer) {
            let bytes = &buffer[..length];
            let kept = self
                .kept
                .as_ref()
                .filter(|_| direction == Direction::Forward);
            if kept.is_some_and(|mut kept| kept.write_all(bytes).is_err()) {
                break;
            }
            let sent = match self.enter(direction, length) {
                None => to.write_all(bytes),
                Some(at) => {
                    let sent = to.write_all(&bytes[..at]);
                    self.act();
                    sent.and_then(|()| to.write_all(&bytes[at..]))
                }
            };
            // Nobody reads any more: then nothing more comes, either.
            if sent.is_err() {
                break;
            }
        }
        let _ended_already = to.shutdown(Shutdown::Write);
    }

    /// Enters what goes one way, and returns how much of it goes before the fault, if that is within
    /// it.
    fn enter(&self, direction: Direction, length: usize) -> Option<usize> {
        let mut state = self.state();
        let bytes = length as u64;
        state.passed.enter(direction, bytes);
        let fault = self.fault.filter(|_| !state.passed.acted)?;
        let State {
            backward_bytes,
            forward_bytes,
            ..
        } = &mut *state;
        let left = match direction {
            Direction::Forward if *backward_bytes < fault.backward_bytes => return None,
            Direction::Forward => take(forward_bytes, bytes, fault.forward_bytes)?,
            Direction::Backward => {
                let left = take(backward_bytes, bytes, fault.backward_bytes)?;
                // What goes forward after it is waited for.
                if fault.forward_bytes > 0 {
                    return None;
                }
                left
            }
        };
        state.passed.acted = true;
        usize::try_from(left).ok()
    }

    fn act(&self) {
        let Some(fault) = self.fault else {
            return;
        };
        sleep(Duration::from_micros(fault.delay_us));
        match fault.act {
            Act::Cut => {
                for side in [&self.near, &self.far] {
                    let _ended_already = side.shutdown(Shutdown::Both);
                }
            }
            Act::Kill(pid) => {
                let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
                let _ended_already = pid.map(|pid| kill_process(pid, Signal::KILL));
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Adds bytes to those that passed, and returns how many of them there were until so many had; none
/// where there were more before or are too few.
fn take(passed: &mut u64, bytes: u64, until: u64) -> Option<u64> {
    let left = until.checked_sub(*passed);
    *passed += bytes;
    left.filter(|left| (1..=bytes).contains(left))
}

impl Passed {
    fn enter(&mut self, direction: Direction, bytes: u64) {
        let is_forward = self.turns.len() % 2 == 1;
        if is_forward != (direction == Direction::Forward) || self.turns.is_empty() {
            if self.turns.is_empty() && direction == Direction::Backward {
                self.turns.push(0);
            }
            self.turns.push(0);
        }
        if let Some(turn) = self.turns.last_mut() {
            *turn += bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;
    use std::path::PathBuf;
    use std::thread;

    /// Says `ask` through a relay, whose other end says `answer` when it has heard all of that.
    /// Returns what each side heard, and what passed.
    fn relayed(name: &str, fault: Option<Fault>) -> (Vec<u8>, Vec<u8>, Passed) {
        let path = |what: &str| -> PathBuf {
            std::env::temp_dir().join(format!("lab-relay-{name}-{what}-{}", std::process::id()))
        };
        let (listen, to) = (path("near"), path("far"));
        let order = Order {
            listen: listen.to_str().unwrap().into(),
            to: to.to_str().unwrap().into(),
            fault,
            keep: Some(path("kept").to_str().unwrap().into()),
        };
        let far = UnixListener::bind(&to).unwrap();
        let relay = thread::spawn(move || run(&order).unwrap());
        let answerer = thread::spawn(move || {
            let (mut stream, _) = far.accept().unwrap();
            let mut heard = Vec::new();
            let asked = b"asked".len() as u64;
            let _cut = (&mut stream).take(asked).read_to_end(&mut heard);
            let _cut = stream.write_all(b"answer");
            heard
        });
        let mut near = loop {
            if let Ok(stream) = UnixStream::connect(&listen) {
                break stream;
            }
        };
        let _cut = near.write_all(b"asked");
        let mut answer = Vec::new();
        let _cut = near.read_to_end(&mut answer);
        drop(near);
        let found = (answerer.join().unwrap(), answer, relay.join().unwrap());
        let kept = std::fs::read(path("kept")).unwrap();
        assert!(kept.starts_with(&found.0), "{kept:?}");
        for path in [listen, to, path("kept")] {
            std::fs::remove_file(path).unwrap();
        }
        found
    }

    fn cut(backward_bytes: u64, forward_bytes: u64) -> Fault {
        Fault {
            backward_bytes,
            forward_bytes,
            delay_us: 0,
            act: Act::Cut,
        }
    }

    #[test]
    fn everything_passes_and_is_counted() {
        let (heard, answer, passed) = relayed("whole", None);
        assert_eq!((&heard[..], &answer[..]), (&b"asked"[..], &b"answer"[..]));
        let expected = Passed {
            turns: vec![5, 6],
            acted: false,
        };
        assert_eq!(passed, expected);
    }

    #[test]
    fn it_is_cut_at_the_byte_in_either_direction() {
        let (heard, answer, passed) = relayed("forward", Some(cut(0, 3)));
        assert_eq!((&heard[..], &answer[..]), (&b"ask"[..], &b""[..]));
        assert!(passed.acted);
        let (heard, answer, passed) = relayed("backward", Some(cut(4, 0)));
        assert_eq!((&heard[..], &answer[..]), (&b"asked"[..], &b"answ"[..]));
        assert!(passed.acted);
    }

    #[test]
    fn a_point_that_is_not_reached_is_told() {
        let (_, answer, passed) = relayed("beyond", Some(cut(6, 1)));
        assert_eq!((&answer[..], passed.acted), (&b"answer"[..], false));
    }
}
