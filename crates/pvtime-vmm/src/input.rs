//! From standard input to a serial port.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::sync::PoisonError;

use anyhow::{Context, Result};

use crate::console::Keys;
use crate::machine::Port;

/// Input on its way to the guest. The port holds few bytes; the rest waits here, and nothing more
/// is read meanwhile.
pub struct Input<'a> {
    port: &'a Port,
    keys: Option<Keys>,
    waiting: VecDeque<u8>,
    ended: bool,
}

impl<'a> Input<'a> {
    /// Feeds `port`; at a terminal, keys may be commands.
    pub fn new(port: &'a Port, is_terminal: bool) -> Self {
        let keys = is_terminal.then(Keys::default);
        Self {
            port,
            keys,
            waiting: VecDeque::new(),
            ended: false,
        }
    }

    /// The port.
    pub fn port(&self) -> &'a Port {
        self.port
    }

    /// Whether there is room for more.
    pub fn wants_bytes(&self) -> bool {
        !self.ended && self.waiting.is_empty()
    }

    /// Takes what can be read without waiting; breaks where the command to stop was typed.
    ///
    /// # Errors
    ///
    /// What reading standard input gives.
    pub fn read(&mut self, stdin: impl AsFd) -> Result<ControlFlow<()>> {
        let mut bytes = [0; 256];
        let count = match rustix::io::read(stdin, &mut bytes) {
            Ok(count) => count,
            Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => {
                return Ok(ControlFlow::Continue(()));
            }
            Err(error) => return Err(error).context("cannot read standard input"),
        };
        self.ended = count == 0;
        let bytes = &bytes[..count];
        let Some(keys) = &mut self.keys else {
            self.waiting.extend(bytes);
            return Ok(ControlFlow::Continue(()));
        };
        let typed = keys.typed(bytes);
        self.waiting.extend(typed.input);
        Ok(if typed.stop {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        })
    }

    /// Moves as much into the port as it takes.
    pub fn feed(&mut self) {
        // What was drained is looked at now.
        self.port.drained.clear();
        let mut port = self
            .port
            .port
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        while !self.waiting.is_empty() && port.fifo_capacity() > 0 {
            let (bytes, _) = self.waiting.as_slices();
            // A port in loop mode takes nothing from outside.
            match port.enqueue_raw_bytes(bytes) {
                Ok(0) | Err(_) => break,
                Ok(taken) => drop(self.waiting.drain(..taken)),
            }
        }
    }
}
