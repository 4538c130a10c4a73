//! Somebody who connects to `pvtime receive`, and what that says of it.

use super::attacks::Attack;
use crate::guest::Receiver;
use crate::host::Host;
use crate::interrupt::sleep;
use anyhow::{Result, bail};
use lab_agent::TALK;
use lab_agent::message::{ChildId, Spawn};
use rustix::process::Signal;
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// The path of the socket where a VMM waits.
pub fn socket(receiver: &Receiver) -> &str {
    receiver.address.trim_start_matches("unix:")
}

/// A peer that has sent its bytes.
pub struct Peer {
    pub talker: ChildId,
    start: Instant,
    /// Bytes that the VMM had said before.
    said_before: usize,
}

/// What was said of one.
pub struct Said {
    pub text: String,
    pub after: Duration,
}

impl Peer {
    pub fn send(attack: &Attack, receiver: &Receiver, host: &mut Host) -> Result<Self> {
        const CHUNK: usize = 64 << 10;
        let said_before = receiver.said(host)?.len();
        let agent = host.facts().agent_program.clone();
        let start = Instant::now();
        let talker = host.spawn(Spawn {
            argv: vec![agent, TALK.into(), socket(receiver).to_owned()],
            stdin: true,
            stdout: Some(host.file("answers")),
            stderr: Some(host.file("talk.log")),
            ..Spawn::default()
        })?;
        let peer = Self {
            talker: talker.child,
            start,
            said_before,
        };
        for chunk in attack.bytes.chunks(CHUNK) {
            if !peer.say(chunk, host) {
                break;
            }
        }
        Ok(peer)
    }

    /// Sends more, unless the VMM has left it already.
    pub fn say(&self, bytes: &[u8], host: &mut Host) -> bool {
        host.write_stdin(self.talker, bytes).is_ok()
    }

    /// What the VMM says of it: a line, and whatever else it says with that.
    pub fn await_line(
        &self,
        attack: &Attack,
        receiver: &Receiver,
        host: &mut Host,
    ) -> Result<Said> {
        self.await_text("\n", attack, receiver, host)
    }

    pub fn await_text(
        &self,
        text: &str,
        attack: &Attack,
        receiver: &Receiver,
        host: &mut Host,
    ) -> Result<Said> {
        loop {
            if let Some(said) = self.look(text, attack, receiver, host)? {
                return Ok(said);
            }
            sleep(LOOK_EVERY)?;
        }
    }

    /// What the VMM says of it by now, if it has said a line.
    pub fn line(
        &self,
        attack: &Attack,
        receiver: &Receiver,
        host: &mut Host,
    ) -> Result<Option<Said>> {
        self.look("\n", attack, receiver, host)
    }

    fn look(
        &self,
        text: &str,
        attack: &Attack,
        receiver: &Receiver,
        host: &mut Host,
    ) -> Result<Option<Said>> {
        let said = receiver.said(host)?.split_off(self.said_before);
        let after = self.start.elapsed();
        if said.contains(text) && said.ends_with('\n') {
            return Ok(Some(Said { text: said, after }));
        }
        if after > LIMIT {
            bail!(
                "of a peer with {}: the VMM has said {said:?} in {} s",
                attack.name,
                LIMIT.as_secs()
            );
        }
        Ok(None)
    }

    pub fn end(self, host: &mut Host) -> Result<()> {
        let _ended_already = host.signal(self.talker, Signal::KILL.as_raw());
        host.wait(self.talker, LIMIT).map(drop)
    }
}
